"""Small stand-ins for the two models: they answer by the instruction's words, and count and delay on demand."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from rsvp_backend.errors import ReasonerError
from rsvp_backend.pipeline import RSVP
from rsvp_backend.types import Answer, Deadline, Marks, Prompt, Proposal, Query, Regions, Segmentation

MIDDLE = Regions(rows=(4, 5, 6), columns=(4, 5, 6))


@dataclass
class FakeReasoner:
    """``the red cup`` -> object ``red cup`` in the middle. ``absent``, ``broken``, ``crash`` in the instruction do so.

    Every call waits for ``gate``; ``asked`` lists the queries.
    """

    version: str = "fake-reasoner"
    canvas_px: tuple[int, int] | None = None
    max_side_px: int | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    asked: list[Query] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        self.asked.append(query)
        self.entered.set()
        assert self.gate.wait(20)
        if "broken" in query.instruction:
            raise ReasonerError("the reasoner cannot be reached")
        if "crash" in query.instruction:
            raise RuntimeError("a bug")
        present = "absent" not in query.instruction
        target = query.instruction.removeprefix("the ")
        proposal = Proposal(target, present, MIDDLE if present else Regions(), f"It is {query.instruction}.")
        return Answer((proposal,), ("{}",))


@dataclass(frozen=True)
class FakeSegmenter:
    """The left half of every crop; ``prompts`` lists what was asked."""

    version: str = "fake-12345678"

    prompts: list[Prompt] = field(default_factory=list)

    def segment(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Segmentation]:
        self.prompts.extend(prompts)
        found = []
        for crop in (prompt.crop for prompt in prompts):
            logits = np.full((crop.height, crop.width), -8.0, dtype=np.float32)
            logits[:, : crop.width // 2] = 8.0
            found.append(Segmentation(logits, 0.75))
        return found


def fake_rsvp(reasoner: FakeReasoner | None = None) -> RSVP:
    return RSVP(reasoner or FakeReasoner(), FakeSegmenter())
