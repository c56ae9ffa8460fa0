"""Distillation from a project: corrections and a teacher's answers over Label Studio's API, to a promoted version."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distill_models import CONFIG, short_prompts
from fake_models import MIDDLE, FakeReasoner
from ls_http import Server, json_reply, serving
from mllm_folders import save_random_mllm
from safetensors.torch import load_file, save_file
from test_ls_corrections import Studio, annotation, area, brushed, predicted, task

from rsvp_backend import cli, distilling, presets
from rsvp_backend.distill_sources import Asked, Project, corrected_examples, taught_examples
from rsvp_backend.distilling import Sources, distill_reasoner
from rsvp_backend.errors import RsvpError, SettingsError
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.lessons import Told
from rsvp_backend.settings import Settings, load_settings, settings_rows
from rsvp_backend.training import durable
from rsvp_backend.training.examples import Source
from rsvp_backend.training.teaching import LeftOut
from rsvp_backend.types import Box, Instance, Marks, Outcome, Proposal, Regions

TOKEN = "0123456789abcdef0123456789abcdef01234567"
ONE_LABEL = default_label_config(["Key"])
MARKS = Marks("bands", 6, 6)
CROP = Box(0, 0, 60, 40)
Dict = dict[str, Any]


def door_key(mask: Any, why: str = "it has rows") -> Instance:
    return Instance(mask, "door key", 0.8, why, CROP, Regions((1,), (1,)), "Key")


def corrected(number: int, mask: Any | None = None, **data: object) -> Dict:
    """A task whose predicted mask was edited (to the same place in each task), or refused."""
    shown = predicted(door_key(area(0, 0, 8, 8)))
    results = [dict(one) for one in shown["result"]]
    if mask is None:
        results = []
    else:
        results[0] |= {"value": brushed(mask, "Key")["value"], "origin": "prediction-changed"}
    return task([annotation(results, parent_prediction=7)], [shown], number, instruction=f"what opens {number}", **data)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def studio(server: Server, tasks: list[Dict], xml: str = ONE_LABEL) -> Studio:
    """Annotated and open tasks of project 3."""
    found = Studio(tasks, xml)
    server.routes |= {
        "/api/projects/3/": found.project, "/api/tasks": found.list, "/api/ml": lambda _: json_reply([]),
    }  # fmt: skip
    return found


@pytest.fixture
def project(server: Server) -> Iterator[Callable[..., Project]]:
    settings = Settings(label_studio_url=server.url, label_studio_token=TOKEN)
    with LabelStudioClient(server.url, TOKEN) as client:

        def made(*tasks: Dict, xml: str = ONE_LABEL, **changes: object) -> Project:
            studio(server, list(tasks), xml)
            return Project(client, 3, settings.model_copy(update=changes))

        yield made


def asked(chooses: bool = False) -> Asked:
    return Asked(MARKS, lambda _: chooses)


def nothing(*_: object) -> None:
    """Tells nobody."""


# --- examples ----------------------------------------------------------------------------------------------------


def test_corrections_become_the_answers_that_would_have_been_right(project: Any) -> None:
    given = project(corrected(1, area(10, 7, 20, 13)), corrected(2))
    shown, refused = corrected_examples(given, asked(), nothing)
    assert (shown.task, shown.query.instruction, shown.query.labels) == (1, "what opens 1", ("Key",))
    assert shown.proposals == (Proposal("door key", True, Regions((2,), (2,)), "it has rows", "Key"),)
    assert shown.load_image().size == (60, 40)
    assert shown.source == Source.CORRECTION
    (absent,) = refused.proposals
    assert (absent.object, absent.present, absent.regions) == ("door key", False, Regions())
    assert (given.reading.tasks, given.notes) == (2, [])


def test_a_prompt_typed_below_the_image_is_what_its_masks_answer(project: Any) -> None:
    one = corrected(1, area(0, 0, 10, 10))
    typed = {"id": "p", "from_name": "prompt", "to_name": "image", "type": "textarea", "value": {"text": ["the lock"]}}
    one["annotations"][0]["result"].append(typed)
    (example,) = corrected_examples(project(one), asked(), nothing)
    assert example.query.instruction == "the lock"


def test_tasks_that_ask_nothing_or_lack_a_label_are_noted(project: Any) -> None:
    silent = corrected(1, area(0, 0, 10, 10))
    del silent["data"]["instruction"]
    given = project(silent)
    assert corrected_examples(given, asked(), nothing) == []
    assert given.notes[0].startswith("task 1 left out: task 1 has no instruction")
    two = default_label_config(["Key", "Cup"])
    unlabelled = task([annotation([brushed(area(0, 0, 9, 9), "Fork")])], number=2)
    given = project(unlabelled, xml=two)
    assert corrected_examples(given, asked(chooses=True), nothing) == []
    assert given.notes == ["task 2 left out: a mask without a label, and there are several to choose from"]


def test_a_teacher_is_asked_about_open_tasks_only(project: Any) -> None:
    tasks = [corrected(1, area(0, 0, 10, 10)), *(task([], number=n, instruction=f"the cup {n}") for n in (2, 3, 4))]
    tasks += [task([], number=5, instruction="broken"), task([], number=6, instruction="")]
    teacher, given, told = FakeReasoner(), project(*tasks, reasoner_concurrency=1), list[Any]()
    taught = taught_examples(given, teacher, asked(), 100, lambda *one: told.append(one))
    assert [query.instruction for query in teacher.asked] == ["the cup 2", "the cup 3", "the cup 4", "broken"]
    assert [(one.task, one.source) for one in taught.examples] == [(n, Source.TEACHER) for n in (2, 3, 4)]
    assert taught.examples[0].proposals[0].regions == MIDDLE
    assert taught.left_out == {LeftOut.FAILED: 1}
    assert given.notes[0].startswith("task 6 left out: task 6 has no instruction")
    assert told[-1] == ("open tasks", 4, 4)
    assert len(taught_examples(given, FakeReasoner(), asked(), 2, nothing).examples) == 2


# --- lessons -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose scores are spread out as a trained one's."""
    folder = save_random_mllm("qwen2_vl", tmp_path_factory.mktemp("model"))
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] *= 20
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def settings(model: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    for variable, _, _ in settings_rows():
        monkeypatch.delenv(variable, raising=False)
    values = {
        "reasoner": f"hf:{model}", "prompts": str(short_prompts(tmp_path / "prompts")), "replay": "none",
        "reasoner_versions": str(tmp_path / "versions"), "label_studio_url": server.url, "label_studio_token": TOKEN,
        "marks_rows": "6", "marks_columns": "6",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"RSVP_{name.upper()}", value)
    return load_settings()


def test_corrections_and_a_teacher_make_a_version_that_is_promoted(
    settings: Settings, server: Server, tmp_path: Path
) -> None:
    """Label Studio has no backend that would follow, which is told."""
    studio(server, [corrected(n, area(10, 7, 20, 13)) for n in range(1, 14)] + [task([], number=20)])
    told: list[Told] = []
    teacher = FakeReasoner()
    found = distill_reasoner(settings, Sources(3, (teacher, MARKS)), told.append, config=CONFIG)
    assert found.promoted, str(found)
    assert found.examples == {"correction": 13, "teacher": 1}
    assert found.scores["held_out_after"] > found.scores["held_out_before"] + 0.3
    assert "no backend of ours that answers" in found.notes[-1]
    stages = list(dict.fromkeys(one.stage for one in told))
    assert stages == ["reading", "teacher", "pictures", "answers", "training", "promoting"]
    registry = presets.reasoner_registry(settings)
    assert registry.current() == found.version
    assert registry.verify(str(found.version)).record.decision == "promote"
    assert not (tmp_path / "versions-work" / "run").exists()
    outcome: Outcome = presets.build(settings)(area_image(), "what opens 99")
    assert [one.object for one in outcome.trace.proposals] == ["door key"]

    again = distill_reasoner(settings, Sources(3, (teacher, MARKS)), config=CONFIG)
    assert again.version is None
    assert f"nothing new since version {found.version}" in again.notes[-1]
    assert len(teacher.asked) == 1  # its answer is on disk
    assert json.loads(json.dumps(again.to_dict()))["examples"] == {"correction": 13, "teacher": 1}


def area_image() -> Any:
    from PIL import Image

    return Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8) + 90)


def test_what_is_no_better_is_kept_as_a_candidate_and_so_is_what_shall_not_be_promoted(
    settings: Settings, server: Server
) -> None:
    from dataclasses import replace

    studio(server, [corrected(n, area(10, 7, 20, 13)) for n in range(1, 14)])
    idle = distill_reasoner(settings, Sources(3), config=replace(CONFIG, steps=1, learning_rate=1e-12))
    assert (idle.promoted, presets.reasoner_registry(settings).current()) == (False, None)
    assert "gain between" in idle.reasons[0]
    assert idle.reasons[0].startswith("score on ")
    better = distill_reasoner(settings, Sources(3), promote=False, config=replace(CONFIG, seed=1))
    assert (better.version, better.promoted) == (None, False)  # the same examples: nothing new
    studio(server, [corrected(n, area(10, 7, 20, 13)) for n in range(1, 15)])
    better = distill_reasoner(settings, Sources(3), promote=False, config=CONFIG)
    assert better.scores["held_out_after"] > better.scores["held_out_before"]
    assert (better.promoted, presets.reasoner_registry(settings).current()) == (False, None)
    assert {one.id for one in presets.reasoner_registry(settings).list()} == {idle.version, better.version}


def test_a_project_without_corrections_has_nothing_to_teach(
    settings: Settings, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    studio(server, [])
    assert cli.main(["distill", "--project", "3"]) == 0
    printed = capsys.readouterr().out
    assert "there is no example to learn from" in printed
    assert printed.endswith("examples: none\nnothing to do\n")


def test_a_project_that_is_refused_is_one_line_and_changes_nothing(
    settings: Settings, server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server.routes["/api/projects/3/"] = lambda _: json_reply({"detail": "You do not have permission"}, 403)
    assert cli.main(["distill", "--project", "3"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("answered 403: You do not have permission")
    assert not (tmp_path / "versions").exists()


def test_a_teacher_of_other_marks_and_a_second_distillation_are_refused(
    settings: Settings, server: Server, tmp_path: Path
) -> None:
    studio(server, [corrected(1, area(10, 7, 20, 13))])
    with pytest.raises(SettingsError, match=r"the teacher reads 4 x 4 cells, .* choose another teacher"):
        distill_reasoner(settings, Sources(3, (FakeReasoner(), Marks("cells", 4, 4))))
    with (
        durable.locked(tmp_path / "versions-work" / "distill.lock", 0.0),
        pytest.raises(RsvpError, match="is used by another distillation"),
    ):
        distill_reasoner(settings, Sources(style="telegraphic"))
    (tmp_path / "file").write_text("")
    unwritable = settings.model_copy(update={"reasoner_versions": tmp_path / "file" / "versions"})
    with pytest.raises(RsvpError, match="cannot be written"):
        distill_reasoner(unwritable, Sources(style="telegraphic"))


def test_the_demo_learns_from_scenes_by_command(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A few steps: what it gains is measured by benchmarks/distill.py."""
    for name in ("REASONER", "PROMPTS", "MARKS_ROWS", "MARKS_COLUMNS"):
        monkeypatch.setenv(f"RSVP_{name}", "")
    command = ["distill", "--scenes", "telegraphic", "--count", "30", "--steps", "3", "--batch", "4", "--json"]
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["examples"], found["steps"], found["promoted"]) == ({"scene": 30}, 3, False)
    assert 0 < found["scores"]["held_out_before"] < 1
    assert found["scores"]["replay_before"] is None
    assert presets.reasoner_registry(load_settings()).get(found["version"]).delta_bytes < 150_000
    assert distilling.Sources(style="telegraphic").project is None
