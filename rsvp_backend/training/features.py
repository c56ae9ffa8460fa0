"""What a frozen image encoder makes of each crop, computed once: in memory, and on disk for the next run.

Two kinds of files, both named by their content: *crops* (the pixels that both encoders see, and the mask's target; by
the correction's key) spare downloads and decoding, *embeddings* (by the digest of the pixels that SAM sees, of the
image encoder's weights and of the view) spare the image encoder, also for later versions, which leave it as it is.
"""

from __future__ import annotations

import hashlib
import logging
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cachetools import LRUCache
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rsvp_backend.training.samples import Correction
from rsvp_backend.training.targets import decoder_target
from rsvp_backend.types import BoolMask, Box, Prompt
from rsvp_backend.vlsm.model import Vlsm
from rsvp_backend.vlsm.preprocess import beit3_pixels, sam_normalised, sam_resized
from rsvp_backend.vlsm.views import View, ViewName

log = logging.getLogger(__name__)

_MOVED_INWARDS, _MOVED_OUTWARDS = 0.04, 0.12  # how far variants move a crop's edges, of its width and height
_MEMORY_BYTES = 2**30
_SIDES = re.compile(r"\b(left|right|clockwise)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """One crop, ready for BEiT-3 and the mask decoder; all on the CPU.

    ``embedding``: float16 ``(C, h, w)``; ``beit3``: float16 ``(3, s, s)``; ``target``: float16 ``(4h, 4w)`` in [0, 1];
    ``inside``: bool ``(4h, 4w)``, which cells count; ``corners``: float32 ``(2, 2)``, the crop as a box prompt in
    pixels of SAM's square, or ``(0, 2)``.
    """

    embedding: Tensor
    beit3: Tensor
    target: Tensor
    inside: Tensor
    corners: Tensor

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.embedding, self.beit3, self.target, self.inside, self.corners))


class FeatureStore:
    """Features of corrections under one model and view. ``folder``: where files go; None keeps them in memory only.

    ``limit_bytes``: what `trim` leaves on disk. Files may be deleted at any time, by anyone.
    """

    def __init__(self, model: Vlsm, view: ViewName, folder: Path | None, limit_bytes: int = 2 * 2**30) -> None:
        self.model, self.view, self.folder, self.limit_bytes = model, view, folder, limit_bytes
        self._encoder = encoder_digest(model)
        sizes = (model.config.sam.image_size, model.config.sam.grid_size, model.config.beit3.img_size)
        self._form = f"{view}:{sizes}"
        self._kept: LRUCache[tuple[str, int], Features] = LRUCache(_MEMORY_BYTES, getsizeof=lambda f: f.nbytes)

    def features(self, correction: Correction, variant: int = 0) -> Features:
        """Features of ``correction`` in its own crop, or (``variant`` > 0) in one with moved edges.

        Odd variants are mirrored too, where the text allows it.
        """
        key = (correction.key, variant)
        found = self._kept.get(key)
        if found is None:
            found = self._read(correction, variant)
            if found.nbytes <= self._kept.maxsize:
                self._kept[key] = found
        return found

    def _read(self, correction: Correction, variant: int) -> Features:
        name = _digest(correction.key.encode(), str(variant).encode(), str(correction.crop.xyxy).encode(), self._form)
        crop = self._file("crops", name, lambda: self._crop(correction, variant))
        pixels = crop.pop("sam")
        name = _digest(repr(pixels.shape).encode(), pixels.numpy().tobytes(), self._encoder, self.view)
        embedding = self._file("embeddings", name, lambda: {"embedding": self._embed(pixels)})
        return Features(**embedding, **crop)

    def _crop(self, correction: Correction, variant: int) -> dict[str, Tensor]:
        image, mask, config = correction.load_image(), correction.mask, self.model.config
        crop = _moved(correction, variant, image) if variant else correction.crop
        if variant % 2 and not names_a_side(correction.text):
            image, mask, crop = mirrored(image, mask, crop)
        view = View.of(self.view, image, Prompt(crop, correction.text))
        target, inside = decoder_target(mask, view, config.sam.image_size, config.sam.grid_size)
        return {
            "sam": sam_resized(image.crop(view.frame.xyxy), config.sam.image_size),
            "beit3": beit3_pixels(image.crop(crop.xyxy), config.beit3.img_size).half(),
            "target": target.half(),
            "inside": inside,
            "corners": torch.tensor(view.box_corners(config.sam.image_size), dtype=torch.float32).reshape(-1, 2),
        }

    @torch.no_grad()
    def _embed(self, pixels: Tensor) -> Tensor:
        """``pixels``: uint8 ``(3, h, w)`` -> float16 ``(C, h, w)``."""
        like = next(self.model.visual_model.image_encoder.parameters())
        batch = sam_normalised(pixels.to(like.device), self.model.config.sam.image_size)[None]
        return self.model.embed_image(batch.to(like.dtype))[0].to("cpu", torch.float16).contiguous()

    def _file(self, kind: str, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors in the file ``name``, made and written where there is none that can be read."""
        if self.folder is None:
            return make()
        path = self.folder / kind / name[:2] / f"{name}.safetensors"
        try:
            found = load_file(path)
            path.touch()
            return found
        except FileNotFoundError:
            pass
        except (OSError, SafetensorError) as error:
            log.warning("cached file %s cannot be read and is made again: %s", path, error)
        made = make()
        aside = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(made, aside)
            aside.replace(path)
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be cached in %s: %s", kind, self.folder, error)
            with suppress(OSError):
                aside.unlink()
        return made

    def trim(self) -> int:
        """Delete the files that were not used for the longest time, until ``limit_bytes`` are left; bytes deleted."""
        if self.folder is None:
            return 0
        stats = [(path, path.stat()) for path in self.folder.rglob("*") if path.is_file()]
        excess, deleted = sum(stat.st_size for _, stat in stats) - self.limit_bytes, 0
        for path, stat in sorted(stats, key=lambda pair: pair[1].st_mtime_ns):
            if deleted >= excess:
                break
            path.unlink(missing_ok=True)
            deleted += stat.st_size
        return deleted


def names_a_side(text: str) -> bool:
    """Whether ``text`` may mean something else in a mirrored picture; other alphabets may always."""
    return not text.isascii() or _SIDES.search(text) is not None


def mirrored(image: Image.Image, mask: BoolMask, crop: Box) -> tuple[Image.Image, BoolMask, Box]:
    """All three with left and right exchanged."""
    left, right = image.width - crop.right, image.width - crop.left
    return ImageOps.mirror(image), mask[:, ::-1], Box(left, crop.top, right, crop.bottom)


def encoder_digest(model: Vlsm) -> str:
    """Hexadecimal digest of the image encoder's tensors, as float16: the same before and after a cast to float32."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.visual_model.image_encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.to("cpu", torch.float16).contiguous().numpy().data)
    return digest.hexdigest()


def _moved(correction: Correction, variant: int, image: Image.Image) -> Box:
    """The crop with its edges moved, by the same amounts at every call."""
    seed = int(_digest(correction.key.encode(), str(variant).encode()), 16)
    low, high = np.random.default_rng(seed).uniform(-_MOVED_INWARDS, _MOVED_OUTWARDS, (2, 2))
    crop = correction.crop
    left, right = crop.left - int(low[0] * crop.width), crop.right + int(high[0] * crop.width)
    top, bottom = crop.top - int(low[1] * crop.height), crop.bottom + int(high[1] * crop.height)
    left, top, right, bottom = max(0, left), max(0, top), min(image.width, right), min(image.height, bottom)
    return Box(left, top, max(right, left + 1), max(bottom, top + 1))


def _digest(*parts: bytes | str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
