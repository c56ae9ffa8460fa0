"""Runs over a project: each task once, whatever goes wrong on the way."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_models import FakeReasoner, fake_rsvp
from ls_http import Reply, Seen, json_reply
from prelabel_studio import LOST, PROJECT, TOKEN, FakeStudio, fake_studio

from rsvp_backend import cli, presets
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.pipeline import RSVP
from rsvp_backend.prelabel import patience
from rsvp_backend.prelabel import studio as prelabel_studio_module
from rsvp_backend.prelabel.journal import Sending, alone
from rsvp_backend.prelabel.running import Report, Result, Run
from rsvp_backend.prelabel.selection import Selection
from rsvp_backend.prelabel.studio import Manner, answer_all, opened, work_folder
from rsvp_backend.settings import Settings, load_settings

VERSION = fake_rsvp().version


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStudio]:
    with fake_studio() as studio:
        monkeypatch.setattr(patience, "WAITS_S", (0.02,))
        monkeypatch.setenv("RSVP_LABEL_STUDIO_URL", studio.server.url)
        monkeypatch.setenv("RSVP_LABEL_STUDIO_TOKEN", TOKEN)
        yield studio


@pytest.fixture
def settings(studio: FakeStudio) -> Settings:
    return load_settings()


@pytest.fixture
def reasoner(monkeypatch: pytest.MonkeyPatch) -> FakeReasoner:
    reasoner = FakeReasoner()
    monkeypatch.setattr(presets, "build", lambda _: fake_rsvp(reasoner))
    return reasoner


def answered(
    settings: Settings, work: Path, rsvp: RSVP | None = None, selection: Selection | None = None, limit_s: float = 20.0
) -> tuple[Report, list[Result]]:
    rsvp, told = rsvp or fake_rsvp(), list[Result]()
    with opened(settings, PROJECT, Manner(patience_s=limit_s), work) as studio:
        run = Run(rsvp, studio.steps(rsvp.version))
        return answer_all(studio, rsvp, selection or Selection(), run, told.append), told


def command(capsys: pytest.CaptureFixture[str], work: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    status = cli.main(["prelabel", "--project", str(PROJECT), "--work-dir", str(work), "--json", *more])
    printed = capsys.readouterr()
    return status, json.loads(printed.out.splitlines()[-1]) if printed.out else {}, printed.err


def each_once(studio: FakeStudio, version: str = VERSION) -> bool:
    return all(len(studio.of(task, version)) == 1 for task in studio.tasks)


def test_every_open_task_gets_one_prediction(studio: FakeStudio, settings: Settings, tmp_path: Path) -> None:
    studio.add(230)
    stub = studio.hold(4, f"{VERSION}-retry", None)
    studio.hold(9, VERSION)
    report, told = answered(settings, tmp_path)
    assert each_once(studio)
    assert stub not in studio.predictions
    assert (report.states["new"], report.masks, report.stopped) == (229, 229, "")
    assert {result.key for result in told} == {str(task) for task in studio.tasks} - {"9"}
    assert len(studio.bulk) < 120  # several in one request
    stored = studio.of(1, VERSION)[0]
    assert stored["result"][0]["value"]["brushlabels"] == ["Object"]
    again, _ = answered(settings, tmp_path)
    assert again.tasks == 0
    assert each_once(studio)


def test_broken_tasks_are_gone_past_and_listed(
    studio: FakeStudio, reasoner: FakeReasoner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studio.add(30)
    studio.tasks[3] = {"image": "/data/upload/1/gone.png", "instruction": "the cup"}
    studio.tasks[5] = {"image": "/data/upload/1/a.png"}
    studio.tasks[7] = {"image": "/data/upload/1/a.png", "instruction": "the broken cup"}
    studio.tasks[8] = {"image": "/data/upload/1/a.png", "instruction": "the crash"}
    studio.tasks[9] = {"image": "/data/upload/1/a.png", "instruction": "the absent cup"}
    status, report, _ = command(capsys, tmp_path)
    assert status == 1
    assert (report["new"], report["failed"], report["stopped"]) == (26, 4, "")
    assert report["reasons"] == {"image": 1, "no_instruction": 1, "reasoner_failed": 1, "internal": 1, "absent": 1}
    assert {one["task"]: one["reason"] for one in report["first_failures"]} == {
        "3": "image", "5": "no_instruction", "7": "reasoner_failed", "8": "internal",
    }  # fmt: skip
    assert studio.of(9, VERSION)[0]["score"] == 0.0
    studio.tasks[7]["instruction"] = "the cup"
    studio.add(1)
    asked = len(reasoner.asked)
    status, report, _ = command(capsys, tmp_path, "--retry-failed")
    assert (status, report["new"], report["failed"]) == (1, 1, 3)
    assert {query.instruction for query in reasoner.asked[asked:]} == {"the cup", "the crash"}
    assert not studio.of(31, VERSION)  # it has not failed: it is not its turn


def test_the_projects_default_instruction_is_used(
    studio: FakeStudio, reasoner: FakeReasoner, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    studio.add(1)
    del studio.tasks[1]["instruction"]
    studio.backends = [{"extra_params": None}, {"extra_params": {"instruction": "the saucer"}}]
    monkeypatch.setenv("RSVP_DEFAULT_INSTRUCTION", "the cup")
    assert command(capsys, tmp_path)[0] == 0
    assert [query.instruction for query in reasoner.asked] == ["the saucer"]


def test_where_predictions_are_not_taken_together_they_go_one_by_one(
    studio: FakeStudio, settings: Settings, tmp_path: Path
) -> None:
    studio.add(60)
    refused: list[str] = []

    def fault(request: Seen) -> Reply | None:
        if not request.path.endswith("/import/predictions"):
            return None
        refused.append(request.path)
        return json_reply({"detail": "You do not have permission to perform this action."}, 403)

    studio.fault = fault
    report, _ = answered(settings, tmp_path)
    assert (report.states["new"], report.states["failed"]) == (60, 0)
    assert each_once(studio)
    assert len(refused) < 10  # it is not tried every time


def test_a_task_that_is_deleted_meanwhile_costs_the_others_nothing(
    studio: FakeStudio, settings: Settings, tmp_path: Path
) -> None:
    studio.add(40)

    def fault(request: Seen) -> None:
        if request.path.endswith("/import/predictions"):
            studio.tasks.pop(11, None)

    studio.fault = fault
    report, _ = answered(settings, tmp_path)
    assert (report.states["new"], report.states["gone"], report.states["failed"]) == (39, 1, 0)
    assert each_once(studio)


def test_a_prediction_stored_by_somebody_else_meanwhile_stays_the_only_one(
    studio: FakeStudio, settings: Settings, tmp_path: Path
) -> None:
    studio.add(5)

    def fault(request: Seen) -> None:
        if request.path.startswith("/data/") and not studio.of(2, VERSION):
            studio.hold(2, VERSION)

    studio.fault = fault
    report, _ = answered(settings, tmp_path)
    assert (report.states["new"], report.states["held"]) == (4, 1)
    assert each_once(studio)


@pytest.mark.parametrize("path", ["/api/tasks", "/import/predictions", "/data/upload", ""])
def test_label_studio_may_be_away_for_a_while(
    studio: FakeStudio, settings: Settings, tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    studio.add(150)
    away = iter(range(12))
    lock = threading.Lock()

    def fault(request: Seen) -> Reply | None:
        wanted = path in request.path or request.path == "/api/current-user/whoami"
        with lock:
            down = bool(studio.bulk) and wanted and next(away, None) is not None
        return json_reply({"detail": "Bad Gateway"}, 502) if down else None

    studio.fault = fault
    report, _ = answered(settings, tmp_path)
    assert report.states["failed"] == 0
    assert each_once(studio)
    assert "Label Studio is waited for" in caplog.text or path == "/data/upload"


def test_an_answer_that_is_lost_makes_no_second_prediction(
    studio: FakeStudio, settings: Settings, tmp_path: Path
) -> None:
    studio.add(12)
    lost = iter([LOST])
    studio.fault = lambda request: next(lost, None) if request.path.endswith("/import/predictions") else None
    report, _ = answered(settings, tmp_path)
    assert report.states["failed"] == 0
    assert each_once(studio)
    assert not Sending(work_folder(settings, PROJECT, tmp_path) / "sending.jsonl").open


def test_what_was_cut_off_by_a_kill_is_looked_at_again(studio: FakeStudio, settings: Settings, tmp_path: Path) -> None:
    """The request of the killed run was stored after its successor had looked: the later one is deleted."""
    studio.add(3)
    folder = work_folder(settings, PROJECT, tmp_path)
    folder.mkdir(parents=True)
    Sending(folder / "sending.jsonl").sent([2], VERSION)
    with (folder / "sending.jsonl").open("a") as stream:
        stream.write('{"stored": [2')  # cut off
    first = studio.hold(2, VERSION)
    studio.hold(2, VERSION)
    answered(settings, tmp_path)
    assert each_once(studio)
    assert first in studio.predictions
    assert not (folder / "sending.jsonl").exists()


def test_label_studio_that_stays_away_ends_the_run_and_the_next_one_goes_on(
    studio: FakeStudio, reasoner: FakeReasoner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studio.add(60)
    studio.fault = lambda _: json_reply({"detail": "down"}, 503) if studio.bulk else None
    status, _, complaint = command(capsys, tmp_path, "--patience", "0.1")
    assert status == 1
    assert "503" in complaint.splitlines()[-1]
    studio.fault = lambda _: None
    status, report, _ = command(capsys, tmp_path)
    assert (status, report["failed"]) == (0, 0)
    assert each_once(studio)


def test_a_request_that_never_works_is_its_tasks_failure(
    studio: FakeStudio, settings: Settings, tmp_path: Path
) -> None:
    studio.add(4)

    def fault(request: Seen) -> Reply | None:
        broken = request.method == "POST" and b'"task":2,' in request.body.replace(b" ", b"")
        return json_reply({"detail": "a fault"}, 500) if broken else None

    studio.fault = fault
    report, told = answered(settings, tmp_path)
    assert (report.states["new"], report.states["failed"]) == (3, 1)
    assert [(one.key, one.reason) for one in told if one.state == "failed"] == [("2", "refused")]


def test_models_that_fail_on_everything_end_the_run(studio: FakeStudio, settings: Settings, tmp_path: Path) -> None:
    studio.add(300, "the broken cup {}")
    report, _ = answered(settings, tmp_path)
    assert "the last 20 tasks failed, reasoner_failed" in report.stopped
    assert report.tasks < 100


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_what_is_under_way(
    studio: FakeStudio, reasoner: FakeReasoner, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    studio.add(200)
    reasoner.gate.clear()

    def interrupt() -> None:
        assert reasoner.entered.wait(20)
        os.kill(os.getpid(), number)
        threading.Timer(0.2, reasoner.gate.set).start()

    threading.Thread(target=interrupt).start()
    status, report, _ = command(capsys, tmp_path)
    assert (status, report["stopped"], report["failed"]) == (130, "interrupted", 0)
    assert 0 < report["new"] == len(reasoner.asked) < 100  # all that was asked is stored
    status, report, _ = command(capsys, tmp_path)
    assert status == 0
    assert each_once(studio)


def test_a_dry_run_stores_nothing(
    studio: FakeStudio, reasoner: FakeReasoner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studio.add(40)
    status, figures, _ = command(capsys, tmp_path, "--dry-run", "--limit", "30")
    assert (status, figures["tasks"], figures["dry_run"], len(figures["first"])) == (0, 30, True, 10)
    assert figures["first"][0]["instruction"] == "the cup 1"
    assert figures["seconds"] is not None
    assert not studio.predictions
    assert cli.main(["prelabel", "--project", str(PROJECT), "--work-dir", str(tmp_path), "--dry-run"]) == 0
    assert "40 tasks lack a prediction" in capsys.readouterr().out


def test_two_at_once_on_one_project_are_refused(studio: FakeStudio, settings: Settings, tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    studio.add(1)
    with alone(work_folder(settings, PROJECT, tmp_path), "project 7"):
        status, _, complaint = command(capsys, tmp_path)
    assert status == 1
    assert "is being pre-labelled by another process" in complaint


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        (["--limit", "0"], 2, "--limit is 0"),
        (["--filter", "nonsense"], 2, "--filter is 'nonsense'"),
        (["--ids", "5-1"], 2, "--ids is '5-1'"),
        (["--view", "3", "--order", "doubt"], 2, "--view has an order of its own"),
        (["--patience", "-1"], 2, "--patience"),
    ],
)
def test_bad_options(
    studio: FakeStudio, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], status: int, said: str
) -> None:
    seen, _, complaint = command(capsys, tmp_path, *more)
    assert seen == status
    assert said in complaint
    assert complaint.count("\n") == 1


def test_what_cannot_be_worked_with_is_one_line(
    studio: FakeStudio, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.label_config = "<View/>"
    status, _, complaint = command(capsys, tmp_path)
    assert (status, complaint.count("\n")) == (2, 1)
    assert "BrushLabels" in complaint
    assert cli.main(["prelabel", "--project", "8", "--work-dir", str(tmp_path)]) == 1
    assert "there is no project 8" in capsys.readouterr().err
    monkeypatch.setenv("RSVP_LABEL_STUDIO_TOKEN", "x" * 40)
    status, _, complaint = command(capsys, tmp_path)
    assert (status, "401" in complaint, complaint.count("\n")) == (1, True, 1)
    monkeypatch.delenv("RSVP_LABEL_STUDIO_TOKEN")
    status, _, complaint = command(capsys, tmp_path)
    assert (status, "RSVP_LABEL_STUDIO_TOKEN" in complaint) == (2, True)


def test_a_token_that_ends_in_the_middle_ends_the_run(studio: FakeStudio, settings: Settings, tmp_path: Path) -> None:
    studio.add(50)
    studio.fault = lambda _: json_reply({"detail": "Invalid token."}, 401) if studio.bulk else None
    with pytest.raises(prelabel_studio_module.LabelStudioError, match="401"):
        answered(settings, tmp_path)
    assert all(len(studio.of(task, VERSION)) <= 1 for task in studio.tasks)


def test_a_version_promoted_meanwhile_is_told(
    studio: FakeStudio, reasoner: FakeReasoner, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from rsvp_backend.training.registry import Registry

    studio.add(2)
    currents = iter(["one", "two"])
    monkeypatch.setenv("RSVP_VERSIONS", str(tmp_path / "versions"))
    monkeypatch.setattr(Registry, "current", lambda self: next(currents))
    status, report, _ = command(capsys, tmp_path)
    assert status == 0
    assert any(f"another version was promoted meanwhile: all of this run is of {VERSION}" in n for n in report["notes"])


def test_client_pages_and_bulk(studio: FakeStudio) -> None:
    studio.add(3)
    with LabelStudioClient(studio.server.url, TOKEN) as client:
        assert client.task_page(PROJECT, {}, page_size=2)["total"] == 3
        assert client.create_predictions(PROJECT, [{"task": 1, "result": [], "score": None, "model_version": "v"}]) == 1
