"""Earlier data that fine-tuning sees again, so that new concepts do not push out old ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
from PIL import Image

from rsvp_backend.grid import mask_regions, regions_box
from rsvp_backend.scenes import LEVELS, LevelName, Scene, make_scene
from rsvp_backend.training.demo_crops import HELD_OUT
from rsvp_backend.training.samples import Correction, Origin
from rsvp_backend.types import BoolMask, Box, Marks

_TRAINING_SEEDS_FROM, _SCORING_SEEDS_FROM = 9_000_000, 9_500_000
_LONGEST_PX = 480


class ReplaySource(Protocol):
    """Gives corrections whose masks are known to be right; the same ones for the same ``count``."""

    def training(self, count: int) -> Sequence[Correction]:
        """At most ``count`` to train on."""
        ...

    def scoring(self, count: int) -> Sequence[Correction]:
        """At most ``count`` to score on; none of them among `training`'s."""
        ...


@dataclass(frozen=True)
class NoReplay:
    """No earlier data at all: what was learned before is neither kept nor checked."""

    def training(self, count: int) -> Sequence[Correction]:
        return ()

    def scoring(self, count: int) -> Sequence[Correction]:
        return ()


@dataclass(frozen=True)
class SceneReplay:
    """Generated scenes of the kind that the demo VLSM was trained on; each crop asked about in three ways.

    Its object, another object of the scene (as far as it is in the crop), and one that is not there.
    """

    levels: tuple[LevelName, ...] = ("easy", "crowded", "full")
    padding: float = 0.2
    marks: Marks = field(default_factory=Marks)

    def training(self, count: int) -> Sequence[Correction]:
        return self._crops(_TRAINING_SEEDS_FROM, count)

    def scoring(self, count: int) -> Sequence[Correction]:
        return self._crops(_SCORING_SEEDS_FROM, count)

    def _crops(self, first_seed: int, count: int) -> list[Correction]:
        found: list[Correction] = []
        for n in range((count + 2) // 3):
            found += self._crop(self.levels[n % len(self.levels)], first_seed + n)
        return found[:count]

    def _crop(self, level: LevelName, seed: int) -> list[Correction]:
        scene, rng = _scene(level, seed), np.random.default_rng(seed)
        target = int(rng.integers(len(scene.masks)))
        box = object_crop(scene.masks[target], self.marks, self.padding)
        shown = [i for i, mask in enumerate(scene.masks) if mask[box.top : box.bottom, box.left : box.right].any()]
        others = [i for i in shown if i != target] or [i for i in range(len(scene.masks)) if i != target]
        other = int(rng.choice(others))
        empty = np.zeros_like(scene.masks[0])
        asked = [
            (scene.layout.items[target].phrase, scene.masks[target]),
            (scene.layout.items[other].phrase, scene.masks[other]),
            (_absent_phrase(rng, scene, level), empty),
        ]
        load = partial(_image, level, seed)
        return [
            Correction(f"scene:{level}:{seed}:{box.xyxy}:{text}", seed, text, mask, box, Origin.CONFIRMED, load)
            for text, mask in asked
        ]


def object_crop(mask: BoolMask, marks: Marks, padding: float) -> Box:
    """The crop that a reasoner's right answer for ``mask`` leads to: its regions as one box, padded."""
    height, width = mask.shape
    box = regions_box(mask_regions(mask, marks), marks, width, height)
    if box is None:
        raise ValueError("the mask is empty: it lies in no region")
    return box.padded(padding, width, height)


@lru_cache(maxsize=8)
def _scene(level: LevelName, seed: int) -> Scene:
    return make_scene(seed, level, _LONGEST_PX, questions_per_kind=0, without=HELD_OUT)


def _image(level: LevelName, seed: int) -> Image.Image:
    return _scene(level, seed).image


def _absent_phrase(rng: np.random.Generator, scene: Scene, level: LevelName) -> str:
    """A phrase that means nothing in the scene; often it shares a word with something that is there."""
    items, spec = scene.layout.items, LEVELS[level]
    classes = [name for name in spec.classes if name not in HELD_OUT]
    there = {item.phrase for item in items}
    draws: tuple[Callable[[], str], ...] = (
        lambda: f"{rng.choice(spec.colours)} {items[rng.integers(len(items))].name}",
        lambda: f"{items[rng.integers(len(items))].colour} {rng.choice(classes)}",
        lambda: f"{rng.choice(spec.colours)} {rng.choice(classes)}",
    )
    while (phrase := draws[rng.integers(3)]()) in there:
        pass
    return phrase
