"""The backend as a `label-studio-ml` 2.x model: what `rsvp-backend serve` answers, by that package's server.

The contract is tested with a base class of the package's shape, and with the package itself where it is installed.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fake_models import FakeReasoner, fake_rsvp
from fastapi.testclient import TestClient
from label_studio_sdk.label_interface.objects import PredictionValue
from ls_http import Server, serving
from pydantic import BaseModel
from test_server import SIZE_PX, captured, engine_of, on, png

from rsvp_backend.engine import NotReadyError
from rsvp_backend.errors import SettingsError, WeightsError
from rsvp_backend.jobs import intake
from rsvp_backend.jobs.job import State as JobState
from rsvp_backend.jobs.service import Jobs
from rsvp_backend.labelstudio import ml_base
from rsvp_backend.pipeline import RSVP
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, make_scene
from rsvp_backend.server import create_app
from rsvp_backend.serving.in_process import Service
from rsvp_backend.settings import Settings

PACKAGE = find_spec("label_studio_ml") is not None
CAPTURED = (
    "predict_batch",
    "predict_interactive_prompt",
    "predict_interactive_keypoints",
    "predict_interactive_rectangle",
    "predict_interactive_empty_context",
)
JSON = dict[str, Any]
Call = Callable[[str, JSON], Any]


class Response(BaseModel):
    """As ``label_studio_ml.response.ModelResponse``."""

    model_version: str | None = None
    predictions: list[list[PredictionValue] | PredictionValue]


class Base:
    """As ``label_studio_ml.model.LabelStudioMLBase``: made for each request, with a memory of texts by project."""

    INITIAL_MODEL_VERSION = "0.0.1"
    memory: ClassVar[dict[tuple[str, str], str]] = {}

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.set("label_config", label_config)
        if not self.get("model_version"):
            self.set("model_version", self.INITIAL_MODEL_VERSION)
        self.setup()

    def setup(self) -> None:
        """Of the model."""

    def set_extra_params(self, extra_params: Any) -> None:
        self.set("extra_params", extra_params)

    def get(self, key: str) -> str | None:
        return self.memory.get((self.project_id, key))

    def set(self, key: str, value: str) -> None:
        assert isinstance(value, str), "Value must be a string"
        self.memory[self.project_id, key] = value


def contract_call(path: str, body: JSON) -> Any:
    """A request as the package's server handles it."""
    backend = ml_base.backend_class(Base, Response)
    body = json.loads(json.dumps(body))
    if path == "/predict":
        model = backend(str(body["project"]).split(".", 1)[0], body["label_config"])
        params = body.get("params", {})
        context = params.pop("context", {})
        return {"results": model.predict(body["tasks"], context=context, **params).model_dump()["predictions"]}
    if path == "/setup":
        model = backend(body["project"].split(".", 1)[0], body["schema"])
        if body.get("extra_params"):
            model.set_extra_params(body["extra_params"])
        return {"model_version": model.get("model_version")}
    event = body.pop("action")
    project = body["project"]
    return {"result": backend(str(project["id"]), project["label_config"]).fit(event, body), "status": "ok"}


def package_call(path: str, body: JSON) -> Any:
    """The same by the package."""
    application = importlib.import_module("label_studio_ml.api").init_app(ml_base.RsvpMLBackend)
    reply = application.test_client().post(path, json=body)
    assert reply.status_code in (200, 201), reply.text
    return reply.json


@pytest.fixture(params=[contract_call, *([package_call] if PACKAGE else [])])
def call(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    monkeypatch.setattr(Base, "memory", {})
    monkeypatch.setattr(intake, "ANSWER_S", 30.0)
    found: Call = request.param
    return found


@pytest.fixture
def images() -> Iterator[Server]:
    scene = make_scene(EVALUATION_SEEDS_FROM, "easy")
    with serving() as server:
        for path in ("/zebra.jpg", "/bus.jpg", "/data/upload/17/8f1e32f3-zebra.jpg"):
            server.routes[path] = lambda _: (200, {}, png(scene.image.resize(SIZE_PX)))
        yield server


@contextmanager
def served(images: Server, build: Callable[[], RSVP] = fake_rsvp, **settings: Any) -> Iterator[Service]:
    """The process's service for the time being, over ``build``'s models."""
    engine = engine_of(images, fake_rsvp())
    engine._build = build
    found = Service(Settings(**settings), engine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ml_base._services, os.getpid(), found)
        try:
            yield found
        finally:
            found.close()


def loaded(service: Service) -> str:
    assert service.engine._settled.wait(60)
    return service.engine.ready().version


def comparable(results: list[JSON]) -> list[JSON]:
    """Without what is new in every reply: the ids of regions and traces."""
    found = json.loads(json.dumps(results))
    for result in found:
        names = {region["id"]: index for index, region in enumerate(result["result"])}
        for region in result["result"]:
            region["id"] = names[region["id"]]
            region.get("meta", {}).get("rsvp", {}).pop("trace_id", None)
    return [{"result": result["result"], **_told(result)} for result in found]


def _told(result: JSON) -> JSON:
    """Label Studio reads nothing but the regions of an interactive answer that is empty."""
    return {name: result.get(name) for name in ("score", "model_version")} if result["result"] else {}


# --- the same predictions --------------------------------------------------------------------------------------------


def test_captured_requests_get_the_predictions_of_the_own_server(call: Call, images: Server) -> None:
    with TestClient(create_app(Settings(), engine_of(images, fake_rsvp()))) as client, served(images) as service:
        loaded(service)
        regions = 0
        for name in CAPTURED:
            body = on(images, captured(name))
            own = client.post("/predict", json=body).json()["results"]
            answered = call("/predict", body)["results"]
            assert comparable(answered) == comparable(own), name
            regions += sum(len(result["result"]) for result in answered)
    assert regions >= 6


def test_a_task_without_an_answer_keeps_the_version_that_is_asked_for_again(call: Call, images: Server) -> None:
    with served(images) as service:
        version = loaded(service)
        results = call("/predict", on(images, captured("predict_batch")))["results"]
    # The first task has no instruction.
    assert [result["model_version"] for result in results] == [f"{version}-retry", version, version]


def test_the_demo_preset_finds_the_object(call: Call, images: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's own service, from its settings: the weights that ship."""
    scene = make_scene(EVALUATION_SEEDS_FROM, "easy")
    question = next(question for question in scene.questions if question.kind == "name" and question.present)
    images.routes["/scene.png"] = lambda _: (200, {}, png(scene.image))
    monkeypatch.setenv("RSVP_LABEL_STUDIO_URL", images.url)
    monkeypatch.setattr(ml_base, "_services", {})
    body = captured("predict_batch")
    body["tasks"] = [{"id": 1, "data": {"image": f"{images.url}/scene.png", "instruction": question.instruction}}]
    try:
        (result,) = call("/predict", body)["results"]
        assert ml_base.service() is ml_base.service()
    finally:
        ml_base.service().close()
    assert [region["type"] for region in result["result"]] == ["brushlabels", "textarea"]


# --- one engine per process ------------------------------------------------------------------------------------------


def test_models_are_loaded_once_for_all_requests(call: Call, images: Server) -> None:
    builds = []

    def build() -> RSVP:
        builds.append(1)
        return fake_rsvp()

    with served(images, build) as service:
        loaded(service)
        for _ in range(3):
            call("/setup", captured("setup"))
            call("/predict", on(images, captured("predict_batch")))
    assert builds == [1]


def test_a_forked_process_makes_a_service_of_its_own(images: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads do not survive a fork: the parent's service would never answer."""
    with served(images) as parents:
        assert ml_base.service() is parents
        monkeypatch.setattr(ml_base, "_services", dict(ml_base._services))
        monkeypatch.setattr(ml_base, "make_engine", lambda _: engine_of(images, fake_rsvp()))
        monkeypatch.setattr("os.getpid", lambda: -1)
        own = ml_base.service()
        assert own is not parents
        assert own is ml_base.service()
        own.close()


def test_a_closed_service_ends_its_threads(images: Server) -> None:
    with served(images) as service:
        loaded(service)
        service.close()
        assert not service._thread.is_alive()
        service.close()


# --- setup -----------------------------------------------------------------------------------------------------------


def test_setup_names_the_version_that_is_served(call: Call, images: Server) -> None:
    with served(images) as service:
        version = loaded(service)
        assert call("/setup", captured("setup")) == {"model_version": version}


def test_setup_names_no_version_while_the_models_load(images: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the package's 0.0.1 nor that of an earlier process: predictions would be taken for done."""
    monkeypatch.setattr(Base, "memory", {("17", "model_version"): "an-earlier-one"})
    reasoner = FakeReasoner()
    reasoner.gate.clear()

    def build() -> RSVP:
        assert reasoner.gate.wait(20)
        return fake_rsvp(reasoner)

    with served(images, build) as service:
        assert contract_call("/setup", captured("setup")) == {"model_version": ""}
        reasoner.gate.set()
        version = loaded(service)
        assert contract_call("/setup", captured("setup")) == {"model_version": version}


def test_models_that_do_not_load_are_told(images: Server) -> None:
    def build() -> RSVP:
        raise WeightsError("model.safetensors is damaged")

    with served(images, build) as service:
        assert service.engine._settled.wait(20)
        for path, body in (("/setup", captured("setup")), ("/predict", captured("predict_batch"))):
            with pytest.raises(NotReadyError, match=r"model\.safetensors is damaged"):
                contract_call(path, body)


def test_extra_params_hold_the_projects_default_instruction(call: Call, images: Server) -> None:
    with served(images) as service:
        version = loaded(service)
        body = {**captured("setup"), "extra_params": {"instruction": "the cup"}}
        assert call("/setup", body) == {"model_version": version}
        results = call("/predict", on(images, captured("predict_batch")))["results"]
    assert results[0]["result"][0]["meta"]["rsvp"]["instruction"] == "the cup"


def test_a_config_without_a_mask_tag_is_warned_of(call: Call, images: Server, caplog: pytest.LogCaptureFixture) -> None:
    schema = '<View><Image name="image" value="$image"/></View>'
    with served(images) as service:
        loaded(service)
        call("/setup", {**captured("setup"), "schema": schema})
    assert '<BrushLabels name="mask" toName="image">' in caplog.text


# --- events ----------------------------------------------------------------------------------------------------------


def test_start_training_queues_a_job(call: Call, images: Server, tmp_path: Path) -> None:
    settings = {
        "versions": tmp_path / "versions", "label_studio_url": images.url, "label_studio_token": "0123456789abcdef",
        "backlog_tasks": 0,
    }  # fmt: skip
    with served(images, **settings) as service:
        loaded(service)
        reply = call("/webhook", captured("webhook_start_training"))
        jobs = Jobs.of(Settings(**settings)).store.all()
    assert (reply["status"], reply["result"]["status"]) == ("ok", "accepted")
    assert [(job.id, job.project, job.state) for job in jobs] == [(reply["result"]["job"], 17, JobState.QUEUED)]


def test_a_correction_is_counted(call: Call, images: Server, tmp_path: Path) -> None:
    settings = {
        "versions": tmp_path / "versions", "label_studio_url": images.url, "label_studio_token": "0123456789abcdef",
        "backlog_tasks": 0, "train_every": 2,
    }  # fmt: skip
    with served(images, **settings) as service:
        loaded(service)
        replies = [call("/webhook", captured("webhook_annotation_created"))["result"] for _ in range(2)]
    assert "job" not in replies[0]
    assert "2 corrections make a job" in replies[0]["detail"]
    assert "job" in replies[1]


def test_what_lacks_for_training_is_told(call: Call, images: Server) -> None:
    with served(images) as service:
        loaded(service)
        reply = call("/webhook", captured("webhook_start_training"))
    assert "RSVP_VERSIONS" in reply["result"]["detail"]


# --- the package -----------------------------------------------------------------------------------------------------


def test_without_the_package_the_class_says_what_to_install() -> None:
    if PACKAGE:
        assert issubclass(ml_base.RsvpMLBackend, ml_base.RsvpModel)
        assert ml_base.RsvpMLBackend is ml_base.RsvpMLBackend
        return
    for use in (lambda: ml_base.RsvpMLBackend, ml_base.wsgi):
        with pytest.raises(ImportError, match=r"needs label-studio-ml 2\.x.*pip install .*@[0-9a-f]{40}"):
            use()


def test_the_module_has_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Backend'"):
        ml_base.Backend  # noqa: B018


def test_the_application_is_not_offered_to_other_machines_without_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSVP_HOST", "0.0.0.0")
    with pytest.raises(SettingsError, match="RSVP_BASIC_AUTH_USER"):
        ml_base.wsgi()
