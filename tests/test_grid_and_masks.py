import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rsvp_backend.grid import MIN_REGION_PX, draw_marks, edges_px, fit_marks, mask_regions, regions_box
from rsvp_backend.masks import Cleanup, clean, paste, score, stability
from rsvp_backend.types import Box, Marks, Regions, Segmentation

MARKS = st.builds(Marks, st.sampled_from(["bands", "cells"]), st.integers(1, 13), st.integers(1, 13))


@given(MARKS, st.integers(13, 300), st.integers(13, 300), st.data())
def test_box_of_a_masks_regions_holds_the_mask(marks, width, height, data):
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    box = regions_box(mask_regions(mask, marks), marks, width, height)
    assert box is not None
    assert box.left <= x0 < x1 <= box.right
    assert box.top <= y0 < y1 <= box.bottom
    assert box.left > x0 - width / marks.columns - 1
    assert box.bottom < y1 + height / marks.rows + 1


def test_bands_and_cells_name_the_same_box():
    cells = regions_box(Regions(cells=(12, 22)), Marks("cells"), 900, 450)
    bands = regions_box(Regions(rows=(2, 3), columns=(3, 4)), Marks("bands"), 900, 450)
    assert cells == bands == Box(200, 50, 400, 150)


def test_ids_may_leave_gaps():
    marks = Marks()
    assert regions_box(Regions(rows=(3, 5), columns=(6,)), marks, 90, 90) == Box(50, 20, 60, 50)


@pytest.mark.parametrize("regions", [Regions(), Regions(rows=(1,)), Regions(columns=(2,))])
def test_no_region_no_box(regions):
    assert regions_box(regions, Marks(), 90, 90) is None


@pytest.mark.parametrize("regions", [Regions(cells=(82,)), Regions(cells=(0,)), Regions(rows=(10,), columns=(1,))])
def test_ids_outside_the_marks_are_an_error(regions):
    with pytest.raises(ValueError, match="9 x 9"):
        regions_box(regions, Marks(), 90, 90)


@given(st.integers(1, 20), st.integers(20, 500))
def test_edges_cover_the_length(count, length):
    edges = edges_px(count, length)
    assert edges[0] == 0
    assert edges[-1] == length
    assert (np.diff(edges) > 0).all()


@pytest.mark.parametrize("kind", ["bands", "cells"])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_marks_are_visible_on_any_background_and_leave_the_image_alone(kind, level):
    image = Image.new("RGB", (640, 480), (level,) * 3)
    before = image.tobytes()
    marked = np.asarray(draw_marks(image, Marks(kind))).astype(int)
    assert image.tobytes() == before
    contrast = np.abs(marked - level).max(axis=2)
    for i in range(9):
        for j in range(9) if kind == "cells" else (0,):
            cell = contrast[
                round(i * 480 / 9) : round((i + 1) * 480 / 9), round(j * 640 / 9) : round((j + 1) * 640 / 9)
            ]
            assert cell.max() > 100


@given(st.integers(1, 100), st.integers(1, 100), st.floats(0, 1))
def test_padding_stays_in_the_image_and_never_shrinks(x, y, fraction):
    box = Box(x - 1, y - 1, x + 9, y + 4)
    padded = box.padded(fraction, 110, 105)
    assert padded.left <= box.left and padded.right >= box.right  # noqa: PT018
    assert min(padded.xyxy) >= 0
    assert padded.right <= 110
    assert padded.bottom <= 105


def test_specks_and_holes_go_but_the_object_stays():
    mask = np.zeros((60, 60), dtype=bool)
    mask[10:50, 10:50] = True
    mask[20:25, 20:25] = False
    mask[30:40, 30:40] = False
    mask[2:5, 2:5] = True
    cleaned = clean(mask, Cleanup(26))
    assert cleaned[22, 22]
    assert not cleaned[3, 3]
    assert not cleaned[35, 35]
    assert cleaned.sum() == 1500
    assert (clean(mask, Cleanup(0)) == mask).all()


def test_only_the_largest_component_stays_on_demand_and_the_images_edge_is_no_hole():
    mask = np.zeros((30, 40), dtype=bool)
    mask[5:15, 5:15] = mask[5:20, 20:35] = True
    mask[0, 0:3] = True
    mask[1, 0] = mask[1, 2] = True
    mask[2, 0:3] = True
    kept = clean(mask, Cleanup(20, "largest"))
    assert kept.sum() == 225
    assert clean(mask, Cleanup(20)).sum() == 325
    frame = np.ones((20, 20), dtype=bool)
    frame[0:2, 0:2] = False
    assert (clean(frame, Cleanup(20)) == frame).all()
    with pytest.raises(ValueError, match="'all' or 'largest'"):
        Cleanup(10, "biggest")


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(0, 400), st.sampled_from(["all", "largest"]))
def test_cleaning_never_empties_a_mask(seed, min_area_px, components):
    mask = np.random.default_rng(seed).random((20, 20)) > 0.9
    assert clean(mask, Cleanup(min_area_px, components)).any() == mask.any()


def test_paste_needs_the_boxs_size():
    pasted = paste(np.ones((2, 3), dtype=bool), Box(1, 1, 4, 3), 5, 4)
    assert pasted.sum() == 6
    assert pasted[1:3, 1:4].all()
    with pytest.raises(ValueError, match="asks for"):
        paste(np.ones((3, 3), dtype=bool), Box(1, 1, 4, 3), 5, 4)


def test_score_is_confidence_in_zero_to_one():
    sharp = np.where(np.arange(16).reshape(4, 4) < 8, 9.0, -9.0).astype(np.float32)
    assert stability(sharp) == 1.0
    assert score(Segmentation(sharp, 1.7)) == 1.0
    assert score(Segmentation(sharp, -0.3)) == 0.0
    assert score(Segmentation(np.full((4, 4), -9.0, np.float32), 0.9)) == 0.0


@pytest.mark.parametrize(
    ("size", "marks", "fitted"),
    [
        ((4000, 3000), Marks(), (1024, 768)),
        ((800, 600), Marks(), (800, 600)),
        ((8000, 1000), Marks(), (2160, 270)),
        ((300, 200), Marks(), (300, 200)),
        ((3000, 3000), Marks("cells", 50, 50), (1500, 1500)),
    ],
)
def test_images_shrink_as_far_as_their_marks_stay_readable(size, marks, fitted):
    image = fit_marks(Image.new("RGB", size), marks, 1024)
    assert image.size == fitted
    shrunk = image.size != size
    assert not shrunk or min(image.width / marks.columns, image.height / marks.rows) >= MIN_REGION_PX
