"""What ``benchmarks/learning.py`` teaches: concepts that the demo weights never saw, with exact masks.

A *part* ("head of the hammer"; the weights know hammers), and an object *class* among others in the crop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image

from rsvp_backend.scenes import LEVELS, make_scene
from rsvp_backend.scenes.layout import draw_layout
from rsvp_backend.scenes.parts import part_mask
from rsvp_backend.scenes.render import render
from rsvp_backend.training.features import FeatureStore
from rsvp_backend.training.replay import SceneReplay, object_crop
from rsvp_backend.training.samples import Correction, Origin
from rsvp_backend.training.scoring import FeatureVlsm, Scores
from rsvp_backend.types import BoolMask, Box, Marks
from rsvp_backend.vlsm import weights

MARKS = Marks()
TRAINING_SEEDS_FROM, TEST_SEEDS_FROM = 8_000_000, 11_000_000
PART = ("hammer", "head")
NEW_CLASS = "mushroom"
SIDE_PX = 480
Concept = Callable[[int], Correction | None]


def part(seed: int) -> Correction | None:
    """``PART`` in the crop of its whole object; None where the scene lacks that class."""
    scene = make_scene(seed, "easy", SIDE_PX, questions_per_kind=0)
    items = [i for i, item in enumerate(scene.layout.items) if item.name == PART[0]]
    if not items:
        return None
    crop = object_crop(scene.masks[items[0]], MARKS, 0.2)
    mask = part_mask(scene, items[0], PART[1])
    return _correction(f"part:{seed}", seed, f"{PART[1]} of the {PART[0]}", mask, crop, scene.image)


def new_class(seed: int) -> Correction | None:
    """An object of ``NEW_CLASS`` among those that the weights know, in a crop that shows another one as well."""
    level = replace(LEVELS["crowded"], classes=(*LEVELS["easy"].classes, NEW_CLASS))
    rng = np.random.default_rng([seed, 1])
    layout = draw_layout(rng, level)
    items = [i for i, item in enumerate(layout.items) if item.name == NEW_CLASS]
    if not items:
        return None
    image, masks = render(layout, level, rng, SIDE_PX / max(layout.width_px, layout.height_px))
    item = layout.items[items[0]]
    near = min(
        (i for i in range(len(masks)) if layout.items[i].name != NEW_CLASS),
        key=lambda i: np.hypot(layout.items[i].cx - item.cx, layout.items[i].cy - item.cy),
    )
    crop = object_crop(masks[items[0]] | masks[near], MARKS, 0.2)
    return _correction(f"{NEW_CLASS}:{seed}", seed, f"{item.colour} {NEW_CLASS}", masks[items[0]], crop, image)


CONCEPTS: dict[str, Concept] = {"part": part, "class": new_class}


def samples(concept: Concept, first_seed: int, count: int) -> list[Correction]:
    """The concept's first ``count`` samples from the seeds that have one."""
    found: list[Correction] = []
    seed = first_seed
    while len(found) < count:
        if (sample := concept(seed)) is not None:
            found.append(sample)
        seed += 1
    return found


def old_classes(count: int) -> list[Correction]:
    """Scenes of other seeds than replay's, asked about in its ways."""
    return SceneReplay()._crops(TEST_SEEDS_FROM + 500_000, count)


def score(loaded: weights.Weights, corrections: list[Correction]) -> Scores:
    """Scores of float32 weights on ``corrections``."""
    store = FeatureStore(loaded.model, "crop", None)
    return FeatureVlsm(loaded.model, loaded.tokenizer, store).score(corrections)


def spoiled(corrections: list[Correction], share: float, seed: int = 0) -> list[Correction]:
    """``corrections``, a share of them wrong: shifted by a third of the crop, another text's mask, or empty."""
    rng = np.random.default_rng(seed)
    wrong = set(rng.choice(len(corrections), round(share * len(corrections)), replace=False).tolist())
    return [_spoil(c, int(rng.integers(3)), rng) if n in wrong else c for n, c in enumerate(corrections)]


def _spoil(correction: Correction, kind: int, rng: np.random.Generator) -> Correction:
    crop, mask = correction.crop, correction.mask
    if kind == 0:
        by = (crop.height // 3 * int(rng.choice([-1, 1])), crop.width // 3 * int(rng.choice([-1, 1])))
        moved = np.roll(mask, by, axis=(0, 1))
    elif kind == 1:  # what is around the object instead of it
        moved = np.zeros_like(mask)
        inside = np.s_[crop.top : crop.bottom, crop.left : crop.right]
        moved[inside] = ~mask[inside]
    else:
        moved = np.zeros_like(mask)
    return replace(correction, key=f"{correction.key}:spoiled", mask=moved)


def _correction(key: str, task: int, text: str, mask: BoolMask, crop: Box, image: Image.Image) -> Correction:
    return Correction(key, task, text, mask, crop, Origin.DRAWN, lambda: image)
