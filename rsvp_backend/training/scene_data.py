"""Generated scenes as a data set without an end: two objects of each scene, and one that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import numpy as np
from PIL import Image

from rsvp_backend.scenes import LEVELS, LevelName, Scene, make_scene
from rsvp_backend.training.referring import Dataset, Sample
from rsvp_backend.types import BoolMask

_SEEDS_FROM = {"train": 7_000_000, "val": 8_000_000}  # beside those of replay and evaluation
_SCENES = {"train": 100_000, "val": 1_000}
_PER_SCENE = 3
_LONGEST_PX = 480


@dataclass(frozen=True, slots=True)
class SceneImage:
    level: LevelName
    seed: int

    def load(self) -> Image.Image:
        return _scene(self.level, self.seed).image


@dataclass(frozen=True, slots=True)
class SceneMask:
    """``item``: of the scene's layout, None for the empty mask."""

    level: LevelName
    seed: int
    item: int | None

    def decode(self) -> BoolMask:
        masks = _scene(self.level, self.seed).masks
        return np.zeros_like(masks[0]) if self.item is None else masks[self.item]


class SceneSamples(Sequence[Sample]):
    """The samples of ``amount`` scenes of ``level``; each is drawn when it is asked for."""

    def __init__(self, level: LevelName, first_seed: int, amount: int) -> None:
        self.level, self.first_seed, self.amount = level, first_seed, amount

    def __len__(self) -> int:
        return self.amount * _PER_SCENE

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        seed, kind = self.first_seed + index // _PER_SCENE, index % _PER_SCENE
        scene = _scene(self.level, seed)
        items = [int(n) for n in np.random.default_rng(seed).permutation(len(scene.masks))]
        item = None if kind == _PER_SCENE - 1 else items[kind]
        text = _absent_phrase(scene) if item is None else scene.layout.items[item].phrase
        others = tuple(SceneMask(self.level, seed, other) for other in items if other != item)
        name = f"scene:{self.level}:{seed}"
        return Sample(
            f"{name}:{item}", name, text, SceneImage(self.level, seed), SceneMask(self.level, seed, item), others,
            absent=item is None,
        )  # fmt: skip


def scenes(level: LevelName) -> Dataset:
    """Scenes of ``level`` under the splits ``train`` and ``val``, none of which any other part of this package sees."""
    splits = {split: SceneSamples(level, _SEEDS_FROM[split], count) for split, count in _SCENES.items()}
    spec = LEVELS[level]
    texts = frozenset(f"{colour} {name}" for colour in spec.colours for name in spec.classes) | {*spec.classes}
    return Dataset(f"scenes, {level}", splits, texts, {}, f"scenes:{level}:{_SEEDS_FROM}:{_SCENES}")


@lru_cache(maxsize=16)
def _scene(level: LevelName, seed: int) -> Scene:
    return make_scene(seed, level, _LONGEST_PX)


def _absent_phrase(scene: Scene) -> str:
    return next(question.objects[0] for question in scene.questions if not question.present)
