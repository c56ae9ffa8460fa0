"""What hostile inputs brought to light; each is refused, bounded or cleaned since."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsvp_backend.errors import AnswerError, RleError
from rsvp_backend.labelstudio import rle
from rsvp_backend.reasoner import parsing
from rsvp_backend.reasoner.parsing import parse, without_thinking
from rsvp_backend.serving.body import read_body
from rsvp_backend.types import Marks

MARKS = Marks("bands", 9, 9)
ANSWER = '{"proposals": [{"object": "cup", "present": true, "rows": [1], "columns": [1], "reasoning": "r"}]}'
TAG = "(?:think|thinking|thought|reasoning)"
PIECES = st.sampled_from(["<think>", "</think>", "<Reasoning>", "</THOUGHT>", "<think", "</ think>", "a", "b\n", " "])


@given(st.lists(PIECES, max_size=12).map("".join))
def test_thinking_is_cut_out_in_one_pass_as_by_the_rule(text: str) -> None:
    """Whole blocks, then all up to a last closing tag, then all from a first opening one."""
    for pattern in (f"<{TAG}>.*?</{TAG}>", f"^.*</{TAG}>", f"<{TAG}>.*"):
        expected = text = re.sub(pattern, "", text, flags=re.DOTALL | re.IGNORECASE)
    assert without_thinking(text) == expected.strip()


@pytest.mark.parametrize("opening", ['{"a":', '[{"a":', "[{", '{"', '{"a": [{"b":'])
def test_json_that_breaks_off_again_and_again_is_given_up(opening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    class Counting:
        def raw_decode(self, text: str, at: int) -> tuple[object, int]:
            nonlocal tries
            tries += 1
            return decoder.raw_decode(text, at)

    decoder = parsing._DECODER
    monkeypatch.setattr(parsing, "_DECODER", Counting())
    with pytest.raises(AnswerError, match="the JSON is broken"):
        parse(opening * (parsing.MAX_ANSWER_CHARS // len(opening)), MARKS)
    assert tries <= parsing.MAX_BROKEN + 1


@pytest.mark.parametrize("opening", ['{"a":', '[{"a":', "[{"])
def test_an_answer_after_json_that_is_nested_too_deeply_counts(opening: str) -> None:
    (proposal,) = parse(f"You ask: {opening * 1500}\nMy answer: {ANSWER}", MARKS)
    assert proposal.object == "cup"


@pytest.mark.parametrize("value", [10**12, "abc", {"a": 1}, None, 5.0, range(10**12)])
def test_a_mask_that_is_no_list(value: object) -> None:
    with pytest.raises(RleError, match="a list of integers"):
        rle.decode(value, 10, 10)  # type: ignore[arg-type]


def test_a_mask_with_more_records_than_it_can_have() -> None:
    with pytest.raises(RleError, match=r"has 665 bytes: at most 664 are expected of 100 pixels"):
        rle.decode([0] * 665, 10, 10)


def test_ids_and_texts_that_no_record_can_hold_are_cleaned_at_the_door() -> None:
    body = read_body(
        rb'{"tasks": [{"id": NaN, "data": {"a": "\u0000\ud800"}}, {"id": {"x": 1}}, {"id": "\udfff'
        + b"x" * 99
        + rb'"}],'
        rb' "label_config": "\ud800", "project": "\ud800"}'
    )
    assert [task["id"] for task in body.tasks] == [None, None, "\ufffd" + "x" * 49]
    assert body.tasks[0]["data"] == {"a": "\ufffd\ufffd"}
    assert (body.label_config, body.project) == ("\ufffd", "\ufffd")
