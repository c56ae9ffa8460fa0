"""The state of a pretraining on disk: one file, written aside and renamed: a kill leaves the old or the new one.

Under DeepSpeed, whose optimiser is spread over the processes, its own folder lies beside the file, and the file, which
names it, is what counts.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rsvp_backend.errors import RsvpError
from rsvp_backend.training import durable

STATE_FILE, SHARDS = "state.pt", "deepspeed"


class CheckpointError(RsvpError):
    """The state in the folder is of another run, or damaged, or cannot be written."""


@dataclass(slots=True)
class Progressed:
    """How far a run is. ``curve``: a dict per evaluation; ``losses``: those since the last one."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)


def write(folder: Path, state: Mapping[str, Any]) -> None:
    """Put ``state`` (tensors and plain values) in the place of what ``folder`` holds. Raises `CheckpointError`."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        durable.replace(folder / STATE_FILE, buffer.getvalue())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror} (--out)") from None


def read(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state in ``folder``, None where there is none. Raises `CheckpointError` where it is of another run."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead it to
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}): remove it to start anew") from None
    if not isinstance(state, dict) or state.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{path} is of a run with other data, weights or options: give the same ones to go on with it, or another "
            "--out to start anew"
        )
    return state


def drop_shards(folder: Path, but: str) -> None:
    """Delete DeepSpeed's folders that no state names any more."""
    for old in (folder / SHARDS).glob("step-*"):
        if old.name != but:
            shutil.rmtree(old, ignore_errors=True)
