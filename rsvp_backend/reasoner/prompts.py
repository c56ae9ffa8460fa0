"""The questions put to a reasoner: text files of this package, or of a user's folder, filled in with the query.

A folder's files `rsvp_bands.txt`, `rsvp_cells.txt` and `repair.txt` replace the package's, each by itself; see
`check_folder` for what they must hold.

The instruction is data. It enters a prompt once, on one line, as a JSON string between tags, with every ``<`` that
could open a tag or a chat-template token broken up; nothing in it is expanded again.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from rsvp_backend.errors import ReasonerError, SettingsError
from rsvp_backend.reasoner.schema import answer_example
from rsvp_backend.reasoner.text import as_data
from rsvp_backend.types import Marks, Query

MAX_INSTRUCTION_CHARS = 4_000
_FIELD = re.compile(r"\{([a-z_]+)\}")
_ONCE = ("instruction_json", "label_step", "example")
PLACEHOLDERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "rsvp_bands": (_ONCE, ("rows", "columns")),
    "rsvp_cells": (_ONCE, ("rows", "columns", "cells")),
    "repair": (("problem", "example"), ()),
}
"""Of each file that a user may replace: the placeholders it must hold, each once, and the ones it may hold."""
MAX_FILE_BYTES = 64 * 1024
_LABEL_STEP = "5. For each object choose the label that fits best, spelled exactly so, out of: {labels}\n"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question and the repair question that goes with it. ``name`` is the question's file, less ``.txt``."""

    name: str
    question: str
    repair: str

    @classmethod
    def load(cls, name: str, folder: Path | None = None) -> Prompt:
        """Prompt ``name``, from ``folder`` as far as that has it.

        Raises `ReasonerError` for an unknown name and `SettingsError` for a folder that `check_folder` refuses.
        """
        own = resources.files("rsvp_backend.reasoner") / "prompts"
        known = sorted(f.name.removesuffix(".txt") for f in own.iterdir() if f.name.endswith(".txt"))
        questions = [other for other in known if other != "repair"]
        if name not in questions:
            raise ReasonerError(f"prompt {name!r} is unknown: one of {', '.join(questions)} is expected")
        replaced = check_folder(folder) if folder is not None else {}
        question, repair = (
            replaced.get(file) or (own / f"{file}.txt").read_text(encoding="utf-8").rstrip("\n")
            for file in (name, "repair")
        )
        return cls(name, question, repair)

    @property
    def digest(self) -> str:
        """Changes with every character of the texts; part of the reasoner's version."""
        return hashlib.sha256(f"{self.question}\0{self.repair}\0{_LABEL_STEP}".encode()).hexdigest()[:8]

    @property
    def offers_labels(self) -> bool:
        """Whether the question lets the model choose a label. A model trained on a fixed form knows of none."""
        return "{label_step}" in self.question

    def ask(self, query: Query, marks: Marks) -> str:
        """The question on ``query`` for an image marked with ``marks``."""
        if len(query.instruction) > MAX_INSTRUCTION_CHARS:
            raise ReasonerError(
                f"the instruction has {len(query.instruction)} characters: at most {MAX_INSTRUCTION_CHARS} are expected"
            )
        plain = as_data(query.instruction)
        labels = f"[{', '.join(_json_label(label) for label in query.labels)}]"
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


def check_folder(folder: Path) -> dict[str, str]:
    """The texts of ``folder`` by name: each ``.txt`` file in it, less the line breaks at its end.

    Raises `SettingsError`, with file and placeholder, where the folder has no such file, one that is not in
    `PLACEHOLDERS`, one that cannot be read, or one whose placeholders are not those that it must and may hold.
    """
    try:
        files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    except OSError as error:
        raise SettingsError(f"RSVP_PROMPTS: {folder} cannot be read: {error.strerror}") from None
    expected = ", ".join(f"{name}.txt" for name in PLACEHOLDERS)
    if not files:
        raise SettingsError(f"RSVP_PROMPTS: {folder} is no folder with prompts: a folder with {expected} is expected")
    for file in files:
        if file.stem not in PLACEHOLDERS:
            close = get_close_matches(file.stem, PLACEHOLDERS, n=1)
            hint = f"did you mean {close[0]}.txt? " if close else ""
            raise SettingsError(f"RSVP_PROMPTS: {file} replaces no prompt: {hint}Known are {expected}")
    return {file.stem: _checked(file) for file in files}


def _checked(file: Path) -> str:
    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"RSVP_PROMPTS: {file} cannot be read as UTF-8 text: {error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError(f"RSVP_PROMPTS: {file} has {len(data)} bytes: at most {MAX_FILE_BYTES} are expected")
    required, optional = PLACEHOLDERS[file.stem]
    found = [match[1] for match in _FIELD.finditer(text)]
    known = ", ".join(f"{{{name}}}" for name in (*required, *optional))
    for name in found:
        if name not in (*required, *optional):
            raise SettingsError(f"RSVP_PROMPTS: {file} holds the unknown placeholder {{{name}}}: known are {known}")
    for name in required:
        if found.count(name) != 1:
            raise SettingsError(
                f"RSVP_PROMPTS: {file} holds the placeholder {{{name}}} {found.count(name)} times: once is expected"
            )
    return text


def _json_label(label: str) -> str:
    """A label as a JSON string that decodes to it; the brackets that tags and tokens begin with are escaped."""
    return json.dumps(label, ensure_ascii=False).replace("<", "\\u003c").replace("[", "\\u005b")


def _fill(template: str, values: dict[str, str]) -> str:
    """One pass, so that braces inside the values stay as they are."""
    return _FIELD.sub(lambda match: values.get(match[1], match[0]), template)
