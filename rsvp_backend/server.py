"""Label Studio's ML-backend contract over HTTP. `create_app` makes the application, one process owns the models.

/health and /setup answer at once, also while the models load: all model work runs in threads.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from rsvp_backend import __version__, presets
from rsvp_backend.access import make_fetcher
from rsvp_backend.answers import asks_something
from rsvp_backend.basic_auth import BasicAuth
from rsvp_backend.engine import Batch, Engine, NotReadyError, State
from rsvp_backend.errors import LabelConfigError
from rsvp_backend.jobs.intake import START, Intake
from rsvp_backend.jobs.routes import job_routes
from rsvp_backend.labelstudio.tags import parse_label_config
from rsvp_backend.metrics import CONTENT_TYPE
from rsvp_backend.settings import Settings
from rsvp_backend.traces import TraceLog
from rsvp_backend.types import Deadline

log = logging.getLogger(__name__)
JSON = dict[str, Any]

SETUP_WAIT_S = 1.0
"""How long /setup waits for models that are still loading, to name their version; Label Studio gives up after 3 s."""
MAX_PROJECTS = 1000
_LABEL_STUDIO_AGENT = "heartex/"


class SetupBody(BaseModel):
    """What /setup reads. The ``access_token`` that Label Studio sends along is neither read nor kept."""

    project: str | int | None = None
    label_config: str | None = Field(None, alias="schema")
    extra_params: Any = None


class PredictBody(BaseModel):
    """What /predict reads. ``params.context`` is there in interactive calls only."""

    tasks: list[JSON]
    label_config: str | None = None
    project: str | int | None = None
    params: JSON | None = None

    @property
    def context(self) -> Mapping[str, Any] | None:
        context = (self.params or {}).get("context")
        return context if isinstance(context, Mapping) and context else None


class ProjectDefaults:
    """The default instructions that projects set by their backend's ``extra_params``: ``{"instruction": "..."}``."""

    def __init__(self, everywhere: str | None) -> None:
        self._everywhere = everywhere
        self._by_project: OrderedDict[str, str] = OrderedDict()

    def learn(self, project: str | int | None, extra_params: Any) -> None:
        self._by_project.pop(str(project), None)
        text = extra_params.get("instruction") if isinstance(extra_params, Mapping) else None
        if isinstance(text, str) and text.strip():
            self._by_project[str(project)] = text.strip()
            if len(self._by_project) > MAX_PROJECTS:
                self._by_project.popitem(last=False)

    def of(self, project: str | int | None) -> str | None:
        return self._by_project.get(str(project), self._everywhere)


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings describe, not started. Raises `LabelStudioError` for an unusable token."""
    traces = TraceLog(settings.traces)
    update = presets.updated if settings.versions or settings.reasoner_versions else None
    return Engine(lambda: presets.build(settings), make_fetcher(settings), traces, settings.instruction_field, update)


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """The application; its models begin to load when it starts. ``engine`` defaults to `make_engine`'s."""
    engine = engine or make_engine(settings)
    auth, intake = BasicAuth.of(settings), Intake(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.stop()
        intake.close()

    app = FastAPI(
        title="rsvp-backend", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.include_router(_open_routes(engine, auth, intake))
    app.include_router(_label_studio_routes(settings, engine), dependencies=[Depends(auth.require)])
    app.include_router(_watching_routes(engine), dependencies=[Depends(auth.require)])
    app.include_router(job_routes(intake), dependencies=[Depends(auth.require)])
    return app


def _open_routes(engine: Engine, auth: BasicAuth, intake: Intake) -> APIRouter:
    """Routes for callers that cannot send credentials: health probes, and Label Studio's annotation webhooks."""
    router = APIRouter()

    @router.get("/health", dependencies=[Depends(auth.require_if_sent)])
    async def health() -> JSON:
        return {"status": "UP", "model_class": "RSVP", **_state(engine)}

    @router.post("/webhook")
    async def webhook(request: Request, event: JSON) -> Response:
        """Every event is answered at once: Label Studio gives up after 1 s and does not repeat it."""
        action = str(event.get("action"))[:50]
        if action == START:
            await auth.require(request)
        log.info("webhook %r: project %s, task %s", action, _id(event, "project"), _id(event, "task"))
        status, answer = await intake.answer(event)
        return JSONResponse({"status": "accepted" if status < 400 else "refused", "action": action, **answer}, status)

    return router


def _label_studio_routes(settings: Settings, engine: Engine) -> APIRouter:
    router = APIRouter()
    defaults = ProjectDefaults(settings.default_instruction)

    @router.get("/")
    async def index() -> JSON:
        routes = ["/health", "/setup", "/predict", "/versions", "/webhook", "/jobs", "/traces", "/metrics"]
        return {"name": "rsvp-backend", "version": __version__, "routes": routes, **_state(engine)}

    @router.post("/setup")
    async def setup(request: Request, body: SetupBody) -> Response:
        """Checks the labeling config and names the version (null while it is unknown, see `SETUP_WAIT_S`)."""
        try:
            parse_label_config(body.label_config or "")
        except LabelConfigError as error:
            log.warning("/setup of project %s refused: %s", body.project, error)
            return _refusal(request, 400, str(error))
        defaults.learn(body.project, body.extra_params)
        until = Deadline.after(SETUP_WAIT_S)
        while engine.state is State.LOADING and not until.expired:
            await asyncio.sleep(0.02)
        if engine.state is State.FAILED:
            return _refusal(request, 503, f"the models could not be loaded: {engine.failure}")
        return JSONResponse(_state(engine))

    @router.get("/setup-refused/{status}/{text}")
    async def setup_refused(status: int, text: str) -> Response:
        return JSONResponse({"error": text.replace("_", " ")}, status if status in (400, 503) else 404)

    @router.get("/versions")
    async def versions() -> JSON:
        return {"versions": [engine.version] if engine.version else []}

    @router.post("/predict")
    async def predict(body: PredictBody) -> Response:
        deadline = Deadline.after(settings.predict_timeout_s)
        if body.context is not None and not _asks(body):
            return JSONResponse({"results": [{"result": []} for _ in body.tasks]})
        batch = Batch(body.tasks, body.label_config or "", str(body.project), body.context, defaults.of(body.project))
        try:
            return Response(await run_in_threadpool(_reply, engine, batch, deadline), media_type="application/json")
        except NotReadyError as error:
            # Not a list of empty results: those would be saved, and the tasks never asked for again.
            log.warning("/predict of %d tasks refused: %s", len(body.tasks), error)
            raise HTTPException(503, str(error)) from None

    return router


def _watching_routes(engine: Engine) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(engine.metrics.text(), media_type=CONTENT_TYPE)

    @router.get("/traces")
    async def traces() -> JSON:
        return {"traces": engine.traces.recent()}

    @router.get("/traces/{trace_id}")
    async def trace(trace_id: str) -> JSON:
        record = engine.traces.get(trace_id)
        if record is None:
            raise HTTPException(404, f"trace {trace_id[:50]!r} is unknown: only the newest ones are kept in memory")
        return record

    return router


def _state(engine: Engine) -> JSON:
    state: JSON = {"state": engine.state, "model_version": engine.version}
    return state | {"reason": engine.failure} if engine.failure else state


def _reply(engine: Engine, batch: Batch, deadline: Deadline) -> bytes:
    """The JSON text is made here, in the worker's thread: a mask's RLE has up to millions of numbers."""
    return json.dumps({"results": engine.predict(batch, deadline)}, separators=(",", ":")).encode()


def _asks(body: PredictBody) -> bool:
    if not (body.context or {}).get("result"):
        return False
    try:
        return asks_something(body.context, parse_label_config(body.label_config or ""))
    except LabelConfigError:
        return True  # the engine answers with this reason


def _refusal(request: Request, status: int, message: str) -> JSONResponse:
    """An error reply. Label Studio shows only the address of a refused request, never the reply's text: it is sent on
    to an address that says what is wrong."""
    if not request.headers.get("user-agent", "").startswith(_LABEL_STUDIO_AGENT):
        return JSONResponse({"error": message}, status)
    words = quote(re.sub(r"[^\w.,:;=()'$-]+", "_", message)[:400], safe="():;=,$")
    return JSONResponse({"error": message}, 303, headers={"Location": f"setup-refused/{status}/{words}"})


def _id(event: JSON, key: str) -> int | None:
    value = event.get(key)
    found = value.get("id") if isinstance(value, Mapping) else None
    return found if isinstance(found, int) else None
