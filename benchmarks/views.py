"""Accuracy of both views and of clicks, on procedural scenes: ``python benchmarks/views.py [--scenes 100] [--json]``.

Stage 2 alone (``RSVP_VLSM``, the demo weights by default). For both views, ``crop`` and ``full+box``: mean IoU of the
object's name on the crop of its true regions, with another object's name, and milliseconds per prompt when all objects
of an image are asked for. For the whole image and no text: mean IoU of one click, of three (two on the object, one
beside it), of a box; and of the name with a click.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from rsvp_backend import presets
from rsvp_backend.evaluation.metrics import Overlap
from rsvp_backend.grid import mask_regions, regions_box
from rsvp_backend.scenes import Scene, make_scene
from rsvp_backend.settings import load_settings
from rsvp_backend.types import BoolMask, Box, Click, Marks, Prompt, Segmenter

FIRST_SEED = 10_000_000


def crops(scene: Scene, padding: float = 0.2) -> list[Box]:
    """The padded box of each object's true regions."""
    size, marks = scene.image.size, Marks()
    boxes = [regions_box(mask_regions(mask, marks), marks, *size) for mask in scene.masks]
    return [box.padded(padding, *size) for box in boxes if box is not None]


def named(scene: Scene, shift: int = 0) -> list[Prompt]:
    """Each object's crop with its own name, or that of the object ``shift`` further on."""
    names = [item.phrase for item in scene.layout.items]
    return [Prompt(box, names[(i + shift) % len(names)]) for i, box in enumerate(crops(scene))]


def clicked(positive: int, negative: int, text: bool = False) -> Callable[[Scene], list[Prompt]]:
    def prompts(scene: Scene) -> list[Prompt]:
        rng = np.random.default_rng(scene.seed)
        whole = Box(0, 0, *scene.image.size)
        made = []
        for item, mask, crop in zip(scene.layout.items, scene.masks, crops(scene), strict=True):
            clicks = [_click(rng, mask, True) for _ in range(positive)] + [
                _click(rng, _beside(mask), False) for _ in range(negative)
            ]
            made.append(Prompt(crop if text else whole, item.phrase if text else None, tuple(clicks)))
        return made

    return prompts


def boxed(scene: Scene) -> list[Prompt]:
    """Each object's tight box; the crop is that box, padded, as `refinement` cuts it."""
    prompts = []
    for mask in scene.masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        prompts.append(Prompt(box.padded(0.2, *scene.image.size), box=box))
    return prompts


def _click(rng: np.random.Generator, where: BoolMask, positive: bool) -> Click:
    ys, xs = np.nonzero(where)
    n = int(rng.integers(len(ys)))
    return Click(float(xs[n]) + 0.5, float(ys[n]) + 0.5, positive)


def _beside(mask: BoolMask) -> BoolMask:
    """Around the object, within its own size."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    dy, dx = (len(rows) // 2, len(columns) // 2)
    near: BoolMask = np.zeros_like(mask)
    near[max(0, rows[0] - dy) : rows[-1] + dy, max(0, columns[0] - dx) : columns[-1] + dx] = True
    return near & ~mask


def score(segmenter: Segmenter, scenes: list[Scene], ask: Callable[[Scene], list[Prompt]]) -> tuple[float, float]:
    """Mean IoU over all objects of ``scenes``, and milliseconds per prompt."""
    ious, spent_s = [], 0.0
    for scene in scenes:
        prompts = ask(scene)
        started = time.perf_counter()
        found = segmenter.segment([scene.image] * len(prompts), prompts)
        spent_s += time.perf_counter() - started
        for one, prompt, mask in zip(found, prompts, scene.masks, strict=True):
            truth = mask[prompt.crop.top : prompt.crop.bottom, prompt.crop.left : prompt.crop.right]
            ious.append(Overlap.of(one.logits > 0, truth).iou)
    return float(np.mean(ious)), spent_s * 1e3 / len(ious)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--level", choices=["easy", "crowded", "full"], default="easy")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.scenes)
    scenes = [make_scene(seed, arguments.level, questions_per_kind=0) for seed in seeds]
    found: dict[str, float | str | int] = {"level": arguments.level, "scenes": arguments.scenes}
    for view in ("crop", "full+box"):
        segmenter = presets.build(load_settings(vlsm_view=view)).segmenter
        iou, found[f"{view}_ms_per_prompt"] = score(segmenter, scenes, named)
        found[f"{view}_iou"] = iou
        found[f"{view}_iou_other_name"] = score(segmenter, scenes, partial(named, shift=1))[0]
    segmenter = presets.build(load_settings()).segmenter
    asks = {
        "one_click": clicked(1, 0),
        "three_clicks": clicked(2, 1),
        "box": boxed,
        "name_and_click": clicked(1, 0, True),
    }
    for name, ask in asks.items():
        found[f"{name}_iou"] = score(segmenter, scenes, ask)[0]
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}
    if arguments.json:
        sys.stdout.write(json.dumps(rounded) + "\n")
    else:
        sys.stdout.writelines(f"{key:28} {value}\n" for key, value in rounded.items())


if __name__ == "__main__":
    main()
