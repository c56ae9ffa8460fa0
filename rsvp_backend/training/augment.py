"""Variations of a scene that leave its truth true: seen in a mirror, and in another light."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rsvp_backend.scenes import Scene

_LIT_SHARE = 0.35
_BRIGHTNESS = (0.5, 1.15)
_CONTRAST = (0.8, 1.2)
_BALANCE = (0.9, 1.1)


def mirrored(scene: Scene) -> Scene:
    """``scene`` with left and right exchanged, in picture, masks and layout; without its questions."""
    layout = scene.layout
    wide = layout.width_px / min(layout.width_px, layout.height_px)
    items = tuple(replace(item, cx=wide - item.cx) for item in layout.items)
    return replace(
        scene,
        image=scene.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        masks=tuple(np.ascontiguousarray(mask[:, ::-1]) for mask in scene.masks),
        layout=replace(layout, items=items),
        questions=(),
    )


def tone_curves(rng: np.random.Generator, count: int) -> Tensor:
    """Slope and offset for each channel's values (0 to 255) of ``count`` pictures, float32 ``(count, 3, 2)``.

    About a third of them change brightness, contrast and white balance; the others leave a picture as it is.
    """
    brightness, contrast = rng.uniform(*_BRIGHTNESS, (count, 1)), rng.uniform(*_CONTRAST, (count, 1))
    slope = brightness * contrast * rng.uniform(*_BALANCE, (count, 3))
    offset = 128 * brightness - 128 * slope
    curves = np.stack([slope, offset], axis=-1)
    curves[rng.random(count) > _LIT_SHARE] = (1.0, 0.0)
    return torch.from_numpy(curves.astype(np.float32))


def relit(pixels: Tensor, curves: Tensor) -> Tensor:
    """``pixels``, float ``(B, 3, h, w)`` in [0, 255], under `tone_curves` ``(B, 3, 2)`` on the same device."""
    slope, offset = curves[..., 0, None, None], curves[..., 1, None, None]
    return (pixels * slope + offset).clamp(0, 255)
