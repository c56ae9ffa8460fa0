"""Losses of the VLSM (paper, section 4: Dice + BCE), per mask and averaged over the batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels then masks. Both ``(N, h, w)``; ``target`` float in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - Dice of soft masks ``(N, h, w)``, mean over masks; ``smooth`` (in pixels) makes an empty target learnable."""
    probability, target = logits.float().sigmoid().flatten(1), target.float().flatten(1)
    overlap = (probability * target).sum(1)
    total = probability.sum(1) + target.sum(1)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


@torch.no_grad()
def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of ``logits > 0`` with ``target > 0.5``, ``(N, h, w)`` -> ``(N,)``; 1 where both are empty."""
    predicted, wanted = logits.flatten(1) > 0, target.flatten(1) > 0.5
    union = (predicted | wanted).sum(1)
    overlap = (predicted & wanted).sum(1)
    return torch.where(union > 0, overlap / union.clamp(min=1), torch.ones_like(overlap, dtype=torch.float32))


def iou_head_loss(predicted_iou: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Squared error of the IoU head ``(N,)`` against the IoU that the mask reaches."""
    return F.mse_loss(predicted_iou.float(), mask_iou(logits, target))


def segmentation_loss(logits: Tensor, predicted_iou: Tensor, target: Tensor) -> Tensor:
    """2 BCE + Dice + 0.1 IoU head, on ``(N, h, w)`` logits, ``(N,)`` predicted IoU, ``(N, h, w)`` target."""
    return 2 * bce_loss(logits, target) + dice_loss(logits, target) + 0.1 * iou_head_loss(predicted_iou, logits, target)
