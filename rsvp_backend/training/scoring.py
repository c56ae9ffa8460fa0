"""Masks from stored features, and how good they are: what fine-tuning and its gate measure by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rsvp_backend.training.features import Features, FeatureStore
from rsvp_backend.training.samples import Correction
from rsvp_backend.vlsm.model import Vlsm
from rsvp_backend.vlsm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Scores:
    """Per held-out correction: ``ious`` at the decoder's resolution, the IoUs that the model ``predicted``, ``tasks``,
    and whether the true mask is ``empty``."""

    ious: tuple[float, ...] = ()
    predicted: tuple[float, ...] = ()
    tasks: tuple[int, ...] = ()
    empty: tuple[bool, ...] = ()

    @property
    def mean(self) -> float:
        """Mean IoU; nan where there is nothing to score on."""
        return float(np.mean(self.ious)) if self.ious else float("nan")


class FeatureVlsm:
    """A VLSM on features from ``store``; ``batch`` at a time where it scores. Computes on the model's device."""

    def __init__(self, model: Vlsm, tokenizer: Tokenizer, store: FeatureStore, batch: int = 8) -> None:
        self.model, self.tokenizer, self.store, self.batch = model, tokenizer, store, batch
        self.device = next(model.parameters()).device

    def decode(self, features: Sequence[Features], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Logits ``(B, 4h, 4w)`` and predicted IoU ``(B,)``, float32; on a GPU BEiT-3 computes in bfloat16."""
        pixels = torch.stack([f.beit3 for f in features]).to(self.device, torch.float32)
        embedding = torch.stack([f.embedding for f in features]).to(self.device, torch.float32)
        ids, padding = self.tokenizer.batch(texts)
        mask = None if padding is None else padding.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            tokens = self.model.encode_prompt(pixels, ids.to(self.device), mask).float()
        if len(features[0].corners):
            boxes = torch.stack([self._box_tokens(f.corners) for f in features])
            tokens = torch.cat([boxes.to(tokens.dtype), tokens], dim=1)
        logits, predicted = self.model.decode(embedding, tokens)
        return logits[:, 0].float(), predicted[:, 0].float()

    def _box_tokens(self, corners: Tensor) -> Tensor:
        return self.model.visual_model.encode_points([], [], [(float(x), float(y)) for x, y in corners])

    @torch.no_grad()
    def score(self, corrections: Sequence[Correction], count: Callable[[int], None] = lambda _: None) -> Scores:
        """Scores of the model as it stands, in the corrections' own crops; ``count`` hears how many are done."""
        ious: list[float] = []
        predicted: list[float] = []
        for start in range(0, len(corrections), self.batch):
            some = corrections[start : start + self.batch]
            features = [self.store.features(correction) for correction in some]
            logits, scores = self.decode(features, [correction.text for correction in some])
            ious += [_iou(mask, f) for mask, f in zip(logits.cpu(), features, strict=True)]
            predicted += scores.clamp(0, 1).tolist()
            count(len(ious))
        tasks, empty = [c.task for c in corrections], [not c.mask.any() for c in corrections]
        return Scores(tuple(ious), tuple(predicted), tuple(tasks), tuple(empty))


def _iou(logits: Tensor, features: Features) -> float:
    """IoU of the cells that count; objects of less than half a cell are matched by their best cells."""
    target = features.target.float()
    wanted = (target > min(0.5, float(target.max()) / 2)) & features.inside
    found = (logits > 0) & features.inside
    union = int((found | wanted).sum())
    return int((found & wanted).sum()) / union if union else 1.0
