"""Following the current version of a registry while it changes: what is served is made anew after each promotion."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from rsvp_backend.training.registry import Registry
from rsvp_backend.training.versions import VersionError

log = logging.getLogger(__name__)
Model = TypeVar("Model")


class Following(Generic[Model]):
    """``make``: the model of a version, or of the base weights (None); it may raise `VersionError`. ``base``: their
    name. One thread at a time."""

    def __init__(self, registry: Registry, base: str, make: Callable[[Following[Model], str | None], Model]) -> None:
        self.registry = registry
        self.base, self._make = base, make
        self._stamp = registry.stamp()

    def first(self) -> Model:
        """Of the current version; of the base weights, and one line in the log, where it cannot be used."""
        try:
            self.registry.clean()
        except VersionError as error:
            log.warning("%s", error)  # who only reads needs no more than that
        try:
            return self._make(self, self.registry.current())
        except VersionError as error:
            log.error("%s. The base weights %s are served", error, self.base)
            return self._make(self, None)

    def of(self, version: str | None) -> Model:
        """Of any version, whatever is current: what is followed stays as it is. Raises `VersionError`."""
        return self._make(self, version)

    def changed(self) -> Model | None:
        """Of a version that became current since the last call, else None.

        Raises `VersionError` where it cannot be used; asked again, it is not tried again before the next promotion.
        """
        stamp = self.registry.stamp()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        if stamp is None:
            raise VersionError(f"{self.registry.folder} ({self.registry.setting}) names no current version any more")
        return self._make(self, self.registry.current())
