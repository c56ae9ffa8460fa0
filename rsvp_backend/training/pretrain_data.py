"""What ``--data`` names, joined: what to train on, and what is held out of it.

refcoco:ROOT  refcoco+:ROOT  refcocog:ROOT  refcocog/google:ROOT  coco:ROOT  scenes[:LEVEL]
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import get_args, overload

from rsvp_backend.scenes import LevelName
from rsvp_backend.training.coco_data import read_coco
from rsvp_backend.training.refer_data import SPLIT_BY, read_refer
from rsvp_backend.training.referring import DataError, Dataset, Sample
from rsvp_backend.training.scene_data import scenes

log = logging.getLogger(__name__)

FORMS = "refcoco:ROOT, refcoco+:ROOT, refcocog:ROOT, refcocog/google:ROOT, coco:ROOT or scenes[:LEVEL]"
_DIVIDED_SHARE = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """``texts``: all that occur, or might, in ``train``; ``left_out``: by reason; ``digest``: of all content."""

    train: Sequence[Sample]
    held_out: Sequence[Sample]
    texts: frozenset[str]
    left_out: Mapping[str, int]
    digest: str


class Joined(Sequence[Sample]):
    """Sequences one behind the other, without a copy."""

    def __init__(self, parts: Sequence[Sequence[Sample]]) -> None:
        self.parts = [part for part in parts if part]
        self.ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        part = bisect_right(self.ends, index)
        return self.parts[part][index - (self.ends[part - 1] if part else 0)]


def read_data(specs: Sequence[str], held_out: str = "val") -> Data:
    """Read and join the data sets; the split ``train`` of each is trained on, ``held_out`` is scored on.

    A data set that has ``train`` alone gives a part of its images. Images of any other split of any of the data sets
    are taken out of training: refCOCO's held-out images are training images of refCOCOg. Raises `DataError`.
    """
    sets = [_divided(_read(spec)) for spec in specs]
    for one in sets:
        for split in ("train", held_out):
            if split not in one.splits:
                raise DataError(f"{one.name} has no split {split!r}: {', '.join(one.splits)} are there")
    if held_out == "train":
        raise DataError("the held-out split is 'train': another one is expected")
    left_out: dict[str, int] = {}
    train = _without_held_out(sets, left_out)
    for reason, count in [pair for one in sets for pair in one.left_out.items()]:
        left_out[reason] = left_out.get(reason, 0) + count
    if not len(train):
        raise DataError(f"no training sample is left: all images of {', '.join(specs)} occur in other splits, too")
    digest = hashlib.blake2b(repr((held_out, [one.digest for one in sets])).encode(), digest_size=16).hexdigest()
    texts = frozenset[str]().union(*(one.texts for one in sets))
    return Data(train, Joined([one.splits[held_out] for one in sets]), texts, left_out, digest)


def _read(spec: str) -> Dataset:
    kind, _, rest = spec.partition(":")
    name, _, split_by = kind.partition("/")
    if kind == "scenes" and rest in ("", *get_args(LevelName)):
        return scenes(rest or "easy")  # type: ignore[arg-type]  # checked above
    if rest and name in SPLIT_BY:
        return read_refer(Path(rest).expanduser(), name, split_by or None)
    if rest and kind == "coco":
        return read_coco(Path(rest).expanduser())
    raise DataError(f"data {spec!r}: {FORMS} is expected, LEVEL being {', '.join(get_args(LevelName))}")


def _divided(one: Dataset) -> Dataset:
    """``one`` with a split ``val`` of about 5 % of its images, at least one, where it has ``train`` alone."""
    if list(one.splits) != ["train"]:
        return one
    images = sorted({sample.image_id for sample in one.splits["train"]}, key=_hash)
    if len(images) < 2:
        raise DataError(f"{one.name} has one image: two or more are expected, one of them to be held out")
    held = set(images[: max(1, round(_DIVIDED_SHARE * len(images)))])
    log.info("%s has no split but train: %d of %d images are held out as val", one.name, len(held), len(images))
    train = tuple(sample for sample in one.splits["train"] if sample.image_id not in held)
    val = tuple(sample for sample in one.splits["train"] if sample.image_id in held)
    return replace(one, splits={"train": train, "val": val})


def _hash(image_id: str) -> bytes:
    return hashlib.blake2b(image_id.encode(), digest_size=8).digest()


def _without_held_out(sets: Sequence[Dataset], left_out: dict[str, int]) -> Joined:
    """All training samples whose images are in no other split of ``sets``."""
    # Scenes are made from seeds and share no image; to look at their samples would be to draw them all.
    listed = [one for one in sets if isinstance(one.splits["train"], tuple)]
    others = {s.image_id for one in listed for split in one.splits if split != "train" for s in one.splits[split]}
    parts: list[Sequence[Sample]] = []
    for one in sets:
        samples = one.splits["train"]
        kept = tuple(s for s in samples if s.image_id not in others) if isinstance(samples, tuple) else samples
        if len(kept) < len(samples):
            reason = "training samples on images of other splits"
            left_out[reason] = left_out.get(reason, 0) + len(samples) - len(kept)
            log.info("%s: %d training samples are on held-out images and left out", one.name, len(samples) - len(kept))
        parts.append(kept)
    return Joined(parts)
