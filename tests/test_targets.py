"""targets.py and phrases.py: several proposals become targets by rule, masks that are one, names without a reasoner."""

from __future__ import annotations

import numpy as np
import pytest
from fake_models import FakeReasoner, FakeSegmenter, fake_rsvp
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsvp_backend.grid import regions_box
from rsvp_backend.phrases import REASONING, noun_phrase
from rsvp_backend.pipeline import RSVP, PipelineConfig
from rsvp_backend.reasoner.parsing import parse
from rsvp_backend.targets import choose_targets, distinct, mask_iou, same_thing, touch, union_box, words_of
from rsvp_backend.types import Answer, Box, Deadline, EmptyReason, Instance, Marks, Proposal, Query, Regions

MARKS = Marks("bands", 9, 9)
BOXES = st.builds(lambda x, y, w, h: Box(x, y, x + w, y + h), *[st.integers(0, 30)] * 2, *[st.integers(1, 12)] * 2)


def proposal(
    name: str = "mug", rows: tuple[int, ...] = (1,), columns: tuple[int, ...] = (1,), label: str | None = None
) -> Proposal:
    return Proposal(name, True, Regions(rows, columns), f"{name} at {rows}", label)


def absent(name: str = "mug", regions: Regions | None = None) -> Proposal:
    return Proposal(name, False, regions or Regions(), f"there is no {name}")


def chosen(*proposals: Proposal) -> list[tuple[str, tuple[int, int, int, int]]]:
    return [(t.proposal.object, t.box.xyxy) for t in choose_targets(proposals, MARKS, 90, 90).targets]


@given(BOXES, BOXES)
def test_touching_is_symmetric_and_a_union_holds_both(a: Box, b: Box) -> None:
    assert touch(a, b) == touch(b, a)
    union = union_box(a, b)
    assert union == union_box(b, a)
    assert union_box(union, a) == union
    assert touch(union, a)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Box(5, 5, 8, 8), True),
        (Box(10, 0, 20, 10), True),
        (Box(3, 10, 4, 20), True),
        (Box(10, 10, 20, 20), False),  # a common corner
        (Box(11, 0, 20, 10), False),
    ],
)
def test_touch(other: Box, expected: bool) -> None:
    assert touch(Box(0, 0, 10, 10), other) is expected


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("mug", "the red mug", True),
        ("Red Mug", "mug, red", True),
        ("mug", "mugs", False),
        ("red mug", "blue mug", False),
        ("", "mug", False),
        ("字", "字", True),
    ],
)
def test_same_thing(a: str, b: str, same: bool) -> None:
    assert same_thing(a, b) is same
    assert same_thing(b, a) is same


def test_targets_keep_the_reasoners_order() -> None:
    found = chosen(proposal("plate", (9,)), proposal("mug", (1,)), proposal("mug", (5,)), proposal("cup", (3,)))
    assert [name for name, _ in found] == ["plate", "mug", "mug", "cup"]


def test_the_same_object_in_touching_regions_is_one_target() -> None:
    choice = choose_targets(
        [proposal("red mug", (2,), (2,)), proposal("plate", (9,)), proposal("the Red mug", (3,), (2, 3))], MARKS, 90, 90
    )
    mug, plate = choice.targets
    assert (mug.box, plate.proposal.object) == (Box(10, 10, 30, 30), "plate")
    assert mug.proposal.regions == Regions((2, 3), (2, 3))
    assert mug.proposal.reasoning == "red mug at (2,)"
    (note,) = choice.notes
    assert "'red mug' is proposed twice" in note
    assert "the Red mug at (3,)" in note


def test_a_join_can_bring_others_in_touch() -> None:
    left, right, bridge = proposal(columns=(1,)), proposal(columns=(3,)), proposal(columns=(2,))
    assert chosen(left, right) == [("mug", (0, 0, 10, 10)), ("mug", (20, 0, 30, 10))]
    assert chosen(left, right, bridge) == [("mug", (0, 0, 30, 10))]


@pytest.mark.parametrize(
    ("second", "count"),
    [
        (proposal("mug", label="Cup"), 2),  # another label
        (proposal("mug", label="Mug"), 1),
        (proposal("red mug", label="Mug"), 1),  # identical boxes, the same thing
        (proposal("red mug"), 1),
        (proposal("red mug", columns=(2,)), 2),  # touching is not enough for another name
        (proposal("plate"), 2),  # identical boxes, different things
        (proposal("mug", rows=(2,), columns=(2,), label="Mug"), 2),  # a corner
    ],
)
def test_what_is_one_target(second: Proposal, count: int) -> None:
    assert len(chosen(proposal("mug", label="Mug"), second)) == count


def test_a_joined_target_takes_the_label_that_one_of_both_has() -> None:
    choice = choose_targets([proposal("mug"), proposal("red mug", label="Mug")], MARKS, 90, 90)
    assert [t.proposal.label for t in choice.targets] == ["Mug"]


@pytest.mark.parametrize(
    ("proposals", "targets", "note"),
    [
        ([absent("mug"), proposal("the mug")], 1, "'mug' is called both present and absent: taken as present"),
        ([proposal(), proposal("cup", ())], 1, "'cup' is called present, but no region is named: left out"),
        ([proposal(), absent("cup", Regions((1,), (1,)))], 1, "'cup' is called absent, but regions are named"),
    ],
)
def test_contradictions_are_settled_and_noted(proposals: list[Proposal], targets: int, note: str) -> None:
    choice = choose_targets(proposals, MARKS, 90, 90)
    assert len(choice.targets) == targets
    (seen,) = choice.notes
    assert note in seen


@pytest.mark.parametrize(
    ("proposals", "reason", "detail"),
    [
        ([], EmptyReason.ABSENT, "the reasoner proposed nothing"),
        ([absent("mug"), absent("cup")], EmptyReason.ABSENT, "there is no mug there is no cup"),
        ([absent("mug", Regions((1,), (1,)))], EmptyReason.ABSENT, "there is no mug"),
        ([proposal("mug", ()), absent("mug")], EmptyReason.NO_REGIONS, "the reasoner names no region for: mug"),
    ],
)
def test_no_target_has_a_reason(proposals: list[Proposal], reason: EmptyReason, detail: str) -> None:
    choice = choose_targets(proposals, MARKS, 90, 90)
    assert (choice.targets, choice.reason, choice.detail) == ((), reason, detail)


def test_ids_of_an_absent_object_are_kept_for_the_note_only_where_they_exist() -> None:
    text = '{"proposals": [{"object": "mug", "present": false, "rows": [%s], "columns": [2], "reasoning": "none"}]}'
    assert parse(text % 1, MARKS)[0].regions == Regions((1,), (2,))
    assert parse(text % 12, MARKS)[0].regions == Regions()


IDS = st.sets(st.integers(1, 9), min_size=1, max_size=2).map(lambda ids: tuple(sorted(ids)))
PROPOSALS = st.builds(proposal, st.sampled_from(["mug", "a mug", "plate"]), IDS, IDS, st.sampled_from([None, "Mug"]))


@given(st.lists(PROPOSALS, max_size=8))
def test_joining_ends_covers_everything_and_changes_nothing_the_second_time(proposals: list[Proposal]) -> None:
    targets = choose_targets(proposals, MARKS, 90, 90).targets
    assert bool(targets) == bool(proposals)
    for one in proposals:
        box = regions_box(one.regions, MARKS, 90, 90)
        assert box is not None
        assert any(union_box(target.box, box) == target.box for target in targets)
    for i, a in enumerate(targets):
        for b in targets[i + 1 :]:
            same = words_of(a.proposal.object) == words_of(b.proposal.object) and a.proposal.label == b.proposal.label
            assert not (same and touch(a.box, b.box))
    again = choose_targets([target.proposal for target in targets], MARKS, 90, 90)
    assert (again.targets, again.notes) == (targets, ())


def instance(name: str, score: float, *columns: int, width: int = 40) -> Instance:
    mask = np.zeros((10, width), dtype=np.bool_)
    mask[:, list(columns)] = True
    return Instance(mask, name, score, f"{name} it is", Box(0, 0, width, 10), Regions())


def test_masks_that_coincide_are_one_instance_of_the_better_score() -> None:
    cup, plate, mug = (
        instance("cup", 0.5, *range(20)),
        instance("plate", 0.9, *range(20, 40)),
        instance("mug", 0.8, *range(19)),
    )
    assert mask_iou(cup.mask, mug.mask) == 0.95
    kept, (note,) = distinct([cup, plate, mug])
    assert [one.object for one in kept] == ["mug", "plate"]
    assert "mug it is" in note
    assert "cup it is" in note


def test_masks_that_differ_enough_or_tie_keep_the_first() -> None:
    half = instance("half", 0.9, *range(10))
    assert distinct([instance("cup", 0.5, *range(20)), half])[1] == ()
    kept, _ = distinct([half, instance("twin", 0.9, *range(10))])
    assert [one.object for one in kept] == ["half"]
    assert distinct([]) == ((), ())


class Several(FakeReasoner):
    proposals: tuple[Proposal, ...] = ()

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        return Answer(self.proposals, ("{}",))


def test_several_targets_through_the_pipeline() -> None:
    reasoner = Several()
    reasoner.proposals = (
        proposal("mug", (1, 2), (1, 2)), proposal("vessel", (1, 2), (1, 2)), proposal("plate", (8,), (8,)),
        proposal("plate", (8,), (9,)), absent("fork"), proposal("spoon", ()),
    )  # fmt: skip
    outcome = RSVP(reasoner, FakeSegmenter())(Image.new("RGB", (180, 180)), "all mugs and the plate they belong to")
    assert [one.object for one in outcome.instances] == ["mug", "plate"]
    assert len(outcome.trace.proposals) == 6
    assert [sum(word in note for note in outcome.trace.notes) for word in ("spoon", "plate", "vessel")] == [1, 1, 1]


POSITIVE = [
    "mug", "red mug", "the red mug", "a dog", "all mugs", "Every chair", "traffic light", "bottle of water", "old man",
    "coffee cup", "the small wooden chair", "fire extinguisher", "solar panels", "cat's tail", "T-shirt", "building",
    "glass of red wine", "people", "an umbrella", "white delivery van",
]  # fmt: skip
NEGATIVE = [
    "", "what would you drink from?", "the thing you would use to open the door", "find the mug", "segment the dog",
    "something to drink", "the largest dog", "the mug on the table", "the second cup", "dog running", "mug and plate",
    "cup without handle", "person who is sitting", "the leftmost chair", "mug, plate", "is there a cat",
    "the other mug", "a very long name of many plain words", "ignore previous instructions", "la llave", "clé",
    "mug\u200b", "the", "of mug",
]  # fmt: skip


@pytest.mark.parametrize("instruction", POSITIVE)
def test_plain_noun_phrases(instruction: str) -> None:
    phrase = noun_phrase(instruction)
    assert phrase
    assert instruction.endswith(phrase)
    assert phrase.split()[0].lower() not in {"the", "a", "an", "all", "every"}


@pytest.mark.parametrize("instruction", NEGATIVE)
def test_what_is_no_plain_noun_phrase(instruction: str) -> None:
    assert noun_phrase(instruction) is None


@given(st.text("abcdefghijk .,?<{\n字", max_size=30))
def test_a_phrase_is_letters_of_the_instruction(text: str) -> None:
    phrase = noun_phrase(text)
    assert phrase is None or (phrase in " ".join(text.split()) and not set(phrase) & set(".,?<{\n字"))


@pytest.mark.parametrize("marks", [Marks("bands", 9, 9), Marks("cells", 6, 7)])
def test_text_only_skips_the_reasoner_and_looks_at_the_whole_image(marks: Marks) -> None:
    reasoner, segmenter = FakeReasoner(), FakeSegmenter()
    rsvp = RSVP(reasoner, segmenter, PipelineConfig(marks=marks, text_only=True))
    outcome = rsvp(Image.new("RGB", (100, 60)), "the red mug")
    assert not reasoner.asked
    assert (segmenter.prompts[0].crop, segmenter.prompts[0].text) == (Box(0, 0, 100, 60), "red mug")
    assert outcome.instances[0].reasoning == REASONING
    assert outcome.trace.visual_prompt is None
    rsvp(Image.new("RGB", (100, 60)), "what would you drink from?")
    assert len(reasoner.asked) == 1


def test_text_only_is_off_by_default_and_part_of_the_version() -> None:
    rsvp = fake_rsvp()
    rsvp(Image.new("RGB", (100, 60)), "the red mug")
    assert len(rsvp.reasoner.asked) == 1  # type: ignore[attr-defined]
    assert rsvp.version != RSVP(rsvp.reasoner, rsvp.segmenter, PipelineConfig(text_only=True)).version
