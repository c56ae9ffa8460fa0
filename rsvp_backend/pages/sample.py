"""Generated pictures for the playground: scenes that no demo model was trained on, with an instruction each."""

from __future__ import annotations

import io
from dataclasses import dataclass

from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, make_scene


@dataclass(frozen=True, slots=True)
class Sample:
    """``file``: a PNG."""

    name: str
    file: bytes
    instruction: str


def sample(seed: int) -> Sample:
    """The scene and, of its questions about something that is there, one that goes with ``seed``."""
    scene = make_scene(EVALUATION_SEEDS_FROM + seed, "easy")
    asked = [question for question in scene.questions if question.present] or list(scene.questions)
    file = io.BytesIO()
    scene.image.save(file, "PNG")
    return Sample(f"scene-{scene.seed}.png", file.getvalue(), asked[seed % len(asked)].instruction)
