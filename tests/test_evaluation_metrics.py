"""Scores of masks and boxes: by hand, and within 1e-9 of pycocotools, torchmetrics and torchvision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from evaluation_folders import box_mask
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco
from torchmetrics.classification import BinaryConfusionMatrix, BinaryJaccardIndex
from torchvision.ops import box_iou as torch_box_iou

from rsvp_backend.evaluation.metrics import (
    CONVENTIONS,
    Overlap,
    bootstrap_interval,
    box_iou,
    ciou,
    enclosing,
    giou,
    grouped_interval,
    mask_box,
    precision_at,
    ratio_interval,
)
from rsvp_backend.training.gate import gain_interval
from rsvp_backend.training.scoring import Scores
from rsvp_backend.types import BoolMask

MASKS = hnp.arrays(np.bool_, (5, 7))
LABELS = hnp.arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 1, 255]))
# found, truth: IoU 1/3, nothing for nothing, something for nothing, nothing for something
OVERLAPS = [Overlap(1, 3), Overlap(0, 0), Overlap(0, 4), Overlap(0, 2)]


@pytest.mark.parametrize(
    ("name", "mean", "total"),
    [
        ("exact", (1 / 3 + 1) / 4, 1 / 9),
        ("lisa", (1 / (3 + 1e-5) + 1) / 4, 1 / (9 + 1e-10)),
        ("evf", (1 / (3 + 1e-10) + 1) / 4, 1 / (9 + 1e-10)),
        ("seg-zero", (1 / 3) / 4, 1 / 9),
    ],
)
def test_conventions_by_hand(name: str, mean: float, total: float) -> None:
    assert giou(OVERLAPS, CONVENTIONS[name]) == pytest.approx(mean, abs=1e-12)
    assert ciou(OVERLAPS, CONVENTIONS[name]) == pytest.approx(total, abs=1e-12)


def test_a_set_of_nothing_only() -> None:
    nothing = [Overlap(0, 0)] * 3
    assert [giou(nothing, CONVENTIONS[name]) for name in ("exact", "lisa", "seg-zero")] == [1.0, 1.0, 0.0]
    assert [ciou(nothing, CONVENTIONS[name]) for name in ("exact", "lisa", "seg-zero")] == [1.0, 0.0, 0.0]
    assert math.isnan(giou([]))
    assert math.isnan(precision_at([], 0.5))


def test_ignored_pixels_are_neither_found_nor_missed() -> None:
    found, truth = box_mask((0, 0, 4, 4)), box_mask((2, 0, 6, 4))
    assert Overlap.of(found, truth) == Overlap(8, 24)
    assert Overlap.of(found, truth, box_mask((0, 0, 3, 4))) == Overlap(4, 12)
    assert Overlap.of(found, truth, box_mask((0, 0, 90, 90))) == Overlap(0, 0)
    with pytest.raises(ValueError, match="the ignore one"):
        Overlap.of(found, truth, box_mask((0, 0, 4, 4), side=5))


@given(found=MASKS, truth=MASKS)
def test_iou_is_that_of_pycocotools(found: BoolMask, truth: BoolMask) -> None:
    runs = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (found, truth)]
    overlap = Overlap.of(found, truth)
    if overlap.union_px:
        assert overlap.iou == pytest.approx(float(coco.iou([runs[0]], [runs[1]], [0])[0, 0]), abs=1e-9)


@given(found=MASKS, labels=LABELS)
def test_overlaps_are_those_of_torchmetrics(found: BoolMask, labels: np.ndarray) -> None:
    overlap = Overlap.of(found, labels == 1, labels == 255)
    predicted, target = torch.from_numpy(found.astype(np.int64)), torch.from_numpy(labels.astype(np.int64))
    (_, false_found), (missed, right) = BinaryConfusionMatrix(ignore_index=255)(predicted, target).tolist()
    assert overlap == Overlap(right, right + false_found + missed)
    if overlap.union_px:  # torchmetrics divides in single precision
        single = float(BinaryJaccardIndex(ignore_index=255)(predicted, target))
        assert single == np.float32(right) / np.float32(right + false_found + missed)
        assert overlap.iou == pytest.approx(single, abs=6e-8)


def test_lisa_is_its_own_formula_on_histograms() -> None:
    """LISA counts with histograms over the values 0 and 1, which leaves out 255."""
    rng, overlaps, scores, above, below = np.random.default_rng(0), [], [], 0.0, 0.0
    for n in range(30):
        labels = rng.choice([0, 1, 255], (6, 8)) if n else np.zeros((6, 8), dtype=np.int64)
        found = rng.random((6, 8)) < 0.4 if n else np.zeros((6, 8), dtype=np.bool_)
        overlaps.append(Overlap.of(found, labels == 1, labels == 255))
        output = torch.from_numpy(np.where(labels == 255, 255, found)).double()
        target = torch.from_numpy(labels).double()
        counts = [torch.histc(x, 2, 0, 1)[1] for x in (output[output == target], output, target)]
        both, union = float(counts[0]), float(counts[1] + counts[2] - counts[0])
        scores.append(both / (union + 1e-5) + (union == 0))
        above, below = above + both, below + union
    assert giou(overlaps, CONVENTIONS["lisa"]) == pytest.approx(np.mean(scores), abs=1e-9)
    assert ciou(overlaps, CONVENTIONS["lisa"]) == pytest.approx(above / (below + 1e-10), abs=1e-9)


def test_precision_counts_what_reaches_the_threshold() -> None:
    assert [precision_at([0.49, 0.5, 0.7, 1.0], x) for x in (0.5, 0.7, 0.71)] == [0.75, 0.5, 0.25]


@given(st.lists(st.integers(0, 12), min_size=8, max_size=8))
def test_box_iou_is_that_of_torchvision(n: list[int]) -> None:
    a, b = (n[0], n[1], n[0] + n[2] + 1, n[1] + n[3] + 1), (n[4], n[5], n[4] + n[6] + 1, n[5] + n[7] + 1)
    theirs = torch_box_iou(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64))
    assert box_iou(a, b) == pytest.approx(float(theirs[0, 0]), abs=1e-9)


def test_boxes_by_hand() -> None:
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 0, 2), (0, 0, 0, 2)) == 0.0
    assert mask_box(box_mask((3, 4, 6, 9), (10, 4, 11, 5))) == (3, 4, 11, 9)
    assert mask_box(box_mask()) is None
    assert enclosing([(0, 5, 2, 6), (1, 1, 9, 2)]) == (0, 1, 9, 6)
    assert enclosing([]) is None


def test_the_interval_of_a_mean_is_drawn_as_always() -> None:
    """The stream of draws stays what it was when one call drew all, however large the sample."""
    values = np.random.default_rng(3).random(2501)
    picks = np.random.default_rng(7).integers(len(values), size=(2000, len(values)))
    expected = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    assert bootstrap_interval(list(values), seed=7) == pytest.approx(tuple(expected), abs=1e-12)


def test_intervals_of_ratios_and_groups() -> None:
    above, below = np.array([1.0, 4.0, 0.0]), np.array([2.0, 8.0, 0.0])
    assert ratio_interval(above, below) == pytest.approx((0.5, 0.5))
    assert all(math.isnan(edge) for edge in (*ratio_interval([], []), *ratio_interval([0.0], [0.0])))
    values, ones = [0.0, 0.0, 1.0, 1.0] * 5, [1.0] * 20
    free = bootstrap_interval(values)
    same_image = grouped_interval(values, ones, [f"{n // 4}{n % 4 > 1}" for n in range(20)])
    assert same_image[1] - same_image[0] > free[1] - free[0]
    assert grouped_interval(values, ones, ["one"] * 20) == (0.5, 0.5)


def test_the_gate_draws_by_the_same_hand() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(40), rng.random(40)
    tasks = tuple(int(task) for task in rng.integers(0, 9, 40))
    scores = [Scores(tuple(ious), tuple(ious), tasks, (False,) * 40) for ious in (before.tolist(), after.tolist())]
    found = gain_interval(scores[0], scores[1], confidence=0.9, seed=5)
    sums, counts = np.bincount(tasks, after - before), np.bincount(tasks)
    picks = np.random.default_rng(5).integers(len(sums), size=(4000, len(sums)))
    expected = np.quantile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), [0.05, 0.95])
    assert found == pytest.approx(tuple(expected), abs=1e-9)
