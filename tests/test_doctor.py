"""The doctor without a Label Studio: this machine, its settings, the question to the models."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint, Step, refuses, says
from fake_models import FakeSegmenter
from ls_http import json_reply, serving

from rsvp_backend import cli, doctor, presets
from rsvp_backend.doctor import Subject, label_studio, machine
from rsvp_backend.labelstudio.client import LabelStudioClient
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
        findings = list(doctor.examine(Settings(reasoner=f"{base_url}#org/model", **settings), Subject()))  # type: ignore[arg-type]
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
    *_, finding = doctor.examine(Settings(), Subject())
    assert finding.state == "ok"
    assert "book (" in finding.text
    assert "tokens" not in finding.text


# --- this machine --------------------------------------------------------------------------------------------------


def told(settings: Settings) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in doctor.examine(settings, Subject(models=False)):
        found.setdefault(one.state, []).append(str(one))
    return found


def test_without_label_studio_it_says_what_to_set() -> None:
    found = told(Settings())
    assert "problem" not in found
    assert found["skipped"] == ["Label Studio: set RSVP_LABEL_STUDIO_URL and RSVP_LABEL_STUDIO_TOKEN to check it"]


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"host": "0.0.0.0"}, "which other machines can reach: set RSVP_BASIC_AUTH_USER"),
        ({"predict_timeout_s": 100}, "Label Studio waits 100 s: what is answered later is lost"),
    ],
)
def test_settings_that_do_harm(settings: dict[str, object], cause: str) -> None:
    (problem,) = told(Settings(**settings))["problem"]  # type: ignore[arg-type]
    assert cause in problem


def test_folders_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(traces=tmp_path / "new" / "traces")
    assert any(one.startswith("RSVP_TRACES: ") and "GiB free" in one for one in told(settings)["ok"])
    assert list(tmp_path.iterdir()) == []

    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "NamedTemporaryFile", refused)
    (problem,) = told(settings)["problem"]
    assert f"RSVP_TRACES: {tmp_path} cannot be written to: Permission denied. To do: let user" in problem


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEAST_DISK_BYTES", 2**70)
    (problem,) = told(Settings(versions=tmp_path))["problem"]
    assert "RSVP_VERSIONS" in problem
    assert "make room" in problem


# --- Label Studios that are not at hand ----------------------------------------------------------------------------


def of_server(release: str, permissions: list[str] | None = None) -> list[str]:
    user = {"email": "a@b.c"} | ({"permissions": permissions} if permissions is not None else {})
    with serving() as server:
        server.routes |= {
            "/api/version": lambda _: json_reply({"release": release}),
            "/api/current-user/whoami": lambda _: json_reply(user),
        }
        with LabelStudioClient(server.url, "0" * 40) as client:
            return [str(one) for one in label_studio.server_findings(client) if one.state == "problem"]


def test_an_old_release() -> None:
    (old,) = of_server("1.9.2")
    assert "release 1.9.2. To do: 1.16 or newer is expected" in old


@pytest.mark.parametrize(
    ("off", "state", "text"),
    [
        (timedelta(), "ok", "the same"),
        (timedelta(hours=-1), "problem", "s behind"),
        (timedelta(1), "problem", "ahead of"),
    ],
)
def test_clocks(off: timedelta, state: str, text: str) -> None:
    (found,) = label_studio.clock_findings(format_datetime(datetime.now(UTC) + off, usegmt=True))
    assert found.state == state
    assert text in found.text
    assert list(label_studio.clock_findings("no date")) == []


def test_a_person_without_rights() -> None:
    *_, rights = of_server("1.23.2", ["projects.view", "tasks.view"])
    assert "a@b.c lacks the rights projects.change, annotations.view, predictions.any" in rights


def test_fix_needs_a_project(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--fix"]) == 2
    assert "--fix needs --project ID" in capsys.readouterr().err
