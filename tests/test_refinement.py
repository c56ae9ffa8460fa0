"""Clicks and boxes to masks: which crop and which text the segmenter gets, and that the reasoner is not asked."""

import numpy as np
import pytest
from fake_models import MIDDLE, FakeReasoner, FakeSegmenter
from PIL import Image

from rsvp_backend.errors import SegmenterError
from rsvp_backend.pipeline import RSVP
from rsvp_backend.refinement import Hints, pointed_at, refine
from rsvp_backend.types import Box, Click, EmptyReason, Instance, Prompt, Regions

IMAGE = Image.new("RGB", (90, 72), "gray")
WHOLE = Box(0, 0, 90, 72)


def remembered(box: Box, name: str = "cup", mask_box: Box | None = None) -> Instance:
    mask = np.zeros((72, 90), dtype=np.bool_)
    inside = mask_box or box
    mask[inside.top : inside.bottom, inside.left : inside.right] = True
    return Instance(mask, name, 0.5, f"It is the {name}.", box, MIDDLE, "Cup")


def made() -> tuple[RSVP, FakeSegmenter, FakeReasoner]:
    segmenter, reasoner = FakeSegmenter(), FakeReasoner()
    return RSVP(reasoner, segmenter), segmenter, reasoner


def test_clicks_alone_look_at_the_whole_image() -> None:
    rsvp, segmenter, reasoner = made()
    clicks = (Click(10, 10), Click(80, 70, positive=False))
    outcome = refine(rsvp, IMAGE.convert("L"), Hints(clicks, label="Ball", notes=("a note",)))
    (instance,) = outcome.instances
    assert segmenter.prompts == [Prompt(WHOLE, None, clicks)]
    assert (instance.object, instance.label, instance.reasoning) == ("Ball", "Ball", "Segmented from 2 clicks.")
    assert (instance.regions, instance.box, instance.mask.shape) == (Regions(), WHOLE, (72, 90))
    assert np.array_equal(np.argwhere(instance.mask.any(axis=0)).ravel(), np.arange(45))
    assert instance.score == pytest.approx(0.75)
    assert (outcome.trace.crops, outcome.trace.raw_texts, outcome.trace.instruction) == ((WHOLE,), (), "")
    assert (set(outcome.trace.timings_s), outcome.trace.notes) == ({"segment", "paste"}, ("a note",))
    assert reasoner.asked == []


def test_a_box_is_padded_like_a_crop_and_prompts_as_it_is() -> None:
    rsvp, segmenter, _ = made()
    box = Box(20, 10, 60, 30)
    (instance,) = refine(rsvp, IMAGE, Hints(box=box)).instances
    assert segmenter.prompts == [Prompt(Box(16, 8, 64, 32), None, (), box)]
    assert (instance.object, instance.label, instance.reasoning) == ("object", None, "Segmented from a box.")


def test_the_crop_grows_to_positive_clicks_beside_the_box_and_drops_negative_ones_outside() -> None:
    rsvp, segmenter, _ = made()
    clicks = (Click(5.5, 12), Click(89.5, 71.5, positive=False), Click(30, 15, positive=False))
    refine(rsvp, IMAGE, Hints(clicks, Box(20, 10, 60, 30)))
    (prompt,) = segmenter.prompts
    assert prompt.crop == Box(0, 8, 66, 32)
    assert prompt.clicks == (clicks[0], clicks[2])


def test_an_earlier_instance_is_refined_by_its_text() -> None:
    rsvp, segmenter, reasoner = made()
    earlier = remembered(Box(20, 20, 60, 60))
    clicks = (Click(30, 30), Click(40, 40, positive=False), Click(5, 5, positive=False))
    outcome = refine(rsvp, IMAGE, Hints(clicks, label="Cup"), [earlier], "the thing to drink from")
    (instance,) = outcome.instances
    assert segmenter.prompts == [Prompt(earlier.box, "cup", clicks[:2])]
    assert (instance.object, instance.reasoning, instance.regions) == ("cup", "It is the cup.", MIDDLE)
    assert (instance.box, outcome.trace.instruction) == (earlier.box, "the thing to drink from")
    assert reasoner.asked == []
    box = Box(25, 25, 50, 50)
    refine(rsvp, IMAGE, Hints(box=box), [earlier])
    assert segmenter.prompts[-1] == Prompt(earlier.box, "cup", (), box)


@pytest.mark.parametrize(
    "hints",
    [
        Hints((Click(30, 30), Click(5, 5))),
        Hints((Click(60, 30),)),  # half-open: the first column beside the crop
        Hints((Click(30, 30),), Box(10, 25, 50, 50)),
    ],
)
def test_hints_that_leave_the_earlier_crop_stand_alone(hints: Hints) -> None:
    rsvp, segmenter, _ = made()
    (instance,) = refine(rsvp, IMAGE, hints, [remembered(Box(20, 20, 60, 60))], "the cup").instances
    assert segmenter.prompts[0].text is None
    assert instance.reasoning.startswith("Segmented from")


def test_of_several_instances_the_one_whose_mask_is_clicked_is_meant() -> None:
    large, small = remembered(WHOLE, "table"), remembered(Box(20, 20, 60, 60), "cup", Box(20, 20, 40, 60))
    assert pointed_at([large, small], Hints((Click(30, 30),))) is small  # on both masks: the smaller crop
    assert pointed_at([large, small], Hints((Click(50, 50),))) is large  # on the table's mask only
    assert pointed_at([large, small], Hints((Click(30, 30, positive=False),))) is small
    assert pointed_at([large, small], Hints(box=Box(30, 30, 35, 35))) is small
    assert pointed_at([small], Hints((Click(5, 5, positive=False),))) is None
    assert pointed_at([], Hints((Click(5, 5),))) is None


def test_negative_clicks_alone_say_what_to_do() -> None:
    rsvp, segmenter, _ = made()
    outcome = refine(rsvp, IMAGE, Hints((Click(5, 5, positive=False),)), [remembered(Box(20, 20, 60, 60))])
    assert (outcome.instances, outcome.reason, segmenter.prompts) == ((), EmptyReason.NO_INSTRUCTION, [])
    assert "click on the object" in outcome.detail
    kept = refine(rsvp, IMAGE, Hints((Click(25, 25, positive=False),)), [remembered(Box(20, 20, 60, 60))])
    assert kept.instances[0].object == "cup"


class Failing(FakeSegmenter):
    def segment(self, images: object, prompts: object) -> list[object]:  # type: ignore[override]
        raise SegmenterError("out of memory")


def test_failures_and_empty_masks_have_a_reason() -> None:
    outcome = refine(RSVP(FakeReasoner(), Failing()), IMAGE, Hints((Click(5, 5),)))
    assert (outcome.reason, outcome.detail) == (EmptyReason.SEGMENTER_FAILED, "out of memory")
    rsvp, _, _ = made()
    thin = refine(rsvp, IMAGE, Hints(box=Box(5, 5, 6, 20)))  # the fake's left half of a crop of one column is nothing
    assert thin.reason is EmptyReason.EMPTY_MASK
    assert "with a box: add a click" in thin.detail
