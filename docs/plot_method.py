"""Draw docs/images/method-*.png, one real run of the demo models step by step: python docs/plot_method.py

Needs matplotlib, part of the dev group.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from rsvp_backend import presets
from rsvp_backend.pipeline import RSVP
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, make_scene
from rsvp_backend.settings import Settings
from rsvp_backend.types import Box, Outcome

matplotlib.use("Agg")
from matplotlib import pyplot as plt

IMAGES = Path(__file__).parent / "images"
FOUND = (EVALUATION_SEEDS_FROM + 3, "function")
ABSENT = (EVALUATION_SEEDS_FROM + 5, "absent")
COLORS = 160


def main() -> None:
    rsvp = presets.build(Settings())
    for name, (seed, kind) in (("found", FOUND), ("absent", ABSENT)):
        scene = make_scene(seed, "easy")
        asked = next(question for question in scene.questions if question.kind == kind)
        draw(rsvp, scene.image, asked.instruction, IMAGES / f"method-{name}.png")


def draw(rsvp: RSVP, image: Image.Image, instruction: str, path: Path) -> None:
    outcome = rsvp(image, instruction)
    panels = [("The image", image, None), ("Stage 1 sees: the marks", outcome.trace.visual_prompt, None)]
    if outcome.instances:
        panels += stage_2(image, outcome)
    figure, axes = plt.subplots(1, len(panels), figsize=(3.3 * len(panels), 3.9), layout="constrained")
    for axis, (title, picture, box) in zip(axes, panels, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
        if box is not None:
            at = (box.left, box.top)
            axis.add_patch(Rectangle(at, box.width, box.height, fill=False, ls="--", lw=1.5, ec="black"))
    figure.suptitle(f"“{instruction}”", fontsize=12)
    figure.supxlabel(told(outcome, 42 * len(panels)), fontsize=9)
    figure.savefig(path, dpi=100)
    with Image.open(path) as saved:
        saved.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def stage_2(image: Image.Image, outcome: Outcome) -> list[tuple[str, Image.Image, Box | None]]:
    (found,) = outcome.instances
    (crop,) = outcome.trace.crops
    pixels = np.asarray(image.convert("RGB")).copy()
    pixels[~found.mask] = (pixels[~found.mask] * 0.25 + 190).astype(np.uint8)
    cut = image.crop((crop.left, crop.top, crop.right, crop.bottom))
    return [
        ("The regions' box, padded by 20 %", image, crop),
        (f"Stage 2 sees: the crop and “{found.object}”", cut, None),
        (f"The mask, score {found.score:.2f}", Image.fromarray(pixels), None),
    ]


def told(outcome: Outcome, width: int) -> str:
    (proposal,) = outcome.trace.proposals
    regions = proposal.regions
    where = f"rows {list(regions.rows)}, columns {list(regions.columns)}" if proposal.present else "absent"
    return textwrap.fill(f"Stage 1 answers: {proposal.object}; {where}; “{proposal.reasoning}”", width)


if __name__ == "__main__":
    main()
