"""/traces over HTTP: pages for people, JSON for programs, and the pictures."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from rsvp_backend.engine import Engine, NotReadyError
from rsvp_backend.errors import DeadlineError
from rsvp_backend.pages import layout, trace_list, trace_page
from rsvp_backend.pages.again import Again, AgainError
from rsvp_backend.pages.pictures import drawn
from rsvp_backend.security.replies import AsciiJson
from rsvp_backend.security.same_site import refuse_other_sites
from rsvp_backend.settings import Settings
from rsvp_backend.trace_summary import Asked
from rsvp_backend.traces import MAX_IN_MEMORY, Record, TraceLog
from rsvp_backend.training.versions import VersionError

Word = Annotated[str, Query(max_length=200)]
_PRIVATE = {"Cache-Control": "private, max-age=3600"}


class Under(BaseModel):
    """A version to run something under; ``version`` null: the base weights."""

    of: Literal["vlsm", "reasoner"]
    version: str | None = Field(max_length=200)


class AgainBody(BaseModel):
    """What POST /traces/ID/again reads: `Under` as a text, as a form's select has it."""

    under: str = Field(max_length=500)


def trace_routes(settings: Settings, engine: Engine) -> APIRouter:
    router, traces = APIRouter(prefix="/traces"), engine.traces
    again = Again(engine, settings.predict_timeout_s)

    @router.get("")
    async def listed(
        request: Request,
        reason: Word = "",
        project: Word = "",
        task: Word = "",
        version: Word = "",
        page: Annotated[int, Query(ge=1, le=10**6)] = 1,
    ) -> Response:
        """What was computed, the newest first. JSON: the whole records of the last ones."""
        asked = Asked(reason, project.strip(), task.strip(), version)
        if not layout.wants_html(request):
            return AsciiJson({"traces": await run_in_threadpool(_records, traces, asked, page)})
        summaries = await run_in_threadpool(traces.summaries)
        return layout.reply(trace_list.render(summaries, asked, page, _kept(settings)))

    @router.get("/{trace_id}")
    async def one(request: Request, trace_id: str, beside: Word = "") -> Response:
        try:
            record = await _record(traces, trace_id)
        except HTTPException as error:
            if layout.wants_html(request):
                return layout.lost(error, here="traces")
            raise
        if not layout.wants_html(request):
            return AsciiJson(record)
        other = await run_in_threadpool(traces.get, beside) if beside else None
        return layout.reply(await run_in_threadpool(_page, traces, again, record, other))

    @router.post("/{trace_id}/again", dependencies=[Depends(refuse_other_sites)])
    async def run_again(trace_id: str, body: AgainBody) -> Response:
        """The same instruction under another version: answers with the address of both, side by side."""
        record, asked = await _record(traces, trace_id), _under(body)
        try:
            made = await run_in_threadpool(again.run, record, asked.of, asked.version)
        except (AgainError, VersionError) as error:
            raise HTTPException(409, str(error)) from None
        except (NotReadyError, DeadlineError) as error:
            raise HTTPException(503, str(error)) from None
        return JSONResponse({"trace": made, "page": f"{trace_id}?beside={made}"})

    @router.get("/{trace_id}/{name}")
    async def picture(trace_id: str, name: str) -> Response:
        """``original``, ``marked``, ``overlay``, ``crop-N`` (JPEG) and ``mask-N`` (PNG)."""
        record = await _record(traces, trace_id)
        file = await run_in_threadpool(traces.picture, trace_id, name)
        file = file or await run_in_threadpool(drawn, traces, record, name)
        if file is None:
            raise HTTPException(404, f"trace {trace_id} has no picture {name[:50]!r}")
        kind = "image/png" if name.startswith("mask") else "image/jpeg"
        return Response(file, media_type=kind, headers=_PRIVATE)

    return router


async def _record(traces: TraceLog, trace_id: str) -> Record:
    record = await run_in_threadpool(traces.get, trace_id)
    if record is None:
        raise HTTPException(404, f"trace {trace_id[:50]!r} is unknown: only the newest ones are kept")
    return record


def _records(traces: TraceLog, asked: Asked, number: int) -> list[Record]:
    """Those in memory; a page of all that fit where they are narrowed down."""
    if asked == Asked() and number == 1:
        return traces.recent()
    found = asked.narrowed(traces.summaries())[(number - 1) * MAX_IN_MEMORY : number * MAX_IN_MEMORY]
    return [record for one in found if (record := traces.get(one.id)) is not None]


def _page(traces: TraceLog, again: Again, record: Record, other: Record | None) -> str:
    choices, lacking = again.offered(record)
    pictures = frozenset(name for name in ("original", "marked") if traces.picture(record["id"], name) is not None)
    return trace_page.render(trace_page.Shown(record, pictures, other, choices, lacking))


def _under(body: AgainBody) -> Under:
    try:
        return Under.model_validate(json.loads(body.under))
    except (ValueError, RecursionError, ValidationError):
        raise HTTPException(422, 'under: {"of": "vlsm", "version": "ID"} is expected, as a text') from None


def _kept(settings: Settings) -> str:
    if settings.traces is None:
        return f"The last {MAX_IN_MEMORY} traces are kept in memory; RSVP_TRACES names a folder for more."
    days, megabytes = settings.traces_days, settings.traces_bytes / 2**20
    return (
        f"Traces are kept in {settings.traces} for {days:g} days (RSVP_TRACES_DAYS), as far as {megabytes:,.0f} MiB "
        "reach (RSVP_TRACES_BYTES)."
    )
