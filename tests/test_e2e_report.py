"""The report on a project of the real Label Studio: submitted untouched, edited, deleted, drawn, and rightly empty."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_project import CONFIG, HEIGHT_PX, SQUARE, WIDTH_PX, XML, area, changed, drawn

from rsvp_backend import cli
from rsvp_backend.demo import label_studio
from rsvp_backend.demo.label_studio import Home
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.login import create_personal_token
from rsvp_backend.labelstudio.regions import prediction
from rsvp_backend.types import Box, Instance, Outcome, Regions, Trace

pytestmark = pytest.mark.e2e
HOME = Home(Path(__file__).parents[1] / Home().root)
NAMES = ("untouched", "edited", "deleted", "missed", "empty", "by hand", "skipped", "open")
KINDS = {"empty": "empty, rightly"}
EDITED = (11, 4, 21, 17)  # 50 of SQUARE's 100 px and 80 others


def say(line: str) -> None:
    print(line)  # noqa: T201


def predicted(found: bool, version: str) -> dict[str, Any]:
    key = Instance(area(*SQUARE), "door key", 0.75, "Keys open doors.", Box(2, 2, 30, 30), Regions(), "Key")
    return prediction(Outcome((key,) if found else (), Trace("what opens the door")), CONFIG, version)


@dataclass(frozen=True)
class Answered:
    """A project with one task of each of `NAMES`; ``tasks``: their ids by name."""

    client: LabelStudioClient
    token: str
    project: int
    tasks: dict[str, int]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answered]:
    """A Label Studio without a backend: what people submit does not depend on what a model finds."""
    label_studio.prepare(HOME, say)
    data = tmp_path_factory.mktemp("report")
    child, url, account = label_studio.start(HOME, data, say)
    try:
        token = create_personal_token(url, account.email, account.password)
        with LabelStudioClient(url, token) as client:
            project = int(client.create_project("Doors", XML)["id"])
            yield Answered(client, token, project, fill(client, project, data / "door.png"))
    finally:
        child.stop()


def fill(client: LabelStudioClient, project: int, path: Path) -> dict[str, int]:
    Image.new("RGB", (WIDTH_PX, HEIGHT_PX), "navy").save(path)
    (uri,) = client.upload_files(project, [path])
    data = [{"data": {"image": uri, "instruction": "what opens the door", "name": name}} for name in NAMES]
    client.import_tasks(project, data)
    ids = {task["data"]["name"]: int(task["id"]) for task in client.tasks(project)}
    for name in NAMES[:-1]:
        submit(client, ids[name], name)
    return ids


def submit(client: LabelStudioClient, task: int, name: str) -> None:
    """As the editor does it, with a lead_time."""
    parent, results = None, [drawn(area(0, 0, 20, 10), "Cup")]
    if name != "by hand":
        version = "rsvp-2" if name == "edited" else "rsvp-1"
        shown = client.create_prediction(task, predicted(name not in ("missed", "empty"), version))
        parent = shown["id"]
        results = results if name == "missed" else copy.deepcopy(shown["result"])
    if name == "edited":
        results = changed(results, area(*EDITED))
    if name == "deleted":
        results = []
    lead_s = 20.0 if name in ("missed", "by hand") else 5.0
    answer = {"result": results, "parent_prediction": parent, "was_cancelled": name == "skipped", "lead_time": lead_s}
    client.create_annotation(task, answer)


@pytest.fixture
def asked(answered: Answered, monkeypatch: pytest.MonkeyPatch) -> Answered:
    """In the settings of one who asks."""
    monkeypatch.setenv("RSVP_LABEL_STUDIO_URL", answered.client.base_url)
    monkeypatch.setenv("RSVP_LABEL_STUDIO_TOKEN", answered.token)
    return answered


def evaluate(project: int, folder: Path, *options: str) -> int:
    return cli.main(["evaluate", "project", "--project", str(project), "--out", str(folder), *options])


def test_the_report_has_the_numbers_of_what_was_submitted(
    asked: Answered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(asked.project, tmp_path, "--json", "--minutes-by-hand", "1") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["all"]["kinds"] == {
        "untouched": 1, "edited": 1, "deleted": 1, "missed": 1, "empty, rightly": 1, "by hand": 1,
    }  # fmt: skip
    assert found["all"]["iou"]["mean"] == pytest.approx((1 + 50 / 180 + 0 + 0) / 4)
    assert found["all"]["regions"]["changed_px"] == 130
    versions = {one["name"]: (one["answers"], one["iou"]["mean"]) for one in found["versions"]}
    assert versions == {"rsvp-1": (4, pytest.approx(1 / 3)), "rsvp-2": (1, pytest.approx(50 / 180))}
    assert found["left_out"] == [{"reason": "skipped", "count": 1, "first_tasks": [asked.tasks["skipped"]]}]
    assert {kind: spread["q50"] for kind, spread in found["lead_s"].items()} == {
        "untouched": 5, "edited": 5, "deleted": 5, "missed": 20, "empty, rightly": 5, "by hand": 20,
    }  # fmt: skip
    assert found["saved"]["why_not"].startswith("answers with a predicted mask and a lead_time: 3, at least 5")
    worst = [(one["task"], one["iou"]) for one in found["worst"]]
    assert worst == [(asked.tasks["missed"], 0), (asked.tasks["deleted"], 0), (asked.tasks["edited"], 50 / 180)]


def test_the_page_shows_the_worst_and_leads_to_their_tasks(asked: Answered, tmp_path: Path) -> None:
    assert evaluate(asked.project, tmp_path) == 0
    text = (tmp_path / "report.html").read_text()
    assert text.count('src="data:image/jpeg;base64,') == 3
    url = f"{asked.client.base_url}/projects/{asked.project}/data?task={asked.tasks['edited']}"
    assert f'href="{url}"' in text
    rows = list(csv.DictReader((tmp_path / "answers.csv").open()))
    kinds = {int(row["task"]): row["kind"] for row in rows}
    assert kinds == {asked.tasks[name]: KINDS.get(name, name) for name in NAMES[:6]}


def test_names_come_from_label_studio(asked: Answered, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    me = asked.client.whoami()
    assert evaluate(asked.project, tmp_path) == 0
    assert str(me["email"]) not in (tmp_path / "report.html").read_text()
    assert evaluate(asked.project, tmp_path, "--names") == 0
    assert str(me["email"]) in (tmp_path / "report.html").read_text()


def test_a_project_without_annotations_and_one_that_is_not_there(
    asked: Answered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = int(asked.client.create_project("empty", XML)["id"])
    assert evaluate(empty, tmp_path) == 0
    assert "nothing to report yet" in capsys.readouterr().out
    assert evaluate(99999, tmp_path) == 1
    assert "99999" in capsys.readouterr().err
