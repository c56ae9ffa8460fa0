"""Anchors: crops and texts that a fine-tuned model must go on answering as the model did that it began with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rsvp_backend.training.fitting import Counting, Tell
from rsvp_backend.training.samples import Correction
from rsvp_backend.training.scoring import FeatureVlsm

_WEIGHT = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """A crop and a text with the answer so far: probabilities float16 ``(4h, 4w)`` and predicted IoU ``()``."""

    correction: Correction
    text: str
    probability: Tensor
    predicted_iou: Tensor


@torch.no_grad()
def make_anchors(
    vlsm: FeatureVlsm, corrections: Sequence[Correction], old: Sequence[Correction], seed: int, tell: Tell
) -> list[Anchor]:
    """The model's answers for earlier data ``old``, and for its texts in the crops of half as many ``corrections``."""
    rng = np.random.default_rng([seed, len(old)])
    asked = [(correction, correction.text) for correction in old]
    if old:
        crops = rng.integers(len(corrections), size=len(old) // 2)
        asked += [(corrections[n], old[int(rng.integers(len(old)))].text) for n in crops]
    found: list[Anchor] = []
    count = Counting(tell, "replay", len(asked))
    for start in range(0, len(asked), vlsm.batch):
        some = asked[start : start + vlsm.batch]
        features = [vlsm.store.features(correction) for correction, _ in some]
        logits, predicted = vlsm.decode(features, [text for _, text in some])
        answers = zip(some, logits.sigmoid().half(), predicted, strict=True)
        found += [Anchor(*pair, mask, iou) for pair, mask, iou in answers]
        count(len(found))
    return found


def anchor_loss(logits: Tensor, predicted_iou: Tensor, anchors: Sequence[Anchor]) -> Tensor:
    """Cross-entropy with the anchors' answers, lowest where they are repeated: ``(N, h, w)`` logits, ``(N,)`` IoU."""
    wanted = torch.stack([anchor.probability for anchor in anchors]).float()
    iou = torch.stack([anchor.predicted_iou for anchor in anchors])
    return _WEIGHT * F.binary_cross_entropy_with_logits(logits, wanted) + F.mse_loss(predicted_iou, iou)
