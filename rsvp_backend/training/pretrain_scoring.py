"""gIoU and cIoU on held-out samples, at the images' own resolution, divided over all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from rsvp_backend.evaluation.metrics import Overlap, ciou, giou
from rsvp_backend.training.features import Features
from rsvp_backend.training.pretrain_batches import Ahead, Batch, Batches, shown
from rsvp_backend.training.pretrain_config import HeldOut, PretrainView
from rsvp_backend.training.referring import DataError, Sample, SampleError
from rsvp_backend.training.samples import Correction
from rsvp_backend.training.targets import cut
from rsvp_backend.vlsm.views import View

Forward = Callable[[Batch], tuple[Tensor, Tensor]]


class Scorer:
    """Scores ``count`` of ``samples``, 0 for all: always the same ones. ``rank`` of ``processes`` takes its part."""

    def __init__(
        self, samples: Sequence[Sample], count: int, batches: Batches, batch: int, rank: int, processes: int
    ) -> None:
        picked = np.random.default_rng(batches.seed).permutation(len(samples))[: count or None]
        self.samples, self.picked, self.batches, self.batch = samples, sorted(picked.tolist()), batches, batch
        self.own = self.picked[rank::processes]
        self.image_size = batches.store.model.config.sam.image_size

    @torch.no_grad()
    def score(self, view: PretrainView, forward: Forward, ahead: Ahead[Batch]) -> HeldOut:
        """``forward`` gives the logits of a batch; samples are read in the thread of ``ahead``, as training's are."""
        found: list[tuple[int, int, int]] = []
        for start in range(0, len(self.own), self.batch):
            read = ahead.run(partial(self._read, self.own[start : start + self.batch], view))
            if read:
                texts, features = [one.text for _, one, _ in read], [one for _, _, one in read]
                logits = forward(Batch.of(features, texts, self.batches.tokenizer))[0].float().cpu()
                for (number, correction, _), low in zip(read, logits, strict=True):
                    overlap = self._overlap(correction, low)
                    found.append((number, overlap.intersection_px, overlap.union_px))
        overlaps = [Overlap(both, either) for _, both, either in sorted(gather_object(found))]
        if not overlaps:
            raise DataError(
                f"none of {len(self.picked)} held-out samples can be read: {'; '.join(self.batches.unreadable)[:300]}"
            )
        return HeldOut(round(giou(overlaps), 6), round(ciou(overlaps), 6), len(overlaps))

    def _read(self, numbers: Sequence[int], view: PretrainView) -> list[tuple[int, Correction, Features]]:
        """Those of the samples ``numbers`` that can be read."""
        found = []
        for number in numbers:
            sample = self.samples[number]
            try:
                correction = shown(sample, view)
                found.append((number, correction, self.batches.store.features(correction)))
            except SampleError as error:
                self.batches.leave_out(error)
        return found

    def _overlap(self, correction: Correction, low: Tensor) -> Overlap:
        view = View(correction.crop, correction.crop, None)
        return Overlap.of(view.crop_logits(low, self.image_size) > 0, cut(correction.mask, correction.crop))
