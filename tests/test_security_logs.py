"""Logs: one record a line, with its request's id, in text or JSON, and without secrets."""

from __future__ import annotations

import base64
import io
import json
import logging
import logging.config
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn.config
from pydantic import SecretStr

from rsvp_backend.jobs.job import Job, State
from rsvp_backend.jobs.running import Running
from rsvp_backend.jobs.store import JobStore
from rsvp_backend.security.logs import JsonFormatter, RecordFilter, TextFormatter, set_up_logging
from rsvp_backend.security.masking import Mask, secrets_of
from rsvp_backend.security.request_ids import _current
from rsvp_backend.settings import Settings

VALUES = {
    "reasoner_api_key": "sk-reasoner-0001",
    "queue": "redis://:queue-password-2@localhost:6379/0",
    "label_studio_token": "label-studio-token-3",
    "basic_auth_password": "pässword:4/with marks",
    "webhook_secret": "webhook-secret-number-5",
}
SETTINGS = Settings(label_studio_url="http://localhost:8080", basic_auth_user="me", **VALUES)  # type: ignore[arg-type]
LOG = logging.getLogger("rsvp_backend.test")


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What a handler writes that has the filter and, by the parameter, one of the formatters."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RecordFilter(Mask.of(SETTINGS)))
    handler.setFormatter(getattr(request, "param", TextFormatter)())
    LOG.addHandler(handler)
    LOG.setLevel(logging.DEBUG)
    yield stream
    LOG.removeHandler(handler)


def test_every_secret_setting_is_known_to_the_mask() -> None:
    secret = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert secret == VALUES.keys()
    assert secrets_of(SETTINGS) >= {*VALUES.values(), "queue-password-2"}
    assert all(isinstance(getattr(SETTINGS, name), SecretStr) for name in secret)


@pytest.mark.parametrize("lines", [TextFormatter, JsonFormatter], indirect=True)
def test_secrets_are_masked_in_messages_arguments_tracebacks_and_stacks(lines: io.StringIO) -> None:
    basic = base64.b64encode(f"me:{VALUES['basic_auth_password']}".encode()).decode()
    for value in (*VALUES.values(), basic, "queue-password-2"):
        LOG.info("sent %s and %r", value, {"x": value}, stack_info=True)
        LOG.info(f"sent {value}")
        try:
            raise ValueError(f"no such key: {value}")
        except ValueError:
            LOG.exception("failed")
    text = lines.getvalue()
    assert text.count("no such key: ***") == 7
    for value in (*VALUES.values(), basic, "queue-password-2", "with marks"):
        assert value not in text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("GET http://user:hunter22@host/x", "GET http://***@host/x"),
        ("https://h/x.png?X-Amz-Signature=abc&a=1", "https://h/x.png?X-Amz-Signature=***&a=1"),
        ("https://h/x.png?token=abc&sig=q%3D&page=2", "https://h/x.png?token=***&sig=***&page=2"),
        ("https://h/x.png?page=2&d=a/b.png", "https://h/x.png?page=2&d=a/b.png"),
        ("Authorization: Token 0123456789abcdef", "Authorization: ***"),
        ("{'authorization': 'Basic bWU6c2VjcmV0', 'a': 'b'}", "{'authorization': '***', 'a': 'b'}"),
        ("sent Bearer abcdefgh.ijklmnop", "sent Bearer ***"),
        ("x eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl y", "x *** y"),
        ('{"access_token": "abc", "project": "1"}', '{"access_token": "***", "project": "1"}'),
        ("the token is not one", "the token is not one"),
        ("a basic question about tokens", "a basic question about tokens"),
        ("x-rsvp-webhook-secret: abc", "x-rsvp-webhook-secret: ***"),
    ],
)
def test_credentials_of_others_are_masked_by_their_form(text: str, masked: str) -> None:
    assert Mask()(text) == masked


def test_a_secret_that_is_part_of_another_hides_both() -> None:
    assert Mask(["abcd", "abcdefgh"])("abcdefgh abcd") == "*** ***"
    assert Mask(["a.c"])("a.c abc") == "a.c abc"  # too short to be told from any other text
    assert Mask(["a.c+d"])("a.c+d abcd") == "*** abcd"


def test_a_record_is_one_line_and_a_traceback_is_indented(lines: io.StringIO) -> None:
    evil = "x\n2026-01-01T00:00:00 INFO root: forged\r\x1b[2J\u2028\u202e"
    LOG.warning("task: %s", evil)
    try:
        raise ValueError(evil)
    except ValueError:
        LOG.exception("failed")
    text = lines.getvalue()
    assert not re.search("[\r\x1b\u2028\u202e]", text)
    shown = text.splitlines()
    assert r"\n2026-01-01T00:00:00 INFO root: forged\r\x1b[2J\u2028\u202e" in shown[0]
    assert "ERROR rsvp_backend.test: failed" in shown[1]
    assert all(line.startswith("  ") for line in shown[2:])


@pytest.mark.parametrize("lines", [JsonFormatter], indirect=True)
def test_json_lines_carry_the_request_and_what_was_said(lines: io.StringIO) -> None:
    token = _current.set("abc-1")
    LOG.info("task %d\n%s", 7, "\ud800")
    _current.reset(token)
    LOG.info("broken %d", "x")
    first, second = (json.loads(line) for line in lines.getvalue().splitlines())
    assert first.keys() == {"time", "level", "logger", "message", "request_id"}
    assert (first["level"], first["message"], first["request_id"]) == ("INFO", "task 7\n\ud800", "abc-1")
    assert second["message"] == "broken %d ('x',)"
    assert "request_id" not in second


@pytest.mark.parametrize("form", ["text", "json"])
def test_set_up_logging_covers_all_loggers_of_the_process(capsys: pytest.CaptureFixture[str], form: str) -> None:
    logging.config.dictConfig(uvicorn.config.LOGGING_CONFIG)  # what uvicorn does unless it is told not to
    for _ in range(2):
        set_up_logging(SETTINGS.model_copy(update={"log_format": form}))
    logging.getLogger("uvicorn.error").info("GET /?token=abc %s", VALUES["webhook_secret"])
    logging.getLogger("httpx").info("GET https://signed")
    text = capsys.readouterr().err
    assert text.count("GET /?token=*** ***") == 1
    assert "signed" not in text
    assert text.startswith("{") == (form == "json")


def test_a_jobs_log_is_masked_as_the_processs_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(SETTINGS)
    job = Job(1, 2, State.RUNNING, "by hand", 0.0, 0.0)
    running = Running(job, JobStore(tmp_path), lambda: False, [])
    with running.listening():
        logging.getLogger("rsvp_backend.lesson").info("with %s", VALUES["label_studio_token"])
    assert len(running.lines) == 1
    assert running.lines[0].endswith("INFO with ***")
    assert VALUES["label_studio_token"] not in capsys.readouterr().err
