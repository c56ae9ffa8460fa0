"""/play over HTTP: the page, the pictures that people bring, and the runs on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from rsvp_backend.engine import Engine, NotReadyError
from rsvp_backend.errors import ImageError
from rsvp_backend.pages import layout, play_page
from rsvp_backend.pages.play_asked import PlayAsked
from rsvp_backend.pages.playground import Playground
from rsvp_backend.pages.sample import sample
from rsvp_backend.presets import fixed_marks
from rsvp_backend.security.bodies import cleaned
from rsvp_backend.security.replies import AsciiJson
from rsvp_backend.security.same_site import content_type, refuse_by_origin, refuse_other_sites
from rsvp_backend.serving.crew import Crew
from rsvp_backend.serving.desk import BusyError
from rsvp_backend.settings import Settings
from rsvp_backend.types import Click, Marks

T = TypeVar("T")
V = TypeVar("V")
JSON = dict[str, Any]
MAX_CLICKS = 100
_Pixels = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_KINDS = {"marked": "image/jpeg", "mask": "image/png"}
_PRIVATE = {"Cache-Control": "private, max-age=3600"}


class ClickBody(BaseModel):
    """A click in pixels of the image."""

    x: _Pixels
    y: _Pixels
    positive: bool = True


class MarksBody(BaseModel):
    kind: Literal["bands", "cells"]
    rows: int = Field(ge=1, le=50)
    columns: int = Field(ge=1, le=50)


class RunBody(BaseModel):
    """What POST /play/runs reads; see `PlayAsked`."""

    image: str = Field(max_length=64)
    name: str = Field("image.png", max_length=255)
    instruction: str = Field("", max_length=10_000)
    marks: MarksBody | None = None
    padding: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    zoom: Literal["off", "auto", "always"] | None = None
    clicks: list[ClickBody] = Field([], max_length=MAX_CLICKS)
    after: str | None = Field(None, max_length=64)


def play_routes(settings: Settings, engine: Engine, crew: Crew) -> APIRouter:
    router = APIRouter(prefix="/play")
    playground, fixed = Playground(settings, engine, crew), fixed_marks(settings)

    @router.get("")
    async def page() -> Response:
        return layout.reply(play_page.render(settings, _usual(settings, fixed), fixed))

    @router.post("/images", dependencies=[Depends(refuse_forms)])
    async def bring(request: Request) -> Response:
        """The body is the image file; answers with an id for it. It is kept in memory, for a while."""
        return JSONResponse(_named(await _done(playground.keep, await request.body())))

    @router.get("/images/{image_id}")
    async def image(image_id: str) -> Response:
        return _file(await run_in_threadpool(playground.shown, image_id), "image/jpeg")

    @router.get("/samples/{seed}")
    async def example(seed: Annotated[int, Path(ge=0, le=10**6)]) -> Response:
        """A generated picture with an instruction, kept as if somebody had brought it."""
        made = await run_in_threadpool(sample, seed)
        kept = await _done(playground.keep, made.file)
        return JSONResponse({**_named(kept), "name": made.name, "instruction": made.instruction})

    @router.post("/runs", dependencies=[Depends(refuse_other_sites)])
    async def start(body: RunBody) -> Response:
        """Begins a run; 202, look at it again under its id."""
        asked = _asked(body, settings, fixed)
        return AsciiJson((await _done(playground.start, asked)).to_dict(), 202)

    @router.get("/runs/{run_id}")
    async def look(run_id: str) -> Response:
        run = playground.run(run_id)
        if run is None:
            raise HTTPException(404, f"run {run_id[:50]!r} is unknown: only the newest ones are kept")
        return AsciiJson(run.to_dict())

    @router.get("/runs/{run_id}/{name}")
    async def picture(run_id: str, name: str) -> Response:
        run = playground.run(run_id)
        return _file(run.picture(name) if run is not None and name in _KINDS else None, _KINDS.get(name, ""))

    return router


async def refuse_forms(request: Request) -> None:
    """A route dependency: what a form on another site can send is refused. Raises 415 and 403."""
    if not content_type(request).startswith("image/"):
        raise HTTPException(415, "send the file with its type, such as Content-Type: image/png")
    refuse_by_origin(request)


async def _done(act: Callable[[V], T], value: V) -> T:
    """``act`` in a thread, its refusals as replies."""
    try:
        return await run_in_threadpool(act, value)
    except ImageError as error:
        raise HTTPException(422, str(error)) from None
    except NotReadyError as error:
        raise HTTPException(503, str(error)) from None
    except BusyError as error:
        raise HTTPException(503, str(error), {"Retry-After": str(error.after_s)}) from None


def _named(kept: tuple[str, tuple[int, int]]) -> JSON:
    return {"image": kept[0], "size": list(kept[1])}


def _usual(settings: Settings, fixed: tuple[Marks, ...]) -> Marks:
    """The settings' marks, or where the reasoner cannot read them, its usual ones."""
    marks = Marks(settings.marks_kind, settings.marks_rows, settings.marks_columns)
    return fixed[0] if fixed and marks not in fixed else marks


def _asked(body: RunBody, settings: Settings, fixed: tuple[Marks, ...]) -> PlayAsked:
    """Raises 422 for what cannot be asked."""
    marks = _usual(settings, fixed)
    if body.marks is not None:
        marks = Marks(body.marks.kind, body.marks.rows, body.marks.columns)
    if fixed and marks not in fixed:
        raise HTTPException(422, f"this reasoner reads {' and '.join(map(str, fixed))} only")
    instruction = cleaned(body.instruction.strip())
    if not instruction and not body.clicks:
        raise HTTPException(422, "type an instruction, or click on what you want")
    return PlayAsked(
        image=body.image,
        name=_name(body.name),
        instruction=instruction,
        marks=marks,
        padding=settings.padding if body.padding is None else body.padding,
        zoom=body.zoom or settings.zoom,
        clicks=tuple(Click(click.x, click.y, click.positive) for click in body.clicks),
        after=body.after,
    )


def _name(text: str) -> str:
    """The last part of a file's name, on one line."""
    last = cleaned(text).replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in last if char.isprintable()) or "image.png"


def _file(file: bytes | None, kind: str) -> Response:
    if file is None:
        raise HTTPException(404, "this picture is not kept here any more")
    return Response(file, media_type=kind, headers=_PRIVATE)
