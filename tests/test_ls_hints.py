"""Smart keypoints and rectangles of an interactive context -> clicks and a box in image pixels."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsvp_backend.errors import InstructionError
from rsvp_backend.labelstudio.hints import drawn_hints, read_hints
from rsvp_backend.labelstudio.tags import default_label_config, parse_label_config
from rsvp_backend.types import Box, Click

DATA = Path(__file__).parent / "data" / "label_studio"
CONFIG = parse_label_config(default_label_config(["Cup", "Ball"]))
SIZE_PX = (200, 100)


def keypoint(x: object, y: object, **more: object) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 0.2, "keypointlabels": ["Ball"]}
    return {"type": "keypointlabels", "to_name": "image", "value": value, **more}


def rectangle(x: object, y: object, width: object, height: object, rotation: object = 0, **more: object) -> Any:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation, "rectanglelabels": ["Cup"]}
    return {"type": "rectanglelabels", "to_name": "image", "value": value, **more}


def context(*results: object) -> dict[str, Any]:
    return {"result": list(results)}


def test_captured_requests() -> None:
    body = json.loads((DATA / "predict_interactive_keypoints.json").read_text())["body"]
    hints = read_hints(body["params"]["context"], parse_label_config(body["label_config"]), 640, 427)
    first, second = hints.clicks
    assert (first.x_px, first.y_px) == pytest.approx((434.9, 259.2), abs=0.1)
    assert (second.x_px, second.y_px) == pytest.approx((296.5, 167.1), abs=0.1)
    assert (first.positive, second.positive, hints.box, hints.label, hints.notes) == (True, False, None, "Zebra", ())
    body = json.loads((DATA / "predict_interactive_rectangle.json").read_text())["body"]
    hints = read_hints(body["params"]["context"], parse_label_config(body["label_config"]), 640, 427)
    assert (hints.clicks, hints.box, hints.label) == ((), Box(338, 197, 539, 385), "Zebra")
    assert str(hints) == "a box"
    body = json.loads((DATA / "predict_interactive_prompt.json").read_text())["body"]
    assert drawn_hints(body["params"]["context"], parse_label_config(body["label_config"])) == []


@given(st.integers(1, 5000), st.integers(1, 5000), st.data())
def test_pixels_survive_the_way_through_percent(width_px: int, height_px: int, data: st.DataObject) -> None:
    x_px = data.draw(st.floats(0, width_px))
    y_px = data.draw(st.floats(0, height_px))
    hints = read_hints(context(keypoint(x_px / width_px * 100, y_px / height_px * 100)), CONFIG, width_px, height_px)
    (click,) = hints.clicks
    assert abs(click.x_px - x_px) <= 0.5
    assert abs(click.y_px - y_px) <= 0.5
    assert 0 <= click.x_px < width_px
    assert 0 <= click.y_px < height_px
    left, right = sorted((data.draw(st.integers(0, width_px)), data.draw(st.integers(0, width_px))))
    top, bottom = sorted((data.draw(st.integers(0, height_px)), data.draw(st.integers(0, height_px))))
    if left < right and top < bottom:
        percent = (left / width_px, top / height_px, (right - left) / width_px, (bottom - top) / height_px)
        drawn = rectangle(*(100 * share for share in percent))
        assert read_hints(context(drawn), CONFIG, width_px, height_px).box == Box(left, top, right, bottom)


@given(st.floats(0, 90), st.floats(0, 90), st.floats(5, 60), st.floats(5, 60), st.floats(-360, 360))
def test_a_turned_rectangle_becomes_the_box_around_its_corners(
    x: float, y: float, width: float, height: float, rotation: float
) -> None:
    """The image is square here, so that percent can be turned like pixels."""
    angle = math.radians(rotation)
    right, down = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    corners = [
        (x + u * right[0] + v * down[0], y + u * right[1] + v * down[1]) for u in (0, width) for v in (0, height)
    ]
    xs, ys = [10 * corner[0] for corner in corners], [10 * corner[1] for corner in corners]
    if min(max(xs), max(ys)) <= 1:
        return
    box = read_hints(context(rectangle(x, y, width, height, rotation)), CONFIG, 1000, 1000).box
    assert box is not None
    expected = (max(min(xs), 0), max(min(ys), 0), min(max(xs), 1000), min(max(ys), 1000))
    assert box.xyxy == pytest.approx(expected, abs=1.01)


def test_a_quarter_turn_uses_pixels_not_percent() -> None:
    drawn = rectangle(50, 20, 20, 10, 90)  # 40 x 10 px from (100, 20), turned clockwise: 10 wide, 40 high, to the left
    assert read_hints(context(drawn), CONFIG, *SIZE_PX).box == Box(90, 20, 100, 60)


def test_the_last_rectangle_counts_and_the_clicks_keep_their_order() -> None:
    hints = read_hints(
        context(
            rectangle(0, 0, 10, 10), keypoint(10, 10), rectangle(50, 50, 90, 20), keypoint(20, 20, is_positive=False)
        ),
        CONFIG,
        *SIZE_PX,
    )
    assert hints.clicks == (Click(20, 10), Click(40, 20, positive=False))
    assert hints.box == Box(100, 50, 200, 70)
    assert (hints.label, str(hints), hints.notes) == ("Ball", "a box and 2 clicks", ())


def test_the_label_is_the_mask_tags() -> None:
    named = keypoint(1, 1)
    for given_name, label in ((["the balls"], "Ball"), (["Spoon"], None), (None, None), ([3], None)):
        named["value"]["keypointlabels"] = given_name
        assert read_hints(context(named), CONFIG, *SIZE_PX).label == label
    plain = {"type": "keypoint", "value": {"x": 1, "y": 1, "labels": ["Cup"]}}
    assert read_hints(context(plain), CONFIG, *SIZE_PX).label == "Cup"


def test_percent_count_on_the_image_that_was_fetched() -> None:
    """An image on its side in the file: Label Studio may name either size, the percentages are of the upright one."""
    hints = read_hints(context(keypoint(50, 50, original_width=100, original_height=200)), CONFIG, *SIZE_PX)
    assert hints.clicks == (Click(100, 50),)
    assert hints.notes == ("Label Studio shows the image at 100 x 200, fetched it is 200 x 100",)


@pytest.mark.parametrize(
    ("drawn", "why"),
    [
        (keypoint(101, 5), "outside"),
        (keypoint(5, -0.1), "outside"),
        (keypoint(math.nan, 5), "x is nan"),
        (keypoint(5, math.inf), "y is inf"),
        (keypoint("5", 5), "x is '5'"),
        (keypoint(True, 5), "x is True"),
        ({"type": "keypointlabels", "value": None}, "x is None"),
        (rectangle(100, 0, 10, 10), "outside"),
        (rectangle(0, -20, 10, 10), "outside"),
        (rectangle(0, 0, math.nan, 10), "width is nan"),
        (rectangle(0, 0, 10, 10, is_positive=False), "negative"),
        (keypoint(5, 5, image_rotation=90), "turn it back"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_a_note(drawn: dict[str, Any], why: str) -> None:
    hints = read_hints(context(drawn, keypoint(50, 50)), CONFIG, *SIZE_PX)
    assert hints.clicks == (Click(100, 50),)
    assert hints.box is None
    (note,) = hints.notes
    assert why in note
    with pytest.raises(InstructionError, match=r"no click or rectangle can be used: .* left out: "):
        read_hints(context(drawn), CONFIG, *SIZE_PX)


def test_other_regions_and_odd_contexts_hold_no_hints() -> None:
    text = {"type": "textarea", "from_name": "prompt", "value": {"text": ["a"]}}
    brush = {"type": "brushlabels", "to_name": "image", "value": {"rle": [1], "brushlabels": ["Cup"]}}
    for odd in (None, {}, {"result": None}, context(), context("x", 3, text, brush), []):
        assert drawn_hints(odd, CONFIG) == []  # type: ignore[arg-type]
    assert drawn_hints(context(keypoint(1, 1, to_name="other")), CONFIG) == []
    with pytest.raises(InstructionError, match="none was drawn"):
        read_hints(context(text), CONFIG, *SIZE_PX)
