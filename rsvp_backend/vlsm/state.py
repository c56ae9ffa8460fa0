"""Weights files as tensors: read without running anything in them, without a second copy in memory, and digested."""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rsvp_backend.errors import WeightsError

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_HEAD_BYTES = 512
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")


def read_state(file: Path) -> dict[str, Tensor]:
    """All tensors of a weights file, on the CPU, mapped from the file where its format allows.

    A dict that holds the state dict under ``model`` (BEiT-3's checkpoints) is unwrapped. Raises `WeightsError` for
    whatever is no state dict of tensors; no code in the file is run.
    """
    _refuse_no_weights(file)
    try:
        data = load_file(file, device="cpu") if file.suffix == ".safetensors" else _unpickled(file)
    except SafetensorError as error:
        raise WeightsError(f"{file} is damaged, truncated or no safetensors file: {error}") from error
    except Exception as error:  # the pickle and zip readers raise nearly anything on a foreign file
        found = _REFUSED_GLOBAL.search(str(error))
        seen = f"it asks for {found[1]}" if found else type(error).__name__
        raise WeightsError(
            f"{file} is damaged, or holds more than tensors, which is refused because loading it could run code "
            f"({seen}): expected a plain state dict; prefer .safetensors"
        ) from error
    if isinstance(data, dict) and isinstance(data.get("model"), dict):
        data = data["model"]
    return _checked(data, file)


def checkpoint_sha256(file: Path) -> str:
    """The file's sha256, 64 hex digits.

    A file in the hub's cache is a link to a blob named by this very digest, which was compared when it was downloaded:
    then nothing is read. Only the first link is followed: what lies behind it may go by other hashes.
    """
    if file.is_symlink():
        blob = file.readlink()
        if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
            return blob.name
    return file_sha256(file)


def file_sha256(file: Path) -> str:
    """The sha256 of what is in ``file``, read in pieces, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unpickled(file: Path) -> Any:
    """Only the zip format can be mapped; torch's older one is read whole."""
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def _refuse_no_weights(file: Path) -> None:
    """Name what is often saved in place of weights, before a reader stumbles over it."""
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}") from error
    start = head.lstrip().lower()
    if not head:
        raise WeightsError(f"{file} is empty: download it again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{file} is a Git LFS pointer ({file.stat().st_size} bytes), not the weights: run 'git lfs pull' where it "
            "was cloned, or download the file itself"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{file} is a web page, not weights: the download gave an error or login page; repeat it")
    if head.startswith(b"PK") and not zipfile.is_zipfile(file):
        raise WeightsError(f"{file} is damaged: it is truncated ({file.stat().st_size} bytes); download it again")


def _checked(data: object, file: Path) -> dict[str, Tensor]:
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise WeightsError(f"{file} holds a {type(data).__name__} that is not a flat state dict of tensors")
    whole = [str(key) for key, tensor in data.items() if not tensor.is_floating_point()]
    if whole:
        raise WeightsError(
            f"{file} holds tensors that are not floating point ({', '.join(whole[:5])}): quantised weights are not "
            "supported; expected float32, float16 or bfloat16"
        )
    return {str(key): tensor for key, tensor in data.items()}
