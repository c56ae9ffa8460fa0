"""Basic auth on the server's routes, for backends that others can reach."""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass, field

from fastapi import HTTPException, Request

from rsvp_backend.settings import Settings


@dataclass(frozen=True, slots=True)
class BasicAuth:
    """Compares in constant time; without a user every request passes."""

    user: str | None = None
    password: str = field(default="", repr=False)

    @classmethod
    def of(cls, settings: Settings) -> BasicAuth:
        password = settings.basic_auth_password
        return cls(settings.basic_auth_user, password.get_secret_value() if password else "")

    async def require(self, request: Request) -> None:
        """A route dependency. Raises 401 without the right credentials."""
        if not self.passes(request):
            raise HTTPException(401, "basic auth: wrong or no credentials", {"WWW-Authenticate": "Basic"})

    async def require_if_sent(self, request: Request) -> None:
        """As `require`, but a request without credentials passes: for probes, and so that Label Studio, which
        explains a 401 of /health in words, tells that a password is wrong."""
        if "authorization" in request.headers:
            await self.require(request)

    def passes(self, request: Request) -> bool:
        if self.user is None:
            return True
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        try:
            sent = base64.b64decode(encoded, validate=True) if scheme.lower() == "basic" else b""
        except binascii.Error:
            sent = b""
        return secrets.compare_digest(sent, f"{self.user}:{self.password}".encode())
