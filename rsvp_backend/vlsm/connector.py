"""The connector: which of BEiT-3's features SAM's mask decoder is prompted with.

    BEiT-3 features (B, V + T, C) --> connector --> (B, N, C) --> projector (token by token) --> prompt tokens

Three kinds (`ConnectorConfig.kind`), because the RSVP paper leaves the choice open:

- ``cls``: the CLS feature alone, as EVF-SAM has it (arXiv 2406.20076); no parameters, N = 1.
- ``cross_attention``: learned queries that attend to the features of all tokens, pads masked; N = ``queries``.
- ``concat``: CLS and the text tokens side by side; N = 1 + ``text_tokens``.

SAM's decoder has no mask over its prompt tokens, and its softmax gives weight to every one of them: if a batch's pads
became tokens, even zeros, a text's mask would depend on its neighbours' lengths. ``concat`` therefore always fills the
same number of slots and puts one learned vector into the empty ones, as SAM does with its "not a point" embedding: it
is the same for all inputs, so it carries no content, and a text gives the same tokens in every batch.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsvp_backend.vlsm.config import VlsmConfig


def make_connector(config: VlsmConfig) -> nn.Module:
    """The module of ``config.connector.kind``: features ``(B, V + T, C)`` and padding mask -> ``(B, N, C)``."""
    return {"cls": ClsToken, "cross_attention": QueryTokens, "concat": TextSlots}[config.connector.kind](config)


def make_projector(config: VlsmConfig) -> nn.Sequential:
    """Linear layers with ReLUs between, ``beit3.embed_dim -> sam.prompt_embed_dim``.

    ``depth`` layers of hidden ``width``; under ``cross_attention``, where those two shape the blocks, EVF-SAM's two
    layers, so that a public projector can start all three kinds.
    """
    own_width, connector = config.beit3.embed_dim, config.connector
    if connector.kind == "cross_attention":
        hidden = [own_width]
    else:
        hidden = [connector.width or own_width] * (connector.depth - 1)
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise([own_width, *hidden, config.sam.prompt_embed_dim]):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class ClsToken(nn.Module):
    """BEiT-3's CLS feature, which has read crop and text."""

    def __init__(self, config: VlsmConfig) -> None:
        super().__init__()

    def forward(self, features: Tensor, padding_mask: Tensor | None) -> Tensor:
        """``(B, V + T, C) -> (B, 1, C)``; the mask is not needed, as CLS is never a pad."""
        return features[:, :1]


class QueryTokens(nn.Module):
    """Learned queries that read all tokens, image patches included, through ``depth`` cross-attention blocks."""

    def __init__(self, config: VlsmConfig) -> None:
        super().__init__()
        dim, connector = config.beit3.embed_dim, config.connector
        # Unit variance, as SAM's own tokens and BEiT-3's normalised features have: the queries start apart.
        self.queries = nn.Parameter(torch.empty(1, connector.queries, dim).normal_())
        width, heads = connector.width or dim, config.beit3.num_heads
        self.blocks = nn.ModuleList(CrossAttentionBlock(dim, width, heads) for _ in range(connector.depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Tensor, padding_mask: Tensor | None) -> Tensor:
        """``(B, V + T, C) -> (B, queries, C)``; ``padding_mask``: bool ``(B, T)``, True on pads, or None for none."""
        attend = None
        if padding_mask is not None:
            vision_tokens = features.shape[1] - padding_mask.shape[1]
            attend = F.pad(~padding_mask, (vision_tokens, 0), value=True)[:, None, None, :]
        x = self.queries.expand(len(features), -1, -1)
        for block in self.blocks:
            x = block(x, features, attend)
        out: Tensor = self.norm(x)
        return out


class CrossAttentionBlock(nn.Module):
    """Pre-norm block: attention from queries to features, then a feed-forward; both work in ``width`` channels."""

    def __init__(self, dim: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.q_proj = nn.Linear(dim, width)
        self.k_proj = nn.Linear(dim, width)
        self.v_proj = nn.Linear(dim, width)
        self.out_proj = nn.Linear(width, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, width)
        self.fc2 = nn.Linear(width, dim)

    def forward(self, x: Tensor, features: Tensor, attend: Tensor | None) -> Tensor:
        """``x (B, N, C)``, ``features (B, M, C)``, ``attend``: bool ``(B, 1, 1, M)`` -> ``(B, N, C)``."""
        q = self._heads(self.q_proj(self.attention_norm(x)))
        k, v = self._heads(self.k_proj(features)), self._heads(self.v_proj(features))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attend).transpose(1, 2).flatten(2)
        x = x + self.out_proj(mixed)
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.ffn_norm(x))))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """``(B, N, width) -> (B, heads, N, width / heads)``."""
        batch, length, width = x.shape
        return x.view(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)


class TextSlots(nn.Module):
    """CLS and the first ``text_tokens`` text features; slots without a token hold one learned vector (see above)."""

    def __init__(self, config: VlsmConfig) -> None:
        super().__init__()
        self.vision_tokens = config.beit3.vision_tokens
        self.slots = config.connector.text_tokens
        self.no_token = nn.Parameter(torch.zeros(1, 1, config.beit3.embed_dim))

    def forward(self, features: Tensor, padding_mask: Tensor | None) -> Tensor:
        """``(B, V + T, C) -> (B, 1 + text_tokens, C)``; ``padding_mask``: bool ``(B, T)``, True on pads, or None."""
        text = features[:, self.vision_tokens :][:, : self.slots]
        no_token = self.no_token.to(text.dtype)
        if padding_mask is not None:
            text = torch.where(padding_mask[:, : self.slots, None], no_token, text)
        empty = no_token.expand(len(text), self.slots - text.shape[1], -1)
        return torch.cat([features[:, :1], text, empty], dim=1)
