"""SAM's image encoder, prompt encoder and mask decoder from the `segment-anything` package, under its public names.

The decoder is driven here and not by the package's own ``forward``, which pairs many prompts with one image: here each
image embedding goes with its own prompt, as crops do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from rsvp_backend.vlsm.config import SamConfig
from rsvp_backend.vlsm.fused_attention import FusedAttention


class Sam(nn.Module):
    """SAM without its pre- and postprocessing (those are in `preprocess`)."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = _image_encoder(config)
        self.prompt_encoder = PromptEncoder(
            embed_dim=config.prompt_embed_dim,
            image_embedding_size=(config.grid_size, config.grid_size),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_in_chans,
        )
        self.mask_decoder = _mask_decoder(config)
        _replace_norms(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast, but keep all besides the image encoder in float32 where a cast would round it.

        The positional encoding multiplies coordinates by 2 pi times a matrix inside a sine: in bfloat16 its phase is
        off by whole turns. Prompt encoder and decoder cost next to nothing, and rounding moves the mask's edge.
        """

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype.itemsize >= tensor.dtype.itemsize else tensor.to(moved.device)

        self.image_encoder._apply(fn, recurse)
        self.prompt_encoder._apply(move, recurse)
        self.mask_decoder._apply(move, recurse)
        return self

    def dense_pe(self) -> Tensor:
        """Positional encoding of the image embedding, float32 ``(1, C, h, w)``."""
        encoding: Tensor = self.prompt_encoder.get_dense_pe()
        return encoding

    def no_mask(self) -> Tensor:
        """The dense prompt that stands for "no mask given", ``(1, C, 1, 1)``."""
        weight: Tensor = self.prompt_encoder.no_mask_embed.weight
        return weight[:, :, None, None]

    def encode_points(
        self,
        points: Sequence[tuple[float, float]],
        labels: Sequence[int],
        box_corners: Sequence[tuple[float, float]] = (),
    ) -> Tensor:
        """Prompt tokens of one mask's clicks and box, ``(N, C)``; at least one of them is expected.

        ``points`` and ``box_corners`` (upper left, lower right; or none) are (x, y) in pixels of the square input;
        ``labels``: 1 for "inside the mask", 0 for "outside". Without a box, one "not a point" token follows, as SAM was
        trained.
        """
        device = self.prompt_encoder.not_a_point_embed.weight.device
        clicks = None
        if points:
            # SAM counts a click from its pixel's corner and adds the half itself; ours name the place.
            clicks = torch.tensor([points], device=device) - 0.5, torch.tensor([labels], device=device)
        box = torch.tensor([box_corners], device=device).flatten(1) if box_corners else None
        tokens: Tensor = self.prompt_encoder(points=clicks, boxes=box, masks=None)[0]
        return tokens[0]

    def decode(self, image_embedding: Tensor, sparse: Tensor, multimask: bool) -> tuple[Tensor, Tensor]:
        """Masks for B prompts.

        ``image_embedding``: ``(B, C, h, w)``, or ``(1, C, h, w)`` for one image under all prompts; ``sparse``:
        ``(B, N, C)`` prompt tokens. Gives logits ``(B, M, 4h, 4w)`` and predicted IoU ``(B, M)``, where M is 1 (mask
        token 0) or, with ``multimask``, 3 (mask tokens 1 to 3).
        """
        decoder = self.mask_decoder
        batch, dtype = sparse.shape[0], decoder.iou_token.weight.dtype
        own_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own_tokens.expand(batch, -1, -1), sparse.to(dtype)], dim=1)
        source = (image_embedding.to(dtype) + self.no_mask()).expand(batch, -1, -1, -1)
        out, keys = decoder.transformer(source, self.dense_pe().to(dtype), tokens)
        wanted = slice(1, decoder.num_mask_tokens) if multimask else slice(0, 1)
        upscaled = decoder.output_upscaling(keys.transpose(1, 2).unflatten(2, source.shape[-2:]))
        mlps = decoder.output_hypernetworks_mlps[wanted]
        hyper = torch.stack([mlp(out[:, 1 + wanted.start + i]) for i, mlp in enumerate(mlps)], dim=1)
        logits = (hyper @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
        return logits, decoder.iou_prediction_head(out[:, 0])[:, wanted]


class ChannelNorm(LayerNorm2d):  # type: ignore[misc]
    """The package's layer norm over channels of ``(B, C, H, W)``, by a kernel that sums in float32.

    Squares of the neck's activations are beyond float16, and the package squares them in the tensor's own dtype.
    """

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


def _replace_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, LayerNorm2d):
            setattr(module, name, ChannelNorm(len(child.weight), child.eps))
        else:
            _replace_norms(child)


def _image_encoder(config: SamConfig) -> Any:
    encoder = ImageEncoderViT(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        out_chans=config.prompt_embed_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        global_attn_indexes=config.global_attn_indexes,
        window_size=config.window_size,
    )
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
    for block in encoder.blocks:
        side = block.window_size or config.grid_size
        block.attn = FusedAttention(config.embed_dim, config.num_heads, use_rel_pos=True, input_size=(side, side))
    return encoder


def _mask_decoder(config: SamConfig) -> Any:
    transformer = TwoWayTransformer(
        depth=2,
        embedding_dim=config.prompt_embed_dim,
        num_heads=config.decoder_num_heads,
        mlp_dim=config.decoder_mlp_dim,
    )
    return MaskDecoder(
        transformer_dim=config.prompt_embed_dim,
        transformer=transformer,
        iou_head_hidden_dim=config.iou_head_hidden_dim,
    )
