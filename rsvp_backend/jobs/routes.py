"""/jobs over HTTP: a page for people, JSON for programs; and what the page does with versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, StrictInt
from starlette.concurrency import run_in_threadpool

from rsvp_backend.jobs import page
from rsvp_backend.jobs.intake import LARGEST_ID, Intake
from rsvp_backend.jobs.job import Job, JobError, State
from rsvp_backend.jobs.service import Jobs
from rsvp_backend.jobs.store import Curve
from rsvp_backend.jobs.versions_routes import VersionShelf
from rsvp_backend.pages import layout
from rsvp_backend.security.same_site import refuse_other_sites

P = ParamSpec("P")
T = TypeVar("T")


class StartBody(BaseModel):
    """What POST /jobs reads."""

    project: StrictInt = Field(ge=1, le=LARGEST_ID)


def job_routes(intake: Intake, shelf: VersionShelf) -> APIRouter:
    router = APIRouter(prefix="/jobs")

    @router.get("")
    async def jobs(request: Request) -> Response:
        found, works = await _asked(_all, intake.jobs)
        if layout.wants_html(request):
            curves = await _asked(_curves, intake.jobs, found)
            versions = await run_in_threadpool(shelf.sections)
            return layout.reply(page.all_jobs(found, works, intake.lacking, versions, curves))
        listed = [job.to_dict() for job in found]
        return JSONResponse({"jobs": listed, "worker": works, "detail": intake.lacking})

    @router.get("/{job_id}")
    async def one(request: Request, job_id: int) -> Response:
        job, lines, works = await _asked(_one, _known(intake, job_id), job_id)
        if layout.wants_html(request):
            curves = await _asked(_curves, intake.jobs, [job])
            return layout.reply(page.one_job(job, lines, works, curves.get(job_id, ())))
        return JSONResponse({**job.to_dict(), "log": lines})

    @router.post("", dependencies=[Depends(refuse_other_sites)])
    async def start(body: StartBody) -> Response:
        status, answer = await intake.start(body.project, "started by hand")
        return JSONResponse(answer, status)

    @router.post("/{job_id}/cancel", dependencies=[Depends(refuse_other_sites)])
    async def cancel(job_id: int) -> Response:
        job = await _asked(_cancelled, _known(intake, job_id), job_id)
        if job.state.ended and job.state is not State.CANCELLED:
            raise HTTPException(409, f"job {job_id} is {job.state} already")
        return JSONResponse(job.to_dict())

    return router


def _curves(jobs: Jobs | None, found: Iterable[Job]) -> dict[int, Curve]:
    """Of those that may be shown: on the list, only what runs is drawn."""
    if jobs is None:
        return {}
    found = tuple(found)
    wanted = [job.id for job in found if job.state is State.RUNNING or len(found) == 1]
    return {number: jobs.store.curve(number) for number in wanted}


def _all(jobs: Jobs | None) -> tuple[tuple[Job, ...], bool]:
    return ((), False) if jobs is None else (jobs.store.all(), jobs.worker_runs())


def _one(jobs: Jobs, job_id: int) -> tuple[Job, list[str], bool]:
    job = jobs.store.get(job_id)
    return _there(job, job_id), jobs.store.log(job_id), jobs.worker_runs()


def _cancelled(jobs: Jobs, job_id: int) -> Job:
    return _there(jobs.cancel(job_id), job_id)


def _there(job: Job | None, job_id: int) -> Job:
    if job is None:
        raise HTTPException(404, f"job {job_id} is unknown: only the newest ones are kept")
    return job


def _known(intake: Intake, job_id: int) -> Jobs:
    if intake.jobs is None or not 0 < job_id <= LARGEST_ID:
        raise HTTPException(404, intake.lacking or f"job {job_id} is unknown")
    return intake.jobs


async def _asked(act: Callable[P, T], *values: P.args, **named: P.kwargs) -> T:
    """``act`` in a thread. Raises 503 where the records cannot be used."""
    try:
        return await run_in_threadpool(act, *values, **named)
    except JobError as error:
        raise HTTPException(503, str(error)) from None
