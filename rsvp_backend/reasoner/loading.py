"""A local MLLM with its processor: loaded, placed, and what its files say about control tokens and endings."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from rsvp_backend.errors import WeightsError
from rsvp_backend.reasoner.model_folder import Marker, folder_digest
from rsvp_backend.reasoner.swaps import swap_modules

log = logging.getLogger(__name__)
THINKING = "<think>"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its processor. ``digest`` tells these weights from all others; ``marker``: see `Marker`."""

    name: str
    model: Any
    processor: Any
    digest: str
    marker: Marker


def load_model(name_or_folder: str | Path, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Load a folder, or a model of the Hugging Face hub by its name.

    ``device``: ``auto`` or what torch calls it; ``dtype``: ``auto`` (float32 on CPU, else bfloat16 or float16) or
    torch's name of one. Raises `WeightsError`.
    """
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    folder = Path(name_or_folder)
    source = str(name_or_folder)
    if not folder.is_dir() and (folder.is_absolute() or source.startswith(".") or source.count("/") > 1):
        raise WeightsError(f"model folder {source} does not exist: check RSVP_REASONER")
    marker = Marker.read(folder) if folder.is_dir() else Marker()
    auto_processor: Any = AutoProcessor  # untyped in transformers, as are the models it makes
    auto_model: Any = AutoModelForImageTextToText
    try:
        # Code that comes with a model is never run, nor is anybody asked whether it may be.
        processor = auto_processor.from_pretrained(source, trust_remote_code=False)
        model = auto_model.from_pretrained(source, dtype=kind, trust_remote_code=False).to(place).eval()
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{source} does not load as an image-text-to-text model: {error}") from error
    if getattr(processor, "chat_template", None) is None:
        raise WeightsError(f"{source} has no chat template: a model trained for conversations is expected")
    swap_modules(model)
    digest = folder_digest(folder) if folder.is_dir() else str(model.config._commit_hash)
    log.info("reasoner %s loaded on %s as %s", source, place, kind)
    return LoadedModel(marker.name or folder.name, model, processor, digest, marker)


def pick_device(device: str) -> torch.device:
    """``auto``: CUDA, else Apple's MPS, else the CPU."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto``: float32 on CPU, where half precision is slow; bfloat16 on CUDA that has it; else float16."""
    if dtype != "auto":
        found = getattr(torch, dtype, None)
        if not isinstance(found, torch.dtype):
            raise WeightsError(f"dtype {dtype!r} is unknown: auto, float32, bfloat16 or float16 is expected")
        return found
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16


def special_texts(processor: Any) -> tuple[str, ...]:
    """Texts that the tokenizer turns into control tokens (``[IMG]``, ``<|im_end|>``): no message may spell them."""
    tokens = {*processor.tokenizer.all_special_tokens, getattr(processor, "image_token", None)}
    return tuple(sorted(t for t in tokens if isinstance(t, str) and len(t) > 2 and not t[0].isalnum()))


def greedy_config(model: Any, processor: Any) -> Any:
    """Greedy decoding whatever the checkpoint suggests; only its end and padding tokens are kept."""
    config_class: Any = GenerationConfig
    given = model.generation_config
    end = given.eos_token_id if given.eos_token_id is not None else processor.tokenizer.eos_token_id
    pad = given.pad_token_id if given.pad_token_id is not None else processor.tokenizer.pad_token_id
    first_end = end[0] if isinstance(end, list) else end
    return config_class(
        do_sample=False, bos_token_id=given.bos_token_id, eos_token_id=end,
        pad_token_id=first_end if pad is None else pad,
    )  # fmt: skip


def thinks_first(processor: Any) -> bool:
    """Whether the chat template opens a thinking block in place of the model."""
    asked = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    return str(prompt).rstrip().endswith(THINKING)
