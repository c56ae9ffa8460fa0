"""What SAM's image encoder sees of an image, and the way of a person's clicks and boxes into it.

``crop`` is the paper's way: SAM sees the prompt's crop, enlarged. ``full+box`` shows it the whole image, once for all
prompts, and gives it the crop as a box prompt: cheaper for many instructions on one image, coarser on small objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from rsvp_backend.types import Box, Prompt
from rsvp_backend.vlsm.preprocess import Size, full_size_logits, resized_size

ViewName = Literal["crop", "full+box"]
Labelled = tuple[list[tuple[float, float]], list[int]]


@dataclass(frozen=True, slots=True)
class View:
    """``frame``: the part of the image that SAM sees; ``crop``: the part that the answer covers, inside ``frame``.

    Both in image pixels. ``box`` is the box prompt, if any.
    """

    frame: Box
    crop: Box
    box: Box | None

    @classmethod
    def of(cls, name: ViewName, image: Image.Image, prompt: Prompt) -> View:
        """``prompt`` on ``image`` under the view ``name``. Raises `ValueError` for a crop beyond the image."""
        crop = prompt.crop
        if crop.left < 0 or crop.top < 0 or crop.right > image.width or crop.bottom > image.height:
            raise ValueError(f"the crop {crop.xyxy} reaches beyond the image of {image.width} x {image.height} px")
        if name == "crop":
            return cls(crop, crop, prompt.box)
        return cls(
            Box(0, 0, image.width, image.height), crop, prompt.box or (crop if prompt.text is not None else None)
        )

    @property
    def size_px(self) -> Size:
        return self.frame.height, self.frame.width

    def points(self, prompt: Prompt, image_size: int) -> Labelled:
        """The prompt's clicks as SAM's points: (x, y) in pixels of its square input, and labels 1 or 0."""
        return [self._place(c.x_px, c.y_px, image_size) for c in prompt.clicks], [
            int(c.positive) for c in prompt.clicks
        ]

    def box_corners(self, image_size: int) -> list[tuple[float, float]]:
        """The box prompt's two corners in pixels of SAM's square input; none without a box."""
        if self.box is None:
            return []
        left, top, right, bottom = self.box.xyxy
        return [self._place(left, top, image_size), self._place(right, bottom, image_size)]

    def crop_logits(self, low_resolution: Tensor, image_size: int) -> npt.NDArray[np.float32]:
        """Decoder logits ``(h, w)`` of this view -> float32 ``(crop.height, crop.width)``."""
        logits = full_size_logits(low_resolution[None], self.size_px, image_size)[0]
        top, left = self.crop.top - self.frame.top, self.crop.left - self.frame.left
        found: npt.NDArray[np.float32] = logits[top : top + self.crop.height, left : left + self.crop.width].numpy()
        return np.ascontiguousarray(found)

    def _place(self, x_px: float, y_px: float, image_size: int) -> tuple[float, float]:
        height, width = resized_size(self.size_px, image_size)
        x = (x_px - self.frame.left) * width / self.frame.width
        y = (y_px - self.frame.top) * height / self.frame.height
        return x, y
