"""zoom.py: box arithmetic, which closer look counts, and the pipeline that asks again only while there is time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from fake_models import FakeSegmenter
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsvp_backend.errors import AnswerError, DeadlineError, ReasonerError
from rsvp_backend.pipeline import RSVP, PipelineConfig
from rsvp_backend.traces import trace_record
from rsvp_backend.types import Answer, Box, Deadline, Marks, Proposal, Query, Regions
from rsvp_backend.zoom import (
    ENLARGED_PX,
    MIN_GAIN,
    MIN_WINDOW_PX,
    Zoom,
    coverage,
    enlarged,
    finer_box,
    moved,
    next_window,
    window_around,
)

MARKS = Marks("bands", 9, 9)
SIZE = (900, 450)
IMAGE = Box(0, 0, *SIZE)


@st.composite
def boxes_in_images(draw: st.DrawFn) -> tuple[Box, tuple[int, int]]:
    width, height = draw(st.integers(1, 2000)), draw(st.integers(1, 2000))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    box = Box(left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height)))
    return box, (width, height)


def holds(outer: Box, inner: Box) -> bool:
    return (
        outer.left <= inner.left
        and outer.top <= inner.top
        and outer.right >= inner.right
        and outer.bottom >= inner.bottom
    )


@given(boxes_in_images(), st.floats(0, 4))
def test_a_window_lies_in_the_image_holds_its_box_and_has_the_images_aspect(
    given_box: tuple[Box, tuple[int, int]], padding: float
) -> None:
    box, (width, height) = given_box
    window = window_around(box, (width, height), padding)
    assert holds(Box(0, 0, width, height), window)
    assert holds(window, box)
    assert abs(window.width / width - window.height / height) <= 1 / min(width, height)


@given(boxes_in_images(), st.floats(0, 2), st.floats(0, 2))
def test_more_padding_never_gives_a_smaller_window(
    given_box: tuple[Box, tuple[int, int]], one: float, other: float
) -> None:
    box, size = given_box
    low, high = (window_around(box, size, padding) for padding in sorted((one, other)))
    assert low.width <= high.width
    assert low.height <= high.height


@given(boxes_in_images(), st.booleans(), st.sampled_from(["off", "auto", "always"]))
def test_next_windows_shrink_and_never_become_too_small(
    given_box: tuple[Box, tuple[int, int]], unsure: bool, mode: str
) -> None:
    box, size = given_box
    seen = Box(0, 0, *size)
    rules = Zoom(mode)  # type: ignore[arg-type]
    window = next_window(box, seen, size, rules, unsure)
    if window is None:
        return
    assert mode != "off"
    assert mode == "always" or unsure or coverage(box, seen) < rules.below
    assert max(window.width / seen.width, window.height / seen.height) <= MIN_GAIN
    assert min(window.width, window.height) >= MIN_WINDOW_PX
    assert next_window(box, window, size, rules, unsure) is None  # the same box shows nothing new from there


@given(boxes_in_images(), st.integers(-50, 50), st.integers(-50, 50))
def test_moving_there_and_back(given_box: tuple[Box, tuple[int, int]], right: int, down: int) -> None:
    box, _ = given_box
    assert moved(moved(box, right, down), -right, -down) == box
    assert moved(box, right, down).area_px == box.area_px


def test_auto_asks_again_about_small_boxes_and_unsure_answers_only() -> None:
    small, large = Box(100, 50, 200, 100), Box(100, 50, 400, 200)
    assert next_window(small, IMAGE, SIZE, Zoom("auto")) == Box(50, 25, 250, 125)
    assert next_window(large, IMAGE, SIZE, Zoom("auto")) is None
    assert next_window(large, IMAGE, SIZE, Zoom("auto"), unsure=True) == Box(0, 0, 600, 300)
    assert next_window(large, IMAGE, SIZE, Zoom("always")) == Box(0, 0, 600, 300)
    assert next_window(IMAGE, IMAGE, SIZE, Zoom("always"), unsure=True) is None
    assert next_window(small, IMAGE, SIZE, Zoom("off"), unsure=True) is None


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="zoom mode is 'on'"):
        Zoom("on")  # type: ignore[arg-type]


def test_windows_are_enlarged_never_shrunk() -> None:
    assert enlarged(Image.new("RGB", (100, 50))).size == (ENLARGED_PX, ENLARGED_PX // 2)
    assert enlarged(Image.new("RGB", (2000, 30))).size == (2000, 30)


def cup(rows: tuple[int, ...], columns: tuple[int, ...], name: str = "red cup") -> Proposal:
    return Proposal(name, bool(rows), Regions(rows, columns), "It is red.")


WINDOW = Box(90, 90, 180, 180)  # regions of 10 px
COARSE = Box(120, 120, 150, 150)
ABSENT = Proposal("red cup", False, Regions(), "There is none.")


@pytest.mark.parametrize(
    ("proposals", "expected"),
    [
        ([cup((4,), (5,))], Box(130, 120, 140, 130)),
        ([cup((4,), (5,), "the cup")], Box(130, 120, 140, 130)),
        ([cup((1,), (1,))], Box(90, 90, 100, 100)),  # alone, beside the coarse box
        ([cup((4,), (4,)), cup((6,), (6,)), cup((9,), (9,))], COARSE),  # those inside, together
        ([cup((4,), (5,)), ABSENT], Box(130, 120, 140, 130)),
        ([], "called absent"),
        ([ABSENT], "called absent"),
        ([cup((4,), (5,), "blue plate")], "another object in the closer look: blue plate"),
        ([Proposal("red cup", True, Regions(), "")], "no region"),
        ([cup((1,), (1,)), cup((9,), (9,))], "several, none where it was"),
    ],
)
def test_what_a_closer_look_gives(proposals: list[Proposal], expected: Box | str) -> None:
    found, note = finer_box(proposals, cup((4, 5, 6), (4, 5, 6)), COARSE, WINDOW, MARKS)
    if isinstance(expected, Box):
        assert (found, note) == (expected, "")
    else:
        assert found is None
        assert expected in note


@dataclass
class Script:
    """A reasoner that gives one answer after the other, or raises it, after ``wait_s``."""

    answers: Sequence[Answer | Exception]
    wait_s: Sequence[float] = (0.0,)
    version: str = "script"
    canvas_px: tuple[int, int] | None = None
    max_side_px: int | None = None
    pictures: list[Image.Image] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)
    deadlines: list[Deadline | None] = field(default_factory=list)

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        at = len(self.pictures)
        self.pictures.append(visual_prompt)
        self.queries.append(query)
        self.deadlines.append(deadline)
        time.sleep(self.wait_s[min(at, len(self.wait_s) - 1)])
        answer = self.answers[at]
        if isinstance(answer, Exception):
            raise answer
        return answer


def says(*proposals: Proposal, repaired: bool = False) -> Answer:
    return Answer(proposals, ("bad", "{}") if repaired else ("{}",))


def rsvp_of(script: Script, mode: str = "auto") -> RSVP:
    return RSVP(script, FakeSegmenter(), PipelineConfig(padding=0.0, zoom=Zoom(mode)))  # type: ignore[arg-type]


SMALL = cup((2,), (2,))
LARGE = cup((2, 3, 4), (2, 3, 4))
PICTURE = Image.new("RGB", SIZE, "navy")


def test_two_rounds_give_a_finer_crop_and_all_is_traced() -> None:
    script = Script([says(SMALL), says(cup((5,), (5,))), says(cup((5,), (5,)))])
    outcome = rsvp_of(script)(PICTURE.resize((3600, 1800)), "the cup", ("Cup", "Plate"))
    assert len(script.pictures) == 3
    assert script.queries == [Query("the cup", ("Cup", "Plate"))] * 3
    first, second = outcome.trace.zooms
    assert first.window == Box(200, 100, 1000, 500)
    assert first.found is not None
    assert second.found is not None
    assert holds(first.window, second.window)
    assert outcome.trace.crops == (second.found,)
    assert outcome.trace.crops[0].area_px < 0.05 * Box(400, 200, 800, 400).area_px
    assert outcome.trace.timings_s["zoom"] == first.seconds + second.seconds
    assert (outcome.instances[0].regions, outcome.instances[0].reasoning) == (SMALL.regions, SMALL.reasoning)
    record = trace_record(outcome)["zooms"]
    assert record[0]["window_xyxy"] == (200, 100, 1000, 500)
    assert record[1]["raw_texts"] == ["{}"]


def test_the_reasoners_canvas_is_kept() -> None:
    script = Script([says(SMALL), says(ABSENT)], canvas_px=(288, 288))
    rsvp_of(script)(PICTURE, "the cup")
    assert [picture.size for picture in script.pictures] == [(288, 288)] * 2


@pytest.mark.parametrize(
    ("mode", "first", "calls"),
    [
        ("off", says(SMALL), 1),
        ("off", says(SMALL, repaired=True), 1),
        ("auto", says(LARGE), 1),
        ("auto", says(LARGE, repaired=True), 2),
        ("auto", says(SMALL), 2),
        ("always", says(LARGE), 2),
        ("auto", says(*[cup((i,), (2,), f"cup {i}") for i in range(1, 10)]), 1 + Zoom().targets),
    ],
)
def test_when_it_asks_again(mode: str, first: Answer, calls: int) -> None:
    script = Script([first] + [says(ABSENT)] * 9)
    outcome = rsvp_of(script, mode)(PICTURE, "the cup")
    assert len(script.pictures) == calls
    assert outcome.instances
    assert ("zoom" in outcome.trace.timings_s) == (calls > 1)


@pytest.mark.parametrize(
    ("second", "note"),
    [
        (says(ABSENT), "called absent"),
        (says(), "called absent"),
        (says(cup((1,), (1,), "plate")), "another object"),
        (says(Proposal("red cup", True, Regions(), "")), "no region"),
        (AnswerError("invalid answer", ("prose",)), "no answer: invalid answer"),
        (ReasonerError("it cannot be reached"), "no answer: it cannot be reached"),
        (DeadlineError("too late"), "no answer: too late"),
    ],
)
def test_whatever_goes_wrong_the_coarser_box_stays(second: Answer | Exception, note: str) -> None:
    outcome = rsvp_of(Script([says(SMALL), second]))(PICTURE, "the cup")
    assert outcome.trace.crops == (Box(100, 50, 200, 100),)
    assert outcome.reason is None
    (step,) = outcome.trace.zooms
    assert note in step.note
    assert step.found is None
    if isinstance(second, AnswerError):
        assert step.raw_texts == ("prose",)


def test_no_closer_look_where_the_time_left_may_not_do() -> None:
    script = Script([says(SMALL)], wait_s=(0.3,))
    outcome = rsvp_of(script)(PICTURE, "the cup", deadline=Deadline.after(0.6))
    assert len(script.pictures) == 1
    assert outcome.instances
    (step,) = outcome.trace.zooms
    assert step.note.startswith("not asked: ")


def test_a_closer_look_leaves_half_of_the_time_to_the_segmenter() -> None:
    script = Script([says(SMALL), says(ABSENT)])
    deadline = Deadline.after(100)
    rsvp_of(script)(PICTURE, "the cup", deadline=deadline)
    assert script.deadlines[0] is deadline
    limit = script.deadlines[1]
    assert limit is not None
    assert limit.at_s < deadline.at_s - 49


def test_an_absent_object_is_not_looked_for() -> None:
    script = Script([says(ABSENT)])
    outcome = rsvp_of(script, "always")(PICTURE, "the cup")
    assert (len(script.pictures), outcome.reason) == (1, "absent")
