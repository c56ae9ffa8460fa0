"""The doctor's question to the reasoner: answer, seconds, tokens and cost; or what keeps it from answering."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint, Step, refuses, says
from fake_models import FakeSegmenter

from rsvp_backend import doctor, presets
from rsvp_backend.settings import Settings

BOOK = json.dumps(
    {"proposals": [{"object": "book", "present": True, "rows": [8], "columns": [4], "reasoning": "To study."}]}
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "segmenter_of", lambda settings: FakeSegmenter())


def question(step: Step, **settings: object) -> tuple[doctor.Finding, FakeEndpoint]:
    fake = FakeEndpoint(step)
    with fake.running() as base_url:
        findings = list(doctor.examine(Settings(reasoner=f"{base_url}#org/model", **settings), None))  # type: ignore[arg-type]
    return findings[-1], fake


def test_a_good_answer_is_shown_with_what_it_took(tmp_path: Path) -> None:
    for _ in range(2):  # never from the answers that are kept
        finding, fake = question(says(BOOK), reasoner_price_in=1.0, reasoner_price_out=10.0, answer_cache=tmp_path)
        assert len(fake.bodies) == 1
    assert finding.state == "ok"
    assert "'I want to study for school' (blue book is right): book (To study.)" in finding.text
    assert finding.text.endswith(" s, 1 call, 100 + 20 tokens, cost 0.0003")


@pytest.mark.parametrize(
    ("step", "problem"),
    [(refuses(401, "who are you?"), "reasoner_failed: "), (says("A blue book, surely."), "invalid_answer: ")],
)
def test_no_answer_is_a_problem(step: Step, problem: str) -> None:
    finding, _ = question(step)
    assert finding.state == "problem"
    assert problem in finding.text


def test_the_demos_reasoner_is_asked_as_well() -> None:
    *_, finding = doctor.examine(Settings(), None)
    assert finding.state == "ok"
    assert "book (" in finding.text
    assert "tokens" not in finding.text
