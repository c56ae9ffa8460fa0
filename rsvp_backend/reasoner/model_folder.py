"""A local model folder: its digest, and ``rsvp.json``, by which a model trained for this task says how to ask it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsvp_backend.errors import WeightsError
from rsvp_backend.types import Marks

MARKER = "rsvp.json"
_DIGESTED = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True, slots=True)
class Marker:
    """What ``rsvp.json`` says; every part is optional.

    ``prompt``: the family of prompts that the model was trained on; ``canvas_px``: the (width, height) of its pictures;
    ``marks``: the only ones that it reads, the usual ones first; none where it reads any.
    """

    name: str | None = None
    prompt: str | None = None
    canvas_px: tuple[int, int] | None = None
    marks: tuple[Marks, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Marker:
        """The folder's marker, an empty one where there is none. Raises `WeightsError` for one that makes no sense."""
        path = folder / MARKER
        if not path.exists():
            return cls()
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict) or not values.keys() <= {"name", "prompt", "canvas_px", "marks"}:
                raise ValueError("an object with name, prompt, canvas_px and marks is expected")
            canvas_px, marks = _canvas(values.get("canvas_px")), _marks(values.get("marks"))
            return cls(values.get("name"), values.get("prompt"), canvas_px, marks)
        except (ValueError, TypeError) as error:
            raise WeightsError(f"{path} makes no sense: {error}") from error


def folder_digest(folder: Path) -> str:
    """Digest of all files that change a model's answers: weights, configuration, tokenizer, chat template."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _DIGESTED and path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _marks(value: Any) -> tuple[Marks, ...]:
    """Of one object or of a list of them."""
    if value is None:
        return ()
    return tuple(Marks(**one) for one in (value if isinstance(value, list) else [value]))


def _canvas(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(n, int) and n > 0 for n in value):
        raise ValueError(f"canvas_px is {value}: [width, height] in pixels is expected")
    return value[0], value[1]
