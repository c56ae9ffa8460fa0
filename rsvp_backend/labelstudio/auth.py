"""Tokens for Label Studio: personal access tokens (exchanged and renewed) and legacy tokens, told apart by shape."""

from __future__ import annotations

import base64
import binascii
import json
import threading
import time
from collections.abc import Generator
from typing import Any

import httpx

from rsvp_backend.errors import LabelStudioAwayError, LabelStudioError

_RENEW_EARLY_S = 30.0
_DEFAULT_LIFE_S = 300.0
_NEW_TOKEN_HINT = (
    "make a new one in Label Studio under Account & Settings > Personal Access Token and set RSVP_LABEL_STUDIO_TOKEN"
)


def origin(url: httpx.URL | str) -> tuple[str, str, int]:
    """(scheme, host, port) with the default port filled in; localhost's names count as one host."""
    url = httpx.URL(url)
    host = url.host.lower()
    port = url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
    return url.scheme, "localhost" if host in ("127.0.0.1", "::1") else host, port


class TokenAuth(httpx.Auth):
    """Puts the right ``Authorization`` header on requests to Label Studio's own origin, and on no other.

    ``kind`` is ``personal`` (a refresh JWT: exchanged at ``/api/token/refresh/`` for an access token of 300 s, which
    is renewed in time, and once more on a 401) or ``legacy`` (anything that is not a JWT). Safe to share by threads.
    """

    def __init__(self, base_url: str, token: str, timeout_s: float = 10.0) -> None:
        """Makes no request. Raises `LabelStudioError` for a token that can be seen to be useless."""
        token = token.strip()
        if not token:
            raise LabelStudioError(f"the Label Studio token is empty: {_NEW_TOKEN_HINT}")
        claims = _jwt_claims(token)
        if claims is not None and claims.get("token_type") == "access":
            raise LabelStudioError(f"the Label Studio token is an access token (ends in minutes): {_NEW_TOKEN_HINT}")
        self.kind = "legacy" if claims is None else "personal"
        self._origin = origin(base_url)
        self._refresh_url = f"{base_url.rstrip('/')}/api/token/refresh/"
        self._token = token
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._access = ""
        self._renew_at_s = 0.0

    def header(self, refused: str | None = None, timeout_s: float | None = None) -> str:
        """The header's value; renewed if due, or if the last one (``refused``) got a 401.

        Raises `LabelStudioError` where the exchange fails.
        """
        if self.kind == "legacy":
            return f"Token {self._token}"
        with self._lock:
            if time.monotonic() >= self._renew_at_s or refused == f"Bearer {self._access}":
                self._renew(self._timeout_s if timeout_s is None else max(0.1, min(self._timeout_s, timeout_s)))
            return f"Bearer {self._access}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """httpx's hook: sign, send, and on a 401 sign anew once."""
        if origin(request.url) != self._origin:
            yield request
            return
        sent = request.headers["Authorization"] = self.header()
        response = yield request
        if response.status_code == 401 and self.kind == "personal":
            request.headers["Authorization"] = self.header(refused=sent)
            yield request

    def _renew(self, timeout_s: float) -> None:
        try:
            response = httpx.post(self._refresh_url, json={"refresh": self._token}, timeout=timeout_s)
        except httpx.HTTPError as error:
            seen = f"{self._refresh_url} cannot be reached: {error or type(error).__name__}"
            raise LabelStudioAwayError(seen) from error
        if response.is_server_error:
            raise LabelStudioAwayError(f"{self._refresh_url} answered {response.status_code}")
        if response.status_code in (400, 401, 403):
            seen = f"Label Studio refused the personal access token ({response.status_code})"
            raise LabelStudioError(f"{seen}: {_NEW_TOKEN_HINT}")
        try:
            self._access = str(response.raise_for_status().json()["access"])
        except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
            raise LabelStudioError(
                f"{self._refresh_url} answered {response.status_code} without an access token: "
                "is RSVP_LABEL_STUDIO_URL a Label Studio of version 1.16 or newer?"
            ) from error
        claims = _jwt_claims(self._access) or {}
        # The life span, not the end: the clocks of the two machines need not agree.
        life_s = float(claims.get("exp", 0)) - float(claims.get("iat", 0)) or _DEFAULT_LIFE_S
        self._renew_at_s = time.monotonic() + max(life_s - _RENEW_EARLY_S, life_s / 2)


def _jwt_claims(token: str) -> dict[str, Any] | None:
    """The unverified claims of a JWT; None if the token is not one."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    return claims if isinstance(claims, dict) else None
