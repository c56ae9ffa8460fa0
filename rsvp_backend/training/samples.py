"""What a VLSM is fine-tuned on: an image, a text, and the mask that a person confirmed, corrected or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from PIL import Image

from rsvp_backend.types import BoolMask, Box


class Origin(StrEnum):
    """How a person dealt with a region."""

    CONFIRMED = "confirmed"  # a prediction that was submitted as it was
    CORRECTED = "corrected"  # a prediction that was edited
    DRAWN = "drawn"  # made by hand
    REFUSED = "refused"  # a prediction that was deleted: nothing of it is in the crop


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """One region of one task, as a person left it.

    ``load_image`` gives the upright RGB image when it is needed. ``mask``: bool ``(height, width)`` of the image, all
    False where `Origin.REFUSED`. ``crop``: where to look, image pixels, padded as the pipeline pads. ``key`` is the
    same at every reading of the same content, ``task`` the same for all regions of a task.
    """

    key: str
    task: int
    text: str
    mask: BoolMask
    crop: Box
    origin: Origin
    load_image: Callable[[], Image.Image]
    label: str | None = None
    reasoning: str = ""
    annotator: int | None = None
