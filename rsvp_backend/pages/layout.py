"""The frame of every page, its style sheet and scripts, and what its reply says to browsers.

Nothing is loaded from elsewhere, and nothing runs or styles but the files of this package: the policy has no exception
for what stands in the page itself. Addresses are relative, so that a proxy may put all of this under a path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from html import escape
from importlib.resources import files

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin", "Cache-Control": "no-store"}
STYLE = "pages.css"
_TYPES = {"css": "text/css", "js": "text/javascript"}
_ASSETS = (STYLE, "pages.js", "jobs.js", "play.js", "play_clicks.js", "play_shown.js")
_LINKS = (("traces", "Traces"), ("play", "Playground"), ("jobs", "Jobs"))


def page(title: str, heading: str, main: str, *, here: str, root: str = "", script: str = "pages.js") -> str:
    """A whole page. ``heading`` and ``main`` are HTML already; ``here``: the link that it belongs to; ``root``: the way
    from its address to the server's, such as ``../``."""
    links = "".join(f'<li><a href="{root}{name}"{_current(name, here)}>{text}</a></li>' for name, text in _LINKS)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)} - rsvp-backend</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><link rel="icon" href="data:,"><link rel="stylesheet" href="{root}{asset(STYLE)}">'
        f'<script src="{root}{asset(script)}" type="module"></script></head><body><a class="skip" href="#main">To the '
        f'content</a><header><nav aria-label="Pages"><span class="name">rsvp-backend</span><ul>{links}</ul></nav>'
        f'</header><main id="main" tabindex="-1"><h1>{heading}</h1><p id="said" role="alert"></p>{main}</main>'
        "</body></html>"
    )


def reply(text: str, status: int = 200) -> Response:
    """A model's answer may hold lone surrogates, which UTF-8 has no form for: they are shown as escapes."""
    return HTMLResponse(text.encode("utf-8", "backslashreplace"), status, headers=HEADERS)


def lost(why: HTTPException, *, here: str) -> Response:
    """In place of a page below ``here`` that is not there (any more): a link to it may be an old one."""
    told = notes([f'{escape(why.detail)}. <a href="../{here}">All {here}</a>'])
    return reply(page("Not found", "Not found", told, here=here, root="../"), why.status_code)


def wants_html(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def notes(texts: Iterable[str]) -> str:
    """Remarks that stand out; HTML already."""
    return "".join(f'<p class="note">{text}</p>' for text in texts)


def asset(name: str) -> str:
    """The file's address, another one with each content: browsers may keep it."""
    return f"pages/{name}?{_digest(name)}"


def asset_routes() -> APIRouter:
    router = APIRouter(prefix="/pages")

    @router.get("/{name}")
    async def file(request: Request, name: str) -> Response:
        """The pages' style sheet and scripts."""
        if name not in _ASSETS:
            raise HTTPException(404, f"{name[:50]!r} is no part of the pages")
        known = request.url.query == _digest(name)
        kept = {"Cache-Control": "private, max-age=31536000, immutable" if known else "no-cache"}
        return Response(_content(name), media_type=_TYPES[name.rpartition(".")[2]], headers=kept)

    return router


@cache
def _content(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


@cache
def _digest(name: str) -> str:
    return hashlib.sha256(_content(name)).hexdigest()[:12]


def _current(name: str, here: str) -> str:
    return ' aria-current="page"' if name == here else ""
