"""What a route asks of a request that changes something, besides what `Gate` asks of all.

A browser adds a user's basic auth to whatever is sent from anywhere. So a POST must say that it is JSON, which a form
on another site cannot, and must not come from another site where the browser tells.
"""

from __future__ import annotations

from fastapi import HTTPException, Request


async def refuse_other_sites(request: Request) -> None:
    """A route dependency. Raises 415 without a JSON content type, 403 for a request from another site."""
    if content_type(request) != "application/json":
        raise HTTPException(415, "send this with Content-Type: application/json")
    refuse_by_origin(request)


def refuse_by_origin(request: Request) -> None:
    """Raises 403 for a request from another site, where the browser tells."""
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise HTTPException(403, "this came from a page of another site")


def content_type(request: Request) -> str:
    """Without its parameters, lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
