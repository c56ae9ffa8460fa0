"""Greedy decoding under guides: what transformers' ``generate`` gives, sooner.

On a CPU a step's price is its overhead, so guessed tokens are checked several at once (see `drafts`), in float32 only,
where the number of tokens in a pass does not show in the result; and a further question on the same picture reads only
the question. On a GPU a step is one CUDA graph over a static cache.
Models of other families than `steps.FAMILIES` go through ``generate`` under the same guides.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from rsvp_backend.errors import DeadlineError
from rsvp_backend.reasoner.constrained import Guide
from rsvp_backend.reasoner.drafts import Drafts
from rsvp_backend.reasoner.steps import BufferSteps, StaticSteps, Steps, TextModel
from rsvp_backend.types import Deadline

log = logging.getLogger(__name__)
CAPACITY_STEP = 256  # static caches come in these sizes, so that prompts of other lengths can use them again


class Decoder:
    """Writes the answers of one model; not for several threads at once.

    ``static``: whether steps go through a static cache (default: on a GPU).
    """

    def __init__(self, model: Any, pad_token: int, end_token: int, static: bool | None = None) -> None:
        self._model, self._pad_token, self._end_token = model, pad_token, end_token
        self._text = TextModel(model) if TextModel.supports(model) else None
        self._drafts = Drafts() if model.dtype == torch.float32 else None
        self._static = model.device.type == "cuda" if static is None else static
        self._kept: tuple[tuple[int, int], StaticSteps] | None = None
        self._last: BufferSteps | None = None  # one prompt's keys and values, for the next question on its picture

    def write(
        self, inputs: dict[str, Any], guides: Sequence[Guide], limit: int, deadline: Deadline | None
    ) -> list[list[int]]:
        """The answers' tokens, at most ``limit`` each, without end tokens; one per guide and row of ``inputs``.

        ``inputs``: the processor's output, padded on the left. Raises `DeadlineError`, and torch's `RuntimeError`.
        """
        if self._text is None:
            return self._by_generate(inputs, guides, limit, deadline)
        steps, scores = self._started(self._text, inputs, limit)
        rows = [_Row(guide, limit, deadline) for guide in guides]
        if self._drafts is not None and len(rows) == 1 and isinstance(steps, BufferSteps):
            self._drafting(steps, rows[0], scores, self._drafts, inputs["input_ids"])
        else:
            self._one_by_one(steps, rows, scores)
        return [row.tokens for row in rows]

    def _one_by_one(self, steps: Steps, rows: list[_Row], scores: Tensor) -> None:
        while True:
            for row, row_scores, best in zip(rows, scores, scores.argmax(-1).tolist(), strict=True):
                row.take(row_scores, best)
            if all(row.done for row in rows):
                return
            tokens = [[self._pad_token if row.done else row.tokens[-1]] for row in rows]
            scores = steps.step(torch.tensor(tokens, device=scores.device))[:, -1]

    def _drafting(self, steps: BufferSteps, row: _Row, scores: Tensor, drafts: Drafts, prompt: Tensor) -> None:
        row.take(scores[0], int(scores[0].argmax()))
        draft = drafts.start(prompt[0].tolist())
        draft.add(row.tokens)
        while not row.done:
            written = len(row.tokens)
            guessed = draft.guess(row.left - 1)
            scores = steps.step(torch.tensor([[row.tokens[-1], *guessed]], device=prompt.device))[0]
            for guess, token_scores, best in zip((*guessed, None), scores, scores.argmax(-1).tolist(), strict=True):
                if row.take(token_scores, best) != guess:
                    break
            steps.keep(len(row.tokens) - 1)  # the last one is yet to be read
            draft.add(row.tokens[written:])
        drafts.learn(row.tokens)

    def _started(self, text: TextModel, inputs: dict[str, Any], limit: int) -> tuple[Steps, Tensor]:
        """Steps that have read the prompts, and the scores of the first tokens."""
        rows, prompt_tokens = inputs["input_ids"].shape
        capacity = -(-(prompt_tokens + limit) // CAPACITY_STEP) * CAPACITY_STEP
        if self._static and (static := self._static_steps(text, rows, capacity)) is not None:
            return static, static.start(inputs)
        last, self._last = self._last, None
        if last is not None and rows == 1 and last.capacity >= prompt_tokens + limit:
            scores = last.again(inputs)
            if scores is not None:
                self._last = last
                return last, scores
        steps = BufferSteps(text, capacity)
        scores = steps.start(inputs)
        if rows == 1 and self._drafts is not None:
            self._last = steps
        return steps, scores

    def _static_steps(self, text: TextModel, rows: int, capacity: int) -> StaticSteps | None:
        """None where a GPU refuses to record them."""
        key = rows, capacity
        if self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        self._kept = None  # its memory goes first
        try:
            steps = StaticSteps(text, *key)
            if text.model.device.type == "cuda":
                steps.record()
        except RuntimeError as error:
            log.warning("no CUDA graph for %s answers at once (%s): decoding step by step", rows, error)
            self._static = False
            return None
        self._kept = key, steps
        return steps

    def _by_generate(
        self, inputs: dict[str, Any], guides: Sequence[Guide], limit: int, deadline: Deadline | None
    ) -> list[list[int]]:
        rows = [_Row(guide, limit, deadline) for guide in guides]
        guided = _Guided(rows, self._end_token)
        self._model.generate(**inputs, max_new_tokens=limit, logits_processor=[guided])
        return [row.tokens for row in rows]


class _Row:
    """One answer under way: its tokens so far."""

    def __init__(self, guide: Guide, limit: int, deadline: Deadline | None) -> None:
        self._guide, self._limit, self._deadline = guide, limit, deadline
        self.tokens: list[int] = []
        self.done = False

    @property
    def left(self) -> int:
        """Tokens that may still be written."""
        return self._limit - len(self.tokens)

    def take(self, scores: Tensor, best: int) -> int | None:
        """Add the next token, unless the answer is done; returns it. See `Guide.take`."""
        if self.done:
            return None
        if self._deadline is not None and self._deadline.expired:
            raise DeadlineError("the time of this request was over while the answer was written")
        token = self._guide.take(scores, best, self.left)
        if token is None:
            self.done = True
            return None
        self.tokens.append(token)
        self.done = self.left == 0 or self._guide.complete
        return token


class _Guided(LogitsProcessor):
    """Guides inside ``generate``: all scores but those of the chosen tokens are made impossible."""

    def __init__(self, rows: list[_Row], end_token: int) -> None:
        self._rows, self._end_token = rows, end_token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = []
        for row, row_scores, best in zip(self._rows, scores, scores.argmax(-1).tolist(), strict=True):
            token = row.take(row_scores, best)
            chosen.append([self._end_token if token is None else token])
        only = torch.full_like(scores, float("-inf"))
        return only.scatter_(1, torch.tensor(chosen, device=scores.device), 0.0)
