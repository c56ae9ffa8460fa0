"""Distill answers into a small local MLLM (the paper's second open question): LoRA on its language model.

Examples are answers of annotators, of a larger reasoner, or of generated scenes (see `examples`). The vision part stays
as it is, the loss is taken of the answer's tokens only, and each batch holds earlier questions besides, so that the
model goes on answering them (see `answer_replay`).

Every batch is drawn from the seed and the number of its step alone: a run that was killed goes on from its last
checkpoint to the same result. With fewer than `EARLY_STOP_FROM` examples held out the schedule runs to its end.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsvp_backend.errors import ImageError, RsvpError
from rsvp_backend.training import durable
from rsvp_backend.training.adapters import Delta
from rsvp_backend.training.answer_batches import AnswerBatches, answer_loss
from rsvp_backend.training.answer_replay import own_answers, replay_to_score, replay_to_train
from rsvp_backend.training.answer_scoring import AnswerScores, score_answers
from rsvp_backend.training.distill_config import Counting, DistillConfig, Point, Progress, Tell
from rsvp_backend.training.examples import Example
from rsvp_backend.training.finetune_config import split
from rsvp_backend.training.prompt_store import PromptStore
from rsvp_backend.training.reasoner_deltas import ReasonerBase, shared_copy
from rsvp_backend.training.reasoner_lora import ReasonerLora

__all__ = ["EARLY_STOP_FROM", "STATE_FILE", "DistillConfig", "DistillResult", "Point", "Progress", "distill"]

log = logging.getLogger(__name__)

EARLY_STOP_FROM = 4
STATE_FILE = "state.pt"


@dataclass(frozen=True, slots=True, eq=False)
class DistillResult:
    """``delta``: relative to the base weights, whatever training began with; scores of what it began with and of the
    result, on held-out examples and on replay; ``unreadable``: task and reason of each example whose image is gone."""

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
    run.train()
    delta = run.finish()
    made = base.reasoner(delta, "new")
    return DistillResult(
        delta=delta,
        before=before,
        after=run.score(made, run.held),
        replay_before=replay_before,
        replay_after=run.score(made, run.scored),
        curve=tuple(Point(*point) for point in run.state.curve),
        steps=run.state.step,
        seconds=run.state.seconds,
        trained_on=len(run.trained),
        unreadable=run.unreadable,
    )


@dataclass(slots=True)
class _State:
    """All that a resume needs besides the tensors. ``micro``: examples that are computed at a time."""

    micro: int
    step: int = 0
    worse: int = 0
    best_loss: float = float("inf")
    best: dict[str, Tensor] | None = None
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    curve: list[tuple[int, float, float]] = field(default_factory=list)


class _Run:
    """One distillation: the model with its adapters, the optimiser, the examples and the state."""

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
        self.config, self.folder, self.tell = config, folder, tell
        self.begun = base.reasoner(current, "begun")
        self.prompts = PromptStore(folder / "pictures", base.marks, self.begun.canvas_px, self.begun.max_side_px)
        readable, self.unreadable = self._readable(examples)
        self.trained, self.held = split(readable, config.held_out_share)
        self.steps = config.steps_for(len(self.trained))
        self.replayed, self.scored = self._replay(base) if replay else ([], [])
        self.batches = AnswerBatches(self.begun, self.prompts, base.edges)
        self.model = shared_copy(base.loaded.model)
        self.lora = ReasonerLora(self.model, config.lora_rank, config.lora_mlp, current, config.seed)
        self.optimizer = torch.optim.AdamW(self.lora.parameters.values(), 0.0, betas=(0.9, 0.98), weight_decay=0.0)
        self.width = int(self.model.config.get_text_config(decoder=True).hidden_size)
        self.state = _State(config.batch)
        keys = [one.key for one in (*self.trained, *self.held, *self.replayed)]
        form = (base.version, self.begun.version, _digest(current), asdict(config), str(self.model.device), keys)
        self.fingerprint = hashlib.blake2b(repr(form).encode()).hexdigest()

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

    def train(self) -> None:
        """All steps from the last checkpoint on, or until the held-out examples say that it is enough."""
        self._resume()
        state, config = self.state, self.config
        first, started, loss, spent = state.step, time.monotonic(), float("nan"), state.seconds
        while state.step < self.steps and state.worse < config.patience:
            loss = self._update(state.step)
            state.losses.append(loss)
            state.step += 1
            if state.step % config.evaluate_every == 0 or state.step == self.steps:
                self._evaluate()
            elapsed = time.monotonic() - started
            state.seconds = spent + elapsed
            if state.step % config.checkpoint_every == 0 or state.step == self.steps:
                self._checkpoint()
            held_out = state.curve[-1][2] if state.curve else float("nan")
            eta_s = elapsed / (state.step - first) * (self.steps - state.step)
            self.tell(Progress(state.step, self.steps, eta_s, loss=loss, held_out=held_out))

    def _update(self, step: int) -> float:
        """One step of the optimiser; a batch that does not fit into memory is split, and all later ones with it."""
        examples = self._batch(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(step, self.steps, self.width)
        loss = self._fitting(partial(self._loss, examples, learn=True))
        nn.utils.clip_grad_norm_(self.lora.parameters.values(), 1.0)
        self.optimizer.step()
        return loss

    def _batch(self, step: int) -> list[Example]:
        """Examples and replay, as the seed and ``step`` alone decide."""
        config, rng = self.config, np.random.default_rng([self.config.seed, step])
        replayed = round(config.replay_share * config.batch) if self.replayed else 0
        count = config.batch - replayed
        own = rng.choice(len(self.trained), count, replace=count > len(self.trained))
        kept = rng.integers(max(1, len(self.replayed)), size=replayed)
        return [*(self.trained[n] for n in own), *(self.replayed[n] for n in kept)]

    def _fitting(self, compute: Callable[[], float]) -> float:
        """What ``compute`` gives, with fewer examples at a time where memory does not suffice."""
        while True:
            try:
                return compute()
            except torch.OutOfMemoryError:
                if self.state.micro == 1:
                    raise
                self.state.micro = (self.state.micro + 1) // 2
                log.warning("out of memory: going on with %d examples at a time", self.state.micro)
                if self.model.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _loss(self, examples: Sequence[Example], learn: bool) -> float:
        """Mean loss per taught token, ``state.micro`` examples at a time; with its gradients where it is to ``learn``.

        Gradients are of the mean over micro-batches weighted by their examples: how they are split changes little.
        """
        self.optimizer.zero_grad()
        total, tokens, micro = 0.0, 0, self.state.micro
        for start in range(0, len(examples), micro):
            some = examples[start : start + micro]
            batch = self.batches.batch(some)
            with torch.set_grad_enabled(learn):
                loss = answer_loss(self.model, batch)
                if learn:
                    (loss * (len(some) / len(examples) / batch.taught)).backward()  # type: ignore[no-untyped-call]
            total, tokens = total + loss.item(), tokens + batch.taught
        return total / tokens

    def _evaluate(self) -> None:
        state = self.state
        loss = self._fitting(partial(self._loss, self.held, learn=False)) if self.held else float("nan")
        state.curve.append((state.step, float(np.mean(state.losses)), loss))
        state.losses = []
        if len(self.held) < EARLY_STOP_FROM:
            return
        if loss < state.best_loss:
            state.best_loss, state.worse = loss, 0
            state.best = {name: tensor.detach().clone() for name, tensor in self.lora.parameters.items()}
        else:
            state.worse += 1

    def finish(self) -> dict[str, Tensor]:
        """The delta of the best state."""
        if self.state.best is not None:
            self._set(self.state.best)
        return self.lora.delta()

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, tensor in self.lora.parameters.items():
            tensor.copy_(values[name])

    def _checkpoint(self) -> None:
        """Written aside and renamed: a kill leaves the old one or the new one."""
        state: dict[str, Any] = {name: getattr(self.state, name) for name in _State.__slots__}
        state |= {"fingerprint": self.fingerprint, "optimizer": self.optimizer.state_dict()}
        state |= {"parameters": {name: tensor.detach() for name, tensor in self.lora.parameters.items()}}
        data = io.BytesIO()
        torch.save(state, data)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            durable.replace(self.folder / STATE_FILE, data.getvalue())
        except OSError as error:
            raise RsvpError(f"the checkpoint {self.folder / STATE_FILE} cannot be written: {error}") from error

    def _resume(self) -> None:
        path = self.folder / STATE_FILE
        if not path.exists():
            return
        state = torch.load(path, map_location=self.model.device, weights_only=True)
        if state.pop("fingerprint") != self.fingerprint:
            log.info("the checkpoint %s is of other data or settings: starting anew", path)
            return
        self._set(state.pop("parameters"))
        self.optimizer.load_state_dict(state.pop("optimizer"))
        self.state = _State(**state)
        log.info("resumed at step %d of %d", self.state.step, self.steps)


def _digest(delta: Delta | None) -> str:
    digest = hashlib.blake2b()
    for name, tensor in sorted((delta or {}).items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
