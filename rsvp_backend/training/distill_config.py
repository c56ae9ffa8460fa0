"""What a distillation is told."""

from __future__ import annotations

from dataclasses import dataclass

_RATE_AT_WIDTH_160 = 3e-3


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """How to distill.

    ``steps``: None for half a step per example, between 60 and 1000; ``learning_rate``: None for 3e-3 at the demo's
    width of 160, less in proportion for wider models; ``lora_mlp``: adapt the MLPs beside the attention;
    ``replay_share``: of each batch; ``replay_trained`` and ``replay_scored``: questions of earlier data to train and
    to score on; ``patience``: evaluations without a lower loss on held-out examples after which training stops;
    ``answer_batch``: answers that are written at a time where versions are compared.
    """

    steps: int | None = None
    batch: int = 16
    learning_rate: float | None = None
    warmup_steps: int = 10
    lora_rank: int = 8
    lora_mlp: bool = False
    replay_share: float = 0.4
    replay_trained: int = 384
    replay_scored: int = 120
    held_out_share: float = 0.2
    evaluate_every: int = 25
    patience: int = 3
    checkpoint_every: int = 25
    answer_batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "lora_rank", "evaluate_every", "checkpoint_every", "patience", "answer_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1 is expected")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps is {self.steps}: at least 1 is expected")
        for name in ("replay_share", "held_out_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: 0 to below 1 is expected")

    def steps_for(self, examples: int) -> int:
        """Steps of the optimiser for so many ``examples`` to train on."""
        return self.steps or min(1000, max(60, examples // 2))

    def rate(self, step: int, steps: int, width: int) -> float:
        """The learning rate of ``step`` (from 0) of ``steps`` for a text model of ``width`` channels: warm-up, then
        down to 0."""
        highest = self.learning_rate or _RATE_AT_WIDTH_160 * min(1.0, 160 / width)
        return highest * min(1.0, (step + 1) / max(1, self.warmup_steps)) * (steps - step) / steps
