"""Checkpoints of a VLSM: a folder with ``config.json``, ``model.safetensors`` and ``sentencepiece.bpe.model``.

A single weights file is read with the other two beside it. Nothing in a checkpoint is ever executed: pickles are read
with ``weights_only=True``. A folder is written aside and renamed, so that a reader sees all of it or none.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsvp_backend.errors import WeightsError
from rsvp_backend.vlsm.diagnosis import check_state
from rsvp_backend.vlsm.model import Vlsm, VlsmConfig
from rsvp_backend.vlsm.tokenizer import Tokenizer

CONFIG_FILE, TOKENIZER_FILE = "config.json", "sentencepiece.bpe.model"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
DEFAULT_NAME = "vlsm"
_FP32_KEY = "visual_model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A checkpoint in memory: ``model`` on the CPU in the file's own dtypes, in eval mode."""

    model: Vlsm
    tokenizer: Tokenizer
    name: str
    version: str


def load(path: Path) -> Weights:
    """Load a folder, or one ``.safetensors``, ``.bin`` or ``.pth`` file. Raises `WeightsError`."""
    file = _weights_file(path)
    config, name = _read_config(file.parent / CONFIG_FILE)
    tokenizer = Tokenizer.from_file(file.parent / TOKENIZER_FILE, config.beit3.max_text_tokens)
    if tokenizer.vocab_size > config.beit3.vocab_size:
        raise WeightsError(
            f"{file.parent / TOKENIZER_FILE} has {tokenizer.vocab_size} ids, but beit3.vocab_size in {CONFIG_FILE} is "
            f"{config.beit3.vocab_size}: the two belong to different models"
        )
    model = build(config, read_state(file), str(file))
    return Weights(model, tokenizer, name, _version(name, file))


def build(config: VlsmConfig, state: Mapping[str, Tensor], source: str) -> Vlsm:
    """A model in eval mode that holds ``state``'s own tensors. Raises `WeightsError` that names ``source``."""
    with torch.device("meta"):
        model = Vlsm(config)
    check_state(model.state_dict(), state, source)
    # The model keeps this matrix in the dtype that it has here when it is cast later (see `sam.Sam`).
    state = {**state, _FP32_KEY: state[_FP32_KEY].float()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def read_state(file: Path) -> dict[str, Tensor]:
    """All tensors of a weights file, on the CPU. Raises `WeightsError`; no code in the file is run."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file, device="cpu")
        data = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"{file} is damaged, truncated or no safetensors file: {error}") from error
    except Exception as error:  # the pickle and zip readers raise nearly anything on a foreign file
        raise WeightsError(
            f"{file} is damaged, or holds more than tensors, which is refused because loading it could run code "
            f"({type(error).__name__}): expected a plain state dict; prefer .safetensors"
        ) from error
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise WeightsError(f"{file} holds a {type(data).__name__} that is not a flat state dict of tensors")
    return data


def save(folder: Path, model: Vlsm, tokenizer: Tokenizer, name: str = DEFAULT_NAME) -> str:
    """Write ``model`` as a folder in fp16 (the positional encoding's matrix in fp32) and give its version.

    An existing folder of that name is replaced. Raises `WeightsError` for a bad name or values beyond fp16.
    """
    _check_name(name, "the name to save under")
    state = {key: _half(key, tensor) for key, tensor in model.state_dict().items()}
    config = {"name": name, **model.config.to_dict()}
    aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    aside.mkdir(parents=True)
    try:
        save_file(state, aside / WEIGHTS_FILES[0], metadata={"format": "pt"})
        (aside / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (aside / TOKENIZER_FILE).write_bytes(tokenizer.model)
        version = _version(name, aside / WEIGHTS_FILES[0])
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
        if path.suffix not in (".safetensors", ".bin", ".pth"):
            raise WeightsError(f"{path} ends in {path.suffix!r}: .safetensors, .bin or .pth is expected")
        return path
    found = [path / name for name in WEIGHTS_FILES if (path / name).is_file()]
    if not found:
        seen = "has none of them" if path.is_dir() else "does not exist"
        raise WeightsError(
            f"{path} {seen}: a weights file, or a folder with one of {', '.join(WEIGHTS_FILES)}, is expected"
        )
    return found[0]


def _read_config(path: Path) -> tuple[VlsmConfig, str]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): it must lie beside the weights") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} holds a {type(data).__name__}: an object with 'sam' and 'beit3' is expected")
    if data.get("model_type") == "evf":
        return _published_config(data, path), "evf-sam"
    return VlsmConfig.from_dict(data), _check_name(data.get("name", DEFAULT_NAME), f"'name' in {path}")


def _published_config(data: Mapping[str, Any], path: Path) -> VlsmConfig:
    """The config of a published EVF-SAM folder, which names its two sizes only."""
    sizes = data.get("sam_scale"), data.get("mm_extractor_scale")
    if sizes != ("huge", "large"):
        raise WeightsError(
            f"{path} describes EVF-SAM with SAM {sizes[0]!r}, BEiT-3 {sizes[1]!r}: 'huge', 'large' expected"
        )
    return VlsmConfig.evf_sam_huge()


def _check_name(name: object, what: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise WeightsError(f"{what} is {name!r}: 1 to 64 letters, digits, dots, dashes or underscores are expected")
    return name


def _version(name: str, file: Path) -> str:
    with file.open("rb") as stream:
        return f"{name}-{hashlib.file_digest(stream, 'sha256').hexdigest()[:8]}"
