"""Checkpoints of a VLSM: loaded from a folder, a file, the Hugging Face hub or official parts; saved as a folder.

A folder holds ``model.safetensors`` (or ``pytorch_model.bin``), ``sentencepiece.bpe.model`` and, unless the sizes are
published ones, ``config.json``; a single weights file is read with the other two beside it. Nothing in a checkpoint is
ever executed: pickles are read with ``weights_only=True``. A folder is written aside and renamed, so that a reader sees
all of it or none.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rsvp_backend.errors import WeightsError
from rsvp_backend.vlsm import hub
from rsvp_backend.vlsm.compose import FORM, compose, split_parts
from rsvp_backend.vlsm.diagnosis import check_state
from rsvp_backend.vlsm.hub import TOKENIZER_FILE, WEIGHTS_FILES
from rsvp_backend.vlsm.infer import CONFIG_FILE, check_name, read_config, size_name, vlsm_config
from rsvp_backend.vlsm.model import Vlsm, VlsmConfig
from rsvp_backend.vlsm.state import SUFFIXES, checkpoint_sha256, read_state
from rsvp_backend.vlsm.tokenizer import ADDED_TOKENS_FILE, Tokenizer

__all__ = ["CONFIG_FILE", "DEFAULT_NAME", "TOKENIZER_FILE", "WEIGHTS_FILES", "Weights", "build", "load", "save"]

log = logging.getLogger(__name__)

DEFAULT_NAME = "vlsm"
_FP32_PARTS = ("visual_model.prompt_encoder.", "visual_model.mask_decoder.")
_FP32_KEY = "visual_model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A checkpoint in memory: ``model`` on the CPU in the file's own dtypes, in eval mode."""

    model: Vlsm
    tokenizer: Tokenizer
    name: str
    version: str


def load(source: str | Path) -> Weights:
    """Load a checkpoint. Raises `WeightsError`.

    ``source``: a folder; a ``.safetensors``, ``.bin`` or ``.pth`` file; ``OWNER/NAME[@REVISION]`` on the Hugging Face
    hub; or official parts, ``SAM.pth+BEIT3.pth[+PROJECTOR.safetensors]``. A path that exists wins over a hub id.
    """
    path = Path(os.path.expanduser(source))
    if path.exists():
        return _load_path(path)
    parts = split_parts(str(source))
    if len(parts) > 1:
        return _load_parts(parts)
    repository = hub.parse_id(str(source))
    if repository is None:
        return _load_path(path)
    repo_id, revision = repository
    return _load_path(hub.download(repo_id, revision), repo_id.split("/")[1])


def build(config: VlsmConfig, state: Mapping[str, Tensor], source: str, inferred: bool = False) -> Vlsm:
    """A model in eval mode that holds ``state``'s own tensors. Raises `WeightsError` that names ``source``.

    ``inferred``: whether ``config`` was made from ``state``, which a complaint then takes into account.
    """
    with torch.device("meta"):
        model = Vlsm(config)
    check_state(model.state_dict(), state, source, inferred)
    # The model keeps these in the dtype that they have here when it is cast later (see `sam.Sam`).
    state = {key: value.float() if key.startswith(_FP32_PARTS) else value for key, value in state.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _load_path(path: Path, hub_name: str | None = None) -> Weights:
    """A folder or a file; ``config.json`` beside the weights wins over what their tensors tell."""
    file = _weights_file(path)
    source, described = str(file), file.parent / CONFIG_FILE
    config, name = read_config(described) if described.is_file() else (None, None)
    if config is not None:
        tokenizer = _tokenizer(file.parent / TOKENIZER_FILE, config)
        model = build(config, read_state(file), source)
    else:
        state = read_state(file)
        config = vlsm_config(state, source)
        tokenizer = _tokenizer(file.parent / TOKENIZER_FILE, config)
        model = build(config, state, source, inferred=True)
    return _loaded(model, tokenizer, hub_name or name or size_name(config), checkpoint_sha256(file), source)


def _load_parts(parts: list[Path]) -> Weights:
    whole = compose(parts)
    source = " + ".join(part.name for part in parts)
    model = build(whole.config, whole.state, source, inferred=True)
    return _loaded(model, _tokenizer(whole.tokenizer_file, whole.config), whole.name, whole.digest, source)


def _loaded(model: Vlsm, tokenizer: Tokenizer, name: str, digest: str, source: str) -> Weights:
    log.info("weights %s from %s: sha256 %s", name, source, digest)
    return Weights(model, tokenizer, name, _version(name, digest))


def _tokenizer(path: Path, config: VlsmConfig) -> Tokenizer:
    tokenizer = Tokenizer.from_file(path, config.beit3.max_text_tokens)
    if tokenizer.vocab_size > config.beit3.vocab_size:
        raise WeightsError(
            f"{path} has {tokenizer.vocab_size} ids, but beit3.vocab_size in {CONFIG_FILE} or in the weights is "
            f"{config.beit3.vocab_size}: the two belong to different models"
        )
    return tokenizer


def save(folder: Path, model: Vlsm, tokenizer: Tokenizer, name: str = DEFAULT_NAME) -> str:
    """Write ``model`` as a folder in fp16 (the positional encoding's matrix in fp32) and give its version.

    An existing folder of that name is replaced. Raises `WeightsError` for a bad name or values beyond fp16.
    """
    check_name(name, "the name to save under")
    state = {key: _half(key, tensor) for key, tensor in model.state_dict().items()}
    config = {"name": name, **model.config.to_dict()}
    aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    aside.mkdir(parents=True)
    try:
        save_file(state, aside / WEIGHTS_FILES[0], metadata={"format": "pt"})
        (aside / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (aside / TOKENIZER_FILE).write_bytes(tokenizer.model)
        if tokenizer.added:
            (aside / ADDED_TOKENS_FILE).write_text(json.dumps(dict(tokenizer.added)) + "\n", encoding="utf-8")
        version = _version(name, checkpoint_sha256(aside / WEIGHTS_FILES[0]))
        _replace_folder(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return version


def _half(key: str, tensor: Tensor) -> Tensor:
    kept = tensor.detach().to("cpu", torch.float32 if key == _FP32_KEY else torch.float16).contiguous()
    if not kept.isfinite().all():
        raise WeightsError(
            f"{key} has values that fp16 cannot hold (beyond 65504, or not finite): has training diverged?"
        )
    return kept


def _replace_folder(new: Path, target: Path) -> None:
    """Rename ``new`` to ``target``; what was there is moved away first, and back if the renaming fails."""
    if not target.exists():
        new.rename(target)
        return
    old = new.with_name(f"{new.name}.old")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _weights_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise WeightsError(f"{path} ends in {path.suffix!r}: {', '.join(SUFFIXES)} is expected")
        return path
    found = [path / name for name in WEIGHTS_FILES if (path / name).is_file()]
    if not found:
        seen = "has none of them" if path.is_dir() else "does not exist"
        raise WeightsError(
            f"{path} {seen}: a weights file, a folder with one of {', '.join(WEIGHTS_FILES)}, a Hugging Face id "
            f"OWNER/NAME, or parts {FORM} are expected"
        )
    return found[0]


def _version(name: str, digest: str) -> str:
    return f"{name}-{digest[:8]}"
