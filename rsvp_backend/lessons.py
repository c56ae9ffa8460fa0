"""What lessons of both stages share: what they tell, that each runs alone, and which version has learned it already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rsvp_backend.errors import RsvpError
from rsvp_backend.training import durable
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.versions import Record


@dataclass(frozen=True, slots=True)
class Told:
    """What a lesson tells on its way. ``done`` of ``total`` steps of the stage; ``total`` 0 where nobody knows.

    ``measured``: ``loss`` and ``held_out`` as far as they are known.
    """

    stage: str
    text: str
    done: int = 0
    total: int = 0
    measured: Mapping[str, float] = field(default_factory=dict)


Tell = Callable[[Told], None]
"""What it raises ends the lesson."""


class CancelledError(Exception):
    """Raised by `Tell`: the lesson is not wanted any more."""


@contextmanager
def alone(lock: Path, busy: str, setting: str) -> Iterator[None]:
    """Hold ``lock`` against all other processes; its folder is made, which lies beside ``setting``'s.

    Raises `RsvpError`: ``busy``, or that the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(durable.locked(lock, 0.0))
        except TimeoutError:
            raise RsvpError(busy) from None
        except OSError as error:
            raise RsvpError(f"{lock.parent} (beside {setting}) cannot be written: {error.strerror or error}") from error
        yield


def same_lesson(registry: Registry, keys: Sequence[str], current: str | None) -> str | None:
    """The version that came out of the very data ``keys``, seen from the same current version."""
    for version in registry.list():
        if version.record.data == tuple(keys) and current in (version.id, version.record.parent):
            return version.id
    return None


def scores_of(record: Record) -> dict[str, float]:
    """The record's scores in one table: ``NAME_before`` and ``NAME_after``."""
    return {f"{name}_before": value for name, value in record.before.items()} | {
        f"{name}_after": value for name, value in record.after.items()
    }


def end_of(version: str | None, promoted: bool) -> str:
    """The last line of a lesson's report."""
    if version is None:
        return "nothing to do"
    return f"{version} {'promoted' if promoted else 'kept as a candidate'}"
