"""Fine-tune a VLSM on corrections (paper, section 4: Dice + BCE) without forgetting what it knew.

The image encoder stays as it is, so its embeddings are computed once (see `features`). Every batch holds corrections
and *anchors*, which must go on being answered as the base answered them: crops of earlier data with their texts, and
crops of the corrections with texts of earlier data, so that a new concept is not found wherever it was learned. The
base's soft answers teach more per step than the true masks would (measured in docs/learning.md).

Every batch is drawn from the seed and the number of its step alone: a run that was killed goes on from its last
checkpoint to the same result. With fewer than `EARLY_STOP_FROM` corrections held out the schedule runs to its end: the
best of a few noisy scores would be luck, not skill.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsvp_backend.errors import ImageError, RsvpError
from rsvp_backend.training.adapters import Adapters, expand_delta, shortened
from rsvp_backend.training.anchors import Anchor, anchor_loss, make_anchors
from rsvp_backend.training.features import Features, FeatureStore
from rsvp_backend.training.finetune_config import FinetuneConfig, Point, Progress, split
from rsvp_backend.training.losses import segmentation_loss
from rsvp_backend.training.replay import ReplaySource
from rsvp_backend.training.samples import Correction
from rsvp_backend.training.scoring import FeatureVlsm, Scores
from rsvp_backend.vlsm.segmenter import choose_device
from rsvp_backend.vlsm.weights import Weights

__all__ = [
    "EARLY_STOP_FROM",
    "STATE_FILE",
    "FinetuneConfig",
    "FinetuneResult",
    "Point",
    "Progress",
    "finetune",
    "split",
]

log = logging.getLogger(__name__)

EARLY_STOP_FROM = 12
_SHARES = (1.0, 0.9, 0.8, 0.7)  # of the way from the base
STATE_FILE = "state.pt"


@dataclass(frozen=True, slots=True, eq=False)
class FinetuneResult:
    """``delta``: see `adapters`; scores of the base and of base + delta, on held-out corrections and on replay;
    ``unreadable``: task and reason of each correction whose image is gone."""

    delta: dict[str, Tensor]
    before: Scores
    after: Scores
    replay_before: Scores
    replay_after: Scores
    curve: tuple[Point, ...]
    steps: int
    seconds: float
    trained_on: int
    unreadable: tuple[tuple[int, str], ...]


def finetune(
    base: Weights,
    corrections: Sequence[Correction],
    replay: ReplaySource,
    config: FinetuneConfig,
    folder: Path,
    progress: Callable[[Progress], None] = lambda _: None,
) -> FinetuneResult:
    """Fine-tune a copy of ``base``, which stays as it is.

    ``folder`` holds the checkpoint that a further call with the same arguments goes on from; the caller deletes it when
    the result is safe. ``progress`` may raise to stop the run. Raises `RsvpError` without corrections to train on.
    """
    if not corrections:
        raise RsvpError("there is no correction to learn from: submit annotations first")
    run = _Run(base, corrections, replay, config, folder, progress)
    held, scored = run.held, replay.scoring(config.replay_scored)
    before, replay_before = run.vlsm.score(held), run.vlsm.score(scored)
    run.train(progress)
    delta, replay_after = run.finish(scored, replay_before)
    after = run.vlsm.score(held)
    run.vlsm.store.trim()
    return FinetuneResult(
        delta=delta,
        before=before,
        after=after,
        replay_before=replay_before,
        replay_after=replay_after,
        curve=tuple(Point(*point) for point in run.state.curve),
        steps=run.state.step,
        seconds=run.state.seconds,
        trained_on=len(run.trained),
        unreadable=run.unreadable,
    )


@dataclass(slots=True)
class _State:
    """All that a resume needs besides the tensors. ``micro``: crops that are computed at a time."""

    micro: int
    step: int = 0
    worse: int = 0
    best_iou: float = float("-inf")
    best: dict[str, Tensor] | None = None
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    curve: list[tuple[int, float, float]] = field(default_factory=list)


class _Run:
    """One fine-tuning: the model with its adapters, the optimiser, the data and the state."""

    def __init__(
        self,
        base: Weights,
        corrections: Sequence[Correction],
        replay: ReplaySource,
        config: FinetuneConfig,
        folder: Path,
        progress: Callable[[Progress], None],
    ) -> None:
        self.config, self.folder = config, folder
        self.device = choose_device(config.device)
        self.width = base.model.config.beit3.embed_dim
        self.base_state = base.model.state_dict()
        model = copy.deepcopy(base.model).to(self.device, torch.float32).eval().requires_grad_(False)
        store = FeatureStore(model, config.view, config.cache, config.cache_bytes)
        self.vlsm = FeatureVlsm(model, base.tokenizer, store, config.batch)
        readable, self.unreadable = self._readable(corrections, progress)
        self.trained, self.held = split(readable, config.held_out_share)
        self.steps = config.steps_for(len(self.trained))
        old = replay.training(config.replay_crops) if config.replay_share else ()
        self.anchors = make_anchors(self.vlsm, self.trained, old, config.seed)
        texts = {correction.text for correction in self.trained} | {anchor.text for anchor in self.anchors}
        words = {number for text in texts for number in base.tokenizer.encode(text)}
        self.adapters = Adapters(model, config.lora_rank, sorted(words), config.seed)
        self.parameters = self.adapters.parameters
        self.optimizer = torch.optim.AdamW(self.parameters.values(), 0.0, betas=(0.9, 0.98), weight_decay=0.0)
        self.state = _State(config.batch)
        form = {**asdict(config), "cache": None, "cache_bytes": 0, "device": self.device.type}
        keys = [correction.key for correction in [*self.trained, *self.held, *old]]
        self.fingerprint = hashlib.blake2b(repr((base.version, form, keys)).encode()).hexdigest()

    def _readable(
        self, corrections: Sequence[Correction], progress: Callable[[Progress], None]
    ) -> tuple[list[Correction], tuple[tuple[int, str], ...]]:
        """The corrections whose image can be had, their features made; and of the others task and reason."""
        found, unreadable, started = [], [], time.monotonic()
        for n, correction in enumerate(corrections):
            try:
                self.vlsm.store.features(correction)
                found.append(correction)
            except ImageError as error:
                unreadable.append((correction.task, str(error)))
            done, count = n + 1, len(corrections)
            eta_s = (time.monotonic() - started) / done * (count - done)
            progress(Progress(done, count, float("nan"), float("nan"), eta_s, "images"))
        if not found:
            raise ImageError(f"no image of {len(corrections)} corrections can be read: {unreadable[0][1]}")
        return found, tuple(unreadable)

    def _features(self, correction: Correction, variant: int) -> Features:
        """Of the correction's own crop where the image that a variant needs has gone meanwhile."""
        try:
            return self.vlsm.store.features(correction, variant)
        except ImageError as error:
            log.warning("task %d is seen in its own crop only: %s", correction.task, error)
            return self.vlsm.store.features(correction)

    def train(self, progress: Callable[[Progress], None]) -> None:
        """All steps from the last checkpoint on, or until the held-out corrections say that it is enough."""
        self._resume()
        state, config = self.state, self.config
        first, started, loss = state.step, time.monotonic(), float("nan")
        spent = state.seconds
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
            iou = state.curve[-1][2] if state.curve else float("nan")
            eta_s = elapsed / (state.step - first) * (self.steps - state.step)
            progress(Progress(state.step, self.steps, loss, iou, eta_s))

    def _update(self, step: int) -> float:
        """One step of the optimiser; a batch that does not fit into memory is split, and all later ones with it."""
        own, anchors = self._batch(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(step, self.steps, self.width)
        while True:
            self.optimizer.zero_grad()
            try:
                loss = self._backward(own, anchors)
                break
            except torch.OutOfMemoryError:
                if self.state.micro == 1:
                    raise
                self.state.micro = (self.state.micro + 1) // 2
                log.warning("out of memory: going on with %d crops at a time", self.state.micro)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        return loss

    def _batch(self, step: int) -> tuple[list[tuple[Correction, int]], list[Anchor]]:
        """Corrections with the variants of their crops, and anchors, as the seed and ``step`` alone decide."""
        config, rng = self.config, np.random.default_rng([self.config.seed, step])
        anchored = round(config.replay_share * config.batch) if self.anchors else 0
        count = config.batch - anchored
        own = rng.choice(len(self.trained), count, replace=count > len(self.trained))
        variants = rng.integers(config.variants + 1, size=count)
        kept = rng.integers(max(1, len(self.anchors)), size=anchored)
        samples = [(self.trained[n], int(variant)) for n, variant in zip(own, variants, strict=True)]
        return samples, [self.anchors[n] for n in kept]

    def _backward(self, own: list[tuple[Correction, int]], anchors: list[Anchor]) -> float:
        """Gradients of the batch's mean loss, ``state.micro`` crops at a time; gives the loss of the corrections."""
        total, size, micro = 0.0, len(own) + len(anchors), self.state.micro
        for start in range(0, len(own), micro):
            some = own[start : start + micro]
            features = [self._features(*sample) for sample in some]
            logits, predicted = self.vlsm.decode(features, [correction.text for correction, _ in some])
            targets = torch.stack([f.target for f in features]).to(self.device)
            loss = segmentation_loss(logits, predicted, targets)
            (loss * (len(some) / size)).backward()  # type: ignore[no-untyped-call]
            total += loss.item() * len(some) / len(own)
        for start in range(0, len(anchors), micro):
            part = anchors[start : start + micro]
            features = [self.vlsm.store.features(anchor.correction) for anchor in part]
            logits, predicted = self.vlsm.decode(features, [anchor.text for anchor in part])
            loss = anchor_loss(logits, predicted, part) * (len(part) / size)
            loss.backward()  # type: ignore[no-untyped-call]
        return total

    def _evaluate(self) -> None:
        state, iou = self.state, self.vlsm.score(self.held).mean
        state.curve.append((state.step, float(np.mean(state.losses)), iou))
        state.losses = []
        if len(self.held) < EARLY_STOP_FROM:
            return
        if iou > state.best_iou:
            state.best_iou, state.worse = iou, 0
            state.best = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        else:
            state.worse += 1

    def finish(self, scored: Sequence[Correction], before: Scores) -> tuple[dict[str, Tensor], Scores]:
        """The best state's delta, shortened as far as ``scored``, replay, asks for, and its scores on that.

        The model is then the base with the delta, exactly as it will be served.
        """
        if self.state.best is not None:
            self._set(self.state.best)
        whole = self.adapters.delta()
        self.adapters.remove()
        for share in _SHARES:
            delta = shortened(self.base_state, whole, share)
            self._put(expand_delta(self.base_state, delta))
            after = self.vlsm.score(scored)
            if not scored or before.mean - after.mean <= self.config.replay_loss:
                break
        log.info("%.0f %% of the way from the base weights are kept", 100 * share)
        return delta, after

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        named = dict(self.vlsm.model.named_parameters())
        for name, tensor in tensors.items():
            named[name].data = tensor.to(self.device)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, tensor in self.parameters.items():
            tensor.copy_(values[name])

    def _checkpoint(self) -> None:
        """Written aside and renamed: a kill leaves the old one or the new one."""
        state: dict[str, Any] = {name: getattr(self.state, name) for name in _State.__slots__}
        state |= {"fingerprint": self.fingerprint, "optimizer": self.optimizer.state_dict()}
        state |= {"parameters": {name: tensor.detach() for name, tensor in self.parameters.items()}}
        aside = self.folder / f".{STATE_FILE}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, aside)
            aside.replace(self.folder / STATE_FILE)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
            with suppress(OSError):
                aside.unlink()
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
        self.state = _State(**state)
        log.info("resumed at step %d of %d", self.state.step, self.steps)
