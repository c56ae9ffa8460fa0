"""What all reasoners share: ask -> parse -> one repair try that shows the model its error."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from rsvp_backend.errors import AnswerError, DeadlineError, ReasonerError
from rsvp_backend.reasoner.parsing import parse, without_thinking
from rsvp_backend.reasoner.prompts import Prompt
from rsvp_backend.reasoner.schema import answer_schema
from rsvp_backend.types import MARKS_KINDS, Answer, Deadline, Marks, Proposal, Query

log = logging.getLogger(__name__)
MAX_QUOTED_CHARS = 4_000


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One turn of the conversation; the image, if any, stands before the text."""

    role: Literal["user", "assistant"]
    text: str
    image: Image.Image | None = None


class MllmReasoner(ABC):
    """A `Reasoner` on top of any model that continues a conversation; implementations add `complete`.

    ``prompt``: the family of prompts that the model was trained on, which it keeps; None for the family ``rsvp``, from
    the folder ``prompts`` as far as that has them. A family has a prompt for each kind of marks: ``rsvp_bands``.
    """

    def __init__(
        self, prompt: str | None = None, canvas_px: tuple[int, int] | None = None, prompts: Path | None = None
    ) -> None:
        if prompt and prompts:
            log.warning("the prompts in %s are not used: the model was trained on its own, %r", prompts, prompt)
        family, folder = prompt or "rsvp", None if prompt else prompts
        self._prompts = {kind: Prompt.load(f"{family}_{kind}", folder) for kind in MARKS_KINDS}
        self._canvas_px = canvas_px

    @property
    @abstractmethod
    def version(self) -> str:
        """See `Reasoner.version`."""

    @abstractmethod
    def complete(self, messages: tuple[Message, ...], schema: dict[str, Any], deadline: Deadline | None) -> str:
        """The model's next turn as raw text, at temperature 0. ``schema``: what the JSON should satisfy.

        Raises `ReasonerError` or `DeadlineError`.
        """

    @property
    def canvas_px(self) -> tuple[int, int] | None:
        return self._canvas_px

    @property
    def max_side_px(self) -> int | None:
        """See `Reasoner.max_side_px`: local models' processors choose the size themselves."""
        return None

    @property
    def prompt_digest(self) -> str:
        return "-".join(prompt.digest for prompt in self._prompts.values())

    def question(self, visual_prompt: Image.Image, query: Query, marks: Marks) -> Message:
        """What the model is asked first."""
        return Message("user", self._prompt(marks).ask(query, marks), visual_prompt.convert("RGB"))

    def offers_labels(self, query: Query, marks: Marks) -> bool:
        """Whether an answer to ``query`` chooses one of its labels."""
        return len(query.labels) > 1 and self._prompt(marks).offers_labels

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        """See `Reasoner.propose`."""
        prompt = self._prompt(marks)
        schema = answer_schema(marks, query.labels if prompt.offers_labels else ())
        question = self.question(visual_prompt, query, marks)
        first = self.complete((question,), schema, deadline)
        try:
            return Answer(parse(first, marks, query.labels, query.instruction), (first,))
        except AnswerError as error:
            problem = str(error)
        log.info("invalid answer (%s): asking for a repair", problem)
        quoted = without_thinking(first)[:MAX_QUOTED_CHARS] or "(no answer)"
        again = (question, Message("assistant", quoted), Message("user", prompt.ask_again(problem, query, marks)))
        try:
            second = self.complete(again, schema, deadline)
        except (DeadlineError, ReasonerError) as error:
            raise AnswerError(f"invalid answer: {problem}; no repair: {error}", (first,)) from error
        return Answer(self._parse_repaired(second, first, problem, marks, query), (first, second))

    def _parse_repaired(
        self, second: str, first: str, problem: str, marks: Marks, query: Query
    ) -> tuple[Proposal, ...]:
        try:
            return parse(second, marks, query.labels, query.instruction)
        except AnswerError as error:
            message = f"invalid answer: {problem}; after the repair try: {error}"
            raise AnswerError(message, (first, second)) from None

    def _prompt(self, marks: Marks) -> Prompt:
        return self._prompts[marks.kind]
