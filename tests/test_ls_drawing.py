"""Masks -> brushes, bitmasks, polygons and rectangles, and back."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from label_studio_sdk.label_interface import LabelInterface

from rsvp_backend.labelstudio import drawing
from rsvp_backend.labelstudio.drawing import MOST_PARTS, draw
from rsvp_backend.labelstudio.regions import prediction
from rsvp_backend.labelstudio.shapes import read_mask
from rsvp_backend.labelstudio.tags import MASK_TAGS, Kind, default_label_config, parse_label_config
from rsvp_backend.types import BoolMask, Box, Instance, Outcome, Regions, Trace

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24))).filter(lambda mask: bool(mask.any()))


def disc(radius_px: float, hole_px: float = 0.0, side_px: int = 200) -> BoolMask:
    y, x = np.mgrid[:side_px, :side_px] + 0.5 - side_px / 2
    distance = np.hypot(x, y)
    return np.asarray((distance < radius_px) & (distance >= hole_px), dtype=np.bool_)


def iou(one: BoolMask, other: BoolMask) -> float:
    return int((one & other).sum()) / int((one | other).sum())


def back(mask: BoolMask, kind: Kind, tolerance_px: float = 1.0) -> BoolMask:
    return read_mask(f"{kind}labels", draw(mask, kind, tolerance_px).value, *mask.shape)


@given(MASKS, st.sampled_from(["brush", "bitmask"]))
def test_brush_and_bitmask_keep_every_pixel(mask: BoolMask, kind: Kind) -> None:
    assert np.array_equal(back(mask, kind), mask)
    assert draw(mask, kind).iou == 1.0


@given(MASKS)
def test_a_rectangle_is_the_tight_box(mask: BoolMask) -> None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    expected = np.zeros_like(mask)
    expected[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert np.array_equal(back(mask, "rectangle"), expected)


@given(MASKS, st.floats(0, 5))
def test_any_mask_becomes_a_polygon_that_covers_something_of_it(mask: BoolMask, tolerance_px: float) -> None:
    drawn = draw(mask, "polygon", tolerance_px)
    assert len(drawn.value["points"]) >= 3
    assert np.all((np.array(drawn.value["points"]) >= 0) & (np.array(drawn.value["points"]) <= 100))
    assert (back(mask, "polygon", tolerance_px) & mask).any()


@pytest.mark.parametrize(("tolerance_px", "least", "most_points"), [(0.0, 1.0, 1000), (1.0, 0.97, 40), (4.0, 0.9, 20)])
def test_a_polygon_is_as_close_as_asked(tolerance_px: float, least: float, most_points: int) -> None:
    drawn = draw(disc(60), "polygon", tolerance_px)
    assert drawn.iou >= least
    assert len(drawn.value["points"]) <= most_points
    assert iou(back(disc(60), "polygon", tolerance_px), disc(60)) == pytest.approx(drawn.iou, abs=1e-4)


def test_a_tolerance_does_not_eat_small_objects() -> None:
    assert draw(disc(5), "polygon", 20.0).iou > 0.85


def test_holes_are_filled_and_said() -> None:
    drawn = draw(disc(60, hole_px=30), "polygon", 0.0)
    assert drawn.holes == 1
    assert np.array_equal(back(disc(60, hole_px=30), "polygon", 0.0), disc(60))
    assert drawn.iou == pytest.approx(1 - 30**2 / 60**2, abs=0.01)


def test_parts_are_one_polygon_without_a_trace_between_them() -> None:
    mask = np.zeros((60, 90), dtype=np.bool_)
    for number in range(MOST_PARTS):
        row, column = divmod(number, 8)
        mask[row * 14 + 2 : row * 14 + 9, column * 11 + 1 : column * 11 + 8] = True
    drawn = draw(mask, "polygon", 0.0)
    assert (drawn.iou, drawn.holes) == (1.0, 0)


def test_beyond_many_parts_the_largest_are_kept() -> None:
    mask = np.zeros((40, 400), dtype=np.bool_)
    mask[2:6, 2:350:6] = True
    mask[10:30, 10:30] = True
    kept = back(mask, "polygon", 0.0)
    assert kept[10:30, 10:30].all()
    assert kept[2:6].sum() == (MOST_PARTS - 1) * 4


@pytest.mark.parametrize("kind", list(MASK_TAGS))
def test_an_empty_mask_is_refused_where_it_cannot_be_drawn(kind: Kind) -> None:
    nothing = np.zeros((5, 6), dtype=np.bool_)
    if kind == "brush":
        assert not back(nothing, kind).any()
        return
    with pytest.raises(ValueError, match=f"the mask is empty: a {kind}"):
        draw(nothing, kind)


def test_what_is_lost_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    drawing._tell_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            draw(disc(60, hole_px=30), "polygon")
            draw(disc(60), "bitmask")
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "the project's masks are drawn as polygons"
    ]


@pytest.mark.parametrize("kind", list(MASK_TAGS))
def test_predictions_of_every_kind_pass_label_studios_own_validation(kind: Kind) -> None:
    xml = default_label_config(["Key", "Cup"], kind)
    ring = Instance(disc(60, hole_px=30), "key ring", 0.8, "It holds keys.", Box(0, 0, 200, 200), Regions(), "Key")
    made = prediction(Outcome((ring,), Trace("what holds keys")), parse_label_config(xml), "rsvp-1")
    region, reason = made["result"]
    assert (region["from_name"], region["type"], region["value"][f"{kind}labels"]) == ("mask", f"{kind}labels", ["Key"])
    assert reason["id"] == region["id"]
    exact = kind in ("brush", "bitmask")
    assert ("drawn" in region["meta"]["rsvp"]) is not exact
    assert exact or region["meta"]["rsvp"]["drawn"]["holes_filled"] == (kind == "polygon")
    interface = LabelInterface(xml)
    interface.validate()
    assert interface.validate_prediction({"result": made["result"], "score": made["score"]}, return_errors=True) == []
