"""All that a chat endpoint does wrong, through the whole backend: an outcome with its reason, counted in /metrics."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint, Step, breaks_off, completion, hangs, refuses, reply, says, streams, trickles_at
from fake_models import FakeSegmenter
from fastapi.testclient import TestClient
from ls_http import serving
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from rsvp_backend.engine import Engine
from rsvp_backend.labelstudio.images import ImageFetcher, ImageLimits
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.pipeline import RSVP
from rsvp_backend.reasoner import endpoint
from rsvp_backend.reasoner.cache import CachedReasoner
from rsvp_backend.reasoner.chat import ChatConfig, ChatReasoner
from rsvp_backend.reasoner.endpoint import EndpointConfig
from rsvp_backend.server import create_app
from rsvp_backend.settings import Settings

DEADLINE_S = 1.0
KEY = "sk-very-secret"
CUP = json.dumps({"proposals": [
    {"object": "cup", "present": True, "rows": [4, 5], "columns": [3], "reasoning": "It holds tea."},
]})  # fmt: skip
NEXT_HOUR = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


@dataclass(frozen=True)
class Case:
    """What the endpoint does each time it is asked, and what must come of it. ``calls``: by result, as in /metrics."""

    step: Step
    reason: str
    detail: str
    calls: dict[str, float]


FAILED, INVALID = "reasoner_failed", "invalid_answer"
CASES = {
    "429": Case(refuses(429, "slow down"), FAILED, "answers 429: slow down (tried 3 times)", {"rate_limited": 3}),
    "429, again at once": Case(refuses(429, "x", retry_after="0"), FAILED, "tried 3 times", {"rate_limited": 3}),
    "429, again in an hour": Case(
        refuses(429, "x", retry_after="3600"), FAILED, "no time is left to wait 3600.0 s", {"rate_limited": 1}
    ),
    "429, again at a date": Case(
        refuses(429, "x", retry_after=NEXT_HOUR), FAILED, "no time is left to wait", {"rate_limited": 1}
    ),
    "429, no credit": Case(
        refuses(429, "You exceeded your quota", "insufficient_quota"), FAILED, "plan and credit", {"rate_limited": 1}
    ),
    "500": Case(refuses(500, "oops"), FAILED, "answers 500: oops (tried 3 times)", {"server_error": 3}),
    "502, a page": Case(
        reply(502, b"<html>Bad Gateway</html>", content_type="text/html"), FAILED, "Bad Gateway", {"server_error": 3}
    ),
    "500, a page that never ends": Case(trickles_at(500), "deadline", "was over before", {"timeout": 1}),
    "500, 10 MB": Case(reply(500, b"x" * 10_000_000), FAILED, "more than 2097152 bytes", {"invalid_reply": 1}),
    "401": Case(refuses(401, f"bad key {KEY}"), FAILED, "RSVP_REASONER_API_KEY", {"rejected": 1}),
    "400": Case(refuses(400, "no"), FAILED, "refuses the request: no", {"refused": 3}),
    "400, a detail": Case(
        reply(422, b'{"detail": [{"msg": "Field required"}]}'), FAILED, "Field required", {"refused": 3}
    ),
    "hang": Case(hangs, "deadline", "was over before", {"timeout": 1}),
    "trickle": Case(trickles_at(200), "deadline", "was over before", {"timeout": 1}),
    "cut stream": Case(breaks_off, FAILED, "broke off", {"broken_off": 3}),
    "prose": Case(says("The cup is on the left."), INVALID, "no JSON object", {"answered": 2}),
    "fenced JSON": Case(says(f"```json\n{CUP}\n```"), "found", "", {"answered": 1}),
    "thinking in the text": Case(says(f"<think>{{a cup?}}</think>{CUP}"), "found", "", {"answered": 1}),
    "thinking only": Case(
        says("<think>hm", finish_reason="length"), INVALID, "RSVP_REASONER_MAX_TOKENS", {"answered": 1}
    ),
    "broken JSON": Case(says(CUP[:-9]), INVALID, "the JSON is broken", {"answered": 2}),
    "ids out of range": Case(says(CUP.replace("[3]", "[33]")), INVALID, "columns holds 33", {"answered": 2}),
    "no text": Case(says(None), INVALID, "no JSON object", {"answered": 2}),
    "10 MB": Case(says("x" * 10_000_000), FAILED, "more than 2097152 bytes", {"invalid_reply": 1}),
    "wrong content type": Case(
        reply(200, b"<html>Welcome</html>", content_type="text/html"), FAILED, "20 bytes of text/html",
        {"invalid_reply": 1},
    ),
    "right text, wrong content type": Case(
        reply(200, completion(CUP), content_type="text/plain"), "found", "", {"answered": 1}
    ),
    "a stream of events": Case(streams(CUP), FAILED, "of text/event-stream", {"invalid_reply": 1}),
    "no completion": Case(reply(200, b'{"ok": true}'), FAILED, "no chat completion", {"answered": 1}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)


@pytest.fixture(scope="module")
def image_url() -> Iterator[str]:
    file = io.BytesIO()
    Image.new("RGB", (90, 72), "gray").save(file, "PNG")
    with serving() as server:
        server.routes["/a.png"] = lambda _: (200, {"Content-Type": "image/png"}, file.getvalue())
        yield f"{server.url}/a.png"


def backend(base_url: str, image_url: str) -> TestClient:
    config = ChatConfig("org/model", EndpointConfig(base_url, KEY, timeout_s=30.0))
    rsvp = RSVP(CachedReasoner(ChatReasoner(config)), FakeSegmenter())
    fetcher = ImageFetcher(image_url.rpartition("/")[0], None, ImageLimits(timeout_s=10.0))
    return TestClient(create_app(Settings(predict_timeout_s=DEADLINE_S), Engine(lambda: rsvp, fetcher)))


def samples(text: str, name: str, label: str) -> dict[str, float]:
    """The values above 0 of one metric by one of its labels."""
    families = text_string_to_metric_families(text)
    found = [sample for family in families for sample in family.samples if sample.name == name]
    return {sample.labels[label]: sample.value for sample in found if sample.value}


@pytest.mark.parametrize("name", CASES)
def test_every_failure_has_its_reason_and_is_counted(name: str, image_url: str) -> None:
    case = CASES[name]
    task = {"id": 1, "data": {"image": image_url, "instruction": "the cup"}}
    body: dict[str, Any] = {"tasks": [task], "label_config": default_label_config(), "project": "1.1"}
    with FakeEndpoint(case.step).running() as base_url, backend(base_url, image_url) as client:
        answer = client.post("/predict", json=body)
        (trace,) = client.get("/traces").json()["traces"]
        shown = client.get("/metrics").text
    assert answer.status_code == 200
    assert (trace["reason"] or "found", bool(answer.json()["results"][0]["result"])) == (
        case.reason, case.reason == "found",
    )  # fmt: skip
    assert case.detail in trace["detail"]
    assert samples(shown, "rsvp_outcomes_total", "reason") == {case.reason: 1.0}
    assert samples(shown, "rsvp_reasoner_calls_total", "result") == case.calls
    assert KEY not in shown + json.dumps(trace)
    # The fake hangs for 30 s: this tells an end at the deadline from an end of the fake, on slow machines as well.
    assert trace["timings_s"]["reason"] < DEADLINE_S + 10


def test_tokens_and_stage_times_are_shown(image_url: str) -> None:
    task = {"id": 1, "data": {"image": image_url, "instruction": "the cup"}}
    body = {"tasks": [task], "label_config": default_label_config(), "project": "1.1"}
    with FakeEndpoint(says(CUP)).running() as base_url, backend(base_url, image_url) as client:
        client.post("/predict", json=body)
        shown = client.get("/metrics")
    assert shown.headers["content-type"].startswith("text/plain; version=")
    assert samples(shown.text, "rsvp_reasoner_tokens_total", "kind") == {"input": 100, "output": 20}
    assert samples(shown.text, "rsvp_reasoner_questions_total", "how") == {"asked": 1}
    assert set(samples(shown.text, "rsvp_stage_seconds_count", "stage")) >= {"fetch", "mark", "reason", "segment"}
