"""SAM 3 behind the `Segmenter` Protocol: the reasoner's noun phrase is the concept, the crop is the image.

SAM 3 finds every instance of a concept; the answer is the union of those that it is sure enough of. It is run through
transformers' ``Sam3Model``, which knows texts and boxes; clicks are a matter of another model of the family.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from rsvp_backend.errors import SegmenterError
from rsvp_backend.types import Prompt, Segmentation
from rsvp_backend.vlsm import sam3_weights
from rsvp_backend.vlsm.segmenter import choose_device, choose_dtype

log = logging.getLogger(__name__)
EMPTY_LOGIT = -10.0
_ANY_OBJECT = "visual"  # the text that SAM 3 was trained with where a box alone says what is meant

Levels = tuple[Tensor, ...]
_Item = TypeVar("_Item")


class Sam3Segmenter:
    """Crops + noun phrases (or boxes) -> masks. One object owns the model, its device, dtype and lock."""

    def __init__(
        self,
        loaded: sam3_weights.Sam3Weights,
        device: torch.device,
        dtype: torch.dtype,
        threshold: float = 0.5,
        max_batch: int = 4,
    ) -> None:
        """Takes ``loaded.model`` over. ``threshold``: instances that score above it belong to the mask, [0, 1).

        ``max_batch``: crops, and prompts, per forward pass. ``dtype`` is that of the image encoder's transformer, which
        does most of the work; the rest stays in float32, because bfloat16 is too coarse for the positions and boxes
        that it computes with.
        """
        if not 0.0 <= threshold < 1.0:
            raise ValueError(f"threshold is {threshold}: 0.0 up to 1.0 (not reached) is expected")
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}: at least 1 is expected")
        self._model = loaded.model.to(device)
        for parameter in self._model.vision_encoder.backbone.parameters():
            parameter.data = parameter.data.to(dtype)  # not .to(dtype): it would cast the buffers of positions as well
        self._processor = loaded.processor
        self._version = f"sam3-{hashlib.sha256(f'{loaded.digest} {threshold!r}'.encode()).hexdigest()[:8]}"
        self._threshold = threshold
        self._max_batch = max_batch
        self._lock = threading.Lock()
        self.device = device
        self.dtype = dtype

    @classmethod
    def load(
        cls,
        source: str = sam3_weights.REPOSITORY,
        device: str = "auto",
        dtype: str = "auto",
        threshold: float = 0.5,
        max_batch: int = 4,
    ) -> Sam3Segmenter:
        """Load a folder or a Hugging Face id (see `sam3_weights.find`); ``device`` and ``dtype`` as for the VLSM.

        Raises `WeightsError` and `SettingsError`.
        """
        chosen = choose_device(device)
        precision = choose_dtype(dtype, chosen)
        segmenter = cls(sam3_weights.load(source), chosen, precision, threshold, max_batch)
        log.info("segmenter %s on %s in %s", segmenter.version, chosen, precision)
        return segmenter

    @property
    def version(self) -> str:
        """``sam3-`` and a digest of weights, configuration and threshold."""
        return self._version

    def segment(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Segmentation]:
        """One segmentation per (image, prompt) pair, logits float32 at the size of the prompt's crop.

        ``predicted_iou`` is the best instance's score: its probability times the probability that the crop shows the
        concept at all. Where no instance passes the threshold, all logits are negative. Prompts on the same image and
        crop share its encoding. Raises `SegmenterError`, for prompts with clicks as well.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts: one prompt per image is expected")
        views: dict[tuple[int, tuple[int, int, int, int]], list[int]] = {}
        for index, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            _check(prompt)
            views.setdefault((id(image), prompt.crop.xyxy), []).append(index)
        found: dict[int, Segmentation] = {}
        for part in _parts(list(views.values()), self._max_batch):
            crops = [images[members[0]].crop(prompts[members[0]].crop.xyxy) for members in part]
            rows = {index: row for row, members in enumerate(part) for index in members}
            found |= self._segment_views(crops, {index: prompts[index] for index in rows}, rows)
        return [found[index] for index in range(len(prompts))]

    def _segment_views(
        self, crops: list[Image.Image], prompts: dict[int, Prompt], rows: dict[int, int]
    ) -> dict[int, Segmentation]:
        """Encode ``crops`` once and answer ``prompts`` on them; ``rows``: which crop each prompt is about."""
        found: dict[int, Segmentation] = {}
        try:
            levels, positions = self._encode(crops)
            # Apart from each other: the empty place of a box would change the answer to a text alone.
            for boxed in (False, True):
                alike = [index for index, prompt in prompts.items() if (prompt.box is not None) == boxed]
                for part in _parts(alike, self._max_batch):
                    at = torch.tensor([rows[index] for index in part], device=self.device)
                    chosen = tuple(level[at] for level in levels), tuple(position[at] for position in positions)
                    union, scores = self._decode(*chosen, [prompts[index] for index in part])
                    for index, low, score in zip(part, union, scores, strict=True):
                        found[index] = _segmentation(low, score, prompts[index])
        except RuntimeError as error:
            raise SegmenterError(
                f"SAM 3 failed on {len(crops)} crops on {self.device} in {self.dtype}: {error}. If memory is short, "
                f"choose a smaller max_batch ({self._max_batch}) or another device"
            ) from error
        return found

    @torch.inference_mode()
    def _encode(self, crops: list[Image.Image]) -> tuple[Levels, Levels]:
        """Feature maps of ``crops``, ``(B, C, h, w)`` from fine to coarse, and their positional encodings."""
        pixels = self._processor.image_processor(crops, return_tensors="pt")["pixel_values"]
        with self._lock:
            encoded = self._model.get_vision_features(pixel_values=pixels.to(self.device))
        return encoded.fpn_hidden_states, encoded.fpn_position_encoding

    @torch.inference_mode()
    def _decode(self, levels: Levels, positions: Levels, prompts: list[Prompt]) -> tuple[Tensor, Tensor]:
        """Union logits ``(B, h, w)`` at the model's resolution and best scores ``(B,)``, float32 on the CPU."""
        boxes, labels = _box_inputs(prompts)
        texts = [_ANY_OBJECT if prompt.text is None else prompt.text for prompt in prompts]
        with self._lock:  # the tokenizer as well: it keeps its padding as state
            tokens = self._processor.tokenizer(
                texts,
                padding="max_length",
                truncation=True,
                max_length=self._model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            )
            output = self._model(
                vision_embeds=Sam3VisionEncoderOutput(fpn_hidden_states=levels, fpn_position_encoding=positions),
                input_ids=tokens["input_ids"].to(self.device),
                attention_mask=tokens["attention_mask"].to(self.device),
                input_boxes=None if boxes is None else boxes.to(self.device),
                input_boxes_labels=None if labels is None else labels.to(self.device),
            )
            scores = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()
            return _union(output.pred_masks, scores, self._threshold).cpu(), scores.amax(dim=1).cpu()


def _union(masks: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Per-pixel maximum of the logits ``(B, Q, h, w)`` of queries that score above ``threshold`` -> ``(B, h, w)``."""
    chosen = scores > threshold
    union = masks.masked_fill(~chosen[:, :, None, None], -torch.inf).amax(dim=1)
    return union.masked_fill(~chosen.any(dim=1)[:, None, None], EMPTY_LOGIT)


def _segmentation(low: Tensor, score: Tensor, prompt: Prompt) -> Segmentation:
    """Logits ``(h, w)`` of the model's resolution -> the crop's own size."""
    if not (low.isfinite().all() and score.isfinite()):
        raise SegmenterError("SAM 3 gave values that are not finite: try dtype float32")
    size = prompt.crop.height, prompt.crop.width
    full = F.interpolate(low[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return Segmentation(full.numpy(), float(score))


def _box_inputs(prompts: list[Prompt]) -> tuple[Tensor | None, Tensor | None]:
    """Boxes as centre and size in shares of the crop, ``(B, 1, 4)``, each a positive example, ``(B, 1)``; or none."""
    rows = []
    for prompt in prompts:
        if prompt.box is None:
            return None, None
        box, crop = prompt.box, prompt.crop
        x = (box.left + box.right) / 2 - crop.left
        y = (box.top + box.bottom) / 2 - crop.top
        rows.append([x / crop.width, y / crop.height, box.width / crop.width, box.height / crop.height])
    return torch.tensor(rows)[:, None], torch.ones(len(rows), 1, dtype=torch.long)


def _check(prompt: Prompt) -> None:
    if prompt.clicks:
        raise SegmenterError(
            f"the prompt holds {len(prompt.clicks)} clicks, but SAM 3 takes a text or a box only: draw a box, or set "
            "RSVP_VLSM to a segmenter that takes clicks (demo or an EVF-SAM checkpoint)"
        )
    box, crop = prompt.box, prompt.crop
    if box is not None and not (
        crop.left <= box.left and box.right <= crop.right and crop.top <= box.top and box.bottom <= crop.bottom
    ):
        raise SegmenterError(f"the prompt's box {box.xyxy} does not lie in its crop {crop.xyxy}")


def _parts(items: list[_Item], size: int) -> Iterator[list[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
