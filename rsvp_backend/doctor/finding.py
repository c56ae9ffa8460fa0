"""`Finding`: one line of what the doctor says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "problem", "advice", "skipped", "fixed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``text``: what was seen; ``todo``: what to change, empty where nothing is to be done.

    ``state``: a ``problem`` keeps something from working; an ``advice`` only makes it better.
    """

    state: State
    text: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.text}. To do: {self.todo}" if self.todo else self.text


Findings = Iterator[Finding]


def ok(text: str) -> Finding:
    return Finding("ok", text)


def problem(text: str, todo: str = "") -> Finding:
    return Finding("problem", text, todo)


def advice(text: str, todo: str) -> Finding:
    return Finding("advice", text, todo)


def skipped(text: str) -> Finding:
    return Finding("skipped", text)
