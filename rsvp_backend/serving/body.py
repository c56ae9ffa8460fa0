"""The body of ``/predict``, read task by task.

Label Studio sends each task with all its annotations and predictions, megabytes of RLE that nothing here needs. Parsed
in one piece they would hold the interpreter's lock for that long, and /health with it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rsvp_backend.answers import asks_something
from rsvp_backend.errors import LabelConfigError
from rsvp_backend.labelstudio.tags import parse_label_config
from rsvp_backend.security.bodies import BodyError, cleaned

JSON = dict[str, Any]
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODE = json.JSONDecoder(parse_constant=lambda _: None).raw_decode
_READ = ("tasks", "label_config", "project", "params")
_ID_CHARS = 50
_PIECE_CHARS = 2**16
_PAUSE_S = 0.0005


@dataclass(frozen=True, slots=True)
class PredictBody:
    """``tasks`` with their id and data only. ``context`` is there in interactive calls, and may be empty.

    ``asks``: whether an answer is wanted: Label Studio also sends contexts that call for none.
    """

    tasks: tuple[JSON, ...]
    label_config: str = ""
    project: str = ""
    context: Mapping[str, Any] | None = None
    asks: bool = True


def read_body(raw: bytes) -> PredictBody:
    """Raises `BodyError`, which says what was expected."""
    try:
        known = _known(_Reader(raw.decode()))
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise BodyError(f"the body is not a JSON object of /predict: {str(error)[:200]}") from None
    if "tasks" not in known:
        raise BodyError('the body has no "tasks": a list of Label Studio tasks is expected')
    label_config, project, params = known.get("label_config"), known.get("project"), known.get("params")
    if label_config is not None and not isinstance(label_config, str):
        raise BodyError('"label_config" is no text: the labeling config\'s XML is expected')
    context = params.get("context") if isinstance(params, Mapping) else None
    context = context if isinstance(context, Mapping) and context else None
    body = PredictBody(known["tasks"], label_config or "", str(project), context)
    return PredictBody(body.tasks, body.label_config, body.project, context, context is None or _asks(body))


def _known(reader: _Reader) -> JSON:
    known: JSON = {}
    for key in reader.members():
        value = _tasks(reader) if key == "tasks" else reader.value()
        if key in _READ:
            known[key] = value if key == "tasks" else cleaned(value)
    reader.end()
    return known


def _tasks(reader: _Reader) -> tuple[JSON, ...]:
    tasks: list[JSON] = []
    paused_at = 0
    for _ in reader.items():
        task = reader.value()
        if reader.at - paused_at > _PIECE_CHARS:
            paused_at = reader.at
            time.sleep(_PAUSE_S)  # whoever waits for the interpreter's lock gets it now, not only in 5 ms
        if not isinstance(task, dict):
            raise ValueError(f"task {len(tasks) + 1} is {str(task)[:50]!r}, an object is expected")
        tasks.append({name: read(task[name]) for name, read in _KEPT.items() if name in task})
    return tuple(tasks)


def _identity(value: Any) -> int | str | None:
    """As it is logged and kept in traces."""
    return value if isinstance(value, int) else cleaned(value)[:_ID_CHARS] if isinstance(value, str) else None


_KEPT: dict[str, Callable[[Any], Any]] = {"id": _identity, "data": cleaned}


def _asks(body: PredictBody) -> bool:
    if not (body.context or {}).get("result"):
        return False
    try:
        return asks_something(body.context, parse_label_config(body.label_config))
    except LabelConfigError:
        return True  # the answer tells this reason


class _Reader:
    """Walks JSON text; every method raises `ValueError` for what is none."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.at = 0

    def value(self) -> Any:
        value, self.at = _DECODE(self._text, self._past_space())
        return value

    def members(self) -> Iterator[str]:
        """The object's keys; the caller reads the value after each."""
        for _ in self._between("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                raise ValueError(f"a key is expected at character {self.at}")
            self._expect(":")
            yield key

    def items(self) -> Iterator[None]:
        """Stops at each of the list's elements; the caller reads it."""
        return self._between("[", "]")

    def end(self) -> None:
        if self._past_space() != len(self._text):
            raise ValueError(f"nothing more is expected at character {self.at}")

    def _between(self, opening: str, closing: str) -> Iterator[None]:
        self._expect(opening)
        if self._take(closing):
            return
        while True:
            yield None
            if self._take(closing):
                return
            self._expect(",")

    def _take(self, mark: str) -> bool:
        found = self._text.startswith(mark, self._past_space())
        self.at += found
        return found

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            raise ValueError(f"{mark!r} is expected at character {self.at}")

    def _past_space(self) -> int:
        space = _SPACE.match(self._text, self.at)
        self.at = space.end() if space else self.at
        return self.at
