"""The server while many ask at once: who is let in, who goes first, what is computed once, and what it shows of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_models import FakeReasoner, FakeSegmenter, fake_rsvp
from fastapi.testclient import TestClient
from ls_http import Server, serving
from PIL import Image
from test_server import batch, captured, clicked, engine_of, masks, png, running

from rsvp_backend.engine import Engine
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.pipeline import RSVP
from rsvp_backend.server import create_app, make_engine
from rsvp_backend.serving.answering import Answered, Asked, Batch
from rsvp_backend.serving.turns import Demand, Turns, Urgency
from rsvp_backend.settings import Settings
from rsvp_backend.types import Deadline, EmptyReason

DASHBOARD = Path(__file__).parents[1] / "docker" / "grafana.json"


@pytest.fixture
def images() -> Iterator[Server]:
    picture = png(Image.new("RGB", (90, 72), "gray"))
    with serving() as server:
        server.routes["/bus.jpg"] = lambda _: (200, {}, picture)
        yield server


@pytest.fixture
def reasoner() -> FakeReasoner:
    """Closed: whoever asks waits until ``gate`` is set."""
    reasoner = FakeReasoner()
    reasoner.gate.clear()
    return reasoner


def until(reached: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def shown(client: TestClient, name: str) -> float:
    """A metric's value; ``name`` with its labels."""
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


def named(count: int, name: str) -> list[tuple[str, str]]:
    return [("/bus.jpg", f"the {name} {number}") for number in range(count)]


def test_past_the_bound_a_request_is_sent_away_with_a_time_to_come_again(
    images: Server, reasoner: FakeReasoner
) -> None:
    with running(engine_of(images, fake_rsvp(reasoner)), max_requests=2) as client, ThreadPoolExecutor() as pool:
        inside = [pool.submit(client.post, "/predict", json=batch(images, *named(3, f"cup{n}"))) for n in range(2)]
        until(lambda: shown(client, 'rsvp_requests{class="batch"}') == 2)
        refused = client.post("/predict", json=batch(images, ("/bus.jpg", "the ball")))
        assert (refused.status_code, "results" in refused.json()) == (503, False)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "RSVP_MAX_REQUESTS" in refused.json()["detail"]
        assert client.get("/health").json()["status"] == "UP"
        assert client.post("/setup", json=captured("setup")).status_code == 200
        click = {"context": clicked((50.0, 50.0, True))}
        clicking = pool.submit(client.post, "/predict", json=batch(images, ("/bus.jpg", None), params=click))
        reasoner.gate.set()
        assert all(len(future.result(20).json()["results"]) == 3 for future in inside)
        assert clicking.result(20).status_code == 200
        assert client.post("/predict", json=batch(images, ("/bus.jpg", "the ball"))).status_code == 200
        assert shown(client, "rsvp_requests_refused_total") == 1
        assert shown(client, 'rsvp_requests{class="batch"}') == 0


def test_a_click_goes_before_a_batch_and_a_single_task_is_not_starved(images: Server, reasoner: FakeReasoner) -> None:
    order: list[str] = []

    class Noting(FakeSegmenter):
        def segment(self, pictures: Any, prompts: Any) -> Any:
            order.append(prompts[0].text or "click")
            return super().segment(pictures, prompts)

    engine = engine_of(images, RSVP(reasoner, Noting()))
    with running(engine) as client, ThreadPoolExecutor() as pool:
        big = pool.submit(client.post, "/predict", json=batch(images, *named(20, "cup")))
        assert reasoner.entered.wait(20)
        single = pool.submit(client.post, "/predict", json=batch(images, ("/bus.jpg", "the ball")))
        until(lambda: shown(client, 'rsvp_requests{class="batch"}') == 2)
        click = {"context": clicked((50.0, 50.0, True))}
        clicking = pool.submit(client.post, "/predict", json=batch(images, ("/bus.jpg", None), params=click))
        until(lambda: len(engine.turns._waiting) == 3)  # one more of the batch, the single one, the click
        reasoner.gate.set()
        for future in (big, single, clicking):
            assert all(masks(result) for result in future.result(20).json()["results"])
    assert order[0].startswith("cup")  # it was on the models already
    assert order[1] == "click"
    assert "ball" in order[2:4]
    assert len(order) == 22


def test_equal_tasks_of_many_clients_are_computed_once(images: Server, reasoner: FakeReasoner) -> None:
    with running(engine_of(images, fake_rsvp(reasoner))) as client, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.post, "/predict", json=batch(images, *named(3, "cup"))) for _ in range(8)]
        until(lambda: shown(client, 'rsvp_requests{class="batch"}') == 8)
        reasoner.gate.set()
        for future in asked:
            assert [len(masks(result)) for result in future.result(20).json()["results"]] == [1, 1, 1]
        assert len(reasoner.asked) == 3
        computed, shared, kept = (
            shown(client, f'rsvp_cache_lookups_total{{cache="answers",how="{how}"}}')
            for how in ("computed", "shared", "kept")
        )
    assert (computed, shared + kept) == (3, 21)


def test_who_joins_a_computation_with_less_time_left_goes_on_alone(images: Server, reasoner: FakeReasoner) -> None:
    """The first one's time is over while it waits for the models; the second one's is not."""
    reasoner.gate.set()
    rsvp = fake_rsvp(reasoner)
    engine = engine_of(images, rsvp)
    body = batch(images, ("/bus.jpg", "the ball"))
    (task,), config = body["tasks"], body["label_config"]

    def ask(seconds: float) -> Answered:
        return engine.answerer.answer(rsvp, task, Asked.of(Batch([task], config), Deadline.after(seconds)))

    with ThreadPoolExecutor() as pool:
        with engine.turns.turn(Demand(Urgency.BATCH)):
            late = pool.submit(ask, 1.0)
            until(lambda: engine.answerer.answers.counts()["computed"] == 1)
            patient = pool.submit(ask, 20.0)
            assert late.result(20).outcome.reason is EmptyReason.DEADLINE
        assert patient.result(20).final
    assert engine.answerer.answers.counts()["computed"] == 2


def test_a_remote_reasoner_is_asked_about_as_many_tasks_at_a_time_as_set() -> None:
    remote = make_engine(Settings(reasoner="http://127.0.0.1:9/v1#m", reasoner_concurrency=6)).turns
    local = make_engine(Settings(reasoner_concurrency=6)).turns
    assert (remote.slots, remote.spare, local.slots, local.spare) == (6, 1, 1, 0)


def test_tasks_are_answered_by_several_at_a_time_where_a_server_reasons(images: Server, reasoner: FakeReasoner) -> None:
    engine = Engine(lambda: fake_rsvp(reasoner), ImageFetcher(images.url), turns=Turns(slots=3, spare=1))
    with running(engine) as client, ThreadPoolExecutor() as pool:
        big = pool.submit(client.post, "/predict", json=batch(images, *named(9, "cup")))
        until(lambda: len(reasoner.asked) == 3)
        click = {"context": clicked((50.0, 50.0, True))}
        reply = client.post("/predict", json=batch(images, ("/bus.jpg", None), params=click))
        assert masks(reply.json()["results"][0])  # while all three wait for the reasoner
        assert shown(client, "rsvp_computing_tasks") == 3
        reasoner.gate.set()
        assert len(big.result(20).json()["results"]) == 9


def test_memory_is_shown_and_embeddings_are_counted(images: Server) -> None:
    settings = Settings(label_studio_url=images.url)
    with TestClient(create_app(settings, make_engine(settings))) as client:
        client.post("/predict", json=batch(images, ("/bus.jpg", "the cup")))
        assert 'rsvp_cache_lookups_total{cache="embeddings",how="computed"}' in client.get("/metrics").text
        assert shown(client, 'rsvp_memory_bytes{device="cpu"}') > 10 * 2**20
        version = client.get("/versions").json()["versions"][0]
        assert shown(client, f'rsvp_version_info{{version="{version}"}}') == 1


def test_every_expression_of_the_dashboard_uses_metrics_that_exist(images: Server, tmp_path: Path) -> None:
    settings = {
        "versions": tmp_path / "versions", "label_studio_url": images.url, "label_studio_token": "t" * 40,
        "reasoner": "http://127.0.0.1:9/v1#m",
    }  # fmt: skip
    with TestClient(create_app(Settings(**settings))) as client:
        until(lambda: client.get("/health").json()["state"] == "ready")
        client.post("/predict", json=batch(images, ("/bus.jpg", "the cup")))
        text = client.get("/metrics").text
    samples = re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE)
    names = {name for name, _ in samples} | set(re.findall(r"^# TYPE (\w+) gauge", text, re.MULTILINE))
    labels = {label for _, inside in samples for label in re.findall(r"(\w+)=", inside)}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(expressions) >= 12
    for expression in expressions:
        used = set(re.findall(r"\brsvp_\w+", expression))
        assert used, expression
        assert used <= names, expression
        grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
        assert grouped <= labels | {"le"}, expression
    used = {name for expression in expressions for name in re.findall(r"\brsvp_\w+", expression)}
    assert {re.sub("_(total|bucket|sum|count)$", "", name) for name in used} >= {
        "rsvp_waiting_tasks", "rsvp_wait_seconds", "rsvp_stage_seconds", "rsvp_outcomes", "rsvp_reasoner_tokens",
        "rsvp_reasoner_cost", "rsvp_cache_lookups", "rsvp_memory_bytes", "rsvp_version_info", "rsvp_backlog_tasks",
        "rsvp_jobs", "rsvp_requests_refused",
    }  # fmt: skip
