"""Masks as the mask decoder should give them: cut to what SAM sees, averaged on the decoder's grid."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from rsvp_backend.types import BoolMask, Box
from rsvp_backend.vlsm import preprocess
from rsvp_backend.vlsm.views import View


def decoder_target(mask: BoolMask, view: View, image_size: int, grid_size: int) -> tuple[Tensor, Tensor]:
    """``mask``, bool ``(height, width)`` of the image -> its share of each decoder cell, and which cells count.

    Both ``(4 * grid_size, 4 * grid_size)``: float32 in [0, 1], and bool. Cells beyond the crop do not count: padding,
    and under the view ``full+box`` the rest of the image; the mask is empty there.
    """
    side = (4 * grid_size, 4 * grid_size)
    inside = pooled(cut(filled(mask, view.crop), view.frame), side, image_size)
    return pooled(cut(mask, view.frame), side, image_size) * inside, inside > 0.5


def cut(mask: BoolMask, box: Box) -> BoolMask:
    """The part of ``mask`` in ``box``, without a copy."""
    return mask[box.top : box.bottom, box.left : box.right]


def filled(like: BoolMask, box: Box) -> BoolMask:
    """A mask of ``like``'s shape, True in ``box`` alone."""
    mask: BoolMask = np.zeros_like(like)
    cut(mask, box)[:] = True
    return mask


def pooled(mask: BoolMask, grid: tuple[int, int], image_size: int) -> Tensor:
    """A crop's mask as SAM's square sees it (longest side resized, padded right and below), averaged on ``grid``."""
    height, width = preprocess.resized_size((mask.shape[0], mask.shape[1]), image_size)
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    square = torch.zeros(image_size, image_size)
    square[:height, :width] = torch.from_numpy(np.array(picture)).float() / 255
    return F.adaptive_avg_pool2d(square[None], grid)[0]
