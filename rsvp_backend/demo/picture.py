"""The README's picture: real results side by side, each as instruction, mask on the image, and the reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from rsvp_backend.types import BoolMask, Outcome

PANEL_PX, MARGIN_PX, FONT_PX = 400, 16, 17
LINE_PX = FONT_PX + 6
OUTLINE_COLOR = (220, 0, 110)
FADED = 0.45
BACKGROUND, INK, FAINT = (255, 255, 255), (20, 20, 30), (90, 90, 110)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """One result to show. ``mask``: bool ``(image.height, image.width)``, all instances in one."""

    image: Image.Image
    instruction: str
    mask: BoolMask
    reasoning: str

    @classmethod
    def of(cls, image: Image.Image, outcome: Outcome) -> Shown:
        """Take what is shown from an outcome of the pipeline; an empty outcome shows its reason."""
        reasoning = " ".join(instance.reasoning for instance in outcome.instances) or outcome.detail
        return cls(image, outcome.trace.instruction, outcome.union(image.width, image.height), reasoning)


def render(results: Sequence[Shown]) -> Image.Image:
    """All results in one row, RGB; every panel is `PANEL_PX` wide and as high as the highest needs."""
    if not results:
        raise ValueError("no result to draw: at least one is expected")
    panels = [_panel(result) for result in results]
    width_px = sum(panel.width + MARGIN_PX for panel in panels) + MARGIN_PX
    sheet = Image.new("RGB", (width_px, max(panel.height for panel in panels) + 2 * MARGIN_PX), BACKGROUND)
    for index, panel in enumerate(panels):
        sheet.paste(panel, (MARGIN_PX + index * (PANEL_PX + MARGIN_PX), MARGIN_PX))
    return sheet


def overlay(image: Image.Image, mask: BoolMask) -> Image.Image:
    """The image, RGB, faded outside the mask and in its own colours inside, with an outline around.

    ``mask``: bool ``(image.height, image.width)``. A null mask leaves the image as it is.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(f"mask is {mask.shape}, the image asks for {pixels.shape[:2]}")
    if not mask.any():
        return image.convert("RGB")
    shown = np.where(mask[..., None], pixels, FADED * pixels + (1 - FADED) * 255)
    edge_px = max(2, max(image.size) // 160)
    shown[ndimage.binary_dilation(mask, iterations=edge_px) & ~mask] = OUTLINE_COLOR
    return Image.fromarray(shown.astype(np.uint8))


def _panel(result: Shown) -> Image.Image:
    font = ImageFont.load_default(FONT_PX)
    asked, said = _wrapped(f"“{result.instruction}”", font), _wrapped(result.reasoning, font)
    picture = overlay(result.image, result.mask)
    picture = picture.resize((PANEL_PX, round(PANEL_PX * picture.height / picture.width)), Image.Resampling.LANCZOS)
    top_px = LINE_PX * max(2, len(asked)) + MARGIN_PX // 2
    height_px = top_px + picture.height + MARGIN_PX // 2 + LINE_PX * len(said)
    panel = Image.new("RGB", (PANEL_PX, height_px), BACKGROUND)
    panel.paste(picture, (0, top_px))
    draw = ImageDraw.Draw(panel)
    for index, line in enumerate(asked):
        draw.text((0, index * LINE_PX), line, INK, font)
    for index, line in enumerate(said):
        draw.text((0, top_px + picture.height + MARGIN_PX // 2 + index * LINE_PX), line, FAINT, font)
    return panel


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Break at spaces into lines of at most `PANEL_PX`."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > PANEL_PX:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
