"""Polygons, rectangles, ellipses and bitmasks -> masks."""

import base64
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsvp_backend.errors import RleError
from rsvp_backend.labelstudio import rle
from rsvp_backend.labelstudio.shapes import ShapeError, bitmask, polygon, read_mask

SIDES = st.integers(1, 40)


def png_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def rectangle(left: float, top: float, right: float, bottom: float, width_px: int, height_px: int) -> dict[str, Any]:
    """In percent, as Label Studio stores pixels."""
    return {
        "x": left / width_px * 100,
        "y": top / height_px * 100,
        "width": (right - left) / width_px * 100,
        "height": (bottom - top) / height_px * 100,
        "rotation": 0,
    }


@given(SIDES, SIDES, st.data())
def test_rectangles_of_whole_pixels_are_half_open(width_px: int, height_px: int, data: st.DataObject) -> None:
    left, right = sorted(data.draw(st.lists(st.integers(0, width_px), min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(data.draw(st.lists(st.integers(0, height_px), min_size=2, max_size=2, unique=True)))
    expected = np.zeros((height_px, width_px), dtype=np.bool_)
    expected[top:bottom, left:right] = True
    value = rectangle(left, top, right, bottom, width_px, height_px)
    assert np.array_equal(read_mask("rectanglelabels", value, height_px, width_px), expected)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    points = [[x / width_px * 100, y / height_px * 100] for x, y in corners]
    for order in (points, points[::-1], points[2:] + points[:2]):
        assert np.array_equal(read_mask("polygonlabels", {"points": order}, height_px, width_px), expected)


@given(st.lists(st.tuples(st.floats(-5, 20), st.floats(-5, 20)), min_size=3, max_size=7))
def test_polygons_are_the_pixels_whose_centres_lie_inside(points: list[tuple[float, float]]) -> None:
    height_px, width_px = 11, 13
    expected = np.zeros((height_px, width_px), dtype=np.bool_)
    for row in range(height_px):
        for column in range(width_px):
            x, y, inside = column + 0.5, row + 0.5, False
            for edge in zip(points, points[1:] + points[:1], strict=True):
                (x0, y0), (x1, y1) = sorted(edge, key=lambda point: (point[1], point[0]))
                if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * ((x1 - x0) / (y1 - y0)) <= x:
                    inside = not inside
            expected[row, column] = inside
    assert np.array_equal(polygon(points, height_px, width_px), expected)


def test_polygons_that_share_an_edge_share_no_pixel() -> None:
    upper = polygon([(0, 0), (9, 0), (9, 9)], 9, 9)
    lower = polygon([(0, 0), (9, 9), (0, 9)], 9, 9)
    assert not (upper & lower).any()
    assert (upper | lower).all()


@pytest.mark.parametrize(("degrees", "box"), [(0, (4, 3, 9, 5)), (90, (2, 3, 4, 8)), (-270, (2, 3, 4, 8)), (180, None)])
def test_rotation_is_clockwise_about_the_upper_left_corner(degrees: float, box: tuple[int, int, int, int]) -> None:
    value = rectangle(4, 3, 9, 5, 20, 10) | {"rotation": degrees}
    left, top, right, bottom = box or (0, 1, 4, 3)  # -1 is cut off
    expected = np.zeros((10, 20), dtype=np.bool_)
    expected[top:bottom, left:right] = True
    assert np.array_equal(read_mask("rectangle", value, 10, 20), expected)


def test_a_turned_rectangle_keeps_its_area() -> None:
    value = rectangle(100, 40, 160, 80, 300, 200) | {"rotation": 33.0}
    assert read_mask("rectanglelabels", value, 200, 300).sum() == pytest.approx(60 * 40, rel=0.01)


def test_ellipses() -> None:
    value = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": 0}
    mask = read_mask("ellipselabels", value, 100, 200)
    assert mask.sum() == pytest.approx(math.pi * 40 * 10, rel=0.01)
    assert (mask[50, 60:140].all(), mask[50, :60].any(), mask[40:60, 100].all(), mask[:40].any()) == (
        True,
        False,
        True,
        False,
    )
    upright = read_mask("ellipse", value | {"rotation": 90}, 100, 200)
    assert (upright[10:90, 100].all(), upright[50, :90].any(), upright.sum()) == (True, False, mask.sum())


def test_bitmasks_are_cut_at_half_of_the_alpha() -> None:
    alpha = np.array([[0, 127, 128], [255, 1, 200]], dtype=np.uint8)
    image = Image.fromarray(np.dstack([np.zeros((2, 3, 3), dtype=np.uint8), alpha]))
    assert np.array_equal(bitmask(png_url(image), 2, 3), alpha > 127)
    with pytest.raises(ShapeError, match="3 x 2, its image 2 x 3"):
        bitmask(png_url(image), 3, 2)
    with pytest.raises(ShapeError, match="no transparency"):
        bitmask(png_url(image.convert("L")), 2, 3)


def test_brush_masks_are_checked_before_they_are_decoded() -> None:
    mask = np.zeros((6, 9), dtype=np.bool_)
    mask[2:4, 1:7] = True
    value = {"format": "rle", "rle": rle.encode(mask)}
    assert np.array_equal(read_mask("brushlabels", value, 6, 9), mask)
    with pytest.raises(RleError, match="announces 216 bytes, the image has 240"):
        read_mask("brush", value, 6, 10)


@pytest.mark.parametrize(
    ("kind", "value", "complaint"),
    [
        ("brushlabels", {"format": "png", "rle": []}, "'rle' with a list"),
        ("bitmasklabels", {}, "imageDataURL is None"),
        ("bitmasklabels", {"imageDataURL": "https://example.com/a.png"}, "a data URL"),
        ("bitmasklabels", {"imageDataURL": "data:image/png;base64,AAAA"}, "not a readable PNG"),
        ("polygonlabels", {"points": [[0, 0], [1, 1]]}, "three or more"),
        ("polygonlabels", {"points": [[0, 0], [1, 1], [2]]}, "three or more"),
        ("polygonlabels", {"points": [[0, 0], [1, 1], [2, float("nan")]]}, "y is nan"),
        ("rectanglelabels", {"x": 0, "y": 0, "width": -5, "height": 5}, "-0.5 x 0.5 px"),
        ("rectanglelabels", {"x": 0, "y": "1", "width": 5, "height": 5}, "y is '1'"),
        ("rectanglelabels", {"x": 1e300, "y": 0, "width": 5, "height": 5}, "x is 1e"),
        ("ellipselabels", {"x": 0, "y": 0, "radiusX": 0, "radiusY": 1}, "radii are 0"),
        ("keypointlabels", {"x": 0, "y": 0}, "no area"),
    ],
)
def test_damaged_values_are_named(kind: str, value: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ShapeError, match=complaint):
        read_mask(kind, value, 10, 10)
