"""The worst answers as small pictures: what was predicted and not kept, and what was added by hand."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rsvp_backend.errors import RsvpError
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.instructions import find_instruction
from rsvp_backend.labelstudio.reading import LeftOutError, Reading
from rsvp_backend.reports.answers import Answer
from rsvp_backend.reports.measuring import compare
from rsvp_backend.reports.reading import Project, annotation_of
from rsvp_backend.types import BoolMask, Box

SIDE_PX = 360
ADDED, REMOVED = (38, 110, 230), (214, 32, 110)
_CONTEXT = 1.0  # of the masks' size, half on each side
_STRENGTH, _FADED, _QUALITY = 0.6, 0.55, 82


@dataclass(frozen=True, slots=True)
class Tile:
    """One answer to look at. ``picture``: a data URL, empty where ``problem`` says why there is none."""

    answer: Answer
    instruction: str = ""
    picture: str = ""
    problem: str = ""


def worst(answers: list[Answer], count: int) -> list[Answer]:
    """The lowest IoUs first; of equal ones those with most to see."""
    compared = [answer for answer in answers if answer.iou is not None and answer.iou < 1]
    return sorted(compared, key=_badness)[:count]


def tile(client: LabelStudioClient, project: Project, answer: Answer, instruction_field: str | None = None) -> Tile:
    """Read the task once more and draw it; what cannot be shown becomes a tile that says why."""
    instruction = ""
    try:
        task, annotated = annotation_of(client, project, answer)
        try:
            instruction = find_instruction(task, project.source.config, field=instruction_field, default="-")
            found = compare(annotated, Reading())
        except LeftOutError as left_out:
            return Tile(answer, instruction, problem=left_out.detail or str(left_out.reason))
        predicted, final = _union([*found.predicted.values()]), _union([*found.final.values()])
        some = predicted if predicted is not None else final
        if some is None:
            return Tile(answer, instruction, problem="there is no mask any more")
        height_px, width_px = some.shape
        nothing = np.zeros_like(some)
        image = annotated.image.load(width_px, height_px)
        shown = draw(image, nothing if predicted is None else predicted, nothing if final is None else final)
        return Tile(answer, instruction, _data_url(shown))
    except RsvpError as error:
        return Tile(answer, instruction, problem=str(error))


def draw(image: Image.Image, predicted: BoolMask, final: BoolMask) -> Image.Image:
    """RGB, at most `SIDE_PX` on its longest side: the masks with some of what is around, faded outside of them.

    ``predicted`` and ``final``: bool ``(image.height, image.width)``. In `REMOVED` what is only predicted, in `ADDED`
    what is only in the end; what is in both keeps its colours.
    """
    box = _view(predicted | final)
    part = image.convert("RGB").crop(box.xyxy)
    size = _fitted(part.width, part.height)
    pixels = np.asarray(part.resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    before, after = (_resized(mask, box, size) for mask in (predicted, final))
    shown = np.where((before | after)[..., None], pixels, _FADED * pixels + (1 - _FADED) * 255)
    for where, color in ((before & ~after, REMOVED), (after & ~before, ADDED)):
        shown[where] = (1 - _STRENGTH) * shown[where] + _STRENGTH * np.array(color, dtype=np.float32)
    return Image.fromarray(shown.astype(np.uint8))


def _badness(answer: Answer) -> tuple[float, int, int]:
    overlap = answer.overlap
    return (overlap.iou, -overlap.union_px, answer.task) if overlap is not None else (1.0, 0, answer.task)


def _union(masks: list[BoolMask]) -> BoolMask | None:
    if not masks:
        return None
    union: BoolMask = np.logical_or.reduce(masks)
    return union


def _view(mask: BoolMask) -> Box:
    """What is shown of the image; all of it where there is no mask."""
    height_px, width_px = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return Box(0, 0, width_px, height_px)
    tight = Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return tight.padded(_CONTEXT, width_px, height_px)


def _fitted(width_px: int, height_px: int) -> tuple[int, int]:
    """(width, height); small pictures grow as well, so that a few pixels can be seen."""
    scale = SIDE_PX / max(width_px, height_px)
    return max(1, round(width_px * scale)), max(1, round(height_px * scale))


def _resized(mask: BoolMask, box: Box, size: tuple[int, int]) -> BoolMask:
    part = mask[box.top : box.bottom, box.left : box.right]
    resized: BoolMask = np.asarray(Image.fromarray(part).convert("L").resize(size, Image.Resampling.NEAREST)) > 127
    return resized


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
