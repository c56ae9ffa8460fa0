"""What a pretraining is told, and what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

PretrainView = Literal["mixed", "whole", "crop"]
Precision = Literal["auto", "fp32", "bf16"]
Device = Literal["auto", "cpu"]
_NOT_IN_FINGERPRINT = {
    "device", "cache", "cache_bytes", "batch", "accumulate", "log_every", "checkpoint_every", "evaluate_every",
    "evaluate_on",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """How to pretrain; the defaults of rate, losses and optimiser are the paper's (section 4).

    ``batch``: samples that a process computes at a time; ``accumulate``: such batches of each process that make one
    step. ``lora_rank``: of BEiT-3's q and v projections, 0 leaves BEiT-3 and its words as they are. ``view``: what is
    shown of an image: all of it, the crop that stage 1 would give, or either. ``evaluate_on``: held-out samples that
    are scored, 0 for all. ``cache``: folder for image embeddings and crops.
    """

    steps: int = 1000
    batch: int = 8
    accumulate: int = 1
    rate: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.0
    lora_rank: int = 16
    view: PretrainView = "mixed"
    evaluate_every: int = 200
    evaluate_on: int = 200
    checkpoint_every: int = 200
    log_every: int = 10
    precision: Precision = "auto"
    device: Device = "auto"
    cache: Path | None = None
    cache_bytes: int = 20 * 2**30
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "evaluate_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1 is expected")
        for name in ("warmup", "lora_rank", "evaluate_on", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: 0 or more is expected")
        if not 0 < self.rate < 1:
            raise ValueError(f"rate is {self.rate}: above 0 and below 1 is expected, such as 1e-4")
        for name, kind in (("view", PretrainView), ("precision", Precision), ("device", Device)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}: one of {', '.join(get_args(kind))} is expected")

    def rate_at(self, step: int) -> float:
        """The learning rate of ``step`` (from 0): linear warm-up, then linear to 0."""
        return self.rate * min(1.0, (step + 1) / max(1, self.warmup)) * (self.steps - step) / self.steps

    def views(self) -> tuple[PretrainView, ...]:
        """What held-out samples are scored in."""
        return ("whole", "crop") if self.view == "mixed" else (self.view,)

    def fingerprint(self, processes: int) -> dict[str, Any]:
        """All that the result depends on: how a step's samples are spread over processes and batches does not count."""
        kept = {name: value for name, value in asdict(self).items() if name not in _NOT_IN_FINGERPRINT}
        return kept | {"samples_per_step": self.batch * self.accumulate * processes}


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores on held-out samples in one view, by LISA's convention (see `evaluation.metrics`)."""

    giou: float
    ciou: float
    samples: int


Scored = Mapping[str, HeldOut]  # by view


@dataclass(frozen=True, slots=True)
class PretrainReport:
    """``folder``: the checkpoint, as RSVP_VLSM takes it; ``curve``: per evaluation, with the mean loss before it."""

    version: str
    folder: str
    steps: int
    seconds: float
    processes: int
    train_samples: int
    held_out_samples: int
    left_out: Mapping[str, int]
    unreadable: tuple[str, ...]
    curve: tuple[Mapping[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
