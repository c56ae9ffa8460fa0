"""Label Studio's ML-backend contract over HTTP. `create_app` makes the application, one process owns the models.

/health and /setup answer at once, also while the models load or work: what takes long is done in threads.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from rsvp_backend import __version__, presets
from rsvp_backend.access import make_fetcher, make_traces, open_client
from rsvp_backend.engine import Engine
from rsvp_backend.jobs.intake import START, Intake
from rsvp_backend.jobs.routes import job_routes
from rsvp_backend.jobs.versions_routes import VersionShelf, version_routes
from rsvp_backend.pages.layout import asset_routes
from rsvp_backend.pages.play_routes import play_routes
from rsvp_backend.pages.trace_routes import trace_routes
from rsvp_backend.security.bodies import BodyError, read_object
from rsvp_backend.security.credentials import Credentials
from rsvp_backend.security.gate import Gate
from rsvp_backend.security.replies import unreadable
from rsvp_backend.security.request_ids import RequestIds
from rsvp_backend.serving.backlog import Backlog
from rsvp_backend.serving.crew import Crew
from rsvp_backend.serving.desk import Desk, Later
from rsvp_backend.serving.gauges import ServingCollector
from rsvp_backend.serving.openapi import EVENT
from rsvp_backend.serving.routes import engine_state, label_studio_routes
from rsvp_backend.serving.settling import Settler
from rsvp_backend.serving.turns import Turns
from rsvp_backend.serving.watching import watching_routes
from rsvp_backend.settings import Settings

log = logging.getLogger(__name__)
JSON = dict[str, Any]
_REMOTE = re.compile("openai:|https?://")


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings describe, not started. Raises `LabelStudioError` for an unusable token."""
    traces = make_traces(settings)
    update = presets.updated if settings.versions or settings.reasoner_versions else None
    # A model here takes one task at a time; one on a server is waited for, and leaves room for clicks meanwhile.
    remote = _REMOTE.match(settings.reasoner or "") is not None
    turns = Turns(settings.reasoner_concurrency, spare=1) if remote else Turns()
    return Engine(
        lambda: presets.build(settings), make_fetcher(settings), traces, settings.instruction_field, update, turns=turns
    )


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """The application; its models begin to load when it starts. ``engine`` defaults to `make_engine`'s.

    Raises `SettingsError` where others could reach it without credentials.
    """
    credentials = Credentials.of(settings)
    engine = engine or make_engine(settings)
    intake, crew, shelf = Intake(settings), Crew(engine.turns.slots), VersionShelf(settings, engine)
    backlog, lacking = Backlog.of(settings)
    desk = Desk(engine, crew, Later(backlog, lacking), settings.max_requests)
    settler = Settler(backlog, engine, crew, lambda: open_client(settings), desk.is_asked) if backlog else None
    engine.metrics.show(ServingCollector(engine, crew, desk, settler, intake))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        if settler is not None:
            settler.start()
        yield
        engine.stop()
        intake.close()
        if settler is not None:
            await run_in_threadpool(settler.close)
        crew.close()

    app = FastAPI(
        title="rsvp-backend", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.include_router(_calls(engine, credentials, intake))
    app.include_router(label_studio_routes(settings, engine, desk))
    app.include_router(watching_routes(engine, settler, lacking))
    app.include_router(trace_routes(settings, engine))
    app.include_router(play_routes(settings, engine, crew))
    app.include_router(job_routes(intake, shelf))
    app.include_router(version_routes(shelf))
    app.include_router(asset_routes())
    app.add_exception_handler(RequestValidationError, unreadable)
    app.add_middleware(Gate, settings=settings, credentials=credentials)
    app.add_middleware(RequestIds)
    return app


def _calls(engine: Engine, credentials: Credentials, intake: Intake) -> APIRouter:
    """Health probes, and Label Studio's webhooks."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> JSON:
        return {"status": "UP", "model_class": "RSVP", **engine_state(engine)}

    @router.post("/webhook", openapi_extra=EVENT)
    async def webhook(request: Request) -> Response:
        """Every event is answered at once: Label Studio gives up after 1 s and does not repeat it."""
        try:
            event = await run_in_threadpool(read_object, await request.body())
        except BodyError as error:
            raise HTTPException(422, str(error)) from None
        action = str(event.get("action"))[:50]
        if action == START and not credentials.training(request.headers):
            raise HTTPException(401, "wrong or no credentials", {"WWW-Authenticate": "Basic"})
        log.info("webhook %r: project %s, task %s", action, _id(event, "project"), _id(event, "task"))
        status, answer = await intake.answer(event)
        return JSONResponse({"status": "accepted" if status < 400 else "refused", "action": action, **answer}, status)

    return router


def _id(event: JSON, key: str) -> int | None:
    value = event.get(key)
    found = value.get("id") if isinstance(value, Mapping) else None
    return found if isinstance(found, int) else None
