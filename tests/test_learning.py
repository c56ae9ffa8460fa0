"""A lesson over HTTP: what goes wrong is one clear line, and leaves the current version as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ls_http import Reply, Server, json_reply, serving
from test_jobs_worker import Studio

from rsvp_backend import cli
from rsvp_backend.errors import ImageError, LabelConfigError, LabelStudioError, RsvpError, SettingsError
from rsvp_backend.labelstudio.ranking import Ranked, rank
from rsvp_backend.labelstudio.tags import parse_label_config
from rsvp_backend.learning import Lesson, learn
from rsvp_backend.lessons import Told
from rsvp_backend.settings import Settings, load_settings
from rsvp_backend.training import durable
from rsvp_backend.training.finetune_config import FinetuneConfig
from rsvp_backend.training.registry import Registry

CONFIG = FinetuneConfig(steps=2, batch=2, variants=0, lora_rank=2)


@dataclass
class School:
    """A stub of Label Studio with three corrected tasks, and settings that reach it."""

    server: Server
    studio: Studio
    settings: Settings
    told: list[Told] = field(default_factory=list)

    def learn(self, **changed: Any) -> Lesson:
        return learn(self.settings.model_copy(update=changed), 1, self.told.append, config=CONFIG)

    @property
    def registry(self) -> Registry:
        assert self.settings.versions is not None
        return Registry(self.settings.versions)


@pytest.fixture
def school(tmp_path: Path) -> Iterator[School]:
    studio = Studio()
    with serving() as server:
        server.routes |= {
            "/api/projects/1/": studio.project, "/api/tasks": studio.list, "/api/ml": lambda _: json_reply([]),
        }  # fmt: skip
        settings = load_settings(
            versions=tmp_path / "versions", label_studio_url=server.url, label_studio_token="x" * 40, replay="none",
            device="cpu",
        )  # fmt: skip
        yield School(server, studio, settings)


def test_a_lesson_keeps_a_candidate_with_its_reasons(school: School) -> None:
    lesson = school.learn()
    assert (lesson.corrections, lesson.steps, lesson.promoted) == (3, 2, False)
    assert "only 1 tasks are held out: 3 are needed" in str(lesson)
    assert json.loads(json.dumps(lesson.to_dict()))["version"] == lesson.version
    (version,) = school.registry.list()
    assert (version.id, version.record.parent, len(version.record.data)) == (lesson.version, None, 3)
    assert school.registry.current() is None
    again = school.learn()
    assert again.version is None
    assert again.notes == (f"nothing new since version {lesson.version}: it learned from these very corrections",)


def test_the_next_lesson_builds_on_the_current_version(school: School) -> None:
    first = school.learn()
    base = school.registry.get(str(first.version)).record.base
    school.registry.promote(str(first.version), base)
    school.studio.tasks = Studio(4).tasks
    second = school.learn()
    record = school.registry.get(str(second.version)).record
    assert (record.parent, record.base, len(record.data)) == (first.version, base, 4)
    one, both = (school.registry.delta(str(lesson.version)) for lesson in (first, second))
    lora = next(name for name in one if name.endswith(".lora_a"))
    assert (len(one[lora]), len(both[lora])) == (2, 4)


def refusing(status: int, detail: str) -> Callable[[object], Reply]:
    return lambda _: json_reply({"detail": detail}, status)


@pytest.mark.parametrize(
    ("status", "detail"),
    [(401, "Invalid token."), (403, "You do not have permission"), (404, "Not found."), (500, "down")],
)
def test_a_label_studio_that_refuses_is_named(school: School, status: int, detail: str) -> None:
    school.server.routes["/api/projects/1/"] = refusing(status, detail)
    with pytest.raises(LabelStudioError, match=rf"/api/projects/1/ answered {status}: {detail}"):
        school.learn()
    assert school.registry.list() == ()


def test_a_label_config_that_was_changed_is_named(school: School) -> None:
    school.studio.xml = '<View><Image name="image" value="$image"/></View>'
    with pytest.raises(LabelConfigError, match="BrushLabels"):
        school.learn()


def test_tasks_that_are_gone_leave_nothing_to_learn(school: School) -> None:
    school.studio.tasks = []
    lesson = school.learn()
    assert (lesson.version, lesson.corrections) == (None, 0)
    assert "submit annotations first" in str(lesson)


def test_images_that_are_gone_are_left_out_and_told(school: School) -> None:
    school.studio.tasks[1]["data"]["image"] = f"{school.server.url}/data/upload/1/gone.png"
    lesson = school.learn()
    assert lesson.version is not None
    assert len(lesson.notes) == 1
    assert lesson.notes[0].startswith("task 2 left out: ")
    assert "404" in lesson.notes[0]


def test_without_any_image_a_lesson_fails_clearly(school: School) -> None:
    for task in school.studio.tasks:
        task["data"]["image"] = f"{school.server.url}/data/upload/1/gone.png"
    with pytest.raises(ImageError, match="no image of 3 corrections can be read"):
        school.learn()


def test_a_disk_that_takes_nothing_is_named(school: School) -> None:
    work = school.settings.work_folder
    assert work is not None
    work.mkdir()
    (work / "project-1").write_text("a file where the folder should be")
    with pytest.raises(RsvpError, match=r"the checkpoint .*state\.pt cannot be written"):
        school.learn()
    (work / "project-1").unlink()
    assert school.learn().version is not None
    (work / "x").write_text("a file")
    other = school.settings.model_copy(update={"versions": work / "x" / "versions"})
    with pytest.raises(RsvpError, match=r"\(beside RSVP_VERSIONS\) cannot be written: Not a directory"):
        learn(other, 1, config=CONFIG)


def test_one_lesson_at_a_time_per_project(school: School) -> None:
    work = school.settings.work_folder
    assert work is not None
    work.mkdir()
    with (
        durable.locked(work / "project-1.lock", 0.0),
        pytest.raises(RsvpError, match="project 1 is being learned from by another process"),
    ):
        school.learn()


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("versions", "RSVP_VERSIONS is not set"), ("label_studio_token", "RSVP_LABEL_STUDIO_TOKEN are not both set")],
)
def test_what_a_lesson_needs_is_named(school: School, missing: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        school.learn(**{missing: None})


def test_the_command_prints_the_lesson(
    school: School, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("versions", "label_studio_url", "replay", "device"):
        monkeypatch.setenv(f"RSVP_{name.upper()}", str(getattr(school.settings, name)))
    monkeypatch.setenv("RSVP_LABEL_STUDIO_TOKEN", "x" * 40)
    assert cli.main(["finetune", "--project", "1", "--steps", "1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["corrections"], record["promoted"], record["scores"]["replay_before"]) == (3, False, None)
    assert cli.main(["finetune", "--project", "1"]) == 0
    assert "nothing new since version" in capsys.readouterr().out
    assert cli.main(["finetune", "--project", "1", "--steps", "0"]) == 2
    assert "--steps is 0: at least 1 is expected" in capsys.readouterr().err
    assert cli.main(["finetune", "--project", "7"]) == 1
    assert "/api/projects/7/" in capsys.readouterr().err


def predicted(task: int, score: float | None, *others: dict[str, Any]) -> dict[str, Any]:
    newest = {"id": 10, "model_version": "new", "score": score, "result": []}
    return {"id": task, "predictions": [*others, newest]}


def test_doubt_disagreement_and_chance_decide_the_order(school: School) -> None:
    (shown,) = school.studio.tasks[0]["predictions"]
    old = {"id": 1, "model_version": "old", "score": 0.9, "result": shown["result"]}
    tasks = [predicted(1, 0.9), predicted(2, 0.4), {"id": 3, "predictions": []}, predicted(4, 0.95, old)]
    config = parse_label_config(school.studio.xml)
    found = rank(tasks, config, random_share=0.0)
    assert [one.task for one in found] == [3, 4, 2, 1]
    assert [one.reason for one in found] == [
        "not predicted yet",
        "score 0.95, the two newest versions' masks have an IoU of 0.00",
        "score 0.40",
        "score 0.90",
    ]
    many = [predicted(n, n / 100) for n in range(100)]
    mixed = rank(many, config, random_share=0.1, seed=1)
    assert sorted(one.task for one in mixed) == list(range(100))
    drawn = [place for place, one in enumerate(mixed, 1) if one.at_random]
    assert drawn == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    rest = [one.task for one in mixed if not one.at_random]
    assert rest == sorted(rest)


def test_equal_masks_of_two_versions_do_not_disagree(school: School) -> None:
    (shown,) = school.studio.tasks[0]["predictions"]
    twice = [shown | {"id": n, "model_version": f"v{n}", "score": 0.8} for n in (1, 2)]
    config = parse_label_config(school.studio.xml)
    assert rank([{"id": 1, "predictions": twice}], config) == [Ranked(1, 0.8, 0.0)]
    twice[0] = copied_with_size(twice[0], 7)
    assert rank([{"id": 1, "predictions": twice}], config) == [Ranked(1, 0.8, None)]


def copied_with_size(prediction: dict[str, Any], width_px: int) -> dict[str, Any]:
    return prediction | {"result": [result | {"original_width": width_px} for result in prediction["result"]]}
