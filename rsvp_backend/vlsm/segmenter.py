"""`VlsmSegmenter`: the VLSM behind the `Segmenter` Protocol. One object owns the model, its device, dtype and lock."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from rsvp_backend.errors import SegmenterError, SettingsError
from rsvp_backend.types import Segmentation
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.preprocess import beit3_pixels, full_size_logits, sam_pixels

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class VlsmSegmenter:
    """Crops + texts -> masks. Only the model's forward pass holds the lock; resizing runs in the caller's thread."""

    def __init__(self, loaded: weights.Weights, device: torch.device, dtype: torch.dtype, max_batch: int = 8) -> None:
        """Takes ``loaded.model`` over: moves and casts it. ``max_batch``: crops per forward pass."""
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}: at least 1 is expected")
        self._model = loaded.model.to(device, dtype).eval().requires_grad_(False)
        self._tokenizer = loaded.tokenizer
        self._version = loaded.version
        self._max_batch = max_batch
        self._lock = threading.Lock()
        self.device = device
        self.dtype = dtype

    @classmethod
    def load(cls, folder: Path, device: str = "auto", dtype: str = "auto", max_batch: int = 8) -> VlsmSegmenter:
        """Load a checkpoint (see `weights.load`).

        ``device``: ``auto`` (CUDA where there is one, else CPU) or a torch device; ``dtype``: ``auto`` (bfloat16 on
        CUDA, else float32), ``float32``, ``bfloat16`` or ``float16``. Raises `WeightsError` and `SettingsError`.
        """
        chosen = choose_device(device)
        segmenter = cls(weights.load(Path(folder)), chosen, choose_dtype(dtype, chosen), max_batch)
        log.info("segmenter %s on %s in %s", segmenter.version, chosen, segmenter.dtype)
        return segmenter

    @property
    def version(self) -> str:
        """Name and digest of the weights, like ``demo-ab12cd34``."""
        return self._version

    def segment(self, crops: Sequence[Image.Image], texts: Sequence[str]) -> list[Segmentation]:
        """One segmentation per (crop, text) pair, logits float32 at each crop's own size. Raises `SegmenterError`."""
        if len(crops) != len(texts):
            raise ValueError(f"{len(crops)} crops and {len(texts)} texts: one text per crop is expected")
        found: list[Segmentation] = []
        for start in range(0, len(crops), self._max_batch):
            part = slice(start, start + self._max_batch)
            found += self._segment_batch(crops[part], texts[part])
        return found

    @torch.inference_mode()
    def _segment_batch(self, crops: Sequence[Image.Image], texts: Sequence[str]) -> list[Segmentation]:
        config = self._model.config
        sam = torch.stack([sam_pixels(crop, config.sam.image_size) for crop in crops])
        beit3 = torch.stack([beit3_pixels(crop, config.beit3.img_size) for crop in crops])
        ids, padding_mask = self._tokenizer.batch(texts)
        logits, predicted_iou = self._forward(sam, beit3, ids, padding_mask)
        if not logits.isfinite().all():
            raise SegmenterError(f"the VLSM gave logits that are not finite in {self.dtype}: try dtype float32")
        sizes = [(crop.height, crop.width) for crop in crops]
        full = (full_size_logits(low, size, config.sam.image_size)[0] for low, size in zip(logits, sizes, strict=True))
        return [Segmentation(mask.numpy(), float(iou)) for mask, iou in zip(full, predicted_iou[:, 0], strict=True)]

    def _forward(self, sam: Tensor, beit3: Tensor, ids: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Low-resolution logits ``(B, 1, h, w)`` and predicted IoU ``(B, 1)``, float32 on the CPU."""
        try:
            with self._lock:
                embedding = self._model.embed_image(sam.to(self.device, self.dtype))
                mask = None if padding_mask is None else padding_mask.to(self.device)
                prompt = self._model.encode_prompt(beit3.to(self.device, self.dtype), ids.to(self.device), mask)
                logits, predicted_iou = self._model.decode(embedding, prompt)
                return logits.float().cpu(), predicted_iou.float().cpu()
        except RuntimeError as error:
            raise SegmenterError(
                f"the VLSM failed on {len(sam)} crops on {self.device} in {self.dtype}: {error}. If memory is short, "
                f"choose a smaller max_batch ({self._max_batch}) or another device"
            ) from error


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
