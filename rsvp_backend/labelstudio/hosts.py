"""Which hosts images may come from, by name."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RULE = re.compile(r"(?P<any>\*\.)?(?P<host>[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class HostRule:
    """``host`` in lower case; with ``below``, every name below it, but not itself. ``port`` None: every port."""

    host: str
    port: int | None = None
    below: bool = False

    def allows(self, host: str, port: int) -> bool:
        host = host.lower().rstrip(".")
        if self.port is not None and port != self.port:
            return False
        return host.endswith(f".{self.host}") if self.below else host == self.host


def allowed_hosts(text: str | None) -> tuple[HostRule, ...] | None:
    """``HOST[:PORT]`` and ``*.DOMAIN[:PORT]`` with commas between; None where everything is allowed.

    Raises `ValueError` that says what is expected.
    """
    if text is None:
        return None
    rules = []
    for part in text.split(","):
        match = _RULE.fullmatch(part.strip().lower())
        if match is None:
            raise ValueError("HOST[:PORT] or *.DOMAIN[:PORT] with commas between is expected")
        port = int(match["port"]) if match["port"] else None
        rules.append(HostRule(match["host"].strip("[]"), port, bool(match["any"])))
    return tuple(rules)
