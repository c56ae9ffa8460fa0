"""Mask AP: by hand, and within 1e-9 of torchmetrics' on sets made by chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from evaluation_folders import FOUND_XYXY, box_mask, write_seginw
from torchmetrics.detection import MeanAveragePrecision

from rsvp_backend.evaluation import datasets
from rsvp_backend.evaluation.average_precision import Detection, Precision, average_precision, components, packed
from rsvp_backend.evaluation.samples import Problems
from rsvp_backend.training.coco_masks import decode
from rsvp_backend.types import BoolMask

SIZE = (90, 90)
WHOLE, PART = (10, 10, 60, 30), (10, 10, 41, 30)  # IoU 0.62


def exactly(*values: float) -> Any:
    return pytest.approx(values, abs=1e-9)


def truth(image: int, mask: BoolMask, category: int = 0, crowd: bool = False) -> dict[str, Any]:
    return {
        "image_id": image + 1, "category_id": category + 1, "iscrowd": int(crowd), "area": float(mask.sum()),
        "bbox": [0, 0, *SIZE], "segmentation": packed(mask),
    }  # fmt: skip


def test_ap_by_hand() -> None:
    """Two things in two images. The better-scored answer is exact; the other one reaches 0.62.

    Up to a threshold of 0.60 (three of ten) both are right: AP 1. Above, precision 1 holds up to a recall of one half,
    which is 51 of COCO's 101 points.
    """
    truths = [truth(0, box_mask(WHOLE)), truth(1, box_mask(WHOLE))]
    found = [Detection(0, 0, packed(box_mask(WHOLE)), 0.9), Detection(1, 0, packed(box_mask(PART)), 0.8)]
    ap = average_precision([SIZE, SIZE], 1, truths, found)
    assert ap is not None
    assert (ap.ap, ap.ap50, ap.ap75) == exactly((3 + 7 * 51 / 101) / 10, 1.0, 51 / 101)


def test_a_false_answer_costs_by_its_score() -> None:
    truths = [truth(0, box_mask(WHOLE))]
    right, false = packed(box_mask(WHOLE)), packed(box_mask((70, 70, 80, 80)))
    sure = average_precision([SIZE] * 2, 1, truths, [Detection(0, 0, right, 0.5), Detection(1, 0, false, 0.9)])
    unsure = average_precision([SIZE] * 2, 1, truths, [Detection(0, 0, right, 0.5), Detection(1, 0, false, 0.1)])
    assert sure is not None
    assert unsure is not None
    assert ((sure.ap, sure.ap75), (unsure.ap, unsure.ap75)) == (exactly(0.5, 0.5), exactly(1.0, 1.0))


def test_nothing_found_and_nothing_to_find() -> None:
    found = [Detection(0, 0, packed(box_mask(PART)), 0.8)]
    assert average_precision([SIZE], 1, [truth(0, box_mask(WHOLE))], []) == Precision(0.0, 0.0, 0.0)
    assert average_precision([SIZE], 1, [], found) is None
    assert average_precision([SIZE], 1, [truth(0, box_mask(WHOLE), crowd=True)], found) is None


def test_ap_is_that_of_torchmetrics() -> None:
    """Twelve images, three categories, several things each, answers shifted by chance."""
    # Its own thresholds are COCO's in single precision: a recall of exactly 0.2 falls on the other side there.
    theirs = MeanAveragePrecision(
        iou_type="segm", backend="pycocotools", iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
    )  # fmt: skip
    rng = np.random.default_rng(4)
    truths: list[dict[str, Any]] = []
    found: list[Detection] = []
    for image in range(12):
        wanted, answers = [], []
        for _ in range(rng.integers(1, 4)):
            category, (left, top) = int(rng.integers(3)), (int(n) for n in rng.integers(0, 50, 2))
            mask = box_mask((left, top, left + 30, top + 24))
            truths.append(truth(image, mask, category))
            wanted.append((mask, category))
            for _ in range(rng.integers(0, 3)):
                dx, dy = (int(n) for n in rng.integers(0, 9, 2))
                shifted = box_mask((left + dx, top + dy, left + 30 + dx, top + 24 + dy))
                score = float(np.float32(rng.random()))
                found.append(Detection(image, category, packed(shifted), score))
                answers.append((shifted, category, score))
        theirs.update(
            [_tensors(answers)], [{name: value for name, value in _tensors(wanted).items() if name != "scores"}]
        )
    ours, values = average_precision([SIZE] * 12, 3, truths, found), theirs.compute()
    assert ours is not None
    assert 0.1 < ours.ap < 0.9
    for mine, name in ((ours.ap, "map"), (ours.ap50, "map_50"), (ours.ap75, "map_75")):
        assert np.float32(mine) == pytest.approx(float(values[name]), abs=1e-9)  # theirs are single precision


def _tensors(rows: list[Any]) -> dict[str, torch.Tensor]:
    masks = np.stack([row[0] for row in rows]) if rows else np.zeros((0, 90, 90), dtype=np.bool_)
    return {
        "masks": torch.from_numpy(masks),
        "labels": torch.tensor([row[1] for row in rows], dtype=torch.int64),
        "scores": torch.tensor([row[2] if len(row) > 2 else 1.0 for row in rows], dtype=torch.float32),
    }


def test_run_lengths_come_back() -> None:
    mask = box_mask(WHOLE) | box_mask((0, 0, 1, 1))
    assert np.array_equal(decode(packed(mask), 90, 90), mask)


def test_parts_that_do_not_touch_are_instances() -> None:
    two = box_mask((0, 0, 5, 5), (50, 50, 60, 60))
    parts = components([(two, 0.7), (box_mask((1, 1, 2, 2)), 0.2)])
    assert [(int(mask.sum()), score) for mask, score in parts] == [(25, 0.7), (100, 0.7), (1, 0.2)]


def test_a_set_counts_images_of_which_all_was_asked(tmp_path: Any) -> None:
    """The answer is exact in Cows' first image and twice too large (IoU 1/2) in the second."""
    data = datasets.read("seginw", write_seginw(tmp_path), "valid", Problems())
    answer = [(packed(box_mask(FOUND_XYXY)), 0.75)]
    cows, phones = data.sets["Cows"], data.sets["Phones"]
    # Equal scores: at 0.50 both are right, above only the first is.
    both = cows.precision({"Cows:0:1": answer, "Cows:1:1": answer})
    assert (both.ap50, both.ap75, both.ap) == exactly(1.0, 51 / 101, (1 + 9 * 51 / 101) / 10)
    assert cows.precision({"Cows:0:1": answer}).ap == pytest.approx(1.0, abs=1e-9)
    assert cows.precision({}) is None
    assert phones.precision({"Phones:0:1": answer}) is None  # the other category was not asked
    # A category that occurs nowhere has no AP; what is found of it costs nothing within the set.
    assert phones.precision({"Phones:0:1": answer, "Phones:0:2": answer}).ap == pytest.approx(1.0, abs=1e-9)
