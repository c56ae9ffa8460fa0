"""BEiT-3's multiway encoder (arXiv 2208.10442): one attention over image and text tokens, separate weights for each.

Parameter names are those of the public checkpoints: expert ``A`` serves vision tokens, expert ``B`` text tokens.
Tokens travel as two streams and meet only inside the attention, so that no expert's output is ever concatenated twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsvp_backend.errors import SegmenterError
from rsvp_backend.vlsm.config import Beit3Config

_LAYER_NORM_EPS = 1e-5
_FIRST_POSITION = 2  # rows 0 and 1 of every position table are left over from fairseq's padding rule


class Streams(NamedTuple):
    """Vision tokens ``(B, V, C)`` and text tokens ``(B, T, C)``; a missing modality has length 0."""

    vision: Tensor
    text: Tensor

    def plus(self, other: Streams) -> Streams:
        return Streams(self.vision + other.vision, self.text + other.text)

    def joined(self) -> Tensor:
        return torch.cat(self, dim=1)


class Multiway(nn.Module):
    """Two modules of one shape: ``A`` for vision tokens, ``B`` for text tokens."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.A = make()
        self.B = make()

    def forward(self, x: Streams) -> Streams:
        return Streams(self.A(x.vision), self.B(x.text))


class FeedForward(nn.Module):
    """fc2(LN(gelu(fc1(x)))), ``(B, T, C) -> (B, T, C)``: the sub-LN form."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.ffn_layernorm = nn.LayerNorm(hidden_dim, eps=_LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.ffn_layernorm(F.gelu(self.fc1(x))))
        return out


class MultiwayAttention(nn.Module):
    """Self-attention over both streams at once; projections and the inner norm are per modality."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.k_proj = Multiway(lambda: nn.Linear(dim, dim))
        self.v_proj = Multiway(lambda: nn.Linear(dim, dim))
        self.q_proj = Multiway(lambda: nn.Linear(dim, dim))
        self.out_proj = Multiway(lambda: nn.Linear(dim, dim))
        self.inner_attn_ln = Multiway(lambda: nn.LayerNorm(dim, eps=_LAYER_NORM_EPS))

    def forward(self, x: Streams, attend: Tensor | None) -> Streams:
        """``attend``: bool ``(B, 1, 1, V + T)``, True where a key may be attended; None for everywhere."""
        q, k, v = (self._heads(proj(x).joined()) for proj in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attend).transpose(1, 2).flatten(2)
        split = x.vision.shape[1]
        out: Streams = self.out_proj(self.inner_attn_ln(Streams(mixed[:, :split], mixed[:, split:])))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """``(B, N, C) -> (B, heads, N, C / heads)``."""
        batch, length, dim = x.shape
        return x.view(batch, length, self.num_heads, dim // self.num_heads).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Pre-norm block: attention, then the feed-forward, each with its residual."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        dim = config.embed_dim
        self.self_attn = MultiwayAttention(dim, config.num_heads)
        self.self_attn_layer_norm = Multiway(lambda: nn.LayerNorm(dim, eps=_LAYER_NORM_EPS))
        self.ffn = Multiway(lambda: FeedForward(dim, config.ffn_dim))
        self.final_layer_norm = Multiway(lambda: nn.LayerNorm(dim, eps=_LAYER_NORM_EPS))

    def forward(self, x: Streams, attend: Tensor | None) -> Streams:
        x = x.plus(self.self_attn(self.self_attn_layer_norm(x), attend))
        return x.plus(self.ffn(self.final_layer_norm(x)))


class PositionTables(nn.Module):
    """Learned positions; both tables are read from row 2 on, and the text's positions restart there."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.A = nn.Embedding(config.vision_tokens + _FIRST_POSITION, config.embed_dim)
        self.B = nn.Embedding(config.max_source_positions, config.embed_dim)

    def forward(self, x: Streams) -> Streams:
        return Streams(self._rows(self.A.weight, x.vision), self._rows(self.B.weight, x.text))

    @staticmethod
    def _rows(table: Tensor, x: Tensor) -> Tensor:
        return table[_FIRST_POSITION : _FIRST_POSITION + x.shape[1]]


class Encoder(nn.Module):
    """The stack of layers between the position tables and the output norm."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.embed_positions = PositionTables(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.layer_norm = Multiway(lambda: nn.LayerNorm(config.embed_dim, eps=_LAYER_NORM_EPS))

    def forward(self, x: Streams, padding_mask: Tensor | None) -> Streams:
        """``padding_mask``: bool ``(B, T)`` over text tokens, True on pads, which are zeroed and never attended."""
        x = x.plus(self.embed_positions(x))
        attend = None
        if padding_mask is not None:
            keep = ~padding_mask
            x = Streams(x.vision, x.text * keep.unsqueeze(-1).to(x.text.dtype))
            attend = F.pad(keep, (x.vision.shape[1], 0), value=True)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, attend)
        out: Streams = self.layer_norm(x)
        return out


class VisionEmbedding(nn.Module):
    """Patches and CLS, ``(B, 3, S, S) -> (B, 1 + patches, C)``. ``mask_token`` is only kept for its public name."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.proj(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)


class Beit3(nn.Module):
    """BEiT-3 without heads."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.config = config
        self.text_embed = nn.Embedding(config.vocab_size, config.embed_dim)
        self.vision_embed = VisionEmbedding(config)
        self.encoder = Encoder(config)
        self.apply(_init)

    def forward(self, pixels: Tensor | None, input_ids: Tensor | None, padding_mask: Tensor | None = None) -> Tensor:
        """Features of all tokens after the output norm, ``(B, V + T, C)``; CLS is the first where there are pixels.

        ``pixels``: ``(B, 3, img_size, img_size)``, normalised; ``input_ids``: int64 ``(B, T)``; ``padding_mask``: bool
        ``(B, T)``, True on pads, or None to attend to every token (what EVF-SAM does at inference). Either input may
        be None for the other alone. Raises `SegmenterError` where a text is longer than the position table.
        """
        if input_ids is not None and input_ids.shape[1] > self.config.max_text_tokens:
            raise SegmenterError(f"text of {input_ids.shape[1]} tokens: at most {self.config.max_text_tokens} expected")
        out: Streams = self.encoder(self._embed(pixels, input_ids), padding_mask)
        return out.joined()

    def _embed(self, pixels: Tensor | None, input_ids: Tensor | None) -> Streams:
        vision = None if pixels is None else self.vision_embed(pixels)
        text = None if input_ids is None else self.text_embed(input_ids)
        if vision is not None and text is not None:
            return Streams(vision, text)
        if vision is not None:
            return Streams(vision, vision[:, :0])
        if text is not None:
            return Streams(text[:, :0], text)
        raise ValueError("neither pixels nor input_ids given: BEiT-3 expects at least one of them")


def _init(module: nn.Module) -> None:
    """BEiT-3's fine-tuning initialisation for fresh weights: truncated normal, std 0.02."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, VisionEmbedding):
        nn.init.trunc_normal_(module.cls_token, std=0.02)
