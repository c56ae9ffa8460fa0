"""The gate: who gets in, from where, and with how large a body; ids of requests."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_models import fake_rsvp
from fastapi.testclient import TestClient
from uvicorn_server import listening, sent

from rsvp_backend.engine import Engine
from rsvp_backend.errors import SettingsError
from rsvp_backend.jobs import intake
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.security import bodies
from rsvp_backend.security.bodies import BodyError, cleaned, read_object
from rsvp_backend.security.credentials import Credentials, is_loopback
from rsvp_backend.security.logs import set_up_logging
from rsvp_backend.server import create_app
from rsvp_backend.settings import Settings

SECRET = "0123456789abcdef-webhook"
ACCOUNT = {"basic_auth_user": "me", "basic_auth_password": "pass:word"}
RIGHT = ("me", "pass:word")
EVENT = {"action": "ANNOTATION_CREATED", "project": {"id": 1}, "annotation": {"result": []}, "task": {"id": 5}}
START = {"action": "START_TRAINING", "project": {"id": 1}}


def app_of(**settings: Any) -> Any:
    return create_app(Settings(**settings), Engine(fake_rsvp, ImageFetcher(None)))


@contextmanager
def running(**settings: Any) -> Iterator[TestClient]:
    with TestClient(app_of(**settings)) as client:
        yield client


# --- who ---------------------------------------------------------------------------------------------------------


def test_every_route_but_health_and_webhook_needs_the_password() -> None:
    with running(**ACCOUNT) as client:
        routes = set(client.app.openapi()["paths"])  # type: ignore[attr-defined]
        assert routes >= {"/metrics", "/jobs", "/traces", "/backlog", "/predict", "/setup", "/versions", "/"}
        for path in routes | {"/nowhere", "/health/", "/webhook/", "//health", "/Health", "/openapi.json"}:
            if path not in ("/health", "/webhook"):
                for method in ("GET", "POST", "PUT", "OPTIONS", "HEAD"):
                    assert client.request(method, path, follow_redirects=False).status_code == 401, (method, path)
        assert client.get("/metrics", auth=RIGHT).status_code == 200


def test_webhooks_need_their_own_secret() -> None:
    with running(**ACCOUNT, webhook_secret=SECRET) as client:

        def status(event: dict[str, Any], **how: Any) -> int:
            return client.post("/webhook", json=event, **how).status_code

        assert status(EVENT) == 401
        assert status(EVENT, headers={"X-RSVP-Webhook-Secret": "wrong"}) == 401
        assert status(EVENT, headers={"X-RSVP-Webhook-Secret": SECRET[:-1]}) == 401
        assert status(EVENT, headers={"Authorization": f"Bearer {SECRET}"}) == 401
        assert status(EVENT, headers={"x-rsvp-webhook-secret": SECRET}) == 200
        assert status(EVENT, auth=("anybody", SECRET)) == 200  # http://anybody:SECRET@host as the backend's address
        assert status(EVENT, auth=RIGHT) == 200
        # Annotators can read a webhook's headers: they begin no training.
        assert status(START, headers={"X-RSVP-Webhook-Secret": SECRET}) == 401
        assert status(START, auth=("anybody", SECRET)) == 401
        assert status(START, auth=RIGHT) == 200
        assert client.get("/traces", headers={"X-RSVP-Webhook-Secret": SECRET}).status_code == 401
        assert client.get("/traces", auth=("anybody", SECRET)).status_code == 401


def test_a_secret_alone_guards_both_kinds_of_events() -> None:
    with running(webhook_secret=SECRET) as client:
        for event in (EVENT, START):
            assert client.post("/webhook", json=event).status_code == 401
            assert client.post("/webhook", json=event, auth=("x", SECRET)).status_code == 200
        assert client.get("/versions").status_code == 200


def test_a_wrong_password_is_told_at_health_and_none_is_not() -> None:
    with running(**ACCOUNT) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/health", auth=RIGHT).status_code == 200
        refused = client.get("/health", auth=("me", "wrong"))
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Basic")
        assert client.get("/health", headers={"Authorization": b"Basic \xff\xfe"}).status_code == 401


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "set RSVP_BASIC_AUTH_USER, RSVP_BASIC_AUTH_PASSWORD, RSVP_WEBHOOK_SECRET, or RSVP_ALLOW_NO_AUTH=true"),
        (ACCOUNT, "set RSVP_WEBHOOK_SECRET, or"),
        ({"webhook_secret": SECRET}, "set RSVP_BASIC_AUTH_USER, RSVP_BASIC_AUTH_PASSWORD, or"),
    ],
)
def test_what_others_can_reach_needs_both(given: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=r"RSVP_HOST is '0.0.0.0', which other machines can reach") as caught:
        app_of(host="0.0.0.0", **given)
    assert named in str(caught.value)
    assert SECRET not in str(caught.value)
    for fine in ({**ACCOUNT, "webhook_secret": SECRET}, {"allow_no_auth": True}):
        assert app_of(host="0.0.0.0", **fine)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
        ("LocalHost", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("backend.example", False),
        ("localhost.evil.example", False), ("127.0.0.1.evil.example", False), ("2130706433", False),
    ],
)  # fmt: skip
def test_loopback_addresses(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_credentials_are_not_shown() -> None:
    shown = repr(Credentials("me", "pass:word", SECRET))
    assert "pass:word" not in shown
    assert SECRET not in shown


# --- from where --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9090", 200), ("localhost:9090", 200), ("[::1]:9090", 200), ("192.168.1.5", 200),
        ("host.docker.internal:9090", 200), ("backend", 200), ("evil.example", 421), ("evil.example:9090", 421),
        ("127.0.0.1.evil.example", 421), ("localhost.evil.example:80", 421), ("evil.example.", 421),
    ],
)  # fmt: skip
def test_names_that_strangers_can_point_here_are_refused(host: str, status: int) -> None:
    with running() as client:
        assert client.get("/traces", headers={"Host": host}).status_code == status
    for settings in (ACCOUNT, {"allow_no_auth": True}):
        with running(**settings) as client:
            reply = client.get("/traces", headers={"Host": host}, auth=RIGHT)
            assert reply.status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200), ({"Sec-Fetch-Site": "same-origin"}, 200), ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://testserver"}, 200), ({"Origin": "https://evil.example"}, 403), ({"Origin": "null"}, 403),
        ({"Origin": "https://proxied.example", "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)  # fmt: skip
def test_pages_of_other_sites_change_nothing(headers: dict[str, str], status: int) -> None:
    with running() as client:
        assert client.post("/webhook", json=START, headers=headers).status_code == status
        assert client.get("/versions", headers=headers).status_code == 200


# --- how much ----------------------------------------------------------------------------------------------------

LIMIT = 2**16


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listening(app_of(max_body_bytes=LIMIT)) as port:
        yield port


def request(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", ""]).encode()


@pytest.mark.parametrize(("path", "limit"), [("/predict", LIMIT), ("/webhook", LIMIT // 16), ("/setup", LIMIT // 16)])
def test_too_large_a_body_is_refused_by_what_it_announces(port: int, path: str, limit: int) -> None:
    reply = sent(port, request(path, f"Content-Length: {limit + 1}"))  # not one byte of it is waited for
    assert reply.startswith(b"HTTP/1.1 413")
    assert b"RSVP_MAX_BODY_BYTES" in reply
    assert sent(port, request(path, f"Content-Length: {10**18}")).startswith(b"HTTP/1.1 413")
    body = b'{"a": "' + b"x" * (limit - 9) + b'"}'
    assert not sent(port, request(path, f"Content-Length: {len(body)}") + body).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(("path", "limit"), [("/predict", LIMIT), ("/webhook", LIMIT // 16), ("/jobs", LIMIT // 16)])
def test_too_large_a_body_is_refused_as_it_comes(port: int, path: str, limit: int) -> None:
    head = request(path, "Transfer-Encoding: chunked", "Content-Type: application/json")
    reply = sent(port, head + b"%x\r\n" % (limit + 1) + b"[" * (limit + 1) + b"\r\n")  # and goes on for ever
    assert reply.startswith(b"HTTP/1.1 413")


def test_a_body_that_drips_is_given_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_S", 0.2)
    for path in ("/predict", "/webhook", "/setup"):
        reply = sent(port, request(path, "Content-Length: 100", "Content-Type: application/json") + b'{"tasks"')
        assert reply.startswith(b"HTTP/1.1 408")


def test_who_hangs_up_midway_leaves_one_line(port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for path in ("/predict", "/webhook"):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request(path, "Content-Length: 100"))
    assert sent(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )
    for _ in range(200):
        if caplog.text.count("hung up in the middle") == 2:
            break
        sent(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert caplog.text.count("hung up in the middle of the body") == 2
    assert "Traceback" not in caplog.text


def test_passwords_are_asked_for_before_a_body_is_read() -> None:
    with listening(app_of(**ACCOUNT)) as port:
        for path in ("/predict", "/setup", "/jobs", "/nowhere"):
            assert sent(port, request(path, "Content-Length: 1000000")).startswith(b"HTTP/1.1 401")


# --- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"null", b"{", b"\xff\xfe{}", b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100_000,
        b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", b'{"a":' * 50_000, b'{"a": 1} x', b'"' + b"\\ud800" + b'"',
    ],
)  # fmt: skip
def test_bodies_that_are_none(raw: bytes) -> None:
    with pytest.raises(BodyError, match=r"^the body is (no JSON object|not JSON that is taken here)"):
        read_object(raw)
    with running() as client:
        for path in ("/webhook", "/setup", "/jobs", "/predict"):
            reply = client.post(path, content=raw, headers={"Content-Type": "application/json"})
            assert reply.status_code in (400, 422), path


def test_what_cannot_be_stored_is_replaced() -> None:
    raw = rb'{"a\ud800": ["\u0000x\udfff", "\ud83d\ude00", 1e999, NaN, -Infinity, true, 5, {"b": "\u00e4"}]}'
    assert read_object(raw) == {"a\ufffd": ["\ufffdx\ufffd", "\U0001f600", None, None, None, True, 5, {"b": "\u00e4"}]}
    assert cleaned([[[1]]], depth=3) == [[[1]]]
    with pytest.raises(ValueError, match="nested more than"):
        cleaned([[[1]]], depth=2)


@pytest.mark.parametrize("path", ["/webhook", "/setup", "/jobs", "/predict"])
def test_lone_surrogates_break_no_reply(path: str) -> None:
    """Neither where they are echoed, nor in the records that come of them."""
    surrogate = "\ud800"
    everything = {
        "action": surrogate, "project": surrogate, "schema": surrogate, "extra_params": {"instruction": surrogate},
        "tasks": [{"id": surrogate, "data": {"image": surrogate, "instruction": surrogate}}],
        "label_config": surrogate,
    }  # fmt: skip
    with running() as client:
        reply = client.post(path, content=json.dumps(everything), headers={"Content-Type": "application/json"})
        assert reply.status_code < 500
        assert client.get("/traces").status_code == 200


# --- ids ---------------------------------------------------------------------------------------------------------


def test_an_id_joins_reply_log_and_trace(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(Settings())
    task = {"id": 5, "data": {"image": "data:,x", "instruction": "the cup"}}
    config = (
        '<View><Image name="i" value="$image"/><BrushLabels name="m" toName="i"><Label value="A"/></BrushLabels></View>'
    )
    body = {"tasks": [task], "label_config": config, "project": "1.1"}
    with running() as client:
        reply = client.post("/predict", json=body, headers={"X-Request-Id": "from-a-proxy.1"})
        assert reply.headers["x-request-id"] == "from-a-proxy.1"
        (trace,) = client.get("/traces").json()["traces"]
    assert (trace["task"], trace["request"]) == (5, "from-a-proxy.1")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "task 5: empty" in line]
    assert "[from-a-proxy.1]: task 5: empty, image: " in line
    assert f"(trace {trace['id']})" in line


def test_a_job_is_logged_with_the_id_of_what_asked_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "ANSWER_S", 20.0)
    given = {
        "versions": tmp_path / "versions",
        "label_studio_url": "http://127.0.0.1:1",
        "label_studio_token": "a-token",
    }
    set_up_logging(Settings(**given))
    with running(**given) as client:
        reply = client.post("/webhook", json=START, headers={"X-Request-Id": "start-7"})
        assert reply.json()["job"] == 1
    assert "[start-7]: job 1 of project 1 is queued: START_TRAINING" in capsys.readouterr().err


@pytest.mark.parametrize("brought", ["", "a b", "x" * 65, "a\tb", "<script>", "-x", "a;b", "\xe4"])
def test_an_id_that_is_none_is_replaced(brought: str) -> None:
    with running() as client:
        headers = {"X-Request-Id": brought.encode("latin-1")}
        given = {client.get("/health", headers=headers).headers["x-request-id"] for _ in range(2)}
        assert len(given) == 2
        assert all(len(one) == 16 and one.isalnum() for one in given)


def test_refused_requests_have_an_id_and_are_not_sniffed() -> None:
    with running(**ACCOUNT) as client:
        refused = client.get("/traces")
        assert refused.status_code == 401
        assert refused.headers["x-request-id"]
        assert refused.headers["x-content-type-options"] == "nosniff"
