"""Who may ask what: basic auth for Label Studio's calls and for people, a secret of its own for its webhooks."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from rsvp_backend.errors import SettingsError
from rsvp_backend.settings import Settings

WEBHOOK_HEADER = "X-RSVP-Webhook-Secret"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Compares in constant time. Without a user, everybody may do what basic auth would guard.

    ``headers`` everywhere: a request's, whose names are looked up in lower case.
    """

    user: str | None = None
    password: str = field(default="", repr=False)
    webhook_secret: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: Settings) -> Credentials:
        """Raises `SettingsError` where others could reach the server and nothing is asked of them."""
        password, secret = settings.basic_auth_password, settings.webhook_secret
        found = cls(
            settings.basic_auth_user,
            password.get_secret_value() if password else "",
            secret.get_secret_value() if secret else None,
        )
        if not settings.allow_no_auth and not is_loopback(settings.host):
            found._refuse_to_be_reached(settings.host)
        return found

    def basic(self, headers: Mapping[str, str]) -> bool:
        """Whether a request has the basic auth that is asked for."""
        return self.user is None or _same(_sent(headers), f"{self.user}:{self.password}")

    def webhook(self, headers: Mapping[str, str]) -> bool:
        """Whether an annotation event has the secret: in its header, or as the password of basic auth, which Label
        Studio makes of ``http://name:password@host`` as the backend's address. Basic auth itself will do as well.

        Without a secret everybody may send one: Label Studio sends none unless told to.
        """
        if self.webhook_secret is None:
            return True
        if _same(headers.get(WEBHOOK_HEADER.lower(), "").encode("latin-1"), self.webhook_secret):
            return True
        _, _, password = _sent(headers).partition(b":")
        return _same(password, self.webhook_secret) or (self.user is not None and self.basic(headers))

    def training(self, headers: Mapping[str, str]) -> bool:
        """Whether a START_TRAINING event may begin a job at once: Label Studio sends it with its basic auth."""
        return self.basic(headers) if self.user is not None else self.webhook(headers)

    def _refuse_to_be_reached(self, host: str) -> None:
        lacking = [] if self.user is not None else ["RSVP_BASIC_AUTH_USER", "RSVP_BASIC_AUTH_PASSWORD"]
        lacking += [] if self.webhook_secret is not None else ["RSVP_WEBHOOK_SECRET"]
        if lacking:
            raise SettingsError(
                f"RSVP_HOST is {host!r}, which other machines can reach: set {', '.join(lacking)}, or "
                "RSVP_ALLOW_NO_AUTH=true where a proxy in front checks who asks"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _sent(headers: Mapping[str, str]) -> bytes:
    """``user:password`` of a request's basic auth; empty where there is none."""
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    try:
        return base64.b64decode(encoded, validate=True) if scheme.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        return b""


def _same(sent: bytes, expected: str) -> bool:
    return secrets.compare_digest(sent, expected.encode())
