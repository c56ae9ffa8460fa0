"""Fitting some parameters in a fixed number of steps: early stopping, checkpoints, memory that does not suffice.

What a step computes is the caller's: it must depend on the parameters and the number of the step alone, so that a run
that was killed goes on from its last checkpoint to the same result.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from rsvp_backend.errors import RsvpError
from rsvp_backend.training import durable

log = logging.getLogger(__name__)

STATE_FILE = "state.pt"
NAN = float("nan")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation on the way: ``loss`` is the mean since the last one, ``held_out`` what was measured on held-out
    data."""

    step: int
    loss: float
    held_out: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Told after every step of ``stage``: preparations that are counted, then ``training``.

    ``loss`` and ``held_out`` are the last ones measured, nan before; ``eta_s``: seconds to the last step.
    """

    step: int
    steps: int
    eta_s: float
    stage: str = "training"
    loss: float = NAN
    held_out: float = NAN


Tell = Callable[[Progress], None]


class Counting:
    """Tells how far a stage of ``total`` steps is, with the time that is left."""

    def __init__(self, tell: Tell, stage: str, total: int) -> None:
        self._tell, self._stage, self._total, self._started = tell, stage, total, time.monotonic()

    def __call__(self, done: int) -> None:
        eta_s = (time.monotonic() - self._started) / done * (self._total - done)
        self._tell(Progress(done, self._total, eta_s, self._stage))


@dataclass(frozen=True, slots=True)
class Pace:
    """``patience``: evaluations without a better measure after which a fit stops; None: it runs to its end, and the
    last parameters are the result. ``rate``: the learning rate of a step, from 0."""

    steps: int
    evaluate_every: int
    checkpoint_every: int
    patience: int | None
    rate: Callable[[int], float]


@dataclass(slots=True)
class State:
    """All that a resume needs besides the tensors. ``micro``: samples that are computed at a time."""

    micro: int
    step: int = 0
    worse: int = 0
    best_measure: float | None = None
    best: dict[str, Tensor] | None = None
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    curve: list[tuple[int, float, float]] = field(default_factory=list)


class Fit:
    """AdamW over ``parameters``; its state is kept in ``folder``, and found again by a run with the same
    ``fingerprint``.

    ``better``: whether the first of two measures is better than the second (`operator.gt`, or `operator.lt` of losses);
    ``batch``: samples of a batch, which are computed together as long as memory suffices.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        pace: Pace,
        better: Callable[[float, float], bool],
        batch: int,
        folder: Path,
        fingerprint: str,
    ) -> None:
        self.parameters, self.pace, self.better = parameters, pace, better
        self.folder, self.fingerprint = folder, fingerprint
        self.optimizer = torch.optim.AdamW(parameters.values(), 0.0, betas=(0.9, 0.98), weight_decay=0.0)
        self.device = next(iter(parameters.values())).device
        self.state = State(batch)

    @property
    def curve(self) -> tuple[Point, ...]:
        return tuple(Point(*point) for point in self.state.curve)

    def run(self, backward: Callable[[int], float], measure: Callable[[], float], tell: Tell) -> None:
        """All steps from the last checkpoint on, or until held-out data say that it is enough; the parameters are then
        the best ones.

        ``backward``: gradients of the loss of a step, added to those that are there; gives the loss. It computes
        ``state.micro`` samples at a time. ``measure``: of held-out data, nan where there are none. Raises `RsvpError`
        where the checkpoint cannot be written.
        """
        self._resume()
        state, pace = self.state, self.pace
        first, started, spent = state.step, time.monotonic(), state.seconds
        while state.step < pace.steps and (pace.patience is None or state.worse < pace.patience):
            loss = self._update(backward)
            state.losses.append(loss)
            state.step += 1
            if state.step % pace.evaluate_every == 0 or state.step == pace.steps:
                self._evaluate(measure)
            elapsed = time.monotonic() - started
            state.seconds = spent + elapsed
            if state.step % pace.checkpoint_every == 0 or state.step == pace.steps:
                self._checkpoint()
            eta_s = elapsed / (state.step - first) * (pace.steps - state.step)
            held_out = state.curve[-1][2] if state.curve else NAN
            tell(Progress(state.step, pace.steps, eta_s, loss=loss, held_out=held_out))
        if state.best is not None:
            self._set(state.best)

    def fitting(self, compute: Callable[[], T]) -> T:
        """What ``compute`` gives, with fewer samples at a time where memory does not suffice."""
        while True:
            try:
                return compute()
            except torch.OutOfMemoryError:
                if self.state.micro == 1:
                    raise
                self.state.micro = (self.state.micro + 1) // 2
                log.warning("out of memory: going on with %d samples at a time", self.state.micro)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _update(self, backward: Callable[[int], float]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.pace.rate(self.state.step)

        def compute() -> float:
            self.optimizer.zero_grad()
            return backward(self.state.step)

        loss = self.fitting(compute)
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        return loss

    def _evaluate(self, measure: Callable[[], float]) -> None:
        state, measured = self.state, self.fitting(measure)
        state.curve.append((state.step, float(np.mean(state.losses)), measured))
        state.losses = []
        if self.pace.patience is None:
            return
        if state.best_measure is None or self.better(measured, state.best_measure):
            state.best_measure, state.worse = measured, 0
            state.best = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        else:
            state.worse += 1

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self.parameters.items():
            tensor.copy_(values[name])

    def _checkpoint(self) -> None:
        """Written aside and renamed: a kill leaves the old one or the new one."""
        state: dict[str, Any] = {name: getattr(self.state, name) for name in State.__slots__}
        state |= {"fingerprint": self.fingerprint, "optimizer": self.optimizer.state_dict()}
        state |= {"parameters": {name: tensor.detach() for name, tensor in self.parameters.items()}}
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
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state.pop("fingerprint") != self.fingerprint:
            log.info("the checkpoint %s is of other data or settings: starting anew", path)
            return
        self._set(state.pop("parameters"))
        self.optimizer.load_state_dict(state.pop("optimizer"))
        self.state = State(**state)
        log.info("resumed at step %d of %d", self.state.step, self.pace.steps)
