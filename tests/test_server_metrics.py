"""/metrics: who may read it, and what it shows before and after the models are loaded."""

from __future__ import annotations

import threading

import pytest
from fake_models import FakeReasoner, fake_rsvp
from fastapi.testclient import TestClient

from rsvp_backend.engine import Engine
from rsvp_backend.labelstudio.images import ImageFetcher, ImageLimits
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.metrics import Metrics, meter_of
from rsvp_backend.pipeline import RSVP
from rsvp_backend.reasoner.cache import CachedReasoner
from rsvp_backend.reasoner.chat import ChatConfig, ChatReasoner
from rsvp_backend.server import create_app
from rsvp_backend.settings import Settings
from rsvp_backend.types import EmptyReason, Outcome, Trace


def engine_of(rsvp: RSVP, gate: threading.Event | None = None) -> Engine:
    def build() -> RSVP:
        assert gate is None or gate.wait(20)
        return rsvp

    return Engine(build, ImageFetcher(None, None, ImageLimits()))


def test_metrics_need_the_same_credentials_as_traces() -> None:
    settings = Settings(basic_auth_user="me", basic_auth_password="secret")  # type: ignore[arg-type]
    with TestClient(create_app(settings, engine_of(fake_rsvp()))) as client:
        assert client.get("/metrics").status_code == client.get("/traces").status_code == 401
        assert client.get("/metrics", auth=("me", "wrong")).status_code == 401
        assert client.get("/metrics", auth=("me", "secret")).status_code == 200
        assert "/metrics" in client.get("/", auth=("me", "secret")).json()["routes"]


def test_metrics_are_there_while_the_models_load() -> None:
    gate = threading.Event()
    with TestClient(create_app(Settings(), engine_of(fake_rsvp(), gate))) as client:
        assert 'rsvp_outcomes_total{reason="found"} 0.0' in client.get("/metrics").text
        gate.set()


def test_refused_tasks_are_counted() -> None:
    with TestClient(create_app(Settings(), engine_of(fake_rsvp()))) as client:
        tasks = [{"id": 1, "data": {}}, {"id": 2, "data": {"image": "file:///etc/passwd", "instruction": "the cup"}}]
        body = {"tasks": tasks, "label_config": default_label_config(), "project": "1.1"}
        client.post("/predict", json=body)
        client.post("/predict", json=body | {"label_config": "<View/>"})
        shown = client.get("/metrics").text.splitlines()
    assert 'rsvp_outcomes_total{reason="image"} 2.0' in shown
    assert 'rsvp_outcomes_total{reason="label_config"} 2.0' in shown


@pytest.mark.parametrize("reason", [None, EmptyReason.ABSENT])
def test_an_outcome_and_its_stages(reason: EmptyReason | None) -> None:
    metrics = Metrics()
    metrics.observe(Outcome((), Trace("the cup", timings_s={"reason": 1.5, "paste": 0.002}), reason))
    shown = metrics.text().decode().splitlines()
    assert f'rsvp_outcomes_total{{reason="{reason or "found"}"}} 1.0' in shown
    assert 'rsvp_stage_seconds_sum{stage="reason"} 1.5' in shown
    assert 'rsvp_stage_seconds_bucket{le="0.01",stage="paste"} 1.0' in shown


def test_counters_are_found_through_wrappers() -> None:
    remote = ChatReasoner(ChatConfig('odd "model"\n'))
    assert meter_of(CachedReasoner(remote)) is remote.meter
    assert meter_of(CachedReasoner(FakeReasoner())) is None
    metrics = Metrics()
    metrics.watch(CachedReasoner(remote))
    assert 'rsvp_reasoner_cost_total{model="odd \\"model\\"\\n"} 0.0' in metrics.text().decode()
