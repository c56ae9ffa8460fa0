"""`VlsmSegmenter`: the VLSM behind the `Segmenter` Protocol. One object owns the model, its device, dtype and lock.

A prompt costs a pass of BEiT-3 (if it has a text) and of the mask decoder; the image encoder, by far the largest part,
runs once for each picture that it sees: embeddings are values, and the last ones are kept.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from cachetools import LRUCache
from PIL import Image
from torch import Tensor

from rsvp_backend.errors import SegmenterError, SettingsError
from rsvp_backend.types import Prompt, Segmentation
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.compiled import compiled
from rsvp_backend.vlsm.preprocess import beit3_pixels, sam_normalised, sam_resized
from rsvp_backend.vlsm.views import View, ViewName

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class SegmenterOptions:
    """``view``: see `views`. ``max_batch``: pictures or prompts per forward pass; None: 8 on a GPU, 1 on the CPU, where
    batches are no faster. ``cache_bytes``: image embeddings kept, least recently used go first; 0 keeps none.
    ``compile``: see `compiled`.
    """

    view: ViewName = "crop"
    max_batch: int | None = None
    cache_bytes: int = 256 * 2**20
    compile: bool = False

    def __post_init__(self) -> None:
        if self.max_batch is not None and self.max_batch < 1:
            raise ValueError(f"max_batch is {self.max_batch}: at least 1 is expected")


class VlsmSegmenter:
    """Images + prompts -> masks. Only forward passes hold the lock; resizing runs in the caller's thread."""

    def __init__(
        self,
        loaded: weights.Weights,
        device: torch.device,
        dtype: torch.dtype,
        options: SegmenterOptions | None = None,
    ) -> None:
        """Takes ``loaded.model`` over: moves and casts it."""
        self.options = options or SegmenterOptions()
        self._model = loaded.model.to(device, dtype).eval().requires_grad_(False)
        self._tokenizer = loaded.tokenizer
        self._version = loaded.version
        self._max_batch = self.options.max_batch or (1 if device.type == "cpu" else 8)
        self._lock = threading.Lock()
        self._kept: LRUCache[bytes, Tensor] = LRUCache(self.options.cache_bytes, getsizeof=lambda kept: kept.nbytes)
        self.lookups: Counter[str] = Counter(kept=0, computed=0)
        """How image embeddings were come by."""
        self.device = device
        self.dtype = dtype
        self._embed_pixels: Callable[[Tensor], Tensor] = self._model.embed_image
        if self.options.compile:
            self._embed_pixels = compiled(self._model, device, dtype, self._max_batch)

    @classmethod
    def load(
        cls, source: str | Path, device: str = "auto", dtype: str = "auto", options: SegmenterOptions | None = None
    ) -> VlsmSegmenter:
        """Load a checkpoint (see `weights.load`).

        ``device``: ``auto`` (CUDA where there is one, else CPU) or a torch device; ``dtype``: ``auto`` (bfloat16 on
        CUDA, else float32), ``float32``, ``bfloat16`` or ``float16``. Raises `WeightsError` and `SettingsError`.
        """
        chosen = choose_device(device)
        segmenter = cls(weights.load(source), chosen, choose_dtype(dtype, chosen), options)
        log.info("segmenter %s on %s in %s", segmenter.version, chosen, segmenter.dtype)
        return segmenter

    @property
    def version(self) -> str:
        """Name and digest of the weights, like ``demo-ab12cd34``, and the view where it is not the paper's."""
        return self._version if self.options.view == "crop" else f"{self._version}-{self.options.view}"

    @property
    def kept_bytes(self) -> int:
        """Size of the image embeddings that are kept."""
        return int(self._kept.currsize)

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Segmentation]:
        """One segmentation per (image, prompt) pair, logits at the crop's own size. Raises `SegmenterError`."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts: one prompt per image is expected")
        views = [View.of(self.options.view, image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        embeddings = self._embed_views(images, views)
        tokens = self._tokens(images, prompts, views)
        found: list[Segmentation | None] = [None] * len(prompts)
        for batch in self._decodable(tokens):
            logits, scores = self._decode([embeddings[i] for i in batch], torch.stack([tokens[i] for i in batch]))
            for i, low, score in zip(batch, logits, scores, strict=True):
                found[i] = Segmentation(views[i].crop_logits(low, self._model.config.sam.image_size), float(score))
        return [segmentation for segmentation in found if segmentation is not None]

    @torch.inference_mode()
    def embed(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """SAM's embedding of each whole picture, ``(C, h, w)`` on the device; kept ones are not computed again."""
        size = self._model.config.sam.image_size
        found: list[Tensor] = []
        for start in range(0, len(images), self._max_batch):
            pixels = [sam_resized(image, size) for image in images[start : start + self._max_batch]]
            found += self._embed(pixels)
        return found

    def _embed_views(self, images: Sequence[Image.Image], views: Sequence[View]) -> list[Tensor]:
        """One embedding per view; equal views of one image are looked up once."""
        keys = [(id(image), view.frame) for image, view in zip(images, views, strict=True)]
        pictures = {key: image.crop(key[1].xyxy) for key, image in zip(keys, images, strict=True)}
        embedded = dict(zip(pictures, self.embed(list(pictures.values())), strict=True))
        return [embedded[key] for key in keys]

    def _embed(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """``pixels``: uint8 ``(3, h, w)`` each. The weights never change here: pixels alone are the key."""
        keys = [_digest(picture) for picture in pixels]
        with self._on_device(len(pixels)):
            found = {key: self._kept[key] for key in keys if key in self._kept}
            new = {key: picture for key, picture in zip(keys, pixels, strict=True) if key not in found}
            self.lookups.update(kept=len(keys) - len(new), computed=len(new))
            if new:
                size = self._model.config.sam.image_size
                batch = torch.stack([sam_normalised(picture.to(self.device), size) for picture in new.values()])
                made = self._embed_pixels(batch.to(self.dtype))
                found |= {key: embedding.clone() for key, embedding in zip(new, made, strict=True)}
                for key in new:
                    if found[key].nbytes <= self._kept.maxsize:
                        self._kept[key] = found[key]
        return [found[key] for key in keys]

    def _tokens(self, images: Sequence[Image.Image], prompts: Sequence[Prompt], views: Sequence[View]) -> list[Tensor]:
        """The prompt tokens of each prompt, float32 ``(N, C)`` on the device: points, box corners, then the text."""
        size = self._model.config.sam.image_size
        tokens: list[list[Tensor]] = [[] for _ in prompts]
        for own, prompt, view in zip(tokens, prompts, views, strict=True):
            if prompt.clicks or view.box is not None:
                with self._on_device(1):
                    corners = view.box_corners(size)
                    own.append(
                        self._model.visual_model.encode_points(*view.points(prompt, size), corners).to(self.dtype)
                    )
        worded = [i for i, prompt in enumerate(prompts) if prompt.text is not None]
        for start in range(0, len(worded), self._max_batch):
            batch = worded[start : start + self._max_batch]
            for i, text in zip(batch, self._read([(images[i], prompts[i]) for i in batch]), strict=True):
                tokens[i].append(text)
        return [torch.cat(own) for own in tokens]

    def _read(self, pairs: Sequence[tuple[Image.Image, Prompt]]) -> Tensor:
        """BEiT-3's reading of crops and texts: prompt tokens, float32 ``(B, N, C)``."""
        size = self._model.config.beit3.img_size
        pixels = torch.stack([beit3_pixels(image.crop(prompt.crop.xyxy), size) for image, prompt in pairs])
        ids, padding = self._tokenizer.batch([prompt.text or "" for _, prompt in pairs])
        with self._on_device(len(pairs)):
            mask = None if padding is None else padding.to(self.device)
            return self._model.encode_prompt(pixels.to(self.device, self.dtype), ids.to(self.device), mask).float()

    def _decodable(self, tokens: Sequence[Tensor]) -> Iterator[list[int]]:
        """Prompts that can be decoded together: as many tokens each, at most ``max_batch`` of them."""
        by_length: dict[int, list[int]] = {}
        for i, own in enumerate(tokens):
            by_length.setdefault(len(own), []).append(i)
        for same in by_length.values():
            for start in range(0, len(same), self._max_batch):
                yield same[start : start + self._max_batch]

    def _decode(self, embeddings: Sequence[Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Low-resolution logits ``(B, h, w)`` and predicted IoU ``(B,)``, float32 on the CPU."""
        with self._on_device(len(tokens)):
            shared = all(embedding is embeddings[0] for embedding in embeddings)
            batch = embeddings[0][None] if shared else torch.stack(list(embeddings))
            logits, predicted_iou = (x[:, 0].float().cpu() for x in self._model.decode(batch, tokens))
        if not logits.isfinite().all():
            raise SegmenterError(f"the VLSM gave logits that are not finite in {self.dtype}: try dtype float32")
        return logits, predicted_iou

    @contextmanager
    def _on_device(self, count: int) -> Iterator[None]:
        """Holds the lock; turns the device's errors into ours."""
        try:
            with self._lock:
                yield
        except RuntimeError as error:
            raise SegmenterError(
                f"the VLSM failed on {count} prompts on {self.device} in {self.dtype}: {error}. If memory is short, "
                f"choose a smaller max_batch ({self._max_batch}) or another device"
            ) from error


def _digest(pixels: Tensor) -> bytes:
    """Key of a picture as SAM sees it, uint8 ``(3, h, w)``: its shape and its pixels."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.numpy().data)
    return digest.digest()


def choose_device(device: str) -> torch.device:
    """``auto`` -> CUDA where there is one, else CPU. Raises `SettingsError` for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise SettingsError(f"device is {device!r}: auto, cpu, cuda or cuda:N is expected") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"device is {device!r}, but torch sees {torch.cuda.device_count()} CUDA devices: use auto or cpu"
        )
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` -> bfloat16 on CUDA, float32 elsewhere. Raises `SettingsError` for an unknown name."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise SettingsError(f"dtype is {dtype!r}: one of auto, {', '.join(_DTYPES)} is expected")
    return _DTYPES[dtype]
