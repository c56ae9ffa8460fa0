"""What is taught and how it is measured: answers in the model's own form, corrections, a teacher, styles of scenes."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distill_models import MARKS, RIGHT, example
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsvp_backend.errors import AnswerError, DeadlineError, ImageError, ReasonerError
from rsvp_backend.grid import mask_regions
from rsvp_backend.reasoner.cache import AnswerStore, CachedReasoner
from rsvp_backend.reasoner.parsing import parse
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, LEVELS, make_scene
from rsvp_backend.scenes.language import corpus
from rsvp_backend.scenes.styles import STYLED_KINDS, STYLES, styled_questions
from rsvp_backend.training import tiny_mllm
from rsvp_backend.training.answer_replay import replay_to_score, replay_to_train, styled_examples
from rsvp_backend.training.answer_scoring import compare
from rsvp_backend.training.answer_text import answer_segments
from rsvp_backend.training.examples import Source, by_task, corrected_proposals
from rsvp_backend.training.prompt_store import PromptStore
from rsvp_backend.training.samples import Correction, Origin
from rsvp_backend.training.teaching import GIVE_UP_AFTER, LeftOut, Task, ask_teacher
from rsvp_backend.types import Answer, Box, Deadline, Marks, Proposal, Query, Regions

ABSENT = Proposal("red mug", False, Regions(), "there is no red mug in the picture.")
BANDS, CELLS = Marks("bands", 9, 9), Marks("cells", 4, 4)


def text_of(*proposals: Proposal, marks: Marks = MARKS, **form: bool) -> str:
    return "".join(piece for piece, _ in answer_segments(proposals, marks, **form))


# --- the answer's text -------------------------------------------------------------------------------------------

ids = st.sets(st.integers(1, 9), min_size=1).map(lambda found: tuple(sorted(found)))
words = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=20)
proposals = st.builds(
    lambda name, rows, columns, why, label: Proposal(name, True, Regions(rows, columns), why, label),
    words, ids, ids, words, st.sampled_from(["Key", "Cup"]),
)  # fmt: skip


@given(st.lists(proposals, min_size=1, max_size=3))
def test_what_is_written_is_read_as_the_same(given: list[Proposal]) -> None:
    assert parse(text_of(*given, marks=BANDS, labels=True), BANDS, ("Key", "Cup")) == tuple(given)
    (first, *_) = given
    celled = replace(first, regions=Regions(cells=first.regions.rows), label=None)
    assert parse(text_of(celled, marks=CELLS), CELLS) == (celled,)


def test_the_demo_model_s_form_is_its_own() -> None:
    shown = Proposal("red key", True, Regions((2, 3, 4), (7,)), "the red key is at the middle right.")
    part = tiny_mllm.Part(shown.object, Regions((2, 4), (7,)), shown.reasoning)
    assert text_of(shown, marks=BANDS, edges=True) == tiny_mllm.answer_text([part], "bands")
    absent = tiny_mllm.Part("red mug", Regions(), ABSENT.reasoning)
    assert text_of(ABSENT, marks=BANDS, edges=True) == tiny_mllm.answer_text([absent], "bands")
    celled, cells = (
        replace(shown, regions=Regions(cells=(5, 6))),
        tiny_mllm.Part("red key", Regions(cells=(5, 6)), "why"),
    )
    assert text_of(replace(celled, reasoning="why"), marks=CELLS, edges=True) == tiny_mllm.answer_text([cells], "cells")


def test_a_reasoning_that_nobody_gave_is_filled_in_and_not_taught() -> None:
    pieces = answer_segments([replace(RIGHT, reasoning=" "), RIGHT], MARKS)
    assert [taught for _, taught in pieces] == [True, False, True]
    assert pieces[1][0] == "It is the red key."
    assert parse(text_of(replace(RIGHT, reasoning="")), MARKS)[0].reasoning == "It is the red key."


# --- the measure -------------------------------------------------------------------------------------------------

OTHER = Proposal("blue mug", True, Regions((1,), (1,)), "")


@pytest.mark.parametrize(
    ("given", "right", "expected"),
    [
        ([RIGHT], [RIGHT], (1.0, 1.0, True)),
        ([replace(RIGHT, object=" Red  KEY")], [RIGHT], (1.0, 1.0, True)),
        ([replace(RIGHT, object="red mug")], [RIGHT], (1.0, 0.5, False)),
        ([replace(RIGHT, regions=Regions((2, 3), (2,)))], [RIGHT], (0.5, 1.0, True)),
        ([replace(RIGHT, regions=Regions())], [RIGHT], (0.0, 1.0, True)),
        ([OTHER, RIGHT], [RIGHT, OTHER], (1.0, 1.0, True)),
        ([RIGHT], [RIGHT, OTHER], (0.5, 0.5, False)),
        ([RIGHT, ABSENT], [RIGHT], (1.0, 1.0, True)),
        ([ABSENT], [RIGHT], (0.0, 0.0, False)),
        ([RIGHT], [ABSENT], (0.0, 0.0, False)),
        ([], [RIGHT], (0.0, 0.0, False)),
        ([ABSENT], [ABSENT], (1.0, 1.0, True)),
        ([replace(ABSENT, object="red key")], [ABSENT], (1.0, 0.5, False)),
        ([], [ABSENT], (1.0, 0.0, False)),
        ([], [], (1.0, 1.0, True)),
    ],
)
def test_answers_are_compared_by_regions_and_words(given: Any, right: Any, expected: tuple[float, float, bool]) -> None:
    assert compare(given, right, MARKS) == expected


def test_regions_count_as_the_box_around_them_as_in_the_pipeline() -> None:
    ends, all_of = Regions((1, 3), (1, 3)), Regions((1, 2, 3), (1, 2, 3))
    assert compare([replace(RIGHT, regions=ends)], [replace(RIGHT, regions=all_of)], MARKS)[0] == 1.0
    corners, whole = Regions(cells=(1, 16)), Regions(cells=tuple(range(1, 17)))
    assert compare([replace(RIGHT, regions=corners)], [replace(RIGHT, regions=whole)], CELLS)[0] == 1.0


# --- corrections -------------------------------------------------------------------------------------------------


def correction(text: str, left: int, origin: Origin = Origin.CORRECTED, task: int = 1, why: str = "") -> Correction:
    mask = np.zeros((30, 30), dtype=np.bool_)
    if origin != Origin.REFUSED:
        mask[0:5, left : left + 5] = True
    image = Image.new("RGB", (30, 30))
    return Correction(f"{text}{left}", task, text, mask, Box(0, 0, 30, 30), origin, lambda: image, "Key", why)


def test_the_regions_of_a_task_are_those_of_the_masks_that_a_person_left() -> None:
    given = [
        correction("key", 1), correction("key", 22, why="both open it"), correction("mug", 12),
        correction("fork", 0, Origin.REFUSED),
    ]  # fmt: skip
    assert corrected_proposals(given, MARKS) == (
        Proposal("key", True, Regions((1,), (1, 3)), "both open it", "Key"),
        Proposal("mug", True, Regions((1,), (2,)), "", "Key"),
    )


def test_where_all_was_refused_the_object_is_absent() -> None:
    refused = [correction("fork", 0, Origin.REFUSED, why="It is at the left.")] * 2
    (found,) = corrected_proposals(refused, MARKS)
    assert (found.object, found.present, found.regions) == ("fork", False, Regions())
    assert found.reasoning == "there is no fork in the picture."


def test_corrections_are_grouped_by_task() -> None:
    given = [correction("a", 1, task=2), correction("b", 1, task=1), correction("c", 1, task=2)]
    assert [(task, [one.text for one in group]) for task, group in by_task(given)] == [(1, ["b"]), (2, ["a", "c"])]


# --- a teacher ---------------------------------------------------------------------------------------------------


class Teacher:
    """Answers by the instruction: the right proposal, or what the instruction says instead."""

    version, canvas_px, max_side_px = "teacher-1", None, None

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        with self._lock:
            self.asked.append(query.instruction)
        word = query.instruction.split()[0]
        if word == "invalid":
            raise AnswerError("the answer holds no JSON object")
        if word == "down":
            raise ReasonerError("connection refused")
        if word == "late":
            raise DeadlineError("no time")
        given = {"nothing": (), "nowhere": (replace(RIGHT, regions=Regions()),), "absent": (ABSENT,)}
        return Answer(given.get(word, (replace(RIGHT, label="Key"),)), ("{}",))


def tasks(*instructions: str) -> list[Task]:
    image = Image.new("RGB", (60, 60))

    def gone() -> Image.Image:
        raise ImageError("404")

    return [
        Task(n, Query(text), gone if text == "gone" else lambda: image, f"{n}.png")
        for n, text in enumerate(instructions)
    ]


def test_what_a_teacher_cannot_answer_is_left_out_and_counted() -> None:
    told: list[int] = []
    asked = tasks("the key", "invalid", "down", "late", "nothing", "nowhere", "gone", "absent mug")
    taught = ask_teacher(Teacher(), asked, MARKS, tell=told.append)
    assert [(one.task, one.source) for one in taught.examples] == [(0, Source.TEACHER), (7, Source.TEACHER)]
    assert taught.examples[0].proposals[0].regions == RIGHT.regions
    assert taught.left_out == Counter(
        {LeftOut.INVALID: 1, LeftOut.FAILED: 2, LeftOut.NO_REGIONS: 2, LeftOut.NO_IMAGE: 1}
    )
    assert "left out 1, invalid: the answer holds no JSON object" in str(taught)
    assert told == list(range(1, 9))


def test_an_answer_without_a_label_does_not_teach_a_choice_of_labels() -> None:
    taught = ask_teacher(Teacher(), tasks("the key", "absent mug"), MARKS, labels=True)
    assert [one.task for one in taught.examples] == [0]
    assert taught.left_out == Counter({LeftOut.NO_LABEL: 1})


@pytest.mark.parametrize("workers", [1, 3])
def test_a_teacher_that_is_down_is_not_asked_on_and_on_and_its_answers_are_kept(workers: int, tmp_path: Path) -> None:
    inner = Teacher()
    teacher = CachedReasoner(inner, AnswerStore(tmp_path))
    asked = tasks("the key", *(f"down {n}" for n in range(100)))
    with pytest.raises(ReasonerError, match=f"failed {GIVE_UP_AFTER} times in a row, the last time: connection ref"):
        ask_teacher(teacher, asked, MARKS, workers=workers)
    # Failures beside the one answer may be counted before it; it begins the count anew.
    assert len(inner.asked) <= 1 + (GIVE_UP_AFTER - 1) + GIVE_UP_AFTER + workers
    (found,) = ask_teacher(teacher, asked[:1], MARKS).examples
    assert found.proposals[0].object == "red key"
    assert inner.asked.count("the key") == 1


def test_failures_with_answers_between_them_do_not_end_it() -> None:
    mixed = [word for n in range(12) for word in (f"down {n}", f"the key {n}")]
    taught = ask_teacher(Teacher(), tasks(*mixed), MARKS)
    assert (len(taught.examples), taught.left_out[LeftOut.FAILED]) == (12, 12)


# --- scenes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_a_style_says_the_same_in_other_words(style: str) -> None:
    known = set(corpus(LEVELS["full"]))
    for seed in range(EVALUATION_SEEDS_FROM, EVALUATION_SEEDS_FROM + 12):
        scene = make_scene(seed, "easy", 240)
        asked = styled_questions(scene, style)
        again = [one.instruction for one in styled_questions(scene, style)]
        assert [one.instruction for one in asked] == again
        assert {one.kind for one in asked} <= set(STYLED_KINDS)
        for question in asked:
            assert question.instruction not in known
            (meant,) = question.truth.referents
            assert meant.object.split()[-1] in meant.reasoning
            if meant.target is not None:
                assert meant.object == scene.layout.items[meant.target].phrase
                assert (question.mask == scene.masks[meant.target]).all()
            else:
                assert not question.mask.any()
            if question.kind == "name":
                assert all(word in question.instruction for word in meant.object.split())


def test_examples_of_scenes_are_the_same_each_time_and_never_those_that_are_scored() -> None:
    styled = styled_examples("telegraphic", 7, BANDS)
    assert [one.key for one in styled] == [one.key for one in styled_examples("telegraphic", 7, BANDS)]
    assert len(styled) >= 7
    train, scored = replay_to_train(7, BANDS), replay_to_score(7, BANDS)
    seeds = [{one.task for one in some} for some in (styled, train, scored)]
    assert not seeds[0] & seeds[1] | seeds[1] & seeds[2] | seeds[0] & seeds[2]
    assert max(max(group) for group in seeds) < 7_000_000 < EVALUATION_SEEDS_FROM
    shown = next(one for one in train if one.present)
    scene = make_scene(shown.task, "easy", 480)
    assert any(mask_regions(mask, BANDS) == shown.proposals[0].regions for mask in scene.masks)
    assert shown.load_image().size == scene.image.size


# --- marked pictures ---------------------------------------------------------------------------------------------


def test_pictures_are_marked_once_and_kept(tmp_path: Path) -> None:
    one, asked = example(1), list[int]()

    def load() -> Image.Image:
        asked.append(1)
        return Image.new("RGBA", (80, 40))

    store = PromptStore(tmp_path, MARKS, canvas_px=(64, 64))
    first, second = store.get(replace(one, load_image=load)), store.get(replace(one, load_image=load))
    assert (first.size, first.mode, len(asked)) == ((64, 64), "RGB", 1)
    assert np.array_equal(np.asarray(first), np.asarray(second))
    assert PromptStore(tmp_path, MARKS).get(one).size == (60, 60)
