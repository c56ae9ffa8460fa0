"""Stage 1 by a local MLLM of any family that transformers' ``AutoModelForImageTextToText`` knows."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from rsvp_backend.errors import DeadlineError, ReasonerError, WeightsError
from rsvp_backend.reasoner.base import Message, MllmReasoner
from rsvp_backend.reasoner.model_folder import Marker, folder_digest
from rsvp_backend.types import Answer, Deadline, Marks, Query

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its processor. ``digest`` tells these weights from all others."""

    name: str
    model: Any
    processor: Any
    digest: str


class LocalReasoner(MllmReasoner):
    """A `Reasoner` that owns a model, its device and a lock: one answer is generated at a time, greedily."""

    def __init__(
        self,
        loaded: LoadedModel,
        marker: Marker | None = None,
        max_new_tokens: int = 512,
        prompts: Path | None = None,
    ) -> None:
        marker = marker or Marker()
        super().__init__(marker.prompt, marker.canvas_px, prompts)
        self.name, self.model, self.processor = marker.name or loaded.name, loaded.model, loaded.processor
        self._marks = marker.marks
        self._lock = threading.Lock()
        self._unspellable = _special_texts(self.processor)
        self.model.generation_config = self._greedy(max_new_tokens)
        parts = (loaded.digest, self.prompt_digest, str(self.model.dtype), str(max_new_tokens))
        self._version = f"{self.name}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:8]}"

    @classmethod
    def load(
        cls,
        name_or_folder: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_new_tokens: int = 512,
        prompts: Path | None = None,
    ) -> LocalReasoner:
        """Load a folder, or a model of the Hugging Face hub by its name. ``prompts``: see `MllmReasoner`.

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
            processor = auto_processor.from_pretrained(source)
            model = auto_model.from_pretrained(source, dtype=kind).to(place).eval()
        except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
            raise WeightsError(f"{source} does not load as an image-text-to-text model: {error}") from error
        if getattr(processor, "chat_template", None) is None:
            raise WeightsError(f"{source} has no chat template: a model trained for conversations is expected")
        digest = folder_digest(folder) if folder.is_dir() else str(model.config._commit_hash)
        log.info("reasoner %s loaded on %s as %s", source, place, kind)
        return cls(LoadedModel(folder.name, model, processor, digest), marker, max_new_tokens, prompts)

    @property
    def version(self) -> str:
        return self._version

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        """See `Reasoner.propose`. Raises `ReasonerError` for marks that the model was not trained on."""
        if self._marks is not None and marks != self._marks:
            raise ReasonerError(f"{self.name} was trained on {self._marks} and cannot read {marks}: set these marks")
        return super().propose(visual_prompt, query, marks, deadline)

    def complete(self, messages: tuple[Message, ...], schema: dict[str, Any], deadline: Deadline | None) -> str:
        try:
            inputs = self.processor.apply_chat_template(
                [self._turn(message) for message in messages],
                add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            )  # fmt: skip
            with self._device(deadline), torch.inference_mode():
                return self._generate(inputs.to(self.model.device, dtype=self.model.dtype), deadline)
        except (RuntimeError, ValueError) as error:
            raise ReasonerError(f"{self.name} failed on this image: {error}") from error

    def _generate(self, inputs: Any, deadline: Deadline | None) -> str:
        limit = {} if deadline is None else {"max_time": deadline.remaining_s}
        output = self.model.generate(**inputs, **limit)
        if deadline is not None and deadline.expired:
            raise DeadlineError(f"the time of this request was over while {self.name} wrote its answer")
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        return str(self.processor.batch_decode(new_tokens, skip_special_tokens=True)[0])

    def _turn(self, message: Message) -> dict[str, Any]:
        text = message.text
        for token in self._unspellable:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if message.image is not None:
            content.insert(0, {"type": "image", "image": message.image})
        return {"role": message.role, "content": content}

    def _greedy(self, max_new_tokens: int) -> Any:
        """Greedy decoding whatever the checkpoint suggests; only its end and padding tokens are kept."""
        config_class: Any = GenerationConfig
        given = self.model.generation_config
        end = given.eos_token_id if given.eos_token_id is not None else self.processor.tokenizer.eos_token_id
        pad = given.pad_token_id if given.pad_token_id is not None else self.processor.tokenizer.pad_token_id
        first_end = end[0] if isinstance(end, list) else end
        return config_class(
            do_sample=False, max_new_tokens=max_new_tokens, bos_token_id=given.bos_token_id,
            eos_token_id=end, pad_token_id=first_end if pad is None else pad,
        )  # fmt: skip

    @contextmanager
    def _device(self, deadline: Deadline | None) -> Iterator[None]:
        """The device for one caller at a time; waiting for it counts against the deadline."""
        if not self._lock.acquire(timeout=-1 if deadline is None else deadline.remaining_s):
            raise DeadlineError(f"the time of this request was over while it waited for {self.name}")
        try:
            yield
        finally:
            self._lock.release()


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


def _special_texts(processor: Any) -> tuple[str, ...]:
    """Texts that the tokenizer turns into control tokens (``[IMG]``, ``<|im_end|>``): no message may spell them."""
    tokens = {*processor.tokenizer.all_special_tokens, getattr(processor, "image_token", None)}
    return tuple(sorted(t for t in tokens if isinstance(t, str) and len(t) > 2 and not t[0].isalnum()))
