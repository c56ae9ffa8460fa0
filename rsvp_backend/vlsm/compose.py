"""A VLSM of official parts: a SAM checkpoint, a BEiT-3 checkpoint and, if there is one, a projector.

    sam_vit_h_4b8939.pth+beit3_large_patch16_224.pth[+projector.safetensors]

The parts are told apart by their tensors, so that their order does not matter. BEiT-3's tokenizer (``beit3.spm`` or
``sentencepiece.bpe.model``) lies beside its checkpoint. Without a projector a fresh one is made: always the same, but
untrained, so that texts mean nothing to SAM before it is trained.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rsvp_backend.errors import WeightsError
from rsvp_backend.vlsm import infer
from rsvp_backend.vlsm.config import VlsmConfig
from rsvp_backend.vlsm.diagnosis import looks_like
from rsvp_backend.vlsm.state import SUFFIXES, checkpoint_sha256, read_state

log = logging.getLogger(__name__)

TOKENIZER_FILES = ("beit3.spm", "sentencepiece.bpe.model")
FORM = "SAM.pth+BEIT3.pth[+PROJECTOR.safetensors]"
_IMG_SIZE = 224
_PROJECTOR = "text_hidden_fcs."
_SEED = 0
# A plus parts files only behind a weights file's suffix: folders may have one in their names.
_PLUS = re.compile("|".join(rf"(?<=\{suffix})\+" for suffix in SUFFIXES))
_SAM_UNUSED = ("pixel_mean", "pixel_std")


@dataclass(frozen=True, slots=True, eq=False)
class Composition:
    """Parts under the public names of a whole checkpoint. ``digest``: sha256 over all parts, 64 hex digits."""

    config: VlsmConfig
    state: dict[str, Tensor]
    tokenizer_file: Path
    name: str
    digest: str


def split_parts(spec: str) -> list[Path]:
    """The files that a composition names; a single one where ``spec`` is none."""
    return [Path(os.path.expanduser(part)) for part in _PLUS.split(spec)]


def compose(files: Sequence[Path]) -> Composition:
    """Read and join the parts. Raises `WeightsError` where one is missing, doubled, foreign or of another size."""
    source = " + ".join(file.name for file in files)
    parts = _by_kind(files)
    for kind in ("SAM", "BEiT-3"):
        if kind not in parts:
            raise WeightsError(f"{source} has no {kind} checkpoint: {FORM} is expected")
    beit3_file = parts["BEiT-3"][0]
    state = {key: tensor for _, tensors in parts.values() for key, tensor in tensors.items()}
    config = _config(state, source, beit3_file.parent / infer.CONFIG_FILE)
    if config.beit3.img_size != _IMG_SIZE:
        raise WeightsError(
            f"{beit3_file} has position tables for pictures of {config.beit3.img_size} px: a checkpoint for "
            f"{_IMG_SIZE} px, like beit3_large_patch16_224.pth, is expected"
        )
    name, digests = infer.size_name(config), [checkpoint_sha256(parts[kind][0]) for kind in ("SAM", "BEiT-3")]
    if "projector" in parts:
        digests.append(checkpoint_sha256(parts["projector"][0]))
    else:
        log.warning("%s: no projector given, a fresh one is used. It is UNTRAINED: train it before use", source)
        fresh = fresh_projector(config)
        state, name = state | fresh, f"{name}-untrained"
        digests.append(_digest(fresh))
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return Composition(config, state, _tokenizer_file(beit3_file.parent), name, digest)


def fresh_projector(config: VlsmConfig) -> dict[str, Tensor]:
    """EVF-SAM's two-layer projector with torch's usual uniform initialisation, float32, the same at every call."""
    width, channels = config.beit3.embed_dim, config.sam.prompt_embed_dim
    shapes = {
        "0.0.weight": (width, width),
        "0.0.bias": (width,),
        "0.2.weight": (channels, width),
        "0.2.bias": (channels,),
    }
    source, bound = torch.Generator().manual_seed(_SEED), 1 / math.sqrt(width)
    return {
        f"{_PROJECTOR}{key}": torch.empty(shape).uniform_(-bound, bound, generator=source)
        for key, shape in shapes.items()
    }


def _by_kind(files: Sequence[Path]) -> dict[str, tuple[Path, dict[str, Tensor]]]:
    """kind -> (file, tensors under public names)."""
    parts: dict[str, tuple[Path, dict[str, Tensor]]] = {}
    for file in files:
        if not file.is_file():
            raise WeightsError(f"{file} does not exist: {FORM} is expected")
        kind, tensors = _part(file)
        if kind in parts:
            raise WeightsError(f"{parts[kind][0]} and {file} are both a {kind} checkpoint: {FORM} is expected")
        parts[kind] = file, tensors
    return parts


def _part(file: Path) -> tuple[str, dict[str, Tensor]]:
    state = read_state(file)
    if any(key.startswith("image_encoder.blocks.") for key in state):
        return "SAM", {infer.SAM_PREFIX + key: tensor for key, tensor in state.items() if key not in _SAM_UNUSED}
    if any(key.startswith("beit3.") for key in state):
        heads = [key for key in state if not key.startswith("beit3.")]
        if heads:
            log.info("%s: %d tensors of heads are not used (%s, ...)", file.name, len(heads), heads[0])
        return "BEiT-3", {f"mm_extractor.{key}": tensor for key, tensor in state.items() if key.startswith("beit3.")}
    if state and all(key.startswith(_PROJECTOR) for key in state):
        return "projector", state
    whole = any(key.startswith(infer.SAM_PREFIX) for key in state)
    kind = "this is a whole checkpoint: give it alone" if whole else looks_like(state)
    raise WeightsError(
        f"{file} is no SAM checkpoint, BEiT-3 checkpoint or projector: its first tensors are "
        f"{', '.join(list(state)[:5])}. Likely cause: {kind or 'these are the weights of another model'}"
    )


def _config(state: Mapping[str, Tensor], source: str, beside: Path) -> VlsmConfig:
    """From the tensors; where those leave it open, from the ``config.json`` beside the BEiT-3 checkpoint."""
    try:
        return infer.vlsm_config(state, source)
    except infer.UndecidedError:
        if not beside.is_file():
            raise
        return infer.read_config(beside)[0]


def _tokenizer_file(folder: Path) -> Path:
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder} has no tokenizer: {' or '.join(TOKENIZER_FILES)} is expected beside the BEiT-3 file")


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
