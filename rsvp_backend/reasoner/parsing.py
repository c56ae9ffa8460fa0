"""A reasoner's text -> proposals. Strict about the answer, tolerant about what models put around it.

Tolerated: code fences, prose before and after, thinking blocks, a bare list of proposals or a single bare proposal.
Everything else that departs from the form raises `AnswerError`, in words that a model can act on.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress
from typing import Any

from rsvp_backend.errors import AnswerError
from rsvp_backend.reasoner.schema import MAX_PROPOSALS, region_fields
from rsvp_backend.reasoner.text import as_data, one_line
from rsvp_backend.types import Marks, Proposal, Regions

MAX_ANSWER_CHARS = 50_000
MAX_OBJECT_CHARS = 200
MAX_BROKEN = 5000
"""Places where JSON begins and breaks off; each may have been read to its end."""
_TAG = re.compile("<(?P<closes>/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_LEVEL = re.compile(r'\[\s*|\{\s*"[^"\\]*"\s*:\s*')
_JSON_START = re.compile(r'\{\s*["}]|\[\s*\{')


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse_constant)


def parse(text: str, marks: Marks, labels: tuple[str, ...] = (), instruction: str = "") -> tuple[Proposal, ...]:
    """The proposals in ``text``; where it holds several whole answers, the last one counts.

    JSON that ``instruction`` itself holds is an echo of it, never an answer. Ids are sorted and unique. An absent
    object keeps only ids that exist; a present one may have none. Raises `AnswerError` with what is wrong.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise AnswerError(f"the answer has {len(text)} characters: at most {MAX_ANSWER_CHARS} are expected")
    items = _find_answer(without_thinking(text), _json_values(instruction))
    if len(items) > MAX_PROPOSALS:
        raise AnswerError(f"there are {len(items)} proposals: at most {MAX_PROPOSALS} are expected")
    return tuple(_proposal(item, f"proposals[{i}]", marks, labels) for i, item in enumerate(items))


def without_thinking(text: str) -> str:
    """``text`` less its thinking blocks.

    The opening tag may be part of the prompt and thus missing; a block that never ends is thinking to the end.
    """
    kept: list[str] = []
    at, inside = 0, False
    for tag in _TAG.finditer(text):
        if tag["closes"]:
            if not inside:
                kept.clear()
            at, inside = tag.end(), False
        elif not inside:
            kept.append(text[at : tag.start()])
            inside = True
    return "".join(kept if inside else [*kept, text[at:]]).strip()


def _json_values(text: str) -> list[Any]:
    """Every JSON object and list in ``text`` and on its one line, whole or part of another, each as a value."""
    values: list[Any] = []
    for form in {text, as_data(text)}:
        at = 0
        while match := _JSON_START.search(form, at):
            at = match.start() + 1
            with suppress(ValueError, RecursionError):
                values.append(_DECODER.raw_decode(form, match.start())[0])
    return values


def _find_answer(text: str, echoes: list[Any]) -> list[Any]:
    """The list of raw proposals. Parts of a broken outer object never count as an answer, nor do ``echoes``."""
    whole: Any = None
    bare: list[list[Any]] = []
    problem, broken = "", 0
    at = 0
    while match := _JSON_START.search(text, at):
        try:
            value, end = _DECODER.raw_decode(text, match.start())
            is_echo = value in echoes
        except (ValueError, RecursionError) as error:
            deep = isinstance(error, RecursionError)
            problem, broken = _syntax_problem(error), broken + 1
            at = _less_deep(text, match.start()) if deep else match.start() + 1
            if broken > MAX_BROKEN:
                raise AnswerError(problem) from None
            continue
        at = end
        if is_echo:
            continue
        if isinstance(value, list) and len(value) == 1:  # the answer in a list of its own
            (value,) = value
        if isinstance(value, dict) and "proposals" in value:
            whole = value
        elif isinstance(value, dict) and "object" in value:
            bare.append([value])
        elif isinstance(value, list) and all(isinstance(item, dict) and "object" in item for item in value):
            bare.append(value)
    if whole is not None:
        return _as_list(whole["proposals"])
    if problem:
        raise AnswerError(problem)
    if len(bare) != 1:
        seen = f"{len(bare)} separate JSON objects" if bare else "no JSON object"
        raise AnswerError(f'the answer holds {seen}: one object with the list "proposals" is expected')
    return bare[0]


def _less_deep(text: str, start: int) -> int:
    """Where to read on in JSON that is nested too deeply: what begins before that is so as well."""
    levels, at = [start], start
    while match := _LEVEL.match(text, at):
        at = match.end()
        levels.append(at)
    return max(start + 1, levels[-sys.getrecursionlimit()] if len(levels) > sys.getrecursionlimit() else 0)


def _proposal(item: Any, where: str, marks: Marks, labels: tuple[str, ...]) -> Proposal:
    if not isinstance(item, dict):
        raise AnswerError(f"{where} is {_shown(item)}: an object is expected")
    present = item.get("present")
    if not isinstance(present, bool):
        raise AnswerError(f"{where}.present is {_shown(present)}: true or false is expected")
    name = _text(item, "object", where)
    if len(name) > MAX_OBJECT_CHARS or (present and not name):
        raise AnswerError(f"{where}.object has {len(name)} characters: 1 to {MAX_OBJECT_CHARS} are expected")
    try:
        regions = _regions(item, where, marks)
    except AnswerError:
        if present:
            raise
        regions = Regions()
    return Proposal(name, present, regions, _text(item, "reasoning", where), _label(item, where, labels))


def _regions(item: dict[str, Any], where: str, marks: Marks) -> Regions:
    fields = region_fields(marks)
    found = {field: _ids(item, field, where, highest) for field, highest in fields.items()}
    if marks.kind == "cells":
        return Regions(cells=found["regions"])
    return Regions(rows=found["rows"], columns=found["columns"])


def _ids(item: dict[str, Any], field: str, where: str, highest: int) -> tuple[int, ...]:
    expected = f"a list of ids from 1 to {highest} is expected"
    ids = item.get(field)
    if not isinstance(ids, list):
        raise AnswerError(f"{where}.{field} is {_shown(ids)}: {expected}")
    for value in ids:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest:
            raise AnswerError(f"{where}.{field} holds {_shown(value)}: {expected}")
    return tuple(sorted(set(ids)))


def _label(item: dict[str, Any], where: str, labels: tuple[str, ...]) -> str | None:
    """The chosen label in the project's spelling; None where there is no choice, or none was made."""
    label = item.get("label")
    if len(labels) < 2 or label is None:
        return None
    if label in labels:
        return str(label)
    by_folded = {known.casefold().strip(): known for known in labels}
    if isinstance(label, str) and (known := by_folded.get(label.casefold().strip())) is not None:
        return known
    raise AnswerError(f"{where}.label is {_shown(label)}: one of {json.dumps(labels, ensure_ascii=False)} is expected")


def _text(item: dict[str, Any], field: str, where: str) -> str:
    value = item.get(field)
    if not isinstance(value, str):
        raise AnswerError(f"{where}.{field} is {_shown(value)}: a text is expected")
    return one_line(value)


def _as_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise AnswerError(f"proposals is {_shown(value)}: a list is expected")
    return value


def _syntax_problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        near = error.doc[max(0, error.pos - 20) : error.pos + 20]
        return f"the JSON is broken: {error.msg}, near {near!r}"
    return "the JSON is broken: it is nested too deeply" if isinstance(error, RecursionError) else f"bad JSON: {error}"


def _shown(value: Any) -> str:
    """A short form of what was seen, for messages."""
    if value is None:
        return "missing"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
