"""`Registry`: the folder of all versions. A process that is killed at any moment leaves whole versions only.

    <id>/delta.safetensors   what differs from the base weights, see `adapters`
    <id>/version.json        see `versions.Version`
    history.jsonl            promotions and rollbacks, append-only: what it says last holds
    current                  the id of the current version, or `base`: what servers look at

Reading takes no lock. A change holds one, and first clears what a killed process left behind: folders with hidden
names, an unfinished line of the history, a `current` that does not say yet what the history says.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rsvp_backend.training import durable, history
from rsvp_backend.training.history import Event
from rsvp_backend.training.versions import DELTA_FILE, RECORD_FILE, Record, Version, VersionError, VersionState

if TYPE_CHECKING:
    from torch import Tensor

    from rsvp_backend.vlsm.weights import Weights

log = logging.getLogger(__name__)

POINTER_FILE = "current"
HISTORY_FILE = "history.jsonl"
BASE: Final = "base"
"""Stands in `current` for the base weights; no version is called so, as their names end in a digest."""
ANY: Final = ""
"""For `Registry.promote`: whatever is current until then."""
LOCK_WAIT_S = 60.0
_LOCK_FILE = ".lock"
Stamp = tuple[int, int] | None


class Registry:
    """Versions of a model in ``folder``, which is made by the first change. Safe to share by processes and threads.

    ``setting`` names the folder, ``model`` what the base weights depend on: both for messages.
    """

    def __init__(self, folder: Path, setting: str = "RSVP_VERSIONS", model: str = "RSVP_VLSM") -> None:
        self.folder, self.setting, self.model = folder, setting, model
        self._pointer = folder / POINTER_FILE
        self._history = folder / HISTORY_FILE

    def list(self) -> tuple[Version, ...]:
        """All whole versions, the oldest first; `damaged` tells of the others."""
        found = [version for version in self._looked_at().values() if isinstance(version, Version)]
        return tuple(sorted(found, key=lambda version: (version.created, version.id)))

    def damaged(self) -> dict[str, str]:
        """What is wrong with each damaged version, by id."""
        return {name: str(error) for name, error in self._looked_at().items() if isinstance(error, VersionError)}

    def get(self, version_id: str) -> Version:
        """Raises `VersionError` for one that is unknown or damaged."""
        if version_id not in self._names():
            known = ", ".join(self._names()) or "none"
            raise VersionError(f"version {version_id!r} is unknown in {self.folder}: known are {known}")
        return Version.read(self.folder / version_id)

    def current(self) -> str | None:
        """The current version's id; None: the base weights. Raises `VersionError` where the pointer is damaged."""
        try:
            text = self._pointer.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise VersionError(f"{self._pointer} cannot be read: {error}") from error
        if not text:
            raise VersionError(f"{self._pointer} is empty: a version's id or {BASE!r} is expected; promote one again")
        return None if text == BASE else text

    def stamp(self) -> Stamp:
        """Changes with every promotion and rollback, also with one to the same version; None before the first."""
        try:
            found = self._pointer.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def states(self) -> Mapping[str, VersionState]:
        """The state of every version; who was never promoted is a candidate."""
        known = history.states(history.read(self._history))
        return {name: known.get(name, VersionState.CANDIDATE) for name in self._names()}

    def add_candidate(self, delta: Mapping[str, Tensor], record: Record) -> Version:
        """Keep a delta, relative to the base weights ``record.base`` whatever the parent is; nothing is promoted.

        ``delta``: as `adapters` gives it. The same delta on the same base is the same version: then the one that is
        there already is returned. Raises `VersionError`.
        """
        from rsvp_backend.training import deltas

        data = deltas.encode(delta)
        version = Version.of(record, data)
        with self._changing():
            try:
                known = self.verify(version.id) if version.id in self._names() else None
            except VersionError as error:
                log.warning("%s: it is written again", error)
                self._remove(version.id)
                known = None
            if known is not None:
                log.info("version %s was there already: nothing is written", known.id)
                return known
            durable.make_folder(self.folder / version.id, {DELTA_FILE: data, RECORD_FILE: version.to_json()})
        log.info("version %s kept: %d bytes on %s", version.id, version.delta_bytes, record.base)
        return version

    def promote(self, version_id: str, base: str, expected_current: str | None = ANY) -> Version:
        """Make a version the current one. ``base``: `Weights.version` of the base weights that are in use.

        ``expected_current``: what must be current until now (None: the base weights; by default, `ANY`). Raises
        `VersionError` for a damaged version, one of another base, or where something else is current.
        """
        with self._changing():
            version, current = self._usable(version_id, base), self._last()
            if expected_current not in (ANY, current):
                raise VersionError(
                    f"{current or BASE} is current, {expected_current or BASE} was expected: another promotion came "
                    f"between; compare {version_id} with {current or BASE} first"
                )
            self._move("promote", current, version.id)
        return version

    def rollback(self, base: str) -> str | None:
        """Go back to what was current before; deleted and damaged versions and those of other bases are passed over.

        Gives the id that is current now; None: the base weights. Raises `VersionError` where there is no way back.
        """
        with self._changing():
            way, current = history.way_back(history.read(self._history)), self._last()
            while way:
                target = way.pop()
                if target is None or self._still_usable(target, base):
                    self._move("rollback", current, target)
                    return target
        raise VersionError(f"nothing was current before {current or 'the base weights'}: there is no way back")

    def delete(self, version_id: str) -> None:
        """Remove a version. Raises `VersionError` for the current one and for parents of others."""
        with self._changing():
            if version_id not in self._names():
                self.get(version_id)
            if version_id == self._last():
                raise VersionError(f"version {version_id} is current: roll back or promote another one first")
            children = [version.id for version in self.list() if version.record.parent == version_id]
            if children:
                raise VersionError(f"version {version_id} is the parent of {', '.join(children)}: delete those first")
            self._remove(version_id)

    def verify(self, version_id: str) -> Version:
        """The version, after its delta was compared with its digest. Raises `VersionError`."""
        version = self.get(version_id)
        try:
            with (self.folder / version_id / DELTA_FILE).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise VersionError(f"version {version_id} is damaged: {DELTA_FILE}: {error.strerror}") from None
        if digest != version.delta_sha256:
            raise VersionError(f"version {version_id} is damaged: {DELTA_FILE} has another sha256 than {RECORD_FILE}")
        return version

    def load(self, base: Weights, version_id: str) -> Weights:
        """``base`` with the version's delta over it (see `deltas.apply`). Raises `VersionError`."""
        from rsvp_backend.training import deltas

        self.check_base(version_id, base.version)
        return deltas.apply(base, self.delta(version_id), version_id)

    def check_base(self, version_id: str, base: str) -> None:
        """Raises `VersionError` where the version belongs to other base weights than ``base``."""
        self._check_base(self.get(version_id), base)

    def delta(self, version_id: str) -> dict[str, Tensor]:
        """The version's delta, relative to its base weights, on the CPU. Raises `VersionError`."""
        from rsvp_backend.training import deltas

        return deltas.read(self.folder / version_id / DELTA_FILE, self.get(version_id).delta_sha256)

    def clean(self) -> None:
        """Clear what a killed process left behind; a folder that does not exist stays away. Raises `VersionError`."""
        if self.folder.is_dir():
            with self._changing():
                pass

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Holds the lock, on a cleared folder; an error of the disk (full, read-only) becomes a `VersionError`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with durable.locked(self.folder / _LOCK_FILE, LOCK_WAIT_S):
                self._recover()
                yield
        except OSError as error:
            raise VersionError(
                f"{self.folder} ({self.setting}) cannot be changed: {error.strerror or error}; the current version "
                "stays as it was"
            ) from error

    def _recover(self) -> None:
        for left in self.folder.glob(".*"):
            if left.name != _LOCK_FILE:
                log.warning("%s: left by a process that was stopped midway, removed", left)
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        history.drop_unfinished(self._history)
        events = history.read(self._history)
        if events and self._pointed() != (events[-1].version or BASE):
            durable.replace(self._pointer, f"{events[-1].version or BASE}\n".encode())

    def _move(self, action: history.Action, current: str | None, target: str | None) -> None:
        """The line in the history decides; should the pointer not be reached any more, `_recover` moves it."""
        if target != current:
            history.add(self._history, Event.now(action, current, target))
        durable.replace(self._pointer, f"{target or BASE}\n".encode())
        log.info("%s: %s -> %s", action, current or BASE, target or BASE)

    def _last(self) -> str | None:
        """What is current, once `_recover` has run; a damaged pointer stands for the base weights."""
        pointed = self._pointed()
        return None if pointed in ("", BASE) else pointed

    def _pointed(self) -> str:
        try:
            return self.current() or BASE
        except VersionError:
            return ""

    def _usable(self, version_id: str, base: str) -> Version:
        version = self.verify(version_id)
        self._check_base(version, base)
        return version

    def _still_usable(self, version_id: str, base: str) -> bool:
        try:
            self._usable(version_id, base)
        except VersionError as error:
            log.warning("not rolled back to %s: %s", version_id, error)
            return False
        return True

    def _remove(self, version_id: str) -> None:
        """Renamed first: a folder that is half removed is no version any more."""
        gone = durable.aside(self.folder / version_id)
        (self.folder / version_id).rename(gone)
        durable.flush_folder(self.folder)
        shutil.rmtree(gone)

    def _names(self) -> tuple[str, ...]:
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(path.name for path in self.folder.iterdir() if path.name[0] != "." and path.is_dir()))

    def _looked_at(self) -> dict[str, Version | VersionError]:
        found: dict[str, Version | VersionError] = {}
        for name in self._names():
            try:
                found[name] = Version.read(self.folder / name)
            except VersionError as error:
                found[name] = error
        return found

    def _check_base(self, version: Version, base: str) -> None:
        if version.record.base != base:
            raise VersionError(
                f"version {version.id} belongs to the base weights {version.record.base}, but {base} are in use: set "
                f"{self.model} to its own, or choose another version"
            )
