"""Log in to Label Studio as its form does, and make a token."""

from __future__ import annotations

import re
from typing import Any

import httpx

from rsvp_backend.errors import LabelStudioError
from rsvp_backend.labelstudio.replies import json_object


def create_personal_token(
    base_url: str, username: str, password: str, replace: bool = False, timeout_s: float = 30.0
) -> str:
    """Log in by the form and make a personal access token, which Label Studio shows only once.

    A user has one token at a time: where there is one already, ``replace`` revokes it, else `LabelStudioError`.
    """
    base_url = base_url.rstrip("/")
    try:
        with httpx.Client(base_url=base_url, timeout=timeout_s, headers={"Referer": base_url}) as http:
            _log_in(http, username, password)
            response = _post(http, "/api/token/")
            if response.status_code == 409 and replace:
                for listed in http.get("/api/token/").raise_for_status().json():
                    _post(http, "/api/token/blacklist/", json={"refresh": listed["token"]}).raise_for_status()
                response = _post(http, "/api/token/")
    except httpx.HTTPError as error:
        raise LabelStudioError(f"no token from {base_url}: {error or type(error).__name__}") from error
    return str(json_object(response)["token"])


def _log_in(http: httpx.Client, username: str, password: str) -> None:
    page = http.get("/user/login/").raise_for_status()
    found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    form = {"email": username, "password": password, "csrfmiddlewaretoken": found.group(1) if found else ""}
    response = http.post("/user/login/", data=form)
    if not response.is_redirect:
        raise LabelStudioError(f"Label Studio did not log in {username!r} ({response.status_code}): wrong password?")


def _post(http: httpx.Client, path: str, **options: Any) -> httpx.Response:
    return http.post(path, headers={"X-CSRFToken": http.cookies.get("csrftoken") or ""}, **options)
