"""Which variants an experiment has, sampled answers, fresh connectors, and the command on the demo preset."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rsvp_backend import cli, presets
from rsvp_backend.errors import ReasonerError, SettingsError
from rsvp_backend.experiment_plans import NO_STEPS, REASONERS, Options, make_plan
from rsvp_backend.experiment_who import Models, read_all
from rsvp_backend.experiments.connectors import CONNECTORS, config_of, train, with_connector
from rsvp_backend.experiments.sampling import SampledChat, SampledGuide, SampledLocal
from rsvp_backend.experiments.variants import Pipeline, Plan
from rsvp_backend.grid import visual_prompt
from rsvp_backend.pipeline import PipelineConfig
from rsvp_backend.reasoner.chat import ChatConfig, Features
from rsvp_backend.reasoner.constrained import FreeGuide
from rsvp_backend.reasoner.prompts import Prompt
from rsvp_backend.scenes import make_scene
from rsvp_backend.settings import Settings, load_settings, settings_rows
from rsvp_backend.training.pretrain_data import read_data
from rsvp_backend.training.reasoner_deltas import ReasonerBase
from rsvp_backend.types import Marks, Query
from rsvp_backend.vlsm import weights

REMOTE = "http://localhost:1/v1#some-model"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for variable, _, _ in settings_rows():
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def settings() -> Settings:
    return load_settings()


@pytest.fixture(scope="module")
def base() -> ReasonerBase:
    return presets.reasoner_base(load_settings())


def plan(name: str, settings: Settings, reasoners: str | None = None, **options: object) -> Plan:
    return make_plan(name, Models(settings), Options(reasoners, **options))  # type: ignore[arg-type]


def names(made: Plan) -> list[str]:
    return [variant.name for variant in made.variants]


def test_the_demo_is_asked_in_the_marks_that_it_reads(settings: Settings) -> None:
    made = plan("grid", settings)
    assert names(made) == [
        "oracle/5x5", "oracle/9x9", "oracle/13x13", "oracle:0.5/5x5", "oracle:0.5/9x9", "oracle:0.5/13x13", "demo/9x9",
    ]  # fmt: skip
    assert made.notes == (
        "demo was trained on 9 x 9 bands and 9 x 9 cells and reads no other marks: it is not asked in 5x5, 13x13.",
    )


def test_a_model_on_a_server_is_asked_in_all(settings: Settings) -> None:
    assert names(plan("grid", settings, REMOTE)) == ["some-model/5x5", "some-model/9x9", "some-model/13x13"]
    assert names(plan("encoding", settings, REMOTE)) == [
        "some-model/bands", "some-model/cells", "some-model/bands@320px", "some-model/bands@160px",
        "some-model/bands-no-steps",
    ]  # fmt: skip


def test_the_demos_prompt_stays_its_own(settings: Settings) -> None:
    """It was trained on one question: a prompt without steps would not reach it."""
    assert names(plan("encoding", settings, "demo")) == [
        "demo/bands", "demo/cells", "demo/bands@320px", "demo/bands@160px", "demo/bands-short",
    ]  # fmt: skip


def test_other_plans(settings: Settings) -> None:
    assert names(plan("padding", settings, "oracle")) == ["oracle/0%", "oracle/20%", "oracle/40%"]
    assert plan("mllm", settings).reference == "demo"
    assert names(plan("mllm", settings)) == ["stage 1/oracle", "stage 1/demo", "stage 1/whole-image"]
    assert names(plan("zoom", settings)) == ["demo/off", "demo/auto", "demo/always"]
    assert [v.value for v in plan("connector", settings).variants] == list(CONNECTORS)
    assert names(plan("connector", settings, checkpoints=("a", "b"))) == ["oracle/a", "oracle/b"]
    drawn = plan("temperature", settings, repeats=3, temperatures=(0.0, 0.7))
    assert [(v.name, v.repeats) for v in drawn.variants] == [("demo/0", 1), ("demo/0.7", 3)]
    assert all(plan(name, settings).variants for name in REASONERS)
    robust = plan("robustness", settings, repeats=3)
    changed = names(robust)
    assert {"oracle/as-it-is", "oracle/mirrored", "demo/jpeg-10", "demo/wording-3"} <= set(changed)
    assert not any(name.startswith("oracle/wording") for name in changed)  # it reads no instructions
    assert not any("wording" in name for name in names(plan("robustness", settings, scenes=False)))
    assert [(v.name, v.repeats) for v in robust.variants if v.repeats > 1] == [("demo/seeds", 3)]


@pytest.mark.parametrize(
    ("name", "reasoners", "message"),
    [
        ("grid", "oracle:2", "oracle:P with P from 0 to 1"),
        ("grid", "oracle:often", "oracle:P with P from 0 to 1"),
        ("grid", "gpt", "'gpt' is given, one of oracle"),
        ("grid", " , ", "one or more of oracle"),
        ("zoom", "oracle", "knows whole pictures only"),
        ("temperature", "whole-image", "only a language model has one"),
    ],
)
def test_reasoners_that_make_no_sense(settings: Settings, name: str, reasoners: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(name, settings, reasoners)


def test_who_is_named_once_and_short(settings: Settings) -> None:
    found = read_all(f"oracle, oracle,hf:/models/Qwen2-VL-2B/,{REMOTE},openai:gpt-4o", settings)
    assert [who.label for who in found] == ["oracle", "Qwen2-VL-2B", "some-model", "openai:gpt-4o"]


def test_the_prompts_without_steps_can_be_asked() -> None:
    for kind in ("bands", "cells"):
        shipped, short = Prompt.load(f"rsvp_{kind}"), Prompt.load(f"rsvp_{kind}", NO_STEPS)
        text = short.ask(Query("the cup"), Marks(kind, 9, 9))
        assert "Think step by step" in shipped.question
        assert "step" not in text
        assert '"the cup"' in text


def test_draws_follow_the_temperature() -> None:
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0])
    for temperature in (0.5, 1.0):
        guide = SampledGuide(FreeGuide(frozenset()), temperature, torch.Generator().manual_seed(0))
        drawn = Counter(guide.take(scores, 0, 9) for _ in range(4000))
        expected = torch.softmax(scores / temperature, 0)
        assert [drawn[n] / 4000 for n in range(4)] == pytest.approx(expected.tolist(), abs=0.03)


def test_a_local_model_draws_the_same_again(base: ReasonerBase) -> None:
    scene = make_scene(10_000_003)
    question, query = scene.questions[0], Query(scene.questions[0].instruction)
    marks = base.marks
    picture = visual_prompt(scene.image, marks, base.plain.canvas_px)
    cold = SampledLocal(base.loaded, base.decoding, base.prompts, 0.01)
    assert cold.propose(picture, query, marks, None) == base.plain.propose(picture, query, marks, None)
    hot = SampledLocal(base.loaded, base.decoding, base.prompts, 3.0)
    answers = [hot.repeated(n).propose(picture, query, marks, None).raw_texts[0] for n in (0, 1, 2, 0)]
    assert answers[0] == answers[3]
    assert len(set(answers)) > 1
    assert len({base.plain.version, cold.version, hot.version}) == 3
    assert question.present


def test_a_server_is_told_temperature_and_repeat() -> None:
    chat = SampledChat(ChatConfig("m"), 0.5).repeated(3)
    body = chat._body([], {}, Features())
    assert (body["temperature"], body["seed"]) == (0.5, 3)
    with pytest.raises(ReasonerError, match="takes no temperature"):
        chat._body([], {}, Features(temperature=False))


@pytest.mark.parametrize("name", list(CONNECTORS))
def test_a_fresh_connector_stands_on_the_same_encoders(name: str) -> None:
    loaded = weights.load(presets.DEMO_ASSETS / "vlsm")
    made, again = (with_connector(loaded, CONNECTORS[name], seed=1).model.state_dict() for _ in range(2))
    old = loaded.model.state_dict()
    encoders = [key for key in old if not key.startswith(("connector.", "text_hidden_fcs."))]
    assert all(torch.equal(made[key], old[key].float()) for key in encoders)
    assert made.keys() - set(encoders)
    assert all(torch.equal(made[key], again[key]) for key in made)
    fresh = "text_hidden_fcs.0.0.weight"
    assert made[fresh].shape != old[fresh].shape or not torch.equal(made[fresh], old[fresh].float())


def test_a_trained_connector_is_trained_once(tmp_path: Path) -> None:
    source, steps = presets.DEMO_ASSETS / "vlsm", []
    config = replace(config_of(2, seed=0), evaluate_on=4, batch=2, log_every=1)
    data = read_data(["scenes:easy"])
    versions = []
    for _ in range(2):
        place = train(
            source, CONNECTORS["concat"], data, config, tmp_path / "concat", lambda told: steps.append(told.step)
        )
        versions.append(weights.load(place).version)
    assert steps == [1, 2]
    assert versions[0] == versions[1]
    assert weights.load(place).model.config.connector.kind == "concat"


def command(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(["experiment", *argv, "--seeds", "10000000:10000003"])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_one_command_gives_table_csv_and_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    argv = ["grid", "--variants", "oracle,demo", "--limit", "3", "--out", str(folder), "--json"]
    status, out, err = command(capsys, *argv)
    found = json.loads(out)
    assert (status, found["questions"]) == (0, 3)
    by_name = {one["variant"]: one for one in found["variants"]}
    assert list(by_name) == ["oracle/5x5", "oracle/9x9", "oracle/13x13", "demo/9x9"]
    assert all(one["asked"] == 3 and one["missing"] == 0 for one in found["variants"])
    assert by_name["oracle/9x9"]["measures"]["crop_recall"]["value"] == 1.0
    assert by_name["oracle/9x9"]["measures"]["giou"]["value"] > 0.9
    assert {path.name for path in folder.iterdir()} == {
        "rows.jsonl", "table.md", "figures.csv", "summary.json", "plot.png", "plot.svg",
    }  # fmt: skip
    assert "demo/9x9: 3 of 3" in err
    status, table, _ = command(capsys, *argv[:-1])
    assert status == 0
    assert table.startswith("| stage 1 | marks (bands) |")
    assert len((folder / "rows.jsonl").read_text().splitlines()) == 12  # nothing was asked again


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["grid", "--limit", "0"], "--limit is 0: at least 1"),
        (["grid", "--variants", "7x7"], "'7x7' fits none of oracle/5x5"),
        (["temperature", "--temperatures", "warm"], "--temperatures is 'warm'"),
        (["temperature", "--temperatures", "-1"], "numbers from 0 to 2"),
        (["connector", "--checkpoints", ","], "--checkpoints is ','"),
        (["grid", "--data", "reasonseg:nowhere"], "nowhere is no folder"),
        (["grid", "--data", "nothing"], "NAME:ROOT is expected"),
        (["grid", "--data", "reasonseg:x", "--level", "easy"], "--level is of scenes"),
        (["grid", "--seeds", "5"], "--seeds is '5'"),
    ],
)
def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    status = cli.main(["experiment", *argv])
    err = capsys.readouterr().err
    assert status in (1, 2)
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_the_last_model_alone_stays_loaded(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def segmenter_of(asked: Settings) -> str:
        loads.append(asked.vlsm)
        return f"segmenter {asked.vlsm}"

    monkeypatch.setattr(presets, "segmenter_of", segmenter_of)
    models = Models(settings)
    assert [models.segmenter(place) for place in ("a", "a", "b", "a")] == [
        "segmenter a", "segmenter a", "segmenter b", "segmenter a",
    ]  # fmt: skip
    assert loads == ["a", "b", "a"]


def test_the_version_of_a_variant_tells_what_is_asked(base: ReasonerBase, settings: Settings) -> None:
    """Padding, marks, noise and temperature each make another version, so that no row is taken for another's."""
    models = Models(settings)
    versions = set()
    for reasoners, name in (("oracle,oracle:0.5", "padding"), ("oracle", "grid")):
        made = plan(name, settings, reasoners)
        versions |= {variant.load().version for variant in made.variants}
    assert len(versions) == 3 + 3 + 2  # 9x9 with 20 % is in both
    drawn = Pipeline(models.drawn(read_all("demo", settings)[0], 0.5), models.segmenter(), PipelineConfig())
    greedy = Pipeline(models.drawn(read_all("demo", settings)[0], 0.0), models.segmenter(), PipelineConfig())
    assert drawn.version != greedy.version
    assert np.unique([drawn.version, *versions]).size == 9
