"""Marked pictures, drawn once and kept in files: a training asks for each of them many times."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rsvp_backend.errors import RsvpError
from rsvp_backend.grid import visual_prompt
from rsvp_backend.training.examples import Example
from rsvp_backend.types import Marks


@dataclass(frozen=True, slots=True)
class PromptStore:
    """The visual prompts of examples for one reasoner, as PNG files in ``folder``."""

    folder: Path
    marks: Marks
    canvas_px: tuple[int, int] | None = None
    max_side_px: int | None = None

    def get(self, example: Example) -> Image.Image:
        """Raises `ImageError` where the example's image cannot be had, `RsvpError` where the file cannot be written."""
        path = self.folder / f"{self._name(example)}.png"
        if path.exists():
            with Image.open(path) as image:
                return image.convert("RGB")
        marked = visual_prompt(example.load_image().convert("RGB"), self.marks, self.canvas_px, self.max_side_px)
        aside = path.with_suffix(".part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            marked.save(aside, "PNG", compress_level=1)
            aside.replace(path)
        except OSError as error:
            raise RsvpError(f"the marked picture {path} cannot be written: {error.strerror or error}") from error
        return marked

    def _name(self, example: Example) -> str:
        form = repr((example.key, self.marks, self.canvas_px, self.max_side_px))
        return hashlib.sha256(form.encode()).hexdigest()[:32]
