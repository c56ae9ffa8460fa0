"""Versions of a reasoner, served and handled: shared with the base, swapped while requests run, by command."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_models import MARKS, tiny_base
from ls_http import Server, serving
from PIL import Image
from test_server import batch, png
from test_versions_cli import TOKEN, Studio
from torch import Tensor

from rsvp_backend import cli, presets
from rsvp_backend.engine import Engine
from rsvp_backend.errors import LabelStudioError, SettingsError
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.labelstudio.promotion import follow_change, served_versions
from rsvp_backend.reasoner.cache import CachedReasoner
from rsvp_backend.reasoner.local import LocalReasoner
from rsvp_backend.reasoner.schema import answer_schema
from rsvp_backend.settings import Settings, load_settings, settings_rows
from rsvp_backend.training import durable, versioned_reasoner
from rsvp_backend.training.reasoner_deltas import ReasonerBase
from rsvp_backend.training.reasoner_lora import adapted_layers
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.versioned_reasoner import VersionedReasoner
from rsvp_backend.training.versions import Record, VersionError
from rsvp_backend.types import Query

PICTURE = Image.new("RGB", (60, 60), "maroon")


def noise(base: ReasonerBase, seed: int = 1) -> dict[str, Tensor]:
    """A delta that turns the answers into others."""
    generator, found = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for name in adapted_layers(base.loaded.model):
        out, width = base.loaded.model.get_submodule(name).weight.shape
        found[f"{name}.weight.lora_a"] = torch.randn(2, width, generator=generator).half()
        found[f"{name}.weight.lora_b"] = torch.randn(out, 2, generator=generator).half()
    return found


def promoted(registry: Registry, base: ReasonerBase, seed: int = 1) -> str:
    version = registry.add_candidate(noise(base, seed), Record(base.version)).id
    return registry.promote(version, base.version).id


def says(reasoner: LocalReasoner) -> str:
    question = reasoner.question(PICTURE, Query("the key"), MARKS)
    return reasoner.complete_many([(question,)], answer_schema(MARKS), None)[0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ReasonerBase:
    return tiny_base("qwen2_vl", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def demo() -> ReasonerBase:
    return presets.reasoner_base(Settings())


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "versions", "RSVP_REASONER_VERSIONS", "RSVP_REASONER")


# --- one reasoner over another -----------------------------------------------------------------------------------


def test_a_promotion_and_its_rollback_are_followed(registry: Registry, tiny: ReasonerBase) -> None:
    served = versioned_reasoner.follow(registry, tiny)
    before = says(served)
    assert (served.version, before) == (tiny.plain.version, says(tiny.plain))
    assert served.source.changed() is None
    promoted(registry, tiny)
    fresh = served.source.changed()
    assert isinstance(fresh, VersionedReasoner)
    assert fresh.version != served.version
    assert says(fresh) != before
    assert says(served) == before  # requests that run end on the old one
    assert fresh.source.changed() is None
    registry.rollback(tiny.version)
    back = fresh.source.changed()
    assert back is not None
    assert (back.version, says(back)) == (served.version, before)


def test_the_current_version_is_served_from_the_start_and_shares_what_it_leaves_alone(
    registry: Registry, tiny: ReasonerBase
) -> None:
    promoted(registry, tiny)
    served = versioned_reasoner.follow(registry, tiny)
    assert served.version != tiny.plain.version
    changed = set(adapted_layers(tiny.loaded.model))
    base = dict(tiny.loaded.model.named_parameters())
    for name, tensor in served.model.named_parameters():
        shared = tensor.data_ptr() == base[name].data_ptr()
        assert shared == (name.removesuffix(".weight") not in changed), name
    assert served._lock is tiny.plain._lock


def test_another_prompt_or_other_marks_make_another_base(tiny: ReasonerBase, registry: Registry) -> None:
    other = ReasonerBase(tiny.loaded, MARKS, tiny.decoding)
    assert len({tiny.version, other.version, ReasonerBase(tiny.loaded, other.marks, prompts=None).version}) == 2
    version = registry.add_candidate(noise(tiny), Record(tiny.version)).id
    with pytest.raises(VersionError, match="set RSVP_REASONER to its own"):
        registry.promote(version, other.version)


def test_a_version_that_cannot_be_used_leaves_the_base_in_place(
    registry: Registry, tiny: ReasonerBase, caplog: pytest.LogCaptureFixture
) -> None:
    served = versioned_reasoner.follow(registry, tiny)
    version = promoted(registry, tiny)
    (registry.folder / version / "delta.safetensors").write_bytes(b"")
    with pytest.raises(VersionError, match=f"version {version} is damaged"):
        served.source.changed()
    assert served.source.changed() is None
    again = versioned_reasoner.follow(registry, tiny)
    assert again.version == tiny.plain.version
    (line,) = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert line.endswith(f"The base weights {tiny.version} are served")
    foreign = registry.add_candidate({"model.x.weight": torch.ones(2)}, Record(tiny.version)).id
    durable.replace(registry.folder / "current", f"{foreign}\n".encode())
    with pytest.raises(VersionError, match="does not fit the reasoner"):
        served.source.changed()


# --- the engine --------------------------------------------------------------------------------------------------


@pytest.fixture
def images() -> Iterator[Server]:
    with serving() as server:
        server.routes["/bus.png"] = lambda _: (200, {}, png(PICTURE))
        yield server


def until(reached: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_a_running_engine_goes_over_to_a_promoted_reasoner(
    images: Server, registry: Registry, demo: ReasonerBase
) -> None:
    from fastapi.testclient import TestClient

    from rsvp_backend.server import create_app

    settings = Settings(reasoner_versions=registry.folder)
    fetcher = ImageFetcher(images.url, None)
    engine = Engine(lambda: presets.build(settings), fetcher, update=presets.updated, poll_s=0.01)
    with TestClient(create_app(settings, engine)) as client:

        def version() -> str:
            reply = client.post("/predict", json=batch(images, ("/bus.png", "the red ball")))
            assert reply.status_code == 200
            return str(reply.json()["results"][0]["model_version"])

        first = version()
        promoted(registry, demo)
        until(lambda: version() != first)
        second = version()
        assert client.get("/health").json()["model_version"] == second
        assert first.rpartition("-")[0] == second.rpartition("-")[0]  # the segmenter is the same
        registry.rollback(demo.version)
        until(lambda: version() == first)


def test_the_server_follows_where_either_folder_is_set(tmp_path: Path) -> None:
    from rsvp_backend.server import make_engine

    assert make_engine(Settings())._update is None
    assert make_engine(Settings(versions=tmp_path / "v"))._update is presets.updated
    assert make_engine(Settings(reasoner_versions=tmp_path / "r"))._update is presets.updated


def test_a_damaged_version_of_one_model_does_not_hold_up_the_other(
    tmp_path: Path, demo: ReasonerBase, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(versions=tmp_path / "v", reasoner_versions=tmp_path / "r")
    rsvp = presets.build(settings)
    promoted(presets.reasoner_registry(settings), demo)
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "current").write_text("demo-00000000\n")
    fresh = presets.updated(rsvp)
    assert fresh is not None
    assert fresh.segmenter is rsvp.segmenter
    assert fresh.reasoner.version != rsvp.reasoner.version
    assert "'demo-00000000' is unknown" in caplog.text
    assert presets.updated(fresh) is None


def test_answers_on_disk_and_their_counts_go_on_under_a_new_version(tmp_path: Path, demo: ReasonerBase) -> None:
    settings = Settings(
        reasoner=f"hf:{presets.DEMO_ASSETS / 'reasoner'}", reasoner_versions=tmp_path / "r", answer_cache=tmp_path / "a"
    )
    rsvp = presets.build(settings)
    assert isinstance(rsvp.reasoner, CachedReasoner)
    rsvp(PICTURE, "the red ball")
    promoted(presets.reasoner_registry(settings), demo)
    fresh = presets.updated(rsvp)
    assert fresh is not None
    assert isinstance(fresh.reasoner, CachedReasoner)
    assert fresh.reasoner.store == rsvp.reasoner.store
    fresh(PICTURE, "the red ball")
    assert rsvp.reasoner.counts == fresh.reasoner.counts == {"stored": 0, "shared": 0, "asked": 2}


# --- commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    for variable, _, _ in settings_rows():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("RSVP_REASONER_VERSIONS", str(tmp_path / "versions"))
    return tmp_path / "versions"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main([*argv])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_versions_of_the_reasoner_by_command(
    folder: Path, capsys: pytest.CaptureFixture[str], demo: ReasonerBase
) -> None:
    registry = Registry(folder)
    version = registry.add_candidate(noise(demo), Record(demo.version)).id
    assert run(capsys, "versions", "--of", "reasoner")[1].startswith(f"  {version}")
    assert run(capsys, "versions", "promote", version, "--of", "reasoner")[0] == 0
    assert registry.current() == version
    assert json.loads(run(capsys, "versions", "--of", "reasoner", "--json")[1])["current"] == version
    assert "the base weights demo-" in run(capsys, "versions", "rollback", "--of", "reasoner")[1]
    foreign = registry.add_candidate({"model.x.weight": torch.ones(2)}, Record(demo.version)).id
    status, _, complaint = run(capsys, "versions", "promote", foreign, "--of", "reasoner")
    assert (status, registry.current()) == (1, None)
    assert "does not fit the reasoner" in complaint
    assert run(capsys, "versions")[::2] == (2, complaint_of("RSVP_VERSIONS is not set: name the folder where the "
                                                            "versions are"))  # fmt: skip


def complaint_of(text: str) -> str:
    return f"rsvp-backend: {text}\n"


@pytest.mark.parametrize(
    ("argv", "variables", "seen"),
    [
        ([], {}, "nothing to learn from: give a Label Studio project, or a style of scenes"),
        (["--project", "1"], {}, "RSVP_LABEL_STUDIO_URL and RSVP_LABEL_STUDIO_TOKEN are not both set"),
        (["--scenes", "telegraphic"], {"REASONER_VERSIONS": ""}, "RSVP_REASONER_VERSIONS is not set"),
        (["--scenes", "telegraphic", "--teacher", "demo"], {}, "--teacher is asked about the open tasks of a project"),
        (["--project", "1", "--teacher", "gpt-4o"], {}, "--teacher, read as RSVP_REASONER: RSVP_REASONER is 'gpt-4o'"),
        (["--project", "1", "--teacher", "openai:gpt-4o"], {}, "needs an API key: set RSVP_REASONER_API_KEY"),
        (["--scenes", "telegraphic", "--steps", "0"], {}, "steps is 0: at least 1 is expected"),
        (["--scenes", "telegraphic", "--batch", "0"], {}, "batch is 0: at least 1 is expected"),
        (["--scenes", "telegraphic", "--rank", "0"], {}, "lora_rank is 0: at least 1 is expected"),
        (["--scenes", "telegraphic", "--rate", "2"], {}, "--rate is 2.0: more than 0 and less than 1 is expected"),
        (["--scenes", "telegraphic", "--count", "0"], {}, "--count is 0: at least 1 is expected"),
        (["--scenes", "telegraphic"], {"REASONER": "openai:gpt-4o"}, "a reasoner on a server has no versions"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    variables: dict[str, str],
    seen: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"RSVP_{name}", value)
    status, printed, complaint = run(capsys, "distill", *argv)
    assert (status, printed, complaint.count("\n")) == (2, "", 1)
    assert seen in complaint
    assert not folder.exists()


def test_without_peft_the_command_says_what_to_install(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    status, _, complaint = run(capsys, "distill", "--scenes", "telegraphic")
    assert (status, complaint) == (
        2, complaint_of("peft is not installed: distillation needs it; pip install 'rsvp-backend[distill]'")
    )  # fmt: skip


def test_a_reasoner_on_a_server_cannot_be_taught() -> None:
    with pytest.raises(SettingsError, match="a model on a server: `demo` or `hf:ID-OR-FOLDER` can be taught"):
        presets.reasoner_base(load_settings(reasoner="http://localhost:1/v1#m"))


# --- Label Studio ------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def test_label_studio_follows_as_soon_as_the_backend_serves_another_version(server: Server) -> None:
    old, new = "rsvp-demo-1-11111111", "rsvp-demo-1-22222222"
    studio = Studio(server, [old, old, new])
    with LabelStudioClient(server.url, TOKEN) as client:
        served = served_versions(client, 3)
        assert served == {old}
        assert follow_change(client, 3, served, pause_s=0.01) == new
    assert studio.patches == [{"project": 3, "url": "http://backend:9090", "title": new}]


def test_a_backend_that_does_not_follow_is_named(server: Server) -> None:
    Studio(server, ["rsvp-demo-1-11111111"])
    with LabelStudioClient(server.url, TOKEN) as client, pytest.raises(LabelStudioError) as caught:
        follow_change(client, 3, frozenset({"rsvp-demo-1-11111111"}), wait_s=0.05, pause_s=0.01)
    assert "project 3's backend at http://backend:9090 still serves rsvp-demo-1-11111111" in str(caught.value)
    assert "RSVP_REASONER_VERSIONS" in str(caught.value)


def test_promoting_by_command_lets_label_studio_follow(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    server: Server,
    demo: ReasonerBase,
) -> None:
    version = Registry(folder).add_candidate(noise(demo), Record(demo.version)).id
    new: Any = "rsvp-demo-1-22222222"
    Studio(server, ["rsvp-demo-1-11111111", new])
    monkeypatch.setenv("RSVP_LABEL_STUDIO_URL", server.url)
    monkeypatch.setenv("RSVP_LABEL_STUDIO_TOKEN", TOKEN)
    status, printed, _ = run(capsys, "versions", "promote", version, "--of", "reasoner", "--project", "3", "--json")
    assert (status, json.loads(printed)) == (0, {"current": version, "model_version": new})
