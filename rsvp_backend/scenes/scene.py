"""`make_scene`: a picture with instructions and exact answers, the same for the same seed on every machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from rsvp_backend.scenes.language import KINDS, PLAIN_KINDS, Kind, Truth, draw_truth
from rsvp_backend.scenes.layout import LEVELS, Layout, LevelName, draw_layout
from rsvp_backend.scenes.render import render
from rsvp_backend.types import BoolMask

EVALUATION_SEEDS_FROM = 10_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A truth on its scene. ``mask``: of all its targets, bool ``(height, width)`` of the image; all False for none."""

    truth: Truth
    mask: BoolMask

    @classmethod
    def of(cls, truth: Truth, masks: Sequence[BoolMask]) -> Question:
        """``truth`` on the scene of ``masks``."""
        mask = np.zeros_like(masks[0])
        for target in truth.targets:
            mask |= masks[target]
        return cls(truth, mask)

    @property
    def kind(self) -> Kind:
        return self.truth.kind

    @property
    def instruction(self) -> str:
        return self.truth.instruction

    @property
    def objects(self) -> tuple[str, ...]:
        """The phrases of all that is meant, in the answer's order."""
        return tuple(one.object for one in self.truth.referents)

    @property
    def present(self) -> bool:
        return bool(self.truth.targets)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """``image``: RGB; ``masks``: visible bool ``(height, width)`` per item of ``layout``; questions of all kinds."""

    seed: int
    image: Image.Image
    layout: Layout
    masks: tuple[BoolMask, ...]
    questions: tuple[Question, ...]


def make_scene(
    seed: int,
    level: LevelName = "easy",
    longest_px: int | None = None,
    questions_per_kind: int = 1,
    without: Collection[str] = (),
) -> Scene:
    """Draw scene ``seed``. ``longest_px`` renders the same scene at another size; ``without``: classes to leave out.

    Evaluation seeds (10,000,000 and up) ask half their questions in paraphrases held out from training.
    """
    spec = LEVELS[level]
    spec = replace(spec, classes=tuple(name for name in spec.classes if name not in without))
    for attempt in range(50):
        rng = np.random.default_rng([seed, attempt, list(LEVELS).index(level)])
        layout = draw_layout(rng, spec)
        if len(layout.items) < 2:
            continue
        scale = longest_px / max(layout.width_px, layout.height_px) if longest_px else 1.0
        paint_rng, ask_rng = rng.spawn(2)
        image, masks = render(layout, spec, paint_rng, scale)
        if spec.min_visible < 1.0 and not _visible_enough(layout, masks, spec.min_visible):
            continue
        questions = _ask(ask_rng, seed, layout, level, masks, questions_per_kind)
        return Scene(seed, image, layout, tuple(masks), questions)
    raise RuntimeError(f"no layout found for seed {seed} at level {level!r} in 50 tries")


def _visible_enough(layout: Layout, masks: list[BoolMask], least: float) -> bool:
    """Every item shows at least the share ``least`` of what it would show alone (its drawing fills about a third)."""
    height, width = masks[0].shape
    short = min(height, width)
    return all(
        mask.sum() >= least * 0.12 * (item.size * short) ** 2 for item, mask in zip(layout.items, masks, strict=True)
    )


def _ask(
    rng: np.random.Generator, seed: int, layout: Layout, level: LevelName, masks: list[BoolMask], per_kind: int
) -> tuple[Question, ...]:
    questions = []
    for kind in KINDS if LEVELS[level].several else PLAIN_KINDS:
        for _ in range(per_kind):
            held_out = seed >= EVALUATION_SEEDS_FROM and bool(rng.random() < 0.5)
            truth = draw_truth(rng, layout, LEVELS[level], kind, held_out)
            if truth is None:
                continue
            questions.append(Question.of(truth, masks))
    return tuple(questions)
