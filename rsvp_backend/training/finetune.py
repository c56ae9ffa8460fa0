"""Fine-tune a VLSM on corrections (paper, section 4: Dice + BCE) without forgetting what it knew.

The image encoder stays as it is, so its embeddings are computed once (see `features`). Every batch holds corrections
and *anchors*, which must go on being answered as the base answered them: crops of earlier data with their texts, and
crops of the corrections with texts of earlier data, so that a new concept is not found wherever it was learned. The
base's soft answers teach more per step than the true masks would (measured in docs/learning.md).

Every batch is drawn from the seed and the number of its step alone (see `fitting`). With fewer than `EARLY_STOP_FROM`
corrections held out the schedule runs to its end: the best of a few noisy scores would be luck, not skill.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rsvp_backend.errors import ImageError, RsvpError
from rsvp_backend.training.adapters import Adapters, expand_delta, shortened
from rsvp_backend.training.anchors import Anchor, anchor_loss, make_anchors
from rsvp_backend.training.features import Features, FeatureStore
from rsvp_backend.training.finetune_config import FinetuneConfig, split
from rsvp_backend.training.fitting import Counting, Fit, Pace, Point, Tell
from rsvp_backend.training.losses import segmentation_loss
from rsvp_backend.training.replay import ReplaySource
from rsvp_backend.training.samples import Correction
from rsvp_backend.training.scoring import FeatureVlsm, Scores
from rsvp_backend.vlsm.segmenter import choose_device
from rsvp_backend.vlsm.weights import Weights

log = logging.getLogger(__name__)

EARLY_STOP_FROM = 12
_SHARES = (1.0, 0.9, 0.8, 0.7)  # of the way from the base


@dataclass(frozen=True, slots=True, eq=False)
class FinetuneResult:
    """``delta``: see `adapters`; scores of the base and of base + delta, on held-out corrections and on replay;
    ``unreadable``: task and reason of each correction whose image is gone. The curve's ``held_out`` is mean IoU."""

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
    tell: Tell = lambda _: None,
) -> FinetuneResult:
    """Fine-tune a copy of ``base``, which stays as it is.

    ``folder`` holds the checkpoint that a further call with the same arguments goes on from; the caller deletes it when
    the result is safe. ``tell`` hears of the stages images, replay, training and comparing; it may raise
    to stop the run. Raises `RsvpError` without corrections to train on.
    """
    if not corrections:
        raise RsvpError("there is no correction to learn from: submit annotations first")
    run = _Run(base, corrections, replay, config, folder, tell)
    held, scored = run.held, replay.scoring(config.replay_scored)
    before, replay_before = run.vlsm.score(held), run.vlsm.score(scored, Counting(tell, "replay", len(scored)))
    run.fit.run(run.backward, lambda: run.vlsm.score(held).mean, tell)
    delta, replay_after = run.finish(scored, replay_before, tell)
    after = run.vlsm.score(held)
    run.vlsm.store.trim()
    return FinetuneResult(
        delta=delta,
        before=before,
        after=after,
        replay_before=replay_before,
        replay_after=replay_after,
        curve=run.fit.curve,
        steps=run.fit.state.step,
        seconds=run.fit.state.seconds,
        trained_on=len(run.trained),
        unreadable=run.unreadable,
    )


class _Run:
    """One fine-tuning: the model with its adapters, the data, and the fit."""

    def __init__(
        self,
        base: Weights,
        corrections: Sequence[Correction],
        replay: ReplaySource,
        config: FinetuneConfig,
        folder: Path,
        tell: Tell,
    ) -> None:
        self.config = config
        self.device = choose_device(config.device)
        self.base_state = base.model.state_dict()
        model = copy.deepcopy(base.model).to(self.device, torch.float32).eval().requires_grad_(False)
        store = FeatureStore(model, config.view, config.cache, config.cache_bytes)
        self.vlsm = FeatureVlsm(model, base.tokenizer, store, config.batch)
        readable, self.unreadable = self._readable(corrections, tell)
        self.trained, self.held = split(readable, config.held_out_share)
        old = replay.training(config.replay_crops) if config.replay_share else ()
        self.anchors = make_anchors(self.vlsm, self.trained, old, config.seed, tell)
        texts = {correction.text for correction in self.trained} | {anchor.text for anchor in self.anchors}
        words = {number for text in texts for number in base.tokenizer.encode(text)}
        self.adapters = Adapters(model, config.lora_rank, sorted(words), config.seed)
        form = {**asdict(config), "cache": None, "cache_bytes": 0, "device": self.device.type}
        keys = [correction.key for correction in [*self.trained, *self.held, *old]]
        fingerprint = hashlib.blake2b(repr((base.version, form, keys)).encode()).hexdigest()
        pace = self._pace(base.model.config.beit3.embed_dim)
        self.fit = Fit(self.adapters.parameters, pace, operator.gt, config.batch, folder, fingerprint)

    def _pace(self, width: int) -> Pace:
        config, steps = self.config, self.config.steps_for(len(self.trained))
        return Pace(
            steps,
            config.evaluate_every,
            config.checkpoint_every,
            config.patience if len(self.held) >= EARLY_STOP_FROM else None,
            partial(config.rate, steps=steps, width=width),
        )

    def _readable(
        self, corrections: Sequence[Correction], tell: Tell
    ) -> tuple[list[Correction], tuple[tuple[int, str], ...]]:
        """The corrections whose image can be had, their features made; and of the others task and reason."""
        found, unreadable, count = [], [], Counting(tell, "images", len(corrections))
        for done, correction in enumerate(corrections, start=1):
            try:
                self.vlsm.store.features(correction)
                found.append(correction)
            except ImageError as error:
                unreadable.append((correction.task, str(error)))
            count(done)
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

    def backward(self, step: int) -> float:
        """Gradients of the mean loss of the batch of ``step``; gives the loss of the corrections (see `Fit.run`)."""
        own, anchors = self._batch(step)
        total, size, micro = 0.0, len(own) + len(anchors), self.fit.state.micro
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

    def finish(self, scored: Sequence[Correction], before: Scores, tell: Tell) -> tuple[dict[str, Tensor], Scores]:
        """The delta, shortened as far as ``scored``, replay, asks for, and its scores on that.

        The model is then the base with the delta, exactly as it will be served.
        """
        whole = self.adapters.delta()
        self.adapters.remove()
        for share in _SHARES:
            delta = shortened(self.base_state, whole, share)
            self._put(expand_delta(self.base_state, delta))
            after = self.vlsm.score(scored, Counting(tell, "comparing", len(scored)))
            if not scored or before.mean - after.mean <= self.config.replay_loss:
                break
        log.info("%.0f %% of the way from the base weights are kept", 100 * share)
        return delta, after

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        named = dict(self.vlsm.model.named_parameters())
        for name, tensor in tensors.items():
            named[name].data = tensor.to(self.device)
