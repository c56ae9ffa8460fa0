"""Serving the current version, and following it while it changes: one base in memory, every version over it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from rsvp_backend.training.following import Following
from rsvp_backend.training.gate import Calibration
from rsvp_backend.training.registry import Registry
from rsvp_backend.types import Prompt, Segmentation
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.segmenter import SegmenterOptions, VlsmSegmenter, choose_device, choose_dtype

log = logging.getLogger(__name__)


class VersionedSegmenter(VlsmSegmenter):
    """The segmenter of one version, or of the base weights themselves.

    It shares with ``base`` the tensors that its version leaves alone, the image embeddings (no version changes the
    image encoder, compiled or not) and the lock: both may answer at the same time. Its scores are calibrated.
    """

    def __init__(
        self,
        loaded: weights.Weights,
        base: VlsmSegmenter,
        source: Following[VersionedSegmenter],
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(loaded, base.device, base.dtype, replace(base.options, compile=False))
        self.options = base.options
        self._kept, self._lock, self._embed_pixels = base._kept, base._lock, base._embed_pixels
        self.lookups = base.lookups
        self.source = source
        self.calibration = calibration

    def segment(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Segmentation]:
        """See `VlsmSegmenter.segment`; ``predicted_iou`` is calibrated, in [0, 1], where the version says how."""
        found = super().segment(images, prompts)
        if self.calibration is None:
            return found
        return [replace(one, predicted_iou=self.calibration.apply(one.predicted_iou)) for one in found]


def load(
    folder: Path, source: str | Path, device: str = "auto", dtype: str = "auto", options: SegmenterOptions | None = None
) -> VersionedSegmenter:
    """The current version in ``folder`` over the base weights ``source``; see `VlsmSegmenter.load` for the rest."""
    loaded, chosen = weights.load(source), choose_device(device)
    base = VlsmSegmenter(loaded, chosen, choose_dtype(dtype, chosen), options)
    registry = Registry(folder)

    def make(source: Following[VersionedSegmenter], version: str | None) -> VersionedSegmenter:
        if version is None:
            return VersionedSegmenter(loaded, base, source)
        tuned, table = registry.load(loaded, version), registry.get(version).record.calibration
        calibration = None if table is None else Calibration.from_dict(dict(table))
        return VersionedSegmenter(tuned, base, source, calibration)

    segmenter = Following(registry, loaded.version, make).first()
    log.info("segmenter %s on %s in %s, over the base weights %s", segmenter.version, chosen, base.dtype, base.version)
    return segmenter
