"""Training crops of the demo VLSM: a view of a scene with texts, clicks and boxes, and what each of them means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rsvp_backend.grid import mask_regions, regions_box
from rsvp_backend.scenes import LEVELS, LevelName, Scene, make_scene
from rsvp_backend.scenes.language import NAME_CARRIERS
from rsvp_backend.scenes.layout import Level
from rsvp_backend.training.hints import Hint, clickable, sample_hint
from rsvp_backend.training.targets import cut, filled, pooled
from rsvp_backend.types import Box, Marks, Prompt, Regions
from rsvp_backend.vlsm import preprocess
from rsvp_backend.vlsm.config import VlsmConfig
from rsvp_backend.vlsm.views import View


@dataclass(frozen=True)
class Mix:
    """Shares of the training pictures: ``crowded`` and ``full`` scenes (the rest are easy), and ``whole_views``, which
    show SAM the whole picture. ``hints``: clicks and boxes per crop."""

    crowded: float = 0.35
    full: float = 0.0
    whole_views: float = 0.35
    hints: int = 3


@dataclass(frozen=True)
class Crop:
    """One crop with three texts, and hints on what SAM sees (the crop, or the whole picture with the crop as a box).

    ``sam``: ``(3, S, S)``; ``beit3``: ``(3, s, s)``; ``targets``: ``(3, h, w)`` at the decoder's resolution;
    ``corners``: the crop's corners where it is a box prompt, else none; ``hint_targets``: ``(hints, h, w)``;
    ``sam_words`` and ``beit3_words``: per visual token class (0 = background) and colour (-100 = none), ``(2, ., .)``;
    ``beit3_cover``: each text's share of BEiT-3's patches, ``(3, ., .)``.
    """

    sam: Tensor
    beit3: Tensor
    texts: list[str]
    targets: Tensor
    corners: list[tuple[float, float]]
    hints: list[Hint]
    hint_targets: Tensor
    sam_words: Tensor
    beit3_words: Tensor
    beit3_cover: Tensor


class CropSampler:
    """Scenes -> crops for a VLSM of ``config``'s sizes."""

    def __init__(self, config: VlsmConfig, mix: Mix) -> None:
        self.config, self.mix = config, mix
        self.classes, self.colours = list(LEVELS["full"].classes), list(LEVELS["full"].colours)

    def crop(self, rng: np.random.Generator, seed: int) -> Crop:
        """A crop around one object of the scene ``seed``, from jittered region marks."""
        draw = rng.random()
        level: LevelName = "full" if draw < self.mix.full else "easy"
        if self.mix.full <= draw < self.mix.full + self.mix.crowded:
            level = "crowded"
        scene = make_scene(seed, level, int(rng.integers(400, 900)), questions_per_kind=0)
        target = int(rng.integers(len(scene.masks)))
        box = self._box(rng, scene, target)
        texts, wanted = self._texts(rng, scene, target, box, LEVELS[level])
        whole = rng.random() < self.mix.whole_views
        view = View.of("full+box" if whole else "crop", scene.image, Prompt(box, text=texts[0]))
        size, grid = self.config.sam.image_size, self.config.sam.grid_size
        shares = torch.stack([pooled(cut(mask, view.frame), (4 * grid, 4 * grid), size) for mask in scene.masks])
        # What lies beyond the crop is cut off the answer to a text: it is nothing to look for.
        inside = pooled(cut(filled(scene.masks[0], box), view.frame), (4 * grid, 4 * grid), size)
        patches = self.config.beit3.img_size // self.config.beit3.patch_size
        cuts = [torch.from_numpy(cut(mask, box)).float()[None] for mask in scene.masks]
        square = torch.stack([F.adaptive_avg_pool2d(part, patches)[0] for part in cuts])
        empty, none = torch.zeros_like(shares[0]), torch.zeros_like(square[0])
        hints = self._hints(rng, scene, view, wanted)
        return Crop(
            preprocess.sam_pixels(scene.image.crop(view.frame.xyxy), size),
            preprocess.beit3_pixels(scene.image.crop(box.xyxy), self.config.beit3.img_size),
            texts,
            torch.stack([empty if i is None else shares[i] * inside for i in wanted]),
            view.box_corners(size),
            hints,
            shares[[hint.item for hint in hints]],
            self._words(scene, F.avg_pool2d(shares, 4)),
            self._words(scene, square),
            torch.stack([none if i is None else square[i] for i in wanted]),
        )

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
        marks = Marks("bands")
        regions = mask_regions(scene.masks[target], marks)
        ids = [[r[0], r[-1]] for r in (regions.rows, regions.columns)]
        for pair in ids:
            for end, sign in ((0, -1), (1, 1)):
                move = rng.choice([0, 1, 2, -1], p=[0.66, 0.18, 0.06, 0.10])
                pair[end] = int(np.clip(pair[end] + sign * move, 1, 9))
            pair.sort()
        width, height = scene.image.size
        box = regions_box(Regions(rows=tuple(ids[0]), columns=tuple(ids[1])), marks, width, height)
        assert box is not None  # both axes name bands
        return box.padded(float(rng.uniform(0.1, 0.35)), width, height)

    def _texts(
        self, rng: np.random.Generator, scene: Scene, target: int, box: Box, level: Level
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
        near = items[target]
        while True:
            name, colour = str(rng.choice(level.classes)), str(rng.choice(level.colours))
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

    def _words(self, scene: Scene, shares: Tensor) -> Tensor:
        """``shares (items, h, w)`` -> class (0 = background) and colour (-100 = none) per token, ``(2, h, w)``."""
        best, owner = shares.max(dim=0)
        owned = best > 0.2
        name = torch.tensor([1 + self.classes.index(item.name) for item in scene.layout.items])[owner]
        colour = torch.tensor([self.colours.index(item.colour) for item in scene.layout.items])[owner]
        return torch.stack([torch.where(owned, name, 0), torch.where(owned, colour, -100)])
