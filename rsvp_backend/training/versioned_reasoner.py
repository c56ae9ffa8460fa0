"""Serving the current version of a local reasoner, and following it while it changes: one base in memory."""

from __future__ import annotations

import logging

from rsvp_backend.reasoner.local import LocalReasoner
from rsvp_backend.training.reasoner_deltas import ReasonerBase, with_delta
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.versions import VersionError

log = logging.getLogger(__name__)


class VersionedReasoner(LocalReasoner):
    """The reasoner of one version (None: of the base weights themselves).

    It shares with ``base`` the tensors that its version leaves alone, and the lock: they answer one after the other.
    """

    def __init__(self, base: ReasonerBase, source: CurrentReasoner, version: str | None) -> None:
        loaded = base.loaded
        if version is not None:
            loaded = with_delta(loaded, source.registry.delta(version), version)
        super().__init__(loaded, base.decoding, base.prompts)
        self._lock = base.plain._lock
        self.source = source


class CurrentReasoner:
    """The current version of ``registry`` as a reasoner, made anew whenever another one is promoted.

    One thread at a time.
    """

    def __init__(self, registry: Registry, base: ReasonerBase) -> None:
        self.registry = registry
        self._base = base
        self._stamp = registry.stamp()

    def first(self) -> VersionedReasoner:
        """The current version; the base weights, and one line in the log, where it cannot be used."""
        try:
            return self._reasoner()
        except VersionError as error:
            log.error("%s. The base weights %s are served", error, self._base.version)
            return VersionedReasoner(self._base, self, None)

    def changed(self) -> VersionedReasoner | None:
        """The reasoner of a version that became current since the last call, else None.

        Raises `VersionError` where it cannot be used; asked again, it is not tried again before the next promotion.
        """
        stamp = self.registry.stamp()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        if stamp is None:
            raise VersionError(f"{self.registry.folder} ({self.registry.setting}) names no current version any more")
        return self._reasoner()

    def _reasoner(self) -> VersionedReasoner:
        current = self.registry.current()
        if current is not None:
            self.registry.check_base(current, self._base.version)
        return VersionedReasoner(self._base, self, current)


def follow(registry: Registry, base: ReasonerBase) -> VersionedReasoner:
    """The current version in ``registry`` over ``base``."""
    try:
        registry.clean()
    except VersionError as error:
        log.warning("%s", error)  # who only reads needs no more than that
    reasoner = CurrentReasoner(registry, base).first()
    log.info("reasoner %s, over the base weights %s", reasoner.version, base.version)
    return reasoner
