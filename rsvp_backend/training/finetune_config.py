"""What a fine-tuning is told, and which corrections it keeps aside."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from rsvp_backend.vlsm.views import ViewName

_RATE_AT_WIDTH_128 = 6e-4


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """How to fine-tune.

    ``steps``: None for twenty per correction, between 400 and 1500; ``learning_rate``: None for 6e-4 at the demo's
    width of 128, less in proportion for wider models; ``lora_rank``: 0 leaves BEiT-3 and its words as they are;
    ``replay_share``: of each batch; ``replay_crops`` to train on, ``replay_scored`` to score on; ``replay_loss``:
    mean IoU on the latter above which the step from the base is shortened; ``variants``: crops with moved edges, every
    other one mirrored, that each correction is seen in besides its own; ``patience``: evaluations without a better
    held-out IoU after which training stops; ``cache``: folder of `FeatureStore`; ``device``: ``auto`` or torch's.
    """

    steps: int | None = None
    batch: int = 24
    learning_rate: float | None = None
    warmup_steps: int = 10
    lora_rank: int = 8
    replay_share: float = 5 / 6
    replay_crops: int = 1200
    replay_scored: int = 768
    replay_loss: float = 0.005
    held_out_share: float = 0.2
    variants: int = 7
    evaluate_every: int = 50
    patience: int = 6
    checkpoint_every: int = 25
    view: ViewName = "crop"
    device: str = "auto"
    cache: Path | None = None
    cache_bytes: int = 8 * 2**30
    seed: int = 0

    def __post_init__(self) -> None:
        if min(1 if self.steps is None else self.steps, self.batch, self.evaluate_every, self.checkpoint_every) < 1:
            raise ValueError("steps, batch, evaluate_every and checkpoint_every: at least 1 is expected")
        for name in ("replay_share", "held_out_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: 0 to below 1 is expected")

    def steps_for(self, corrections: int) -> int:
        """Steps of the optimiser for so many ``corrections`` to train on."""
        return self.steps or min(1500, max(400, 20 * corrections))

    def rate(self, step: int, steps: int, width: int) -> float:
        """The learning rate of ``step`` (from 0) of ``steps``, for a BEiT-3 of ``width`` channels: warm-up, then down
        to 0."""
        highest = self.learning_rate or _RATE_AT_WIDTH_128 * min(1.0, 128 / width)
        return highest * min(1.0, (step + 1) / max(1, self.warmup_steps)) * (steps - step) / steps


class OfTask(Protocol):
    """What is learned from a task, of whatever kind."""

    @property
    def task(self) -> int: ...


T = TypeVar("T", bound=OfTask)


def split(corrections: Sequence[T], share: float = 0.2) -> tuple[list[T], list[T]]:
    """To train on, and held out: whole tasks, those whose ids have the smallest hashes, about ``share`` of them.

    One task is held out at least, unless there is no other. Which side a task is on does not depend on the others but
    where chance would hold out less than ``share`` or more than 1.5 times as much: there the border moves.
    """
    tasks = sorted({correction.task for correction in corrections}, key=_task_hash)
    below = sum(_task_hash(task) < share for task in tasks)
    least, most = math.ceil(share * len(tasks)), math.ceil(1.5 * share * len(tasks))
    held = set(tasks[: min(max(below, least), most, len(tasks) - 1)])
    return [c for c in corrections if c.task not in held], [c for c in corrections if c.task in held]


def _task_hash(task: int) -> float:
    """In [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.blake2b(str(task).encode(), digest_size=8).digest(), "big") / 2**64
