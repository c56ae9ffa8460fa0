"""The config of a VLSM from the shapes of its tensors, for checkpoints that bring no ``config.json``.

Nearly all of it can be read off. What cannot: BEiT-3's heads (64 channels each in the published sizes), and the
heads of SAM's decoder (8 for its published 256 channels). Other sizes need a ``config.json``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from rsvp_backend.errors import WeightsError
from rsvp_backend.vlsm.config import Beit3Config, SamConfig, VlsmConfig
from rsvp_backend.vlsm.diagnosis import looks_like

CONFIG_FILE, PUBLISHED_NAME = "config.json", "evf-sam"
SAM_PREFIX, BEIT3_PREFIX = "visual_model.", "mm_extractor.beit3."
_BEIT3_HEAD_CHANNELS = 64
_DECODER_HEADS = {256: 8}
_FAIRSEQ_ROWS = 2
_SAM_SIZES = {768: "b", 1024: "l", 1280: "h"}
_BEIT3_SIZES = {768: "base", 1024: "large"}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

State = Mapping[str, Tensor]


class UndecidedError(WeightsError):
    """The tensors alone do not tell the whole config."""


def read_config(path: Path) -> tuple[VlsmConfig, str | None]:
    """A ``config.json`` of ours, or of a published EVF-SAM folder, and the name in it. Raises `WeightsError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} holds a {type(data).__name__}: an object with 'sam' and 'beit3' is expected")
    if data.get("model_type") == "evf":
        return _published_config(data, path), PUBLISHED_NAME
    return VlsmConfig.from_dict(data), check_name(data["name"], f"'name' in {path}") if "name" in data else None


def check_name(name: object, what: str) -> str:
    """``name``, if a checkpoint may be called so. Raises `WeightsError` that calls it ``what``."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise WeightsError(f"{what} is {name!r}: 1 to 64 letters, digits, dots, dashes or underscores are expected")
    return name


def _published_config(data: Mapping[str, Any], path: Path) -> VlsmConfig:
    """The config of a published EVF-SAM folder, which names its two sizes only."""
    sizes = data.get("sam_scale"), data.get("mm_extractor_scale")
    if sizes != ("huge", "large"):
        raise WeightsError(
            f"{path} describes EVF-SAM with SAM {sizes[0]!r}, BEiT-3 {sizes[1]!r}: 'huge', 'large' expected"
        )
    return VlsmConfig.evf_sam_huge()


def vlsm_config(state: State, source: str) -> VlsmConfig:
    """The config of a whole checkpoint under its public names. Raises `WeightsError` where tensors leave it open."""
    sam, beit3 = sam_config(state, source), beit3_config(state, source)
    return VlsmConfig.from_dict({"sam": asdict(sam), "beit3": asdict(beit3)})


def sam_config(state: State, source: str) -> SamConfig:
    """The config of the tensors ``visual_model.*``."""
    shapes = _Shapes(state, SAM_PREFIX, source)
    _, grid, _, width = shapes("image_encoder.pos_embed", 4)
    *_, patch = shapes("image_encoder.patch_embed.proj.weight", 4)
    tables = [
        shapes(f"image_encoder.blocks.{i}.attn.rel_pos_h", 2) for i in range(shapes.count("image_encoder.blocks."))
    ]
    head_channels = tables[0][1]
    # A block's table has a row per offset between two of its patches: 2 * side - 1.
    sides = [(rows + 1) // 2 for rows, _ in tables]
    windows = {side for side in sides if side != grid}
    if len(windows) > 1:
        raise WeightsError(f"{source} has image encoder windows of {sorted(windows)} patches: one size is expected")
    channels = shapes("image_encoder.neck.0.weight", 4)[0]
    if channels not in _DECODER_HEADS:
        raise _undecided(source, f"the heads of SAM's decoder: it has {channels} channels, not the published 256")
    return SamConfig(
        image_size=grid * patch,
        patch_size=patch,
        embed_dim=width,
        depth=len(tables),
        num_heads=max(1, width // head_channels),
        mlp_ratio=shapes("image_encoder.blocks.0.mlp.lin1.weight", 2)[0] / width,
        global_attn_indexes=tuple(i for i, side in enumerate(sides) if side == grid),
        window_size=next(iter(windows), grid),
        prompt_embed_dim=channels,
        mask_in_chans=shapes("prompt_encoder.mask_downscaling.3.weight", 4)[0],
        decoder_mlp_dim=shapes("mask_decoder.transformer.layers.0.mlp.lin1.weight", 2)[0],
        decoder_num_heads=_DECODER_HEADS[channels],
        iou_head_hidden_dim=shapes("mask_decoder.iou_prediction_head.layers.0.weight", 2)[0],
    )


def beit3_config(state: State, source: str) -> Beit3Config:
    """The config of the tensors ``mm_extractor.beit3.*``."""
    shapes = _Shapes(state, BEIT3_PREFIX, source)
    words, width = shapes("text_embed.weight", 2)
    *_, patch = shapes("vision_embed.proj.weight", 4)
    vision_rows, _ = shapes("encoder.embed_positions.A.weight", 2)
    patches = vision_rows - _FAIRSEQ_ROWS - 1
    side = math.isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise WeightsError(
            f"{source} has BEiT-3's vision positions for {patches} patches: a square of patches (196 for 224 px) is "
            "expected"
        )
    if width % _BEIT3_HEAD_CHANNELS:
        raise _undecided(source, f"BEiT-3's heads: it has {width} channels, no multiple of the published 64 per head")
    layers = [shapes(f"encoder.layers.{i}.ffn.A.fc1.weight", 2) for i in range(shapes.count("encoder.layers."))]
    return Beit3Config(
        img_size=side * patch,
        patch_size=patch,
        vocab_size=words,
        embed_dim=width,
        num_heads=width // _BEIT3_HEAD_CHANNELS,
        ffn_dim=layers[0][0],
        layers=len(layers),
        max_source_positions=shapes("encoder.embed_positions.B.weight", 2)[0],
    )


def size_name(config: VlsmConfig) -> str:
    """A name for a checkpoint that has none, like ``sam-h-beit3-large``; unpublished sizes go by their width."""
    sam, beit3 = config.sam.embed_dim, config.beit3.embed_dim
    return f"sam-{_SAM_SIZES.get(sam, sam)}-beit3-{_BEIT3_SIZES.get(beit3, beit3)}"


class _Shapes:
    """Shapes by name, with an error where a tensor is missing or has another number of axes."""

    def __init__(self, state: State, prefix: str, source: str) -> None:
        self._state, self._prefix, self._source = state, prefix, source

    def __call__(self, name: str, axes: int) -> tuple[int, ...]:
        key = self._prefix + name
        if key not in self._state:
            kind = looks_like(self._state) or "these are the weights of another model, or the file is incomplete"
            raise WeightsError(f"{self._source} does not fit: {key} is missing. Likely cause: {kind}")
        shape = tuple(self._state[key].shape)
        if len(shape) != axes or 0 in shape:
            raise WeightsError(f"{self._source} does not fit: {key} is {shape}, {axes} axes of 1 or more are expected")
        return shape

    def count(self, start: str) -> int:
        """Number of layers ``start`` + number, at least 1."""
        number = re.compile(re.escape(self._prefix + start) + r"(\d{1,4})\.")
        return 1 + max((int(found[1]) for key in self._state if (found := number.match(key))), default=0)


def _undecided(source: str, what: str) -> UndecidedError:
    return UndecidedError(f"the tensors of {source} do not tell {what}. Put a config.json beside the file")
