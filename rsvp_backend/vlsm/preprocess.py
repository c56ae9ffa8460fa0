"""From a crop to the two inputs of the VLSM, and from its low-resolution logits back to the crop's own pixels.

Both follow the public EVF-SAM code, whose weights were trained with exactly these resizings. Sizes are (height, width).
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]

_SAM_MEAN = (123.675, 116.28, 103.53)
_SAM_STD = (58.395, 57.12, 57.375)


def resized_size(size_px: Size, image_size: int) -> Size:
    """(height, width) after the longest side is brought to ``image_size``; no side falls below 1."""
    scale = image_size / max(size_px)
    height, width = (max(1, int(side * scale + 0.5)) for side in size_px)
    return height, width


def sam_resized(image: Image.Image, image_size: int) -> Tensor:
    """``image`` with its longest side at ``image_size``, uint8 ``(3, height, width)``.

    PIL's bilinear filter averages over the whole source area when it shrinks.
    """
    height, width = resized_size((image.height, image.width), image_size)
    return _channels_first(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))


def sam_normalised(resized: Tensor, image_size: int) -> Tensor:
    """`sam_resized`'s pixels ``(..., 3, h, w)`` -> SAM's input, float32 ``(..., 3, image_size, image_size)``.

    The padding, right and below, is 0 *after* normalising.
    """
    mean, std = (torch.tensor(values, device=resized.device).view(3, 1, 1) for values in (_SAM_MEAN, _SAM_STD))
    height, width = resized.shape[-2:]
    return F.pad((resized.float() - mean) / std, (0, image_size - width, 0, image_size - height))


def sam_pixels(image: Image.Image, image_size: int) -> Tensor:
    """SAM's input, float32 ``(3, image_size, image_size)``: resized, normalised, padded."""
    return sam_normalised(sam_resized(image, image_size), image_size)


def beit3_pixels(image: Image.Image, img_size: int) -> Tensor:
    """BEiT-3's input, float32 ``(3, img_size, img_size)``: squashed to a square, mean and std 0.5.

    Bicubic without antialiasing, as in the public code, though that aliases large crops: weights expect it.
    """
    pixels = (_channels_first(image.convert("RGB")).float() / 255)[None]
    square = F.interpolate(pixels, (img_size, img_size), mode="bicubic", align_corners=False, antialias=False)[0]
    return (square - 0.5) / 0.5


def full_size_logits(logits: Tensor, original_px: Size, image_size: int) -> Tensor:
    """Low-resolution logits ``(M, h, w)`` of one crop -> float32 ``(M, height, width)`` at ``original_px``.

    Two bilinear steps: to SAM's square, where the padding is cut off, then to the crop's own size.
    """
    height, width = resized_size(original_px, image_size)
    square = _bilinear(logits.float()[None], (image_size, image_size))
    return _bilinear(square[..., :height, :width], original_px)[0]


def _channels_first(image: Image.Image) -> Tensor:
    """RGB image -> uint8 ``(3, height, width)``."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _bilinear(x: Tensor, size_px: Size) -> Tensor:
    return F.interpolate(x, size_px, mode="bilinear", align_corners=False)
