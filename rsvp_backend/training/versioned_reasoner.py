"""Serving the current version of a local reasoner, and following it while it changes: one base in memory."""

from __future__ import annotations

import logging

from rsvp_backend.reasoner.local import LocalReasoner
from rsvp_backend.training.following import Following
from rsvp_backend.training.reasoner_deltas import ReasonerBase, with_delta
from rsvp_backend.training.registry import Registry

log = logging.getLogger(__name__)


class VersionedReasoner(LocalReasoner):
    """The reasoner of one version (None: of the base weights themselves).

    It shares with ``base`` the tensors that its version leaves alone, and the lock: they answer one after the other.
    """

    def __init__(self, base: ReasonerBase, source: Following[VersionedReasoner], version: str | None) -> None:
        loaded = base.loaded
        if version is not None:
            loaded = with_delta(loaded, source.registry.delta(version), version)
        super().__init__(loaded, base.decoding, base.prompts)
        self._lock = base.plain._lock
        self.source = source


def follow(registry: Registry, base: ReasonerBase) -> VersionedReasoner:
    """The current version in ``registry`` over ``base``."""

    def make(source: Following[VersionedReasoner], version: str | None) -> VersionedReasoner:
        if version is not None:
            registry.check_base(version, base.version)
        return VersionedReasoner(base, source, version)

    reasoner = Following(registry, base.version, make).first()
    log.info("reasoner %s, over the base weights %s", reasoner.version, base.version)
    return reasoner
