"""Every route of the server's own OpenAPI document, asked by schemathesis: in form and out of form, never a 500."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from typing import Any

import pytest
import schemathesis
from fake_models import fake_rsvp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from uvicorn_server import listening

from rsvp_backend.engine import Engine
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.server import create_app
from rsvp_backend.settings import Settings

ACCOUNT = ("me", "password")
APP = create_app(
    Settings(basic_auth_user=ACCOUNT[0], basic_auth_password=ACCOUNT[1], backlog_tasks=0),  # type: ignore[arg-type]
    Engine(fake_rsvp, ImageFetcher(None)),
)
OPERATIONS = [found.ok() for found in schemathesis.openapi.from_dict(APP.openapi()).get_all_operations()]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ExitStack() as stack:
        yield f"http://127.0.0.1:{stack.enter_context(listening(APP))}"


def test_the_document_has_every_route() -> None:
    routes = {(one.method, one.path) for one in OPERATIONS}
    assert routes >= {
        ("post", "/predict"),
        ("post", "/webhook"),
        ("post", "/setup"),
        ("post", "/jobs"),
        ("get", "/traces"),
    }


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
@pytest.mark.parametrize("mode", GenerationMode)
def test_no_request_makes_an_error_of_the_servers(operation: Any, mode: GenerationMode, address: str) -> None:
    @settings(max_examples=25, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        reply = case.call(base_url=address, auth=ACCOUNT)
        assert reply.status_code < 500, reply.content[:300]
        assert reply.status_code != 401

    # A route without a body or parameters has no requests that are out of form.
    with suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext():
        ask()
