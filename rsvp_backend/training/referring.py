"""Samples of referring segmentation, whatever they were read from: an image, a text, and the mask that it means.

Images and masks are read and decoded when they are asked for: a data set in memory is its texts and outlines only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from rsvp_backend.errors import RsvpError
from rsvp_backend.types import BoolMask


class DataError(RsvpError):
    """A data set is missing, damaged, or lacks what was asked for."""


class SampleError(DataError):
    """One sample cannot be used; the others can."""


class ImageSource(Protocol):
    def load(self) -> Image.Image:
        """The RGB image, in the size that the mask has. Raises `SampleError`."""
        ...


class MaskSource(Protocol):
    def decode(self) -> BoolMask:
        """Bool ``(height, width)`` of the image. Raises `SampleError`."""
        ...


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image file; ``width_px`` and ``height_px`` are what its annotations were made for."""

    path: Path
    width_px: int
    height_px: int

    def load(self) -> Image.Image:
        try:
            with Image.open(self.path) as image:
                size, rgb = image.size, image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise SampleError(f"{self.path} cannot be read as an image: {error}") from None
        if size != (self.width_px, self.height_px):
            raise SampleError(
                f"{self.path} is {size[0]} x {size[1]} px, its annotations are for {self.width_px} x {self.height_px}"
            )
        return rgb


@dataclass(frozen=True, slots=True)
class Sample:
    """One text on one image.

    ``region``: names the mask, the same at every reading; all texts of a region share it. ``image_id``: the same
    wherever the same image occurs, in any data set. ``others``: further regions of the image; the text may be asked in
    their crops, too. ``absent``: the text means nothing in the image, and its mask is empty.
    """

    region: str
    image_id: str
    text: str
    image: ImageSource
    mask: MaskSource
    others: tuple[MaskSource, ...] = ()
    absent: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """``splits``: samples by the name of their split; ``texts``: all that occur, or might; ``left_out``: how many
    regions or texts were not taken, by reason; ``digest``: the same for the same content."""

    name: str
    splits: Mapping[str, Sequence[Sample]]
    texts: frozenset[str]
    left_out: Mapping[str, int]
    digest: str

    @classmethod
    def of(cls, name: str, splits: Mapping[str, list[Sample]], left_out: Mapping[str, int]) -> Dataset:
        """From samples in memory. Raises `DataError` where there is none, with what was left out and why."""
        taken = {split: tuple(samples) for split, samples in sorted(splits.items()) if samples}
        if not taken:
            raise DataError(f"{name} gives no sample at all; left out: {described(left_out) or 'nothing'}")
        digest = hashlib.blake2b(digest_size=16)
        for split, samples in taken.items():
            for sample in samples:
                digest.update(repr((split, sample.region, sample.text)).encode())
        texts = frozenset(sample.text for samples in taken.values() for sample in samples)
        return cls(name, taken, texts, left_out, digest.hexdigest())

    def summary(self) -> str:
        sizes = ", ".join(f"{split} {len(samples)}" for split, samples in self.splits.items())
        return f"{self.name}: {sizes}; left out: {described(self.left_out) or 'nothing'}"


def described(left_out: Mapping[str, int]) -> str:
    """Such as ``3 images missing, 1 mask damaged``."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
