"""Crops of drawn scenes as a VLSM's inputs and targets, cut by grid sampling on the training device.

The same geometry as `preprocess`, which users' images go through: SAM's picture has its longest side resized and is
padded after normalising, BEiT-3's is squashed to a square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rsvp_backend.types import Box
from rsvp_backend.vlsm import preprocess
from rsvp_backend.vlsm.config import VlsmConfig

_OVERSAMPLED = 2  # pictures are mostly shrunk: each pixel is the mean of so many, squared, as a smooth filter gives


@dataclass(frozen=True)
class DrawnScene:
    """``image``: uint8 ``(3, height, width)``; ``owner``: int8 ``(height, width)``, the item that shows, or -1;
    ``words``: int64 ``(2, items)``, class (from 1 on) and colour of each item."""

    image: Tensor
    owner: Tensor
    words: Tensor


@dataclass(frozen=True)
class Cut:
    """``frame``: what SAM sees; ``crop``: what BEiT-3 sees and answers are cut to. Pixels of ``scene``."""

    scene: DrawnScene
    frame: Box
    crop: Box


@dataclass(frozen=True)
class Views:
    """B cuts. ``sam``: ``(B, 3, S, S)`` in [0, 255], not normalised yet; ``padding``: bool ``(B, S, S)``; ``beit3``:
    ``(B, 3, s, s)`` in [0, 255]; ``shares``: of each item in the decoder's cells, ``(B, items, h, w)``; ``inside``: of
    the crop in them, ``(B, h, w)``; ``patches``: of each item in BEiT-3's patches, ``(B, items, p, p)``."""

    sam: Tensor
    padding: Tensor
    beit3: Tensor
    shares: Tensor
    inside: Tensor
    patches: Tensor


def views(cuts: Sequence[Cut], config: VlsmConfig) -> Views:
    """Cut all ``cuts``; their scenes must be on one device."""
    size, grid = config.sam.image_size, config.sam.grid_size
    side, patches = config.beit3.img_size, config.beit3.img_size // config.beit3.patch_size
    items = max(cut.scene.words.shape[1] for cut in cuts)
    rows = [_view(cut, items, size, 4 * grid, side, patches) for cut in cuts]
    return Views(*(torch.stack(part) for part in zip(*rows, strict=True)))


def _view(cut: Cut, items: int, size: int, cells: int, side: int, patches: int) -> tuple[Tensor, ...]:
    frame, scene = cut.frame, cut.scene
    height, width = preprocess.resized_size((frame.height, frame.width), size)
    many = _OVERSAMPLED
    xs = _places(frame.left, frame.width, width * many, size * many, scene)
    ys = _places(frame.top, frame.height, height * many, size * many, scene)
    pixels = F.avg_pool2d(_sampled(scene.image, xs, ys, "bilinear"), many)
    beyond = torch.zeros(size, size, dtype=torch.bool, device=pixels.device)
    beyond[height:], beyond[:, width:] = True, True
    xs = _places(frame.left, frame.width, width, size, scene)
    ys = _places(frame.top, frame.height, height, size, scene)
    owner = _owner(scene, xs, ys).masked_fill(beyond, -1)
    crop = cut.crop
    inside = ((ys >= crop.top) & (ys < crop.bottom))[:, None] & ((xs >= crop.left) & (xs < crop.right)) & ~beyond
    square_xs = _places(crop.left, crop.width, side, side, scene)
    square_ys = _places(crop.top, crop.height, side, side, scene)
    square = _sampled(scene.image, square_xs, square_ys, "bicubic").clamp(0, 255)
    part = F.adaptive_avg_pool2d(inside[None].float(), cells)[0]
    square_owner = _owner(scene, square_xs, square_ys)
    return pixels, beyond, square, _shares(owner, items, cells), part, _shares(square_owner, items, patches)


def _places(start: int, length: int, samples: int, count: int, scene: DrawnScene) -> Tensor:
    """Where ``count`` samples lie, in pixels from the scene's edge, of which the first ``samples`` span ``length``."""
    at = torch.arange(count, device=scene.image.device, dtype=torch.float32)
    return start + (at + 0.5) * (length / samples)


def _sampled(image: Tensor, xs: Tensor, ys: Tensor, mode: str) -> Tensor:
    """``image (C, h, w)`` at all pairs of ``ys`` and ``xs``, float32 ``(C, len(ys), len(xs))``."""
    height, width = image.shape[-2:]
    grid = torch.stack(torch.meshgrid(2 * xs / width - 1, 2 * ys / height - 1, indexing="xy"), dim=-1)
    found: Tensor = F.grid_sample(image[None].float(), grid[None], mode, padding_mode="border", align_corners=False)
    return found[0]


def _owner(scene: DrawnScene, xs: Tensor, ys: Tensor) -> Tensor:
    height, width = scene.owner.shape
    rows, columns = ys.long().clamp(0, height - 1), xs.long().clamp(0, width - 1)
    return scene.owner[rows][:, columns]


def _shares(owner: Tensor, items: int, cells: int) -> Tensor:
    """The share of each of ``items`` in a grid of ``cells`` x ``cells``, float32 ``(items, cells, cells)``."""
    each = torch.arange(items, device=owner.device, dtype=owner.dtype)[:, None, None]
    return F.adaptive_avg_pool2d((owner == each).float(), cells)
