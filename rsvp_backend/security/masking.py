"""Secrets out of texts: the values of all secret settings, and what looks like a credential of somebody else."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote, urlsplit

from pydantic import SecretStr

from rsvp_backend.settings import Settings

MASK = "***"
_SHORTEST = 4
_SENSITIVE = re.compile(r"token|secret|passw|signature|credential|api_?key|access_?key|^(sig|key|auth|policy)$", re.I)
_USERINFO = re.compile(r"(?<=://)[^/\s@'\"]{1,512}@")
_QUERY = re.compile(r"(?<=[?&;])([\w.-]{1,64})=([^&\s'\"<>]+)")
_FIELD = re.compile(r"(['\"])([\w-]{1,64})\1\s*:\s*(['\"])([^'\"]+)\3")
_HEADER = re.compile(
    r"\b((?:proxy-)?authorization|x-rsvp-webhook-secret|x-api-key|cookie|set-cookie)\b(\W{1,6})[^'\"\r\n]+", re.I
)
_SCHEME = re.compile(r"\b(bearer|basic|token)\s+[A-Za-z0-9+/=._~-]{16,}", re.I)
_JWT = re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*")


class Mask:
    """``mask(text)``: the text without ``secrets``, in any of the spellings they travel in, nor other credentials."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        spellings = {form for secret in secrets if len(secret) >= _SHORTEST for form in _spellings(secret)}
        # The longest first: one may be a part of another.
        listed = "|".join(re.escape(form) for form in sorted(spellings, key=len, reverse=True))
        self._known = re.compile(listed) if listed else None

    @classmethod
    def of(cls, settings: Settings) -> Mask:
        return cls(secrets_of(settings))

    def __call__(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(MASK, text)
        text = _HEADER.sub(rf"\1\2{MASK}", text)
        text = _USERINFO.sub(f"{MASK}@", text)
        text = _JWT.sub(MASK, _SCHEME.sub(rf"\1 {MASK}", text))
        return _FIELD.sub(_field, _QUERY.sub(_parameter, text))


def secrets_of(settings: Settings) -> frozenset[str]:
    """Every value of type `SecretStr`, the password inside of one that is an address, and basic auth as it is sent."""
    found: set[str] = set()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            secret = value.get_secret_value()
            inside = urlsplit(secret).password if "://" in secret else None
            found |= {secret, *([unquote(inside)] if inside else [])}
    if settings.basic_auth_user is not None and settings.basic_auth_password is not None:
        pair = f"{settings.basic_auth_user}:{settings.basic_auth_password.get_secret_value()}"
        found.add(base64.b64encode(pair.encode()).decode())
    return frozenset(found)


def _spellings(secret: str) -> Iterator[str]:
    yield secret
    yield quote(secret, safe="")
    yield json.dumps(secret)[1:-1]
    yield ascii(secret)[1:-1]


def _parameter(match: re.Match[str]) -> str:
    return f"{match[1]}={MASK}" if _SENSITIVE.search(match[1]) else match[0]


def _field(match: re.Match[str]) -> str:
    if not _SENSITIVE.search(match[2]):
        return match[0]
    return match[0][: match.start(4) - match.start()] + MASK + match[3]
