"""Samples -> batches, in an order that the seed alone decides: the same on one process or many, after a kill or not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rsvp_backend.training.features import Features, FeatureStore
from rsvp_backend.training.pretrain_config import PretrainView
from rsvp_backend.training.referring import DataError, Sample, SampleError
from rsvp_backend.training.replay import object_crop
from rsvp_backend.training.samples import Correction, Origin
from rsvp_backend.types import Box, Marks
from rsvp_backend.vlsm.tokenizer import Tokenizer

log = logging.getLogger(__name__)

PADDING = 0.2  # the pipeline's own, in which held-out samples are scored
_PADDINGS = (0.1, PADDING, 0.3)
_OTHER_CROP_SHARE = 0.3
_TRIES = 20
_TOLD = 10


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """On the CPU. ``embedding``: float16 ``(B, C, h, w)``; ``beit3``: float16 ``(B, 3, s, s)``; ``target``: float16
    ``(B, 4h, 4w)`` in [0, 1]; ``ids``: int64 ``(B, T)``; ``padding``: bool ``(B, T)``, or None for no pads."""

    embedding: Tensor
    beit3: Tensor
    target: Tensor
    ids: Tensor
    padding: Tensor | None

    @classmethod
    def of(cls, features: Sequence[Features], texts: Sequence[str], tokenizer: Tokenizer) -> Batch:
        ids, padding = tokenizer.batch(texts)
        embedding, beit3 = torch.stack([f.embedding for f in features]), torch.stack([f.beit3 for f in features])
        return cls(embedding, beit3, torch.stack([f.target for f in features]), ids, padding)


def shown(sample: Sample, view: PretrainView, rng: np.random.Generator | None = None) -> Correction:
    """``sample`` as the model sees it: on the whole image, or in a crop as stage 1 would give.

    With ``rng``, which training gives, crops vary, and a text is also asked in the crops of other regions, where its
    mask is cut off or empty: otherwise whatever fills the crop would be the answer, and texts would not be read.
    Raises `SampleError`.
    """
    mask = sample.mask.decode()
    if not sample.absent and not mask.any():
        raise SampleError(f"{sample.region}: its mask is empty")
    height, width = mask.shape
    box = Box(0, 0, width, height)
    if view != "whole":
        focus = mask
        if sample.others and (sample.absent or (rng is not None and rng.random() < _OTHER_CROP_SHARE)):
            focus = sample.others[0 if rng is None else int(rng.integers(len(sample.others)))].decode()
        if focus.any():
            box = object_crop(focus, Marks(), PADDING if rng is None else _PADDINGS[rng.integers(len(_PADDINGS))])
    key = f"{sample.region}:{box.xyxy}"
    return Correction(key, 0, sample.text, mask, box, Origin.DRAWN, sample.image.load)


class Batches:
    """The stream of training batches: ``positions`` count samples from the run's first on, over all processes."""

    def __init__(
        self, train: Sequence[Sample], store: FeatureStore, tokenizer: Tokenizer, view: PretrainView, seed: int
    ) -> None:
        self.train, self.store, self.tokenizer, self.view, self.seed = train, store, tokenizer, view, seed
        self.unreadable: dict[str, None] = {}  # reasons, in their order
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def at(self, positions: Sequence[int]) -> Batch:
        """The samples at ``positions``. Raises `DataError` where hardly any sample can be read."""
        found = [self._drawn(position) for position in positions]
        return Batch.of([features for features, _ in found], [text for _, text in found], self.tokenizer)

    def _drawn(self, position: int) -> tuple[Features, str]:
        """The sample at ``position``, or where it cannot be read another one, always the same."""
        rng = np.random.default_rng([self.seed, position])
        index = self._index(position)
        for _ in range(_TRIES):
            sample = self.train[index]
            try:
                return self._features(sample, rng), sample.text
            except SampleError as error:
                self.leave_out(error)
                index = int(rng.integers(len(self.train)))
        raise DataError(
            f"{_TRIES} samples in a row cannot be read, the first because {next(iter(self.unreadable))}: check the "
            "folder of --data"
        )

    def _features(self, sample: Sample, rng: np.random.Generator) -> Features:
        whole = self.view == "whole" or (self.view == "mixed" and rng.random() < 0.5)
        return self.store.features(shown(sample, "whole" if whole else "crop", rng))

    def _index(self, position: int) -> int:
        """Every sample once before any comes again, in another order each time."""
        epoch, place = divmod(position, len(self.train))
        if self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch, len(self.train)]).permutation(len(self.train))
            self._order = epoch, order
        return int(self._order[1][place])

    def leave_out(self, error: SampleError) -> None:
        """Count the reason; all texts of an image fail for the same one."""
        if str(error) in self.unreadable:
            return
        self.unreadable[str(error)] = None
        if len(self.unreadable) <= _TOLD:
            log.warning("left out: %s%s", error, " (further ones are counted)" * (len(self.unreadable) == _TOLD))


_Made = TypeVar("_Made")
_Result = TypeVar("_Result")


class Ahead(Generic[_Made]):
    """Makes things one after the other in a thread, one ahead of who takes them; ``make`` runs in that thread only."""

    def __init__(self, make: Callable[[int], _Made], first: int) -> None:
        self._make, self._number = make, first
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: Future[_Made] | None = None

    def take(self, last: bool = False) -> _Made:
        """The next one; ``last``: none will be taken after it. Raises what ``make`` raised."""
        current = self._next or self._pool.submit(self._make, self._number)
        self._number += 1
        self._next = None if last else self._pool.submit(self._make, self._number)
        return current.result()

    def run(self, call: Callable[[], _Result]) -> _Result:
        """``call`` in the same thread."""
        return self._pool.submit(call).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
