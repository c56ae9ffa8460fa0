"""Attacks by whoever can reach the server: without credentials, with wrong ones, or with somebody else's browser."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Callable
from typing import Any

from attack_field import ACCOUNT, PHOTO, SECRET, TOKEN, Attacks, Field, attack
from fake_models import fake_rsvp
from fastapi.testclient import TestClient
from uvicorn_server import sent

from rsvp_backend.engine import Engine
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.labelstudio.tags import default_label_config
from rsvp_backend.server import create_app
from rsvp_backend.settings import Settings

CALLERS: Attacks = []
GUARDED = ("/predict", "/setup", "/versions", "/metrics", "/jobs", "/jobs/1", "/traces", "/backlog", "/", "/nowhere")
START = {"action": "START_TRAINING", "project": {"id": 1}}
CREATED = {"action": "ANNOTATION_CREATED", "project": {"id": 2}, "annotation": {"result": []}, "task": {"id": 5}}


def _account(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


@attack(CALLERS, "wrong auth", "no credentials", "401 everywhere but /health")
def _none(field: Field) -> None:
    with field.http(auth=None) as http:
        for path in GUARDED:
            for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
                assert http.request(method, path).status_code == 401, (method, path)


@attack(CALLERS, "wrong auth", "a wrong password, an empty one, another scheme, no base64, two headers", "401")
def _wrong(field: Field) -> None:
    user, password = ACCOUNT
    right = _account(user, password)
    wrong = [
        _account(user, password + "x"), _account(user, password[:-1]), _account(user, ""), _account("", password),
        _account(user.upper(), password), right.replace("Basic", "Bearer"), "Basic", "Basic ????", f"Basic {right}",
        f"Token {TOKEN}", f"Basic {right[6:]}!", "",
    ]  # fmt: skip
    with field.http(auth=None) as http:
        for header in wrong:
            for path in ("/traces", "/metrics", "/jobs", "/backlog", "/health"):
                assert http.get(path, headers={"Authorization": header}).status_code == 401, header
        two = [("Authorization", _account("a", "b")), ("Authorization", right)]
        assert http.get("/traces", headers=two).status_code == 401
        assert http.get("/traces", headers={"Authorization": right}).status_code == 200


@attack(
    CALLERS,
    "wrong auth",
    "other spellings of an open path: `/health/../traces`, `//traces`, `/HEALTH`, `/webhook/`",
    "401",
)
def _spellings(field: Field) -> None:
    for path in (
        "/health/../traces", "//traces", "/HEALTH", "/health/", "/webhook/", "/webhook/../jobs", "/%74races",
        "/traces?/health", "/health%2f..%2ftraces", "/health;/traces", "/./traces", "/traces#/health", "http://localhost/traces",
    ):  # fmt: skip
        reply = sent(field.port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert reply.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400")), path


@attack(
    CALLERS,
    "wrong auth",
    "a file by a trace's id, `/traces/..%2f..%2fetc%2fpasswd`",
    "404: only what has an id's form is looked up",
)
def _trace_file(field: Field) -> None:
    with field.http() as http:
        for path in ("/traces/..%2f..%2fetc%2fpasswd", "/traces/%2e%2e", "/traces/x%00.json"):
            reply = http.get(path)
            assert reply.status_code in (404, 200)
            assert "root:" not in reply.text
            assert reply.status_code == 404 or "traces" in reply.json()


@attack(CALLERS, "webhook", "an event without the secret, or with a wrong one", "401, nothing is counted")
def _no_secret(field: Field) -> None:
    before = field.jobs()
    with field.http(auth=None) as http:
        for headers in ({}, {"X-RSVP-Webhook-Secret": SECRET[:-1]}, {"X-RSVP-Webhook-Secret": ""}):
            for event in (CREATED, START):
                for _ in range(3):
                    assert http.post("/webhook", json=event, headers=headers).status_code == 401
    assert field.jobs() == before


@attack(CALLERS, "webhook", "the webhook's secret, which annotators may see, used to start a training", "401")
def _secret_for_more(field: Field) -> None:
    with field.http(auth=None, headers={"X-RSVP-Webhook-Secret": SECRET}) as http:
        assert http.post("/webhook", json=START).status_code == 401
        assert http.post("/jobs", json={"project": 1}).status_code == 401
        assert http.get("/traces").status_code == 401


def _posted(field: Field, event: dict[str, Any], times: int, **how: Any) -> int:
    """Jobs that come of it."""
    before = field.jobs()
    with field.http(**how) as http:
        for _ in range(times):
            assert http.post("/webhook", json=event).status_code in (200, 202)
    _until(lambda: field.jobs() > before)
    return field.jobs() - before


def _until(happens: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 10
    while not happens() and time.monotonic() < until_s:
        time.sleep(0.05)


@attack(CALLERS, "webhook", "a replayed START_TRAINING, 30 times", "one job")
def _replayed_start(field: Field) -> None:
    assert _posted(field, {**START, "project": {"id": 31}}, 30) == 1


@attack(
    CALLERS,
    "webhook",
    "a replayed ANNOTATION_CREATED, 30 times",
    "one job, delayed; it reads Label Studio, not the events",
)
def _replayed_event(field: Field) -> None:
    assert _posted(field, {**CREATED, "project": {"id": 32}}, 30, headers={"X-RSVP-Webhook-Secret": SECRET}) == 1


@attack(CALLERS, "webhook", "events with odd ids, types and names", "200 or 422, no job")
def _odd_events(field: Field) -> None:
    before = field.jobs()
    with field.http() as http:
        for project in (-1, 0, 2**31, 10**30, "1; drop table jobs", None, [1], {"id": True}, {"id": "1"}, {"id": 1.5}):
            for action in ("START_TRAINING", "ANNOTATION_CREATED", "\ud800", 5, None):
                event = {"action": action, "project": project if isinstance(project, dict) else {"id": project}}
                reply = http.post("/webhook", content=json.dumps(event))
                assert reply.status_code in (200, 422), event
    assert field.jobs() == before


@attack(CALLERS, "other sites", "a page of another site posts a training or a click from a visitor's browser", "403")
def _cross_site(field: Field) -> None:
    with field.http() as http:
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
            for path, body in (("/webhook", START), ("/predict", {"tasks": []}), ("/jobs", {"project": 1})):
                assert http.post(path, json=body, headers=headers).status_code == 403
        plain = {"Content-Type": "text/plain"}  # what a form can send, of a browser that tells nothing
        assert http.post("/jobs", content='{"project": 1}', headers=plain).status_code == 415


@attack(
    CALLERS, "other sites", "a page whose name is made to point to this machine (rebinding), no password set", "421"
)
def _rebinding(_: Field) -> None:
    with TestClient(create_app(Settings(), Engine(fake_rsvp, ImageFetcher(None)))) as client:
        for host in ("evil.example", "evil.example:9090", "127.0.0.1.evil.example", "localhost.evil.example"):
            for path in ("/traces", "/jobs", "/health"):
                assert client.get(path, headers={"Host": host}).status_code == 421
        assert client.get("/traces", headers={"Host": "127.0.0.1:9090"}).status_code == 200


@attack(CALLERS, "header injection", "line breaks in `X-Request-Id`", "replaced, or 400")
def _request_id(field: Field) -> None:
    for value in ("a\rSet-Cookie: x=1", "a\nSet-Cookie: x=1", "a\r\n Set-Cookie: x=1", "a%0d%0aSet-Cookie: x=1"):
        raw = f"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: {value}\r\n\r\n"
        reply = sent(field.port, raw.encode())
        assert b"set-cookie" not in reply.lower()
        assert reply.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))


@attack(
    CALLERS,
    "header injection",
    "line breaks in a labeling config, which a reply's `Location` quotes",
    "no header comes of it",
)
def _location(field: Field) -> None:
    config = '<View><Image name="a&#13;&#10;Set-Cookie: x=1" value="$image"/><Brush name="\r\nSet-Cookie: y=1"/></View>'
    with field.http(headers={"User-Agent": "heartex/1.23.2"}) as http:
        reply = http.post("/setup", json={"project": "1\r\nSet-Cookie: z=1", "schema": config})
    assert reply.status_code == 303
    assert "set-cookie" not in reply.headers
    assert reply.headers["location"].isascii()


@attack(CALLERS, "header injection", "line breaks in an image's address or in a redirect", "refused as no address")
def _address(field: Field) -> None:
    before = len(field.studio.seen)
    field.refused("/data/upload/x HTTP/1.1\r\nX-Evil: 1\r\n\r\n", "not valid")
    assert len(field.studio.seen) == before
    field.studio.routes["/data/upload/n"] = lambda _: (302, {"Location": "/data/\x01\x7f"}, b"")
    field.refused("/data/upload/n", "no address")


@attack(CALLERS, "header injection", "two lengths in one request (smuggling)", "one request is read, or 400")
def _smuggling(field: Field) -> None:
    hidden = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for lengths in ("Content-Length: 0\r\nTransfer-Encoding: chunked", "Content-Length: 3\r\nContent-Length: 40"):
        head = f"POST /webhook HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lengths}\r\n\r\n".encode()
        assert sent(field.port, head + b"0\r\n\r\n" + hidden).count(b"HTTP/1.1") == 1


@attack(CALLERS, "header injection", "line breaks and terminal codes in what is logged", "one record stays one line")
def _forged_line(field: Field) -> None:
    forged = "x\r\n2026-01-01T00:00:00 INFO root: forged\x1b[2J"
    with field.http() as http:
        http.post("/webhook", json={"action": forged, "project": {"id": 1}})
    field.predict(f"/data/{forged}", instruction=forged)
    assert "\n2026-01-01T00:00:00 INFO root: forged" not in field.log()
    assert "\x1b" not in field.log()


@attack(
    CALLERS, "token leak", "the `access_token` that Label Studio sends with /setup", "neither kept, shown nor logged"
)
def _access_token(field: Field) -> None:
    key = "5ec7e7acce5570ce"
    body = {"project": "1.1", "schema": default_label_config(), "access_token": key, "hostname": "http://x"}
    with field.http() as http:
        assert http.post("/setup", json=body).status_code == 200
        shown = "".join(http.get(path).text for path in ("/", "/traces", "/metrics", "/jobs", "/backlog", "/versions"))
    assert key not in shown + field.log()


@attack(CALLERS, "token leak", "the server's own secrets in replies, traces, metrics and logs", "found nowhere")
def _secrets(field: Field) -> None:
    field.predict(PHOTO)
    with field.http() as http:
        shown = "".join(http.get(path).text for path in ("/", "/traces", "/metrics", "/jobs", "/backlog", "/health"))
    traces = "".join(file.read_text() for file in (field.folder / "traces").glob("*.json"))
    for secret in (TOKEN, SECRET, ACCOUNT[1], _account(*ACCOUNT)[6:]):
        assert secret not in shown + field.log() + traces
