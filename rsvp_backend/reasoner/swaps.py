"""Modules of transformers' models in faster forms, equal up to float32 rounding; weights and their names stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RMS_NORMS = ("Qwen2VLRMSNorm", "Qwen2_5_VLRMSNorm", "Qwen3VLTextRMSNorm", "LlamaRMSNorm", "Qwen2RMSNorm")
PATCH_EMBEDDINGS = ("PatchEmbed", "Qwen2_5_VisionPatchEmbed", "Qwen3VLVisionPatchEmbed")


class FusedRMSNorm(nn.Module):
    """Root-mean-square norm over the last axis in one call."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.epsilon)


class FusedQuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)`` in one new tensor instead of three."""

    def forward(self, hidden: Tensor) -> Tensor:
        return F.silu(hidden * 1.702, inplace=True).mul_(1 / 1.702)


class PatchLinear(nn.Module):
    """A convolution whose input is one kernel in size, ``(patches, channels, ...)``, as the matrix product it is.

    ``weight (dim, channels, ...)``, ``bias (dim,)``: the convolution's. Gives ``(patches, dim)``.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


def swap_modules(model: Any) -> None:
    """Swap, in place, what is known to be equal in a float32 ``model``; leave everything else."""
    if model.dtype != torch.float32:
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            swapped = _faster(parent, child)
            if swapped is not None:
                setattr(parent, name, swapped)


def _faster(parent: nn.Module, child: nn.Module) -> nn.Module | None:
    kind = type(child).__name__
    if kind == "QuickGELUActivation":
        return FusedQuickGELU()
    if kind in RMS_NORMS:
        return FusedRMSNorm(child.weight, child.variance_epsilon)  # type: ignore[arg-type]
    if type(parent).__name__ in PATCH_EMBEDDINGS and isinstance(child, nn.Conv3d) and child.kernel_size == child.stride:
        return PatchLinear(child.weight, child.bias)  # type: ignore[arg-type]
    return None
