"""Routes for whoever looks after the server: /metrics, /backlog."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from starlette.concurrency import run_in_threadpool

from rsvp_backend.engine import Engine
from rsvp_backend.metrics import CONTENT_TYPE
from rsvp_backend.serving.backlog import Backlog, BacklogError, Entry, Standing
from rsvp_backend.serving.settling import Settler

JSON = dict[str, Any]


def watching_routes(engine: Engine, settler: Settler | None, lacking: str) -> APIRouter:
    """``lacking``: what must be set for a backlog, where there is no ``settler``."""
    router = APIRouter()

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(await run_in_threadpool(engine.metrics.text), media_type=CONTENT_TYPE)

    @router.get("/backlog")
    async def backlog() -> JSON:
        """Tasks that did not fit into a request: how many wait, which failed and why; ``detail``: what stops it."""
        if settler is None:
            return {"waiting": 0, "stored": 0, "failed": 0, "detail": lacking, "tasks": []}
        try:
            return await run_in_threadpool(_listing, settler.backlog, settler.trouble)
        except BacklogError as error:
            raise HTTPException(503, str(error)) from None

    return router


def _listing(backlog: Backlog, trouble: str) -> JSON:
    order = (Standing.FAILED, Standing.WAITING, Standing.STORED)
    tasks = [_shown(entry) for state in order for entry in backlog.listed(state)]
    counts: JSON = {str(state): count for state, count in backlog.counts().items()}
    return {**counts, "detail": trouble or None, "tasks": tasks}


def _shown(entry: Entry) -> JSON:
    return {
        "project": entry.project,
        "task": entry.task,
        "state": entry.state,
        "why": entry.why,
        "tries": entry.tries,
        "asked": _time(entry.asked),
        "due": _time(entry.due),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
