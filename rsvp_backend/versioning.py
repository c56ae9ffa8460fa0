"""What can be done with versions, whoever asks: the command line or a page. See `training.registry`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rsvp_backend.pipeline import RSVP
from rsvp_backend.training.following import Following
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.versions import Version, VersionError

MODELS = {"vlsm": "RSVP_VERSIONS", "reasoner": "RSVP_REASONER_VERSIONS"}
"""What has versions, and the setting that names their folder."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """The base weights in use, by their name, and a trial of a version on them that raises `VersionError`."""

    base: str
    try_on: Callable[[str], object]


def listed(registry: Registry) -> dict[str, Any]:
    """All versions as JSON types."""
    return {
        "current": registry.current(),
        "versions": [described(registry, version) for version in registry.list()],
        "damaged": registry.damaged(),
    }


def described(registry: Registry, version: Version) -> dict[str, Any]:
    """A version in short."""
    return {
        "id": version.id, "current": version.id == registry.current(), "state": registry.states()[version.id],
        "created": version.created.isoformat(timespec="seconds"), "bytes": version.delta_bytes,
        "parent": version.record.parent, "before": dict(version.record.before), "after": dict(version.record.after),
    }  # fmt: skip


def promote(registry: Registry, version_id: str, model: Fitting) -> str:
    """Make a version the current one, after it was tried on: one that does not fit never becomes current."""
    model.try_on(version_id)
    return registry.promote(version_id, model.base).id


def roll_back(registry: Registry, model: Fitting) -> str | None:
    """Go back to what was current before; None: the base weights."""
    return registry.rollback(model.base)


def scores_line(one: Mapping[str, Any]) -> str:
    """``iou 0.412 -> 0.781``, of every score that is known on one side or both; ``one``: as `described` gives it."""
    before, after = one["before"], one["after"]
    names = [*after, *(name for name in before if name not in after)]
    shown = {name: [f"{side[name]:.3f}" if name in side else "?" for side in (before, after)] for name in names}
    return ", ".join(f"{name} {' -> '.join(values)}" for name, values in shown.items())


def served(rsvp: RSVP, of: str) -> Following[Any]:
    """Where the served ``vlsm`` or ``reasoner`` has its versions from. Raises `VersionError` where it has none."""
    model: Any = rsvp.segmenter if of == "vlsm" else getattr(rsvp.reasoner, "inner", rsvp.reasoner)
    source = getattr(model, "source", None)
    if not isinstance(source, Following):
        raise VersionError(f"the {of} that is served has no versions: set {MODELS[of]}")
    return source


def fitting(rsvp: RSVP, of: str) -> Fitting:
    """For what is served now: a version is tried on in memory, over the base weights that are there anyway."""
    source = served(rsvp, of)
    return Fitting(source.base, source.of)


def under(rsvp: RSVP, of: str, version: str | None) -> RSVP:
    """``rsvp`` with another version of one model (None: the base weights). What is served stays as it is.

    Raises `VersionError` where the version cannot be used.
    """
    model = served(rsvp, of).of(version)
    if of == "vlsm":
        return RSVP(rsvp.reasoner, model, rsvp.config)
    over = getattr(rsvp.reasoner, "over", None)
    return RSVP(model if over is None else over(model), rsvp.segmenter, rsvp.config)
