"""SAM's attention with decomposed relative positions through PyTorch's fused kernels: the same numbers, less memory.

A query at (y, x) gives a key at (v, u) the bias ``q . R_h[y - v] + q . R_w[x - u]`` beside the scaled product. The
published code adds it to a matrix of all queries by all keys, of which a ViT-H at 1024 px holds several GB; here it is
made chunk by chunk.
"""

from __future__ import annotations

import torch
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor
from torch.nn import functional as F

_CHUNK_ELEMENTS = {"cpu": 2 * 2**20, "cuda": 512 * 2**20}
"""Elements of the bias made at once: on a CPU what its cache holds, on a GPU two images of a ViT-H at 1024 px."""


class FusedAttention(Attention):  # type: ignore[misc]
    """Takes the place of the package's attention, with the same parameters under the same names."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``: attention over all positions of each of the B windows or images."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.flatten(1, 2).unbind(0)
        grid = q.unflatten(1, (height, width))
        along_h = torch.einsum("bhwc,hkc->bhwk", grid, _by_distance(self.rel_pos_h, height))
        along_w = torch.einsum("bhwc,wkc->bhwk", grid, _by_distance(self.rel_pos_w, width))
        mixed = self._mix(q, k, v, along_h, along_w).view(batch, self.num_heads, height * width, -1)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, height, width, -1))
        return out

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, along_h: Tensor, along_w: Tensor) -> Tensor:
        """``q, k, v (G, H * W, d)``, ``along_h (G, H, W, H)``, ``along_w (G, H, W, W)`` -> ``(G, H * W, d)``.

        Several maps at a time, or some query rows of one where a map is too large by itself.
        """
        groups, height, width, _ = along_h.shape
        keys = height * width
        limit = _CHUNK_ELEMENTS.get(q.device.type, _CHUNK_ELEMENTS["cuda"])
        maps, rows = max(1, limit // keys**2), min(height, max(1, limit // (width * keys)))
        out = torch.empty_like(q)
        for first in range(0, groups, maps):
            some = slice(first, first + maps)
            for top in range(0, height, rows):
                bias = along_h[some, top : top + rows, :, :, None] + along_w[some, top : top + rows, :, None, :]
                queries = slice(top * width, (top + rows) * width)
                out[some, queries] = F.scaled_dot_product_attention(
                    q[None, some, queries], k[None, some], v[None, some],
                    attn_mask=bias.flatten(3).flatten(1, 2)[None], scale=self.scale,
                )[0]  # fmt: skip
        return out


def _by_distance(table: Tensor, size: int) -> Tensor:
    """Rows of ``table (2 * size - 1, d)`` by query and key place: ``(size, size, d)``."""
    places = torch.arange(size, device=table.device)
    return table[places[:, None] - places[None, :] + size - 1]
