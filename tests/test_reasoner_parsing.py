"""parsing.py: what counts as an answer, what is tolerated around it, and which words name what is wrong."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsvp_backend.errors import AnswerError
from rsvp_backend.reasoner.parsing import MAX_ANSWER_CHARS, parse
from rsvp_backend.reasoner.schema import MAX_PROPOSALS
from rsvp_backend.types import Marks, Proposal, Regions

BANDS, CELLS = Marks("bands", 9, 9), Marks("cells", 5, 4)
DEMO = (
    '{"proposals": [{"object": "red key", "present": true, "rows": [3, 5], "columns": [6, 7], '
    '"reasoning": "a key opens a door; the red key is in the middle."}]}'
)
KEY = Proposal(
    "red key", True, Regions(rows=(3, 5), columns=(6, 7)), "a key opens a door; the red key is in the middle."
)
CUP = {"object": "cup", "present": True, "rows": [1], "columns": [2, 3], "reasoning": "It holds tea."}


def answer(*proposals: dict[str, Any]) -> str:
    return json.dumps({"proposals": list(proposals)})


@pytest.mark.parametrize(
    "text",
    [
        DEMO,
        f"```json\n{DEMO}\n```",
        f"```\n{DEMO}\n```",
        f"Sure! Here is the answer:\n\n{DEMO}\n\nI hope this helps {{and}} [works].",
        f'<think>maybe {{"proposals": []}} or not</think>\n{DEMO}',
        f'I think {{"proposals": []}} so.\n</think>\n\n{DEMO}',
        f"<THINKING>\nhm\n</THINKING>{DEMO}<think>afterwards</think>",
        f'The form is {{"proposals": [...]}}. Mine:\n{DEMO}',
        f'First: {{"proposals": []}}. On second thought: {DEMO}',
        json.dumps(json.loads(DEMO)["proposals"]),
        json.dumps(json.loads(DEMO)["proposals"][0]),
        DEMO.replace("[3, 5]", "[5, 3, 3, 5]"),
        DEMO.replace('"object"', '"confidence": 0.9, "object"'),
        DEMO.replace("a door; ", "a door;\n "),
        DEMO.replace("red key is", "red\\u0000 key\\ud800 is"),
        json.dumps(json.loads(DEMO), indent=4),
    ],
)
def test_tolerated_forms_give_the_same_proposal(text: str) -> None:
    assert parse(text, BANDS) == (KEY,)


def test_cells() -> None:
    text = answer({"object": "cup", "present": True, "regions": [20, 1, 20], "reasoning": "r"})
    assert parse(text, CELLS) == (Proposal("cup", True, Regions(cells=(1, 20)), "r"),)


def test_several_proposals_keep_their_order() -> None:
    assert [p.object for p in parse(answer(CUP, CUP | {"object": "plate"}), BANDS)] == ["cup", "plate"]


def test_no_proposal_is_an_answer() -> None:
    assert parse(answer(), BANDS) == ()


@pytest.mark.parametrize("ids", [{}, {"rows": [], "columns": []}, {"rows": [99], "columns": "x"}])
def test_absent_drops_all_ids(ids: dict[str, Any]) -> None:
    (proposal,) = parse(answer({"object": "cat", "present": False, "reasoning": "none"} | ids), BANDS)
    assert proposal == Proposal("cat", False, Regions(), "none")


def test_present_without_ids_has_empty_regions() -> None:
    (proposal,) = parse(answer(CUP | {"rows": [], "columns": []}), BANDS)
    assert proposal.present
    assert proposal.regions.empty


@pytest.mark.parametrize(
    ("given_label", "labels", "expected"),
    [
        ("Mug", ("Mug", "Plate"), "Mug"),
        (" mug ", ("Mug", "Plate"), "Mug"),
        (None, ("Mug", "Plate"), None),
        ("Fork", ("Mug",), None),
        ("Fork", (), None),
    ],
)
def test_labels(given_label: str | None, labels: tuple[str, ...], expected: str | None) -> None:
    (proposal,) = parse(answer(CUP | {"label": given_label}), BANDS, labels)
    assert proposal.label == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no JSON object"),
        ("I see a cup in row 3.", "no JSON object"),
        ("<think>" + DEMO, "no JSON object"),
        ('{"answer": 3}', "no JSON object"),
        (DEMO[:-3], "the JSON is broken"),
        (DEMO[:40], "the JSON is broken: .*near"),
        (DEMO.replace('"', "'"), "the JSON is broken: .*double quotes"),
        (DEMO.replace("[3, 5]", "[3, 5,]"), "the JSON is broken"),
        (DEMO.replace("[3, 5]", "[NaN]"), "NaN is no JSON value"),
        (DEMO.replace("[3, 5]", "[" + "9" * 5000 + "]"), "bad JSON"),
        ('{"a":' * 3000, "JSON is broken"),
        ("[{" * 3000, "JSON is broken"),
        ('{"proposals": null}', "proposals is missing: a list"),
        ('{"proposals": [3]}', r"proposals\[0\] is 3: an object"),
        (json.dumps(CUP) + "\n" + json.dumps(CUP), "2 separate JSON objects"),
        (answer(*[CUP] * (MAX_PROPOSALS + 1)), f"at most {MAX_PROPOSALS}"),
        (DEMO + " " * MAX_ANSWER_CHARS, f"at most {MAX_ANSWER_CHARS}"),
        (answer(CUP | {"present": "yes"}), r'present is "yes": true or false'),
        (answer({k: v for k, v in CUP.items() if k != "present"}), "present is missing"),
        (answer({k: v for k, v in CUP.items() if k != "rows"}), r"rows is missing: a list of ids from 1 to 9"),
        (answer({k: v for k, v in CUP.items() if k != "reasoning"}), "reasoning is missing: a text"),
        (answer(CUP | {"rows": 3}), "rows is 3: a list of ids"),
        (answer(CUP | {"rows": [0]}), "rows holds 0: a list of ids from 1 to 9"),
        (answer(CUP | {"columns": [10]}), "columns holds 10"),
        (answer(CUP | {"rows": ["3"]}), 'rows holds "3"'),
        (answer(CUP | {"rows": [True]}), "rows holds true"),
        (answer(CUP | {"rows": [1.5]}), "rows holds 1.5"),
        (answer(CUP | {"object": " "}), "object has 0 characters"),
        (answer(CUP | {"object": "x" * 300}), "object has 300 characters"),
        (answer(CUP | {"object": ["cup"]}), "object is .*: a text"),
    ],
)
def test_errors_say_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(AnswerError, match=problem):
        parse(text, BANDS)


def test_ids_beyond_the_last_cell_and_unknown_labels_are_named() -> None:
    with pytest.raises(AnswerError, match="regions holds 21: a list of ids from 1 to 20"):
        parse(answer({"object": "cup", "present": True, "regions": [21], "reasoning": ""}), CELLS)
    with pytest.raises(AnswerError, match=r'label is "Fork": one of \["Mug", "Plate"\]'):
        parse(answer(CUP | {"label": "Fork"}), BANDS, ("Mug", "Plate"))


def proposals(marks: Marks) -> st.SearchStrategy[list[Proposal]]:
    def ids(highest: int) -> st.SearchStrategy[tuple[int, ...]]:
        return st.sets(st.integers(1, highest), min_size=1).map(lambda chosen: tuple(sorted(chosen)))

    words = st.text("abc {}[]\"'\\:,é字", min_size=1, max_size=20).map(lambda s: " ".join(s.split())).filter(bool)
    if marks.kind == "cells":
        regions = st.builds(Regions, cells=ids(marks.rows * marks.columns))
    else:
        regions = st.builds(Regions, rows=ids(marks.rows), columns=ids(marks.columns))
    return st.lists(st.builds(Proposal, words, st.just(True), regions, words), max_size=4)


def as_json(items: list[Proposal], marks: Marks) -> str:
    def raw(p: Proposal) -> dict[str, Any]:
        ids = (
            {"regions": p.regions.cells}
            if marks.kind == "cells"
            else {"rows": p.regions.rows, "columns": p.regions.columns}
        )
        return {"object": p.object, "present": p.present, **ids, "reasoning": p.reasoning}

    return json.dumps({"proposals": [raw(p) for p in items]})


@pytest.mark.parametrize("marks", [BANDS, CELLS], ids=["bands", "cells"])
@given(data=st.data(), before=st.text("abc {[<>}]\n", max_size=30), after=st.text("abc }]\n", max_size=30))
def test_any_answer_survives_any_prose(marks: Marks, data: st.DataObject, before: str, after: str) -> None:
    items = data.draw(proposals(marks))
    assert parse(before + as_json(items, marks) + after, marks) == tuple(items)


def test_an_answer_may_be_wrapped_in_a_list() -> None:
    (item,) = parse(f"[{as_json([Proposal('cup', True, Regions(cells=(3,)), 'it is.')], CELLS)}]", CELLS)
    assert item == Proposal("cup", True, Regions(cells=(3,)), "it is.")
    assert parse('[{"proposals": []}]', CELLS) == ()


@given(st.one_of(st.text(max_size=200), st.text('{}[]":, proposalsbject123tru', max_size=200)))
@settings(max_examples=300)
def test_any_text_gives_proposals_or_an_answer_error(text: str) -> None:
    with suppress(AnswerError):
        assert all(isinstance(proposal, Proposal) for proposal in parse(text, BANDS))


@given(data=st.data(), cut=st.floats(0.01, 0.99))
def test_a_cut_answer_never_passes_for_a_whole_one(data: st.DataObject, cut: float) -> None:
    text = as_json(data.draw(proposals(BANDS).filter(bool)), BANDS)
    with pytest.raises(AnswerError):
        parse(text[: max(1, int(len(text) * cut))], BANDS)
