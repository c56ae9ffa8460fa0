"""Label Studio's routes. What takes long is done in threads: /setup answers at once, whatever else is going on."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from rsvp_backend import __version__
from rsvp_backend.engine import Engine, NotReadyError, State
from rsvp_backend.errors import LabelConfigError
from rsvp_backend.labelstudio.tags import parse_label_config
from rsvp_backend.security.bodies import BodyError, cleaned
from rsvp_backend.serving.answering import Batch
from rsvp_backend.serving.body import read_body
from rsvp_backend.serving.desk import BusyError, Desk
from rsvp_backend.serving.openapi import PREDICT
from rsvp_backend.settings import Settings
from rsvp_backend.types import Deadline

log = logging.getLogger(__name__)
JSON = dict[str, Any]

SETUP_WAIT_S = 0.05
"""How long /setup waits for models that are about to be loaded, to name their version."""
LOADING_RETRY_S = 5
MAX_PROJECTS = 1000
_LABEL_STUDIO_AGENT = "heartex/"
_ROUTES = ("health", "setup", "predict", "versions", "webhook", "jobs", "backlog", "traces", "play", "metrics")


class SetupBody(BaseModel):
    """What /setup reads. The ``access_token`` that Label Studio sends along is neither read nor kept."""

    project: str | int | None = None
    label_config: str | None = Field(None, alias="schema")
    extra_params: Any = None


class ProjectDefaults:
    """The default instructions that projects set by their backend's ``extra_params``: ``{"instruction": "..."}``."""

    def __init__(self, everywhere: str | None) -> None:
        self._everywhere = everywhere
        self._by_project: OrderedDict[str, str] = OrderedDict()

    def learn(self, project: str | int | None, extra_params: Any) -> None:
        self._by_project.pop(str(project), None)
        text = extra_params.get("instruction") if isinstance(extra_params, Mapping) else None
        if isinstance(text, str) and text.strip():
            self._by_project[str(project)] = cleaned(text.strip())
            if len(self._by_project) > MAX_PROJECTS:
                self._by_project.popitem(last=False)

    def of(self, project: str) -> str | None:
        return self._by_project.get(project, self._everywhere)


def label_studio_routes(settings: Settings, engine: Engine, desk: Desk) -> APIRouter:
    router = APIRouter()
    defaults = ProjectDefaults(settings.default_instruction)

    @router.get("/")
    async def index() -> JSON:
        routes = [f"/{name}" for name in _ROUTES]
        return {"name": "rsvp-backend", "version": __version__, "routes": routes, **engine_state(engine)}

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
            await asyncio.sleep(0.01)
        if engine.state is State.FAILED:
            return _refusal(request, 503, f"the models could not be loaded: {engine.failure}")
        return JSONResponse(engine_state(engine))

    @router.get("/setup-refused/{status}/{text}")
    async def setup_refused(status: int, text: str) -> Response:
        return JSONResponse({"error": text.replace("_", " ")}, status if status in (400, 503) else 404)

    @router.get("/versions")
    async def versions() -> JSON:
        return {"versions": [engine.version] if engine.version else []}

    @router.post("/predict", openapi_extra=PREDICT)
    async def predict(request: Request) -> Response:
        deadline = Deadline.after(settings.predict_timeout_s)
        try:
            body = await run_in_threadpool(read_body, await request.body())
        except BodyError as error:
            raise HTTPException(422, str(error)) from None
        if not body.asks:
            return JSONResponse({"results": [{"result": []} for _ in body.tasks]})
        batch = Batch(body.tasks, body.label_config, body.project, body.context, defaults.of(body.project))
        try:
            reply = await desk.answer(batch, deadline, request.is_disconnected)
        except (NotReadyError, BusyError) as error:
            # Not a list of empty results: those would be saved, and the tasks never asked for again.
            log.warning("/predict of %d tasks refused: %s", len(body.tasks), error)
            after_s = error.after_s if isinstance(error, BusyError) else LOADING_RETRY_S
            raise HTTPException(503, str(error), {"Retry-After": str(after_s)}) from None
        return Response(reply, media_type="application/json")

    return router


def engine_state(engine: Engine) -> JSON:
    state: JSON = {"state": engine.state, "model_version": engine.version}
    return state | {"reason": engine.failure} if engine.failure else state


def _refusal(request: Request, status: int, message: str) -> JSONResponse:
    """An error reply. Label Studio shows only the address of a refused request, never the reply's text: it is sent on
    to an address that says what is wrong."""
    if not request.headers.get("user-agent", "").startswith(_LABEL_STUDIO_AGENT):
        return JSONResponse({"error": message}, status)
    words = quote(re.sub(r"[^\w.,:;=()'$-]+", "_", message)[:400], safe="():;=,$")
    return JSONResponse({"error": message}, 303, headers={"Location": f"setup-refused/{status}/{words}"})
