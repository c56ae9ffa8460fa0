"""Draw a layout: picture and exact visible masks, at the layout's own size or any other."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from rsvp_backend.scenes.layout import COLOURS, Item, Layout, Level
from rsvp_backend.scenes.shapes import DRAWINGS, Pen
from rsvp_backend.types import BoolMask

SUPERSAMPLING = 2
PHOTOS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "rocket")


def render(
    layout: Layout, level: Level, rng: np.random.Generator, scale: float = 1.0
) -> tuple[Image.Image, list[BoolMask]]:
    """RGB picture and one bool ``(height, width)`` visible mask per item; ``scale`` multiplies the layout's size."""
    width, height = max(1, round(layout.width_px * scale)), max(1, round(layout.height_px * scale))
    canvas = _background(rng, level, width, height)
    if level.clutter:
        _draw_clutter(canvas, rng, level)
    short = min(width, height)
    owner = np.full((height, width), -1, dtype=np.int16)
    for index, item in enumerate(layout.items):
        sprite, alpha = _sprite(item, round(item.size * short))
        left, top = round(item.cx * short - sprite.width / 2), round(item.cy * short - sprite.height / 2)
        if level.photos:
            _cast_shadow(canvas, alpha, left, top, short)
        canvas.paste(sprite, (left, top), alpha)
        solid = Image.new("L", (width, height), 0)
        solid.paste(alpha, (left, top))
        owner[np.asarray(solid) > 127] = index
    if level.photos:
        canvas = _light(canvas, rng)
    return canvas, [owner == index for index in range(len(layout.items))]


def _sprite(item: Item, side_px: int) -> tuple[Image.Image, Image.Image]:
    """The object's RGB drawing and its L alpha, rotated; a square somewhat larger than ``side_px``."""
    pen = Pen(max(8, side_px * SUPERSAMPLING))
    DRAWINGS[item.name](pen, item.variation)
    tones, shape = pen.tones, pen.silhouette
    if item.texture != "plain":
        tones = Image.composite(
            tones.point([min(255, round(i * 0.62)) for i in range(256)]), tones, _pattern(item, pen.side_px)
        )
    tones = tones.rotate(item.rotation_deg, Image.Resampling.BILINEAR, expand=True, fillcolor=128)
    shape = shape.rotate(item.rotation_deg, Image.Resampling.BILINEAR, expand=True)
    size = (max(2, shape.width // SUPERSAMPLING), max(2, shape.height // SUPERSAMPLING))
    tones, shape = tones.resize(size, Image.Resampling.BOX), shape.resize(size, Image.Resampling.BOX)
    bands = [tones.point(_tone_table(channel)) for channel in item.rgb]
    return Image.merge("RGB", bands), shape


@lru_cache(maxsize=256)
def _tone_table(channel: int) -> list[int]:
    """Level -> channel value: darker tones scale to black, lighter ones go towards white."""
    return [
        round(channel * i / 128) if i <= 128 else round(channel + (255 - channel) * min(1.0, (i - 128) / 100))
        for i in range(256)
    ]


def _pattern(item: Item, side_px: int) -> Image.Image:
    pattern = Image.new("L", (side_px, side_px), 0)
    draw = ImageDraw.Draw(pattern)
    step = side_px / (5 + 4 * item.variation)
    for i in range(12):
        if item.texture == "striped":
            draw.rectangle([0, i * step, side_px, i * step + step * 0.4], fill=255)
            continue
        for j in range(12):
            x, y = (j + 0.5 * (i % 2)) * step, i * step
            draw.ellipse([x, y, x + step * 0.45, y + step * 0.45], fill=255)
    return pattern


def _background(rng: np.random.Generator, level: Level, width: int, height: int) -> Image.Image:
    kind = rng.random()
    if not level.photos or kind < 0.25:
        return _plain(rng, width, height)
    if kind < 0.65:
        return _photo(rng, width, height)
    return _noise(rng, width, height)


def _plain(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """One pale or dull colour, or two of them with a horizon."""
    first, second = (tuple(int(c) for c in rng.integers(140, 246) + rng.integers(-12, 13, 3)) for _ in range(2))
    canvas = Image.new("RGB", (width, height), first)
    if rng.random() < 0.5:
        ImageDraw.Draw(canvas).rectangle([0, round(height * rng.uniform(0.3, 0.7)), width, height], fill=second)
    return canvas


@lru_cache(maxsize=16)
def _load_photo(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB")


def _photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    photo = _load_photo(PHOTOS[rng.integers(len(PHOTOS))])
    share = rng.uniform(0.35, 1.0)
    w, h = photo.width * share, photo.height * share
    left, top = rng.uniform(0, photo.width - w), rng.uniform(0, photo.height - h)
    crop = photo.resize((width, height), Image.Resampling.BILINEAR, (left, top, left + w, top + h))
    if rng.random() < 0.5:
        crop = crop.filter(ImageFilter.GaussianBlur(min(width, height) / 150))
    return crop


def _noise(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Coloured clouds of several octaves, like cloth, stone or a lawn out of focus."""
    total: npt.NDArray[np.float32] = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((3, 1.0), (9, 0.5), (40, 0.25)):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += weight * np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    tint = rng.integers(60, 220, 3).astype(np.float32)
    return Image.fromarray(np.clip(0.45 * total / 1.75 + 0.55 * tint, 0, 255).astype(np.uint8))


def _draw_clutter(canvas: Image.Image, rng: np.random.Generator, level: Level) -> None:
    """Shapes that no instruction names."""
    draw = ImageDraw.Draw(canvas)
    short = min(canvas.size)
    palette = list(COLOURS.values())
    for _ in range(int(rng.integers(0, level.clutter + 1))):
        x, y = rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)
        w, h = rng.uniform(0.03, 0.14, 2) * short
        fill = tuple(
            int(c) for c in np.clip(np.array(palette[rng.integers(len(palette))]) + rng.integers(-40, 41, 3), 0, 255)
        )
        if rng.random() < 0.5:
            draw.rectangle([x, y, x + w, y + h * 0.4], fill=fill)
        else:
            draw.polygon([(x, y), (x + w, y + h * 0.2), (x + w * 0.4, y + h)], fill=fill)


def _cast_shadow(canvas: Image.Image, alpha: Image.Image, left: int, top: int, short: int) -> None:
    radius = max(1.0, short / 90)
    shadow = alpha.point([i * 2 // 5 for i in range(256)]).filter(ImageFilter.GaussianBlur(radius))
    canvas.paste((0, 0, 0), (left + round(radius * 2), top + round(radius * 2)), shadow)


def _light(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A light gradient across the picture."""
    ramp = Image.fromarray(
        np.linspace(rng.uniform(0, 70), rng.uniform(0, 70), 64, dtype=np.float32)[None, :].astype(np.uint8)
    )
    shade = ramp.rotate(90 if rng.random() < 0.5 else 0, expand=True).resize(canvas.size, Image.Resampling.BILINEAR)
    return Image.composite(Image.new("RGB", canvas.size), canvas, shade)
