"""What a scene holds and where, independent of its pixel size: drawn by `render`, asked about by `language`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rsvp_backend.scenes.shapes import DRAWINGS

LevelName = Literal["easy", "crowded", "full", "small"]
SIZES_PX = ((480, 480), (640, 480), (480, 640), (512, 384), (800, 600), (400, 400), (576, 432), (1024, 768))
SIZES_FULL_PX = (*SIZES_PX, (320, 320), (1024, 576), (576, 1024), (960, 640), (360, 480))

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 40, 40), "green": (40, 150, 60), "blue": (45, 85, 205), "yellow": (235, 200, 40),
    "purple": (140, 60, 170), "orange": (240, 130, 25),
    "brown": (120, 75, 40), "pink": (240, 140, 180), "white": (238, 238, 238),
    "black": (45, 45, 48), "gray": (130, 130, 135),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Level:
    """The ranges that a scene is drawn from. ``size``: share of the image's shorter side; ``several``: whether
    questions ask for several objects at once, too."""

    classes: tuple[str, ...]
    colours: tuple[str, ...]
    objects: tuple[int, int]
    size: tuple[float, float]
    rotation_deg: float
    min_visible: float
    textures: bool
    photos: bool
    clutter: int
    sizes_px: tuple[tuple[int, int], ...]
    several: bool = False


LEVELS: dict[LevelName, Level] = {
    "easy": Level(
        tuple(DRAWINGS)[:8], tuple(COLOURS)[:6], (2, 4), (0.24, 0.42), 15.0, 1.0, False, False, 0, SIZES_PX
    ),
    "crowded": Level(  # easy's drawings, many to a picture: more to learn from in each training step
        tuple(DRAWINGS)[:8], tuple(COLOURS)[:6], (6, 10), (0.18, 0.34), 15.0, 1.0, False, False, 0, SIZES_PX
    ),
    "full": Level(
        tuple(DRAWINGS), tuple(COLOURS), (3, 7), (0.15, 0.42), 40.0, 0.5, True, True, 6, SIZES_FULL_PX, several=True
    ),
    "small": Level(  # easy's drawings, smaller than a cell of the default marks: what zoom is for
        tuple(DRAWINGS)[:8], tuple(COLOURS)[:6], (2, 4), (0.04, 0.10), 15.0, 1.0, False, False, 0, SIZES_PX
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Item:
    """One object: centre and size in units of the image's shorter side, from its upper left corner."""

    name: str
    colour: str
    cx: float
    cy: float
    size: float
    rotation_deg: float
    variation: float
    texture: Literal["plain", "striped", "dotted"]
    rgb: tuple[int, int, int]

    @property
    def phrase(self) -> str:
        return f"{self.colour} {self.name}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Items in drawing order (later ones lie on top) on an image of ``width_px`` x ``height_px``."""

    width_px: int
    height_px: int
    items: tuple[Item, ...]


def draw_layout(rng: np.random.Generator, level: Level) -> Layout:
    """Choose objects and place them; objects that find no room are left out (at least two remain on any level)."""
    width_px, height_px = level.sizes_px[rng.integers(len(level.sizes_px))]
    short = min(width_px, height_px)
    wide, high = width_px / short, height_px / short
    wanted = int(rng.integers(level.objects[0], level.objects[1] + 1))
    items: list[Item] = []
    for _ in range(wanted * 40):
        if len(items) == wanted:
            break
        item = _draw_item(rng, level, items, wide, high)
        if any((other.name, other.colour) == (item.name, item.colour) for other in items):
            continue
        if all(_far_enough(item, other, level) for other in items):
            items.append(item)
    return Layout(width_px, height_px, tuple(items))


def _draw_item(rng: np.random.Generator, level: Level, items: list[Item], wide: float, high: float) -> Item:
    name = str(rng.choice(level.classes))
    colour = str(rng.choice(level.colours))
    if items and rng.random() < 0.35:  # a distractor that shares one attribute, so that the other one must be seen
        other = items[int(rng.integers(len(items)))]
        name, colour = (other.name, colour) if rng.random() < 0.4 else (name, other.colour)
    low, top = level.size
    size = math.exp(rng.uniform(math.log(low), math.log(top)))
    base = np.array(COLOURS[colour]) + rng.integers(-16, 17, 3)
    textures: tuple[Literal["plain", "striped", "dotted"], ...] = ("plain", "plain", "striped", "dotted")
    return Item(
        name, colour,
        cx=float(rng.uniform(size * 0.52, wide - size * 0.52)),
        cy=float(rng.uniform(size * 0.52, high - size * 0.52)),
        size=size,
        rotation_deg=float(rng.uniform(-level.rotation_deg, level.rotation_deg)),
        variation=float(rng.random()),
        texture=textures[rng.integers(4)] if level.textures else "plain",
        rgb=(int(np.clip(base[0], 0, 255)), int(np.clip(base[1], 0, 255)), int(np.clip(base[2], 0, 255))),
    )  # fmt: skip


def _far_enough(a: Item, b: Item, level: Level) -> bool:
    """Without occlusion the sprites' squares are kept apart; with it, their centres."""
    dx, dy, reach = abs(a.cx - b.cx), abs(a.cy - b.cy), (a.size + b.size) / 2
    if level.min_visible >= 1.0:
        return max(dx, dy) > reach * 1.02
    return max(dx, dy) > reach * 0.6
