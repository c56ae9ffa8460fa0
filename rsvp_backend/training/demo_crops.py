"""Training crops of the demo VLSM: views of scenes with texts, clicks and boxes, and what each of them means.

Scenes are drawn and views planned in any process (`CropPlanner`); pixels are cut on the training device (`batch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from rsvp_backend.grid import mask_regions, regions_box
from rsvp_backend.scenes import LEVELS, LevelName, Scene, make_scene
from rsvp_backend.scenes.language import NAME_CARRIERS
from rsvp_backend.training.augment import mirrored, relit, tone_curves
from rsvp_backend.training.demo_views import Cut, DrawnScene, views
from rsvp_backend.training.hints import Hint, clickable, sample_hint
from rsvp_backend.types import Box, Marks, Prompt, Regions
from rsvp_backend.vlsm import preprocess
from rsvp_backend.vlsm.config import VlsmConfig
from rsvp_backend.vlsm.views import View

HELD_OUT = ("mushroom", "padlock")
"""Classes that the VLSM never sees or reads of: what the loop from corrections has to teach it."""
_MARKS = Marks("bands")


@dataclass(frozen=True)
class Mix:
    """Shares of the training pictures: ``crowded`` and ``full`` scenes (the rest are easy), and ``whole_views``, which
    show SAM the whole picture. ``hints``: clicks and boxes per crop; ``crops``: taken from each scene."""

    crowded: float = 0.2
    full: float = 0.6
    whole_views: float = 0.3
    hints: int = 2
    crops: int = 6


@dataclass(frozen=True)
class Plan:
    """A view of a scene with three texts (its target, another object, one that is not there), and hints.

    ``frame``: what SAM sees, the crop or the whole picture with the crop as a box, whose ``corners`` those are;
    ``wanted``: the items that the texts mean.
    """

    frame: Box
    crop: Box
    texts: list[str]
    wanted: list[int | None]
    corners: list[tuple[float, float]]
    hints: list[Hint]


@dataclass(frozen=True)
class PlannedScene:
    """A drawn scene as it leaves the drawing process; see `DrawnScene`."""

    image: npt.NDArray[np.uint8]
    owner: npt.NDArray[np.int8]
    words: npt.NDArray[np.int64]
    plans: list[Plan]


@dataclass(frozen=True)
class Crop:
    """A plan, and its scene on the training device."""

    scene: DrawnScene
    plan: Plan

    @classmethod
    def all_of(cls, planned: PlannedScene, device: torch.device) -> list[Crop]:
        """The crops of one scene, which they share."""
        parts = (torch.from_numpy(part).to(device) for part in (planned.image, planned.owner, planned.words))
        scene = DrawnScene(*parts)
        return [cls(scene, plan) for plan in planned.plans]


@dataclass(frozen=True)
class CropBatch:
    """``sam``: ``(B, 3, S, S)``; ``beit3``: ``(B, 3, s, s)``; ``targets``: of each plan's texts, at the decoder's
    resolution, ``(B, 3, h, w)``; ``hint_targets``: of all hints in order, ``(N, h, w)``; ``sam_words`` and
    ``beit3_words``: per visual token class (0 = background) and colour (-100 = none), ``(B, 2, ., .)``;
    ``beit3_cover``: each text's share of BEiT-3's patches, ``(B, 3, ., .)``."""

    plans: list[Plan]
    sam: Tensor
    beit3: Tensor
    targets: Tensor
    hint_targets: Tensor
    sam_words: Tensor
    beit3_words: Tensor
    beit3_cover: Tensor


def batch(crops: Sequence[Crop], config: VlsmConfig, rng: np.random.Generator) -> CropBatch:
    """Cut all ``crops``, some of them in another light."""
    plans = [crop.plan for crop in crops]
    seen = views([Cut(crop.scene, crop.plan.frame, crop.plan.crop) for crop in crops], config)
    curves = tone_curves(rng, len(crops)).to(seen.sam.device)
    sam = preprocess.sam_normalised(relit(seen.sam, curves), config.sam.image_size)
    beit3 = relit(seen.beit3, curves) / 127.5 - 1
    # What lies beyond the crop is cut off the answer to a text: it is nothing to look for.
    answers = seen.shares * seen.inside[:, None]
    texts = [_picked(shares, plan.wanted) for shares, plan in zip(answers, plans, strict=True)]
    hints = [_picked(own, [hint.item for hint in plan.hints]) for own, plan in zip(seen.shares, plans, strict=True)]
    cover = [_picked(shares, plan.wanted) for shares, plan in zip(seen.patches, plans, strict=True)]
    words = [crop.scene.words for crop in crops]
    tokens = F.avg_pool2d(seen.shares, 4)
    return CropBatch(
        plans, sam.masked_fill(seen.padding[:, None], 0.0), beit3, torch.stack(texts), torch.cat(hints),
        torch.stack([_words(shares, own) for shares, own in zip(tokens, words, strict=True)]),
        torch.stack([_words(shares, own) for shares, own in zip(seen.patches, words, strict=True)]),
        torch.stack(cover),
    )  # fmt: skip


def _picked(shares: Tensor, wanted: Sequence[int | None]) -> Tensor:
    """``shares (items, h, w)`` of the items ``wanted``, empty for None, ``(len(wanted), h, w)``."""
    empty = torch.zeros_like(shares[:1])
    return torch.cat([shares, empty])[[len(shares) if item is None else item for item in wanted]]


def _words(shares: Tensor, words: Tensor) -> Tensor:
    """``shares (items, h, w)`` -> class (0 = background) and colour (-100 = none) per token, ``(2, h, w)``."""
    best, owner = shares[: words.shape[1]].max(dim=0)
    nothing = torch.tensor([0, -100], device=shares.device)[:, None, None]
    return torch.where(best > 0.2, words[:, owner], nothing)


@dataclass(frozen=True)
class CropPlanner:
    """Scenes -> crops for a VLSM of ``config``'s sizes; ``seed``: of the run."""

    config: VlsmConfig
    mix: Mix
    seed: int = 0

    def __call__(self, scene_seed: int) -> PlannedScene:
        """The scene, half the time mirrored, with a crop around each of some of its objects."""
        mix, rng = self.mix, np.random.default_rng([self.seed, scene_seed])
        draw = rng.random()
        level: LevelName = "full" if draw < mix.full else "crowded" if draw < mix.full + mix.crowded else "easy"
        scene = make_scene(scene_seed, level, int(rng.integers(320, 640)), questions_per_kind=0, without=HELD_OUT)
        if rng.random() < 0.5:
            scene = mirrored(scene)
        owner = np.full(scene.masks[0].shape, -1, dtype=np.int8)
        for n, mask in enumerate(scene.masks):
            owner[mask] = n
        classes, colours = list(LEVELS["full"].classes), list(LEVELS["full"].colours)
        words = [
            [1 + classes.index(item.name) for item in scene.layout.items],
            [colours.index(item.colour) for item in scene.layout.items],
        ]
        targets = [int(n) for n in rng.permutation(len(scene.masks))]
        plans = [self._plan(rng, scene, targets[n % len(targets)], level) for n in range(mix.crops)]
        image = np.ascontiguousarray(np.asarray(scene.image).transpose(2, 0, 1))
        return PlannedScene(image, owner, np.array(words), plans)

    def _plan(self, rng: np.random.Generator, scene: Scene, target: int, level: LevelName) -> Plan:
        """A crop around ``target``, from jittered region marks."""
        box = self._box(rng, scene, target)
        texts, wanted = self._texts(rng, scene, target, box, level)
        whole = rng.random() < self.mix.whole_views
        view = View.of("full+box" if whole else "crop", scene.image, Prompt(box, text=texts[0]))
        hints = self._hints(rng, scene, view, wanted)
        return Plan(view.frame, box, texts, wanted, view.box_corners(self.config.sam.image_size), hints)

    def _hints(self, rng: np.random.Generator, scene: Scene, view: View, wanted: list[int | None]) -> list[Hint]:
        """Half of the hints stand alone; the others go with a text, mostly that of the item they mean."""
        choices = clickable(scene.masks, view.frame)
        hints = []
        for _ in range(self.mix.hints if choices else 0):
            item, text = int(rng.choice(choices)), None
            if rng.random() < 0.5:
                text = 0 if rng.random() < 0.7 else int(rng.integers(1, 3))
                item = wanted[0] if wanted[0] in choices else item
            hints.append(sample_hint(rng, scene.masks, item, view, self.config.sam.image_size, text))
        return hints

    def _box(self, rng: np.random.Generator, scene: Scene, target: int) -> Box:
        """The target's region box, with band edges moved now and then as a reasoner's would be, padded by 10-30 %."""
        regions = mask_regions(scene.masks[target], _MARKS)
        ids = [[r[0], r[-1]] for r in (regions.rows, regions.columns)]
        for pair in ids:
            for end, sign in ((0, -1), (1, 1)):
                move = rng.choice([0, 1, 2, -1], p=[0.66, 0.18, 0.06, 0.10])
                pair[end] = int(np.clip(pair[end] + sign * move, 1, 9))
            pair.sort()
        width, height = scene.image.size
        box = regions_box(Regions(rows=tuple(ids[0]), columns=tuple(ids[1])), _MARKS, width, height)
        assert box is not None  # both axes name bands
        return box.padded(float(rng.uniform(0.1, 0.35)), width, height)

    def _texts(
        self, rng: np.random.Generator, scene: Scene, target: int, box: Box, level: LevelName
    ) -> tuple[list[str], list[int | None]]:
        """Three phrases and the items they mean: the target, another object of the scene, one that is not there."""
        items = scene.layout.items
        inside = [
            i for i, mask in enumerate(scene.masks)
            if i != target and mask[box.top : box.bottom, box.left : box.right].any()
        ]  # fmt: skip
        others = inside or [i for i in range(len(items)) if i != target]
        other = int(rng.choice(others))
        pairs = {(item.name, item.colour) for item in items}
        classes = [name for name in LEVELS[level].classes if name not in HELD_OUT]
        near = items[target]
        while True:
            name, colour = str(rng.choice(classes)), str(rng.choice(LEVELS[level].colours))
            kind = rng.random()
            name, colour = (
                (near.name, colour) if kind < 0.35 else ((name, near.colour) if kind < 0.7 else (name, colour))
            )
            if (name, colour) not in pairs:
                break
        phrases = [items[target].phrase, items[other].phrase, f"{colour} {name}"]
        carried = rng.random() < 0.15
        if carried:
            carrier = str(rng.choice(NAME_CARRIERS))
            phrases = [carrier.format(x=phrase) for phrase in phrases]
        return phrases, [target, other, None]
