"""Serving the current version, and following it while it changes: one base in memory, every version over it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from rsvp_backend.training.gate import Calibration
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.versions import VersionError
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
        source: CurrentVersion,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(loaded, base.device, base.dtype, replace(base.options, compile=False))
        self.options = base.options
        self._kept, self._lock, self._embed_pixels = base._kept, base._lock, base._embed_pixels
        self.source = source
        self.calibration = calibration

    def segment(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Segmentation]:
        """See `VlsmSegmenter.segment`; ``predicted_iou`` is calibrated, in [0, 1], where the version says how."""
        found = super().segment(images, prompts)
        if self.calibration is None:
            return found
        return [replace(one, predicted_iou=self.calibration.apply(one.predicted_iou)) for one in found]


class CurrentVersion:
    """The current version of ``registry`` as a segmenter, made anew whenever another one is promoted.

    ``loaded`` are the base weights that ``base`` holds. One thread at a time.
    """

    def __init__(self, registry: Registry, loaded: weights.Weights, base: VlsmSegmenter) -> None:
        self.registry = registry
        self._loaded = loaded
        self._base = base
        self._stamp = registry.stamp()

    def first(self) -> VersionedSegmenter:
        """The current version; the base weights, and one line in the log, where it cannot be used."""
        try:
            return self._segmenter()
        except VersionError as error:
            log.error("%s. The base weights %s are served", error, self._loaded.version)
            return VersionedSegmenter(self._loaded, self._base, self)

    def changed(self) -> VersionedSegmenter | None:
        """The segmenter of a version that became current since the last call, else None.

        Raises `VersionError` where it cannot be used; asked again, it is not tried again before the next promotion.
        """
        stamp = self.registry.stamp()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        if stamp is None:
            raise VersionError(f"{self.registry.folder} (RSVP_VERSIONS) names no current version any more")
        return self._segmenter()

    def _segmenter(self) -> VersionedSegmenter:
        current = self.registry.current()
        if current is None:
            return VersionedSegmenter(self._loaded, self._base, self)
        loaded, table = self.registry.load(self._loaded, current), self.registry.get(current).record.calibration
        calibration = None if table is None else Calibration.from_dict(dict(table))
        return VersionedSegmenter(loaded, self._base, self, calibration)


def load(
    folder: Path, source: str | Path, device: str = "auto", dtype: str = "auto", options: SegmenterOptions | None = None
) -> VersionedSegmenter:
    """The current version in ``folder`` over the base weights ``source``; see `VlsmSegmenter.load` for the rest."""
    loaded, chosen = weights.load(source), choose_device(device)
    base = VlsmSegmenter(loaded, chosen, choose_dtype(dtype, chosen), options)
    registry = Registry(folder)
    try:
        registry.clean()
    except VersionError as error:
        log.warning("%s", error)  # who only reads needs no more than that
    segmenter = CurrentVersion(registry, loaded, base).first()
    log.info("segmenter %s on %s in %s, over the base weights %s", segmenter.version, chosen, base.dtype, base.version)
    return segmenter
