"""Which stage was wrong: the rules one by one, and measured on a pipeline whose answers are known by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_folders import FOUND_PX, FOUND_XYXY, SIDE, box_mask
from fake_models import FakeReasoner, FakeSegmenter, fake_rsvp
from PIL import Image

from rsvp_backend.errors import SegmenterError
from rsvp_backend.evaluation.samples import Truth
from rsvp_backend.evaluation.stages import Stages, examine, fit, judge
from rsvp_backend.pipeline import RSVP
from rsvp_backend.training.referring import SampleError
from rsvp_backend.types import EmptyReason

IMAGE = Image.new("RGB", (SIDE, SIDE))
GOOD = Stages(present=True, said_present=True, object_right=None, crop_recall=1.0, crop_share=0.2, true_crop_iou=0.8)


@pytest.mark.parametrize(
    ("changes", "iou", "found", "reason", "wrong", "signature", "why"),
    [
        ({}, 0.5, True, None, "", "", ""),
        # The crop holds the object, and stage 2 does well on a tighter one: the crop was too wide.
        ({"crop_share": 0.9}, 0.2, True, None, "stage1", "suboptimal_mask",
         "the crop holds 100% of the object and is 90% of the image; on the true crop stage 2 reaches IoU 0.80"),
        ({"true_crop_iou": 0.1}, 0.2, True, None, "stage2", "suboptimal_mask",
         "the crop holds 100% of the object and is 20% of the image; on the true crop stage 2 reaches IoU 0.10"),
        ({"crop_recall": 0.6}, 0.4, True, None, "stage1", "incomplete_regions",
         "the crop holds only 60% of the object; on the true crop stage 2 reaches IoU 0.80"),
        ({"crop_recall": 0.6, "true_crop_iou": 0.2}, 0.4, True, None, "both", "incomplete_regions",
         "the crop holds only 60% of the object; on the true crop stage 2 reaches IoU 0.20"),
        ({"crop_recall": 0.0}, 0.0, True, None, "stage1", "false_localization",
         "the crop holds only 0% of the object; on the true crop stage 2 reaches IoU 0.80"),
        # Wrong words: what stage 2 makes of them on the true crop is no fault of its own.
        ({"object_right": False, "true_crop_iou": 0.0}, 0.0, True, None, "stage1", "false_localization",
         "stage 1 named another object; on the true crop stage 2 reaches IoU 0.00"),
        ({"object_right": False, "true_crop_iou": 0.0}, 0.0, False, EmptyReason.EMPTY_MASK, "stage1", "empty_output",
         "stage 1 named another object, of which stage 2 found no pixel in the crop; on the true crop stage 2 reaches "
         "IoU 0.00"),
        ({"said_present": False, "crop_recall": None, "crop_share": None}, 0.0, False, EmptyReason.ABSENT, "stage1",
         "empty_output", "stage 1 said that it is not there; on the true crop stage 2 reaches IoU 0.80"),
        ({"crop_recall": None}, 0.0, False, EmptyReason.INVALID_ANSWER, "stage1", "empty_output",
         "stage 1 gave no valid answer; on the true crop stage 2 reaches IoU 0.80"),
        ({"crop_recall": None}, 0.0, False, EmptyReason.NO_REGIONS, "stage1", "empty_output",
         "stage 1 said that it is there, but named no region; on the true crop stage 2 reaches IoU 0.80"),
        ({"true_crop_iou": 0.0}, 0.0, False, EmptyReason.EMPTY_MASK, "stage2", "empty_output",
         "stage 2 found no pixel in the crop; on the true crop stage 2 reaches IoU 0.00"),
        ({"present": False, "crop_recall": None, "true_crop_iou": None}, 0.0, True, None, "stage1",
         "false_localization", "nothing of the kind is there, but stage 1 said that it is"),
        ({"present": False, "said_present": False}, 1.0, False, EmptyReason.ABSENT, "", "", ""),
        # Said to be there, but stage 2 finds nothing: the answer is right.
        ({"present": False}, 1.0, False, EmptyReason.EMPTY_MASK, "", "", ""),
    ],
)  # fmt: skip
def test_the_rules(
    changes: dict[str, object],
    iou: float,
    found: bool,
    reason: EmptyReason | None,
    wrong: str,
    signature: str,
    why: str,
) -> None:
    verdict = judge(replace(GOOD, **changes), iou, found, reason)  # type: ignore[arg-type]
    assert (verdict.wrong, verdict.signature, verdict.why) == (wrong, signature, why)


def test_measured_by_hand() -> None:
    """The crop is columns and rows 27 to 62. The truth, its left half, is found exactly.

    The truth touches rows 3 to 7 and columns 3 to 5 (20 to 69 and 20 to 49 px), a fifth more of which is rows 15 to 74
    and columns 17 to 52, 36 wide; its left half, 18 x 60, holds 8 x 36 px of the truth: 288 of 1080 + 648 - 288.
    """
    rsvp, truth = fake_rsvp(), Truth(box_mask(FOUND_XYXY))
    stages = examine(rsvp, IMAGE, rsvp(IMAGE, "the red cup"), truth, "cup")
    assert (stages.present, stages.said_present, stages.object_right, stages.wrong) == (True, True, True, "")
    assert stages.crop_recall == 1.0
    assert stages.crop_share == pytest.approx(36 * 36 / 8100)
    assert stages.true_crop_iou == pytest.approx(288 / 1440)
    segmenter = rsvp.segmenter
    assert isinstance(segmenter, FakeSegmenter)
    assert [(prompt.text, prompt.crop.xyxy) for prompt in segmenter.prompts] == [
        ("red cup", (27, 27, 63, 63)), ("red cup", (17, 15, 53, 75)),
    ]  # fmt: skip


def test_a_crop_that_holds_a_part_of_it() -> None:
    """36 x 36 px of 60 x 60 are in the crop, of which the left half is found."""
    rsvp, truth = fake_rsvp(), Truth(box_mask((10, 10, 70, 70)))
    stages = examine(rsvp, IMAGE, rsvp(IMAGE, "the red cup"), truth, None)
    assert stages.crop_recall == pytest.approx(36 * 36 / 3600)
    # The true crop is rows and columns 4 to 75, its left half 36 x 72 with 30 x 60 of the truth in it ... by numbers:
    assert stages.true_crop_iou == pytest.approx(30 * 60 / (36 * 72 + 3600 - 30 * 60))
    assert (stages.object_right, stages.signature, stages.wrong) == (None, "incomplete_regions", "both")


def test_what_is_said_to_be_absent_is_tried_by_the_instruction() -> None:
    rsvp, truth = fake_rsvp(), Truth(box_mask(FOUND_XYXY))
    stages = examine(rsvp, IMAGE, rsvp(IMAGE, "the absent cup"), truth, "cup")
    assert (stages.said_present, stages.crop_recall, stages.crop_share) == (False, None, None)
    assert (stages.signature, stages.wrong) == ("empty_output", "both")
    assert isinstance(rsvp.segmenter, FakeSegmenter)
    assert [prompt.text for prompt in rsvp.segmenter.prompts] == ["the absent cup"]


def test_another_object_is_stage_1s_fault() -> None:
    rsvp, truth = fake_rsvp(), Truth(box_mask((0, 0, 10, 10)))
    stages = examine(rsvp, IMAGE, rsvp(IMAGE, "the red cup"), truth, "dog")
    assert (stages.object_right, stages.wrong, stages.signature) == (False, "stage1", "false_localization")


def test_nothing_there() -> None:
    rsvp, nothing = fake_rsvp(), Truth(box_mask())
    found = examine(rsvp, IMAGE, rsvp(IMAGE, "the cup"), nothing, None)
    assert (found.crop_recall, found.true_crop_iou, found.wrong) == (None, None, "stage1")
    right = examine(rsvp, IMAGE, rsvp(IMAGE, "the absent cup"), nothing, None)
    assert (right.wrong, right.signature) == ("", "")


def test_truth_of_boxes_is_compared_by_boxes() -> None:
    boxes = Truth.of_boxes([(27, 27, 45, 63)], SIDE, SIDE)
    assert fit(box_mask(FOUND_XYXY), boxes) == 1.0
    dots = box_mask((27, 27, 28, 28), (44, 62, 45, 63))
    assert fit(dots, boxes) == 1.0
    assert fit(dots, replace(boxes, outlined=True)) == pytest.approx(2 / FOUND_PX)
    assert fit(box_mask(), boxes) == 0.0
    assert np.array_equal(Truth.of_boxes([(0.4, 0.5, 2.2, 3.0)], 5, 5).mask, box_mask((0, 0, 3, 3), side=5))


def test_ignored_pixels_count_for_nothing() -> None:
    truth = Truth(box_mask((27, 27, 36, 63)), box_mask((36, 27, 45, 63)))
    assert fit(box_mask(FOUND_XYXY), truth) == 1.0


def test_a_segmenter_that_fails_on_the_true_crop_is_no_result(tmp_path: Path) -> None:
    class Failing(FakeSegmenter):
        def segment(self, images, prompts):  # type: ignore[no-untyped-def]
            raise SegmenterError("out of memory")

    outcome = fake_rsvp()(IMAGE, "the cup")
    with pytest.raises(SampleError, match="stage 2 failed on the true crop: out of memory"):
        examine(RSVP(FakeReasoner(), Failing()), IMAGE, outcome, Truth(box_mask(FOUND_XYXY)), None)
