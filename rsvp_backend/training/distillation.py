"""Distill answers into a small local MLLM (the paper's second open question): LoRA on its language model.

Examples are answers of annotators, of a larger reasoner, or of generated scenes (see `examples`). The vision part stays
as it is, the loss is taken of the answer's tokens only, and each batch holds earlier questions besides, so that the
model goes on answering them (see `answer_replay`).

Every batch is drawn from the seed and the number of its step alone (see `fitting`). With fewer than `EARLY_STOP_FROM`
examples held out the schedule runs to its end.
"""

from __future__ import annotations

import hashlib
import logging
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsvp_backend.errors import ImageError, RsvpError
from rsvp_backend.training.adapters import Delta
from rsvp_backend.training.answer_batches import AnswerBatches, answer_loss
from rsvp_backend.training.answer_replay import own_answers, replay_to_score, replay_to_train
from rsvp_backend.training.answer_scoring import AnswerScores, score_answers
from rsvp_backend.training.distill_config import DistillConfig
from rsvp_backend.training.examples import Example
from rsvp_backend.training.finetune_config import split
from rsvp_backend.training.fitting import NAN, Counting, Fit, Pace, Point, Tell
from rsvp_backend.training.prompt_store import PromptStore
from rsvp_backend.training.reasoner_deltas import ReasonerBase, shared_copy
from rsvp_backend.training.reasoner_lora import ReasonerLora

log = logging.getLogger(__name__)

EARLY_STOP_FROM = 4


@dataclass(frozen=True, slots=True, eq=False)
class DistillResult:
    """``delta``: relative to the base weights, whatever training began with; scores of what it began with and of the
    result, on held-out examples and on replay; ``unreadable``: task and reason of each example whose image is gone. The
    curve's ``held_out`` is a loss."""

    delta: dict[str, Tensor]
    before: AnswerScores
    after: AnswerScores
    replay_before: AnswerScores
    replay_after: AnswerScores
    curve: tuple[Point, ...]
    steps: int
    seconds: float
    trained_on: int
    unreadable: tuple[tuple[int, str], ...]


def distill(
    base: ReasonerBase,
    current: Delta | None,
    examples: Sequence[Example],
    config: DistillConfig,
    folder: Path,
    tell: Tell = lambda _: None,
    *,
    replay: bool = True,
) -> DistillResult:
    """Train a version of ``base``, beginning with its version ``current``; ``base`` stays as it is.

    ``folder`` holds marked pictures, and the checkpoint that a further call with the same arguments goes on from; the
    caller deletes it when the result is safe. ``tell`` may raise to stop the run. Raises `RsvpError` without examples.
    """
    if not examples:
        raise RsvpError("there is no example to learn from")
    run = _Run(base, current, examples, config, folder, tell, replay)
    before, replay_before = run.score(run.begun, run.held), run.score(run.begun, run.scored)
    run.fit.run(run.backward, run.held_out_loss, tell)
    delta = run.lora.delta()
    made = base.reasoner(delta, "new")
    return DistillResult(
        delta=delta,
        before=before,
        after=run.score(made, run.held),
        replay_before=replay_before,
        replay_after=run.score(made, run.scored),
        curve=run.fit.curve,
        steps=run.fit.state.step,
        seconds=run.fit.state.seconds,
        trained_on=len(run.trained),
        unreadable=run.unreadable,
    )


class _Run:
    """One distillation: the model with its adapters, the examples, and the fit."""

    def __init__(
        self,
        base: ReasonerBase,
        current: Delta | None,
        examples: Sequence[Example],
        config: DistillConfig,
        folder: Path,
        tell: Tell,
        replay: bool,
    ) -> None:
        self.config, self.tell = config, tell
        self.begun = base.reasoner(current, "begun")
        self.prompts = PromptStore(folder / "pictures", base.marks, self.begun.canvas_px, self.begun.max_side_px)
        readable, self.unreadable = self._readable(examples)
        self.trained, self.held = split(readable, config.held_out_share)
        self.replayed, self.scored = self._replay(base) if replay else ([], [])
        self.batches = AnswerBatches(self.begun, self.prompts, base.edges)
        self.model = shared_copy(base.loaded.model)
        self.lora = ReasonerLora(self.model, config.lora_rank, config.lora_mlp, current, config.seed)
        keys = [one.key for one in (*self.trained, *self.held, *self.replayed)]
        form = (base.version, self.begun.version, _digest(current), asdict(config), str(self.model.device), keys)
        fingerprint = hashlib.blake2b(repr(form).encode()).hexdigest()
        self.fit = Fit(self.lora.parameters, self._pace(), operator.lt, config.batch, folder, fingerprint)

    def _pace(self) -> Pace:
        config, steps = self.config, self.config.steps_for(len(self.trained))
        width = int(self.model.config.get_text_config(decoder=True).hidden_size)
        return Pace(
            steps,
            config.evaluate_every,
            config.checkpoint_every,
            config.patience if len(self.held) >= EARLY_STOP_FROM else None,
            partial(config.rate, steps=steps, width=width),
        )

    def _readable(self, examples: Sequence[Example]) -> tuple[list[Example], tuple[tuple[int, str], ...]]:
        """The examples whose image can be had, marked; and of the others task and reason."""
        found, unreadable, count = [], [], Counting(self.tell, "pictures", len(examples))
        for done, example in enumerate(examples, start=1):
            try:
                self.prompts.get(example)
                found.append(example)
            except ImageError as error:
                unreadable.append((example.task, str(error)))
            count(done)
        if not found:
            raise ImageError(f"no image of {len(examples)} examples can be read: {unreadable[0][1]}")
        return found, tuple(unreadable)

    def _replay(self, base: ReasonerBase) -> tuple[list[Example], list[Example]]:
        config, marks = self.config, base.marks
        train = replay_to_train(config.replay_trained, marks)[: config.replay_trained]
        if not base.edges:
            count = Counting(self.tell, "answers", len(train))
            train = own_answers(self.begun, train, self.prompts, config.answer_batch, count)
        return train, replay_to_score(config.replay_scored, marks)[: config.replay_scored]

    def score(self, reasoner: Any, examples: Sequence[Example]) -> AnswerScores:
        count = Counting(self.tell, "answers", len(examples))
        return score_answers(reasoner, examples, self.prompts, self.config.answer_batch, count)

    def _batch(self, step: int) -> list[Example]:
        """Examples and replay, as the seed and ``step`` alone decide."""
        config, rng = self.config, np.random.default_rng([self.config.seed, step])
        replayed = round(config.replay_share * config.batch) if self.replayed else 0
        count = config.batch - replayed
        own = rng.choice(len(self.trained), count, replace=count > len(self.trained))
        kept = rng.integers(max(1, len(self.replayed)), size=replayed)
        return [*(self.trained[n] for n in own), *(self.replayed[n] for n in kept)]

    def backward(self, step: int) -> float:
        """See `Fit.run`."""
        return self._loss(self._batch(step), learn=True)

    def held_out_loss(self) -> float:
        return self._loss(self.held, learn=False) if self.held else NAN

    def _loss(self, examples: Sequence[Example], learn: bool) -> float:
        """Mean loss per taught token, ``micro`` examples at a time; with its gradients where it is to ``learn``.

        Gradients are of the mean over micro-batches weighted by their examples: how they are split changes little.
        """
        total, tokens, micro = 0.0, 0, self.fit.state.micro
        for start in range(0, len(examples), micro):
            some = examples[start : start + micro]
            batch = self.batches.batch(some)
            with torch.set_grad_enabled(learn):
                loss = answer_loss(self.model, batch)
                if learn:
                    (loss * (len(some) / len(examples) / batch.taught)).backward()  # type: ignore[no-untyped-call]
            total, tokens = total + loss.item(), tokens + batch.taught
        return total / tokens


def _digest(delta: Delta | None) -> str:
    digest = hashlib.blake2b()
    for name, tensor in sorted((delta or {}).items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
