"""SAM 3's files: a folder of transformers' making, or a repository on Hugging Face, which is downloaded once.

The published weights (``facebook/sam3``) are gated: their licence, the "SAM License", has to be accepted on the model's
page first. Only safetensors are read, and no code that lies beside them is run.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import Sam3Model, Sam3Processor

from rsvp_backend.errors import WeightsError

REPOSITORY = "facebook/sam3"
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_FILES = ("*.json", "*.txt", "*.safetensors")  # the repository holds the weights a second time, as sam3.pt
_MODEL_TYPES = ("sam3", "sam3_video")  # the published folder is that of the video model, which contains SAM 3
_SHOWN_KEYS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Sam3Weights:
    """SAM 3 in memory: ``model`` in float32 on the CPU, in eval mode. ``digest``: sha256 of all files, hex."""

    model: Any
    processor: Any
    digest: str


def load(source: str, endpoint: str | None = None) -> Sam3Weights:
    """Load a folder or a repository (see `find`). Raises `WeightsError`."""
    folder = find(source, endpoint)
    _check_config(folder / "config.json")
    _check_tokenizer(folder)
    try:
        loaded: Any = Sam3Model.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        processor = Sam3Processor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises nearly anything on a foreign folder
        raise WeightsError(
            f"{folder} cannot be loaded as SAM 3 ({type(error).__name__}: {error}): a folder written by transformers' "
            "Sam3Model and Sam3Processor is expected, with model.safetensors, configuration and tokenizer"
        ) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise WeightsError(
            f"the weights in {folder} lack {len(missing)} tensors of SAM 3 ({', '.join(missing[:_SHOWN_KEYS])}): they "
            "are incomplete or of another model"
        )
    return Sam3Weights(model.eval().requires_grad_(False), processor, _digest(folder))


def find(source: str, endpoint: str | None = None) -> Path:
    """The folder with SAM 3's files; ``source`` is a folder or a Hugging Face id ("" means ``facebook/sam3``).

    A repository is downloaded to the Hugging Face cache, or taken from there. ``endpoint``: another address than
    Hugging Face's own. Raises `WeightsError`.
    """
    source = source or REPOSITORY
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not _ID.fullmatch(source):
        raise WeightsError(
            f"SAM 3's weights: {source!r} is no folder: a folder, or a Hugging Face id like {REPOSITORY}, is expected"
        )
    return _download(source, endpoint)


def _download(repository: str, endpoint: str | None) -> Path:
    try:
        return Path(snapshot_download(repository, allow_patterns=list(_FILES), endpoint=endpoint))
    except GatedRepoError as error:
        raise WeightsError(
            f"{repository} is gated and Hugging Face refused its files (HTTP {error.response.status_code}): ask for "
            f"access at https://huggingface.co/{repository} (SAM 3 comes under the SAM License, which is not an open "
            "source licence), then set HF_TOKEN to a token of that account; or give a folder that holds the weights"
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"Hugging Face shows no repository {repository} (HTTP {error.response.status_code}), and there is no "
            "folder of that name here: check the name; a private repository needs HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise WeightsError(
            f"{repository} is not in the local cache, or not all of it, and Hugging Face cannot be reached: "
            f"connect once to download it (a cut download goes on where it stopped), or give a folder ({error})"
        ) from error
    except (OSError, ValueError, httpx2.HTTPError) as error:
        raise WeightsError(
            f"{repository} could not be downloaded ({type(error).__name__}: {error}): try again, what has arrived is "
            "kept; or give a folder"
        ) from error


def _check_config(file: Path) -> None:
    """Refuse the folder of another model: transformers would fill what it does not find with random values."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read as JSON ({error}): SAM 3's folder holds one") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in _MODEL_TYPES:
        raise WeightsError(f"{file} describes a model of type {found!r}: {' or '.join(_MODEL_TYPES)} is expected")


def _check_tokenizer(folder: Path) -> None:
    """Refuse a folder without a vocabulary: transformers would go on with a tokenizer of three tokens."""
    vocabularies = ("tokenizer.json",), ("vocab.json", "merges.txt")
    if not any(all((folder / name).is_file() for name in names) for names in vocabularies):
        raise WeightsError(f"{folder} has no tokenizer: tokenizer.json, or vocab.json and merges.txt, is expected")


def _digest(folder: Path) -> str:
    """sha256 over names and contents of all files that are read: weights, configuration and vocabulary."""
    digest = hashlib.sha256()
    for file in sorted(file for pattern in _FILES for file in folder.glob(pattern)):
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
