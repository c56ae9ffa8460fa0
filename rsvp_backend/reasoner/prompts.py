"""The questions put to a reasoner: text files of this package, filled in with the query.

The instruction is data. It enters a prompt once, on one line, as a JSON string between tags, with every ``<`` that
could open a tag or a chat-template token broken up; nothing in it is expanded again.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from importlib import resources

from rsvp_backend.errors import ReasonerError
from rsvp_backend.reasoner.schema import answer_example
from rsvp_backend.reasoner.text import as_data
from rsvp_backend.types import Marks, Query

MAX_INSTRUCTION_CHARS = 4_000
_FIELD = re.compile(r"\{([a-z_]+)\}")
_LABEL_STEP = "5. For each object choose the label that fits best, spelled exactly so, out of: {labels}\n"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question and the repair question that goes with it. ``name`` is the question's file, less ``.txt``."""

    name: str
    question: str
    repair: str

    @classmethod
    def load(cls, name: str) -> Prompt:
        """Prompt ``name`` of this package. Raises `ReasonerError` for an unknown name."""
        folder = resources.files("rsvp_backend.reasoner") / "prompts"
        known = sorted(f.name.removesuffix(".txt") for f in folder.iterdir() if f.name.endswith(".txt"))
        questions = [other for other in known if other != "repair"]
        if name not in questions:
            raise ReasonerError(f"prompt {name!r} is unknown: one of {', '.join(questions)} is expected")
        question, repair = (
            (folder / f"{file}.txt").read_text(encoding="utf-8").rstrip("\n") for file in (name, "repair")
        )
        return cls(name, question, repair)

    @property
    def digest(self) -> str:
        """Changes with every character of the texts; part of the reasoner's version."""
        return hashlib.sha256(f"{self.question}\0{self.repair}\0{_LABEL_STEP}".encode()).hexdigest()[:8]

    def ask(self, query: Query, marks: Marks) -> str:
        """The question on ``query`` for an image marked with ``marks``."""
        if len(query.instruction) > MAX_INSTRUCTION_CHARS:
            raise ReasonerError(
                f"the instruction has {len(query.instruction)} characters: at most {MAX_INSTRUCTION_CHARS} are expected"
            )
        plain = as_data(query.instruction)
        labels = json.dumps(query.labels, ensure_ascii=False)
        values = {
            "instruction": plain,
            "instruction_json": json.dumps(plain, ensure_ascii=False),
            "rows": str(marks.rows),
            "columns": str(marks.columns),
            "cells": str(marks.rows * marks.columns),
            "label_step": _LABEL_STEP.replace("{labels}", labels) if len(query.labels) > 1 else "",
            "example": answer_example(marks, query.labels),
        }
        return _fill(self.question, values)

    def ask_again(self, problem: str, query: Query, marks: Marks) -> str:
        """The repair question, which shows the model what was wrong with its answer."""
        return _fill(self.repair, {"problem": as_data(problem), "example": answer_example(marks, query.labels)})


def _fill(template: str, values: dict[str, str]) -> str:
    """One pass, so that braces inside the values stay as they are."""
    return _FIELD.sub(lambda match: values.get(match[1], match[0]), template)
