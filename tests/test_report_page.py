"""The report's page and command: self-contained, escaped, private, and clear about bad input."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_project import SQUARE, annotation, area, changed, drawn, predicted, studio, submitted, task

from rsvp_backend import cli
from rsvp_backend.reports import svg
from rsvp_backend.reports.overlays import ADDED, REMOVED, SIDE_PX, draw
from rsvp_backend.training.reliability import Bin

EVIL = "<script>alert(1)</script>"
ALONE = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """Fails on tags that do not match; ``addresses``: of everything that a browser might load or follow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads, self.links, self.text = list[str](), list[str](), list[str]()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ALONE:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "xlink:href") or (name == "href" and tag != "a"):
                self.loads.append(str(value))
            elif name == "href":
                self.links.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ALONE:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Serves tasks as project 3 and runs the command on it, in the settings of its user."""

    def serve(*tasks: Any, title: str = "Doors") -> Any:
        opened = studio(tasks, title)
        server, _ = opened.__enter__()
        servers.append(opened)
        monkeypatch.setenv("RSVP_LABEL_STUDIO_URL", server.url)
        monkeypatch.setenv("RSVP_LABEL_STUDIO_TOKEN", "x" * 40)
        return server

    servers: list[Any] = []
    yield serve
    for opened in servers:
        opened.__exit__(None, None, None)


def evaluate(folder: Path, *options: str) -> int:
    return cli.main(["evaluate", "project", "--project", "3", "--out", str(folder), *options])


def some_tasks(**data: object) -> list[Any]:
    before = predicted(area(*SQUARE))
    edited = changed(before["result"], area(11, 4, 21, 17))
    tasks = [
        submitted(1, before, before["result"], lead_time=4.0),
        submitted(2, before, edited),
        submitted(3, before, []),
    ]
    tasks.append(task([annotation([drawn(area(0, 0, 9, 9), "Cup")], 4, person=2)], [], 4))
    for one in tasks:
        one["data"] |= data
    return tasks


def test_the_page_needs_nothing_else(project: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = project(*some_tasks())
    assert evaluate(tmp_path) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "project 3, Doors: 4 answers on 4 tasks"
    assert said[2] == "of 3 predicted regions 1 untouched (33%), 1 edited (33%), 1 deleted (33%); 1 drawn by hand"
    assert said[3].startswith("minutes saved: not known, answers with a predicted mask and a lead_time: 1, at")
    text = (tmp_path / "report.html").read_text()
    found = Page(text)
    assert all(address.startswith("data:") for address in found.loads)
    assert len([address for address in found.loads if address.startswith("data:image/jpeg")]) == 2
    assert set(found.links) == {f"{server.url}/projects/3/data?task={n}" for n in (2, 3)}
    assert "script" not in text
    assert not re.search(r"url\(|@import", text)
    assert "what opens the door" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "regions.csv", "report.html"]


def test_json_holds_the_same_numbers(project: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(*some_tasks())
    assert evaluate(tmp_path, "--json", "--worst", "0") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["all"]["kinds"] == {
        "untouched": 1, "edited": 1, "deleted": 1, "missed": 0, "empty, rightly": 0, "by hand": 1,
    }  # fmt: skip
    assert found["all"]["iou"]["mean"] == pytest.approx((1 + 50 / 180 + 0) / 3)
    assert found["all"]["regions"]["changed_px"] == 130
    assert [one["name"] for one in found["versions"]] == ["rsvp-1"]
    assert [one["name"] for one in found["annotators"]] == ["annotator 1", "annotator 2"]
    assert (found["saved"]["known"], found["saved"]["total_s"], found["worst"]) == (False, None, [])


def test_what_people_wrote_is_shown_and_never_run(project: Any, tmp_path: Path) -> None:
    project(*some_tasks(instruction=EVIL), title=EVIL)
    assert evaluate(tmp_path) == 0
    text = (tmp_path / "report.html").read_text()
    assert EVIL not in text
    assert "".join(Page(text).text).count(EVIL) == 4  # title, heading, two instructions


def test_names_are_asked_for_only_on_request(project: Any, tmp_path: Path) -> None:
    server = project(*some_tasks())
    assert evaluate(tmp_path) == 0
    assert "Ada" not in (tmp_path / "report.html").read_text()
    assert "/api/users/" not in server.paths()
    assert evaluate(tmp_path, "--names") == 0
    text = (tmp_path / "report.html").read_text()
    assert "Ada L." in text
    assert "annotator 2" in text  # who has left has a number only
    assert "Ada L." in (tmp_path / "answers.csv").read_text()


def test_an_image_that_is_gone_is_told_on_its_tile(project: Any, tmp_path: Path) -> None:
    project(*some_tasks(image="/data/upload/3/gone.png"))
    assert evaluate(tmp_path) == 0
    text = (tmp_path / "report.html").read_text()
    assert text.count("answered 404: the file is gone") == 2


def test_no_annotations_yet_is_a_report_that_says_so(
    project: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skipped = task([annotation([], was_cancelled=True)])
    for tasks in ((), (skipped,)):
        project(*tasks)
        assert evaluate(tmp_path) == 0
        assert "nothing to report yet" in capsys.readouterr().out
        text = (tmp_path / "report.html").read_text()
        Page(text)
        assert "There is nothing to report yet" in text
    assert "1: skipped" in text


def test_only_drawn_by_hand_is_a_report_without_predictions(project: Any, tmp_path: Path) -> None:
    project(task([annotation([drawn(area(*SQUARE))])]))
    assert evaluate(tmp_path) == 0
    text = (tmp_path / "report.html").read_text()
    assert "No annotation began with a prediction" in text
    assert "<h2>Versions</h2>" not in text


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--project", "99"], 1, "GET /api/projects/99/ answered 404"),
        (["--minutes-by-hand", "0"], 2, "--minutes-by-hand is 0.0: more than 0 is expected"),
        (["--minutes-by-hand", "nan"], 2, "--minutes-by-hand is nan"),
        (["--worst", "-1"], 2, "--worst is -1: 0 or more is expected"),
        (["--out", "/dev/null/x"], 1, "/dev/null/x cannot be written"),
    ],
)
def test_bad_input_is_one_line(
    project: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, said: str
) -> None:
    project(*some_tasks())
    assert evaluate(tmp_path, *options) == status
    heard = capsys.readouterr()
    assert heard.out == ""
    assert next(line for line in heard.err.splitlines() if " INFO " not in line).startswith(f"rsvp-backend: {said}")


def test_no_token_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSVP_LABEL_STUDIO_TOKEN", raising=False)
    assert evaluate(tmp_path) == 2
    assert capsys.readouterr().err.startswith("rsvp-backend: RSVP_LABEL_STUDIO_URL and RSVP_LABEL_STUDIO_TOKEN are not")


def test_overlays_show_what_was_added_and_what_was_removed() -> None:
    image = Image.new("RGB", (60, 40), (120, 160, 90))
    shown = np.asarray(draw(image, area(10, 10, 20, 20), area(15, 10, 25, 20)), dtype=int)
    assert max(shown.shape) == SIDE_PX
    height_px, width_px = shown.shape[:2]
    scale = width_px / 31  # the masks' box, 15 px wide, and 8 px on each side
    middle = height_px // 2

    def color(x_px: float) -> list[int]:
        return [int(value) for value in shown[middle, int((x_px - 2) * scale)]]

    removed, kept, added = color(12), color(17), color(22)
    assert kept == [120, 160, 90]
    assert removed[0] > kept[0] + 20
    assert added[2] > kept[2] + 20
    for seen, tint in ((removed, REMOVED), (added, ADDED)):
        assert np.allclose(seen, 0.4 * np.array(kept) + 0.6 * np.array(tint), atol=1.5)


def test_overlays_of_nothing_show_the_whole_image() -> None:
    shown = draw(Image.new("RGB", (60, 40), "navy"), area(0, 0, 0, 0), area(0, 0, 0, 0))
    assert shown.size == (SIDE_PX, SIDE_PX * 40 // 60)


def test_pictures_on_the_page_can_be_read(project: Any, tmp_path: Path) -> None:
    project(*some_tasks())
    evaluate(tmp_path)
    for url in Page((tmp_path / "report.html").read_text()).loads:
        if url.startswith("data:image/jpeg"):
            image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
            assert max(image.size) == SIDE_PX


def heights(picture: str) -> list[float]:
    return [float(found) for found in re.findall(r'<rect[^>]* height="([\d.]+)"', picture)]


def test_columns_are_as_high_as_their_counts() -> None:
    picture = svg.columns("t", ["a", "b"], [svg.Series("untouched", "x", [4, 1]), svg.Series("edited", "y", [0, 3])])
    tall, short, rest = heights(picture)
    assert (tall, rest) == (pytest.approx(4 * short, abs=0.2), pytest.approx(3 * short, abs=0.2))
    assert "<title>b: 3 y</title>" in picture
    assert "nan" not in svg.columns("t", [], []) + svg.columns("t", ["a"], [svg.Series("c", "x", [0])])


def test_a_trend_leaves_gaps_and_marks_versions() -> None:
    nan = float("nan")
    points = [svg.Point(0.5, 0.4, 0.6, 3), svg.Point(nan, nan, nan, 0), svg.Point(1.0, 1.0, 1.0, 2)]
    picture = svg.trend("t", ["a", "b", "c"], points, [(0, "v1"), (2, "v2")])
    assert picture.count("<circle") == 2
    assert "<title>a: 0.500 (0.400 to 0.600), 3 answers</title>" in picture
    assert picture.count('class="mark"') == 2
    assert "nan" not in picture


def test_the_reliability_diagram_tells_its_counts() -> None:
    picture = svg.reliability("t", [Bin(0.2, 0.3, 7, 0.25, 0.5), Bin(0.9, 1.0, 70, 0.95, 1.0)], "score")
    assert "<title>score 0.25, IoU 0.50, 7 regions</title>" in picture
    assert re.findall(r'class="count"[^>]*>(\d+)<', picture) == ["7", "70"]
