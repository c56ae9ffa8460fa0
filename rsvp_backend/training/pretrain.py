"""Pretrain a VLSM on referring expressions (paper, section 4: Dice + BCE, AdamW at 1e-4, LoRA, DeepSpeed).

Trained are the mask decoder, the connector and projector and, by LoRA, BEiT-3; SAM's image encoder stays as it is, so
its embeddings can be kept. One process computes by itself; started by ``accelerate launch`` or ``torchrun``, several
processes on one or more hosts share each step. What a step learns from depends on the seed, the step and the number of
samples per step alone, so a run that was killed goes on to the same result, on as many processes as before or not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from rsvp_backend.errors import RsvpError
from rsvp_backend.training import durable, pretrain_state
from rsvp_backend.training.adapters import Adapters, apply_delta
from rsvp_backend.training.features import FeatureStore
from rsvp_backend.training.fitting import Progress, Tell
from rsvp_backend.training.losses import segmentation_loss
from rsvp_backend.training.pretrain_batches import Ahead, Batch, Batches
from rsvp_backend.training.pretrain_config import PretrainConfig, PretrainReport
from rsvp_backend.training.pretrain_data import Data
from rsvp_backend.training.pretrain_scoring import Scorer
from rsvp_backend.training.pretrain_state import SHARDS, Progressed
from rsvp_backend.training.processes import make_accelerator
from rsvp_backend.training.referring import DataError
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.model import Vlsm
from rsvp_backend.vlsm.weights import Weights

log = logging.getLogger(__name__)

MODEL, LOGS, REPORT = "model", "logs", "report.json"
_LARGEST_NORM = 1.0
# SAM's multimask outputs: a text has one mask, so nothing ever reaches them.
_UNUSED = re.compile(r"visual_model\.mask_decoder\.output_hypernetworks_mlps\.[1-9]\d*\..*")


def pretrain(
    init: Weights,
    data: Data,
    config: PretrainConfig,
    out: Path,
    name: str = "pretrained",
    tell: Tell = lambda _: None,
) -> PretrainReport:
    """Train ``init``, whose model is changed, and write the checkpoint ``out/model``, called ``name``.

    ``out`` also holds the state that a further call with the same arguments goes on from, TensorBoard's ``logs`` and
    ``report.json``. ``tell`` hears every ``log_every`` steps, in the first process only. Raises `RsvpError`.
    """
    run = _Run(init, data, config, out)
    try:
        run.train(tell)
        return run.finish(name)
    finally:
        run.close()


def mixed(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Matrix products in ``precision``; none of that in float32."""
    lower = precision != torch.float32
    return torch.autocast(device.type, precision if lower else None, enabled=lower)


class Trainee(nn.Module):
    """The VLSM and the adapters' tensors as one module, whose ``forward`` is all that training computes."""

    def __init__(self, model: Vlsm, adapters: Adapters, precision: torch.dtype) -> None:
        super().__init__()
        self.model, self.precision = model, precision
        own = dict(model.named_parameters())
        self.added = nn.ParameterList(tensor for name, tensor in adapters.parameters.items() if name not in own)

    def forward(self, embedding: Tensor, beit3: Tensor, ids: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Batch`; gives float32 logits ``(B, 4h, 4w)`` and predicted IoU ``(B,)``.

        SAM's decoder computes in float32, as it does when it serves: rounded, its positional encoding is off by turns.
        """
        with mixed(beit3.device, self.precision):
            tokens = self.model.encode_prompt(beit3.float(), ids, padding)
        with mixed(beit3.device, torch.float32):
            logits, predicted = self.model.decode(embedding.float(), tokens.float())
        return logits[:, 0], predicted[:, 0]


class _Store(FeatureStore):
    """Image embeddings computed in ``precision``."""

    precision = torch.float32

    def _embed(self, pixels: Tensor) -> Tensor:
        with mixed(next(self.model.parameters()).device, self.precision):
            return super()._embed(pixels)


class _Run:
    """One process's part of a pretraining."""

    def __init__(self, init: Weights, data: Data, config: PretrainConfig, out: Path) -> None:
        self.init, self.data, self.config, self.out = init, data, config, out
        self.accelerator = make_accelerator(config.device, config.batch, config.accumulate)
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.sharded = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.precision = _precision(config, self.device)
        model = init.model.to(self.device, torch.float32).eval()
        words = {number for text in data.texts for number in init.tokenizer.encode(text)} if config.lora_rank else set()
        self.adapters = Adapters(model, config.lora_rank, sorted(words), config.seed)
        self.trained = {n: p for n, p in self.adapters.parameters.items() if not _UNUSED.fullmatch(n)}
        for name in self.adapters.parameters.keys() - self.trained.keys():
            self.adapters.parameters[name].requires_grad_(False)
        store = _Store(model, "crop", config.cache, config.cache_bytes)
        store.precision = self.precision
        self.batches = Batches(data.train, store, init.tokenizer, config.view, config.seed)
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        self.scorer = Scorer(data.held_out, config.evaluate_on, self.batches, config.batch, rank, processes)
        self.fingerprint = self._fingerprint()
        self.at = Progressed()
        optimizer = torch.optim.AdamW(self.trained.values(), config.rate, weight_decay=config.weight_decay)
        self.alone = Trainee(model, self.adapters, self.precision)
        self.trainee, self.optimizer = self.accelerator.prepare(self.alone, optimizer)
        self._resume()
        self.writer = _writer(out / LOGS, self.at.step) if self.main else None

    def _fingerprint(self) -> str:
        """Of all that the result depends on. Raises `DataError` where the processes do not have the same."""
        config = self.config.fingerprint(self.accelerator.num_processes)
        seen = repr((self.init.version, self.data.digest, config, self.sharded))
        fingerprint = hashlib.blake2b(seen.encode(), digest_size=16).hexdigest()
        if len(set(gather_object([fingerprint]))) > 1:
            raise DataError("the processes read different data or weights: the same files are expected on every host")
        return fingerprint

    def train(self, tell: Tell) -> None:
        """All steps from the last checkpoint on."""
        config, at = self.config, self.at
        first, spent, started = at.step, at.seconds, time.monotonic()
        with Ahead(self._make, at.step * config.accumulate) as ahead:
            if not at.curve:
                self._evaluate(ahead)
            while at.step < config.steps:
                loss = self._update(ahead)
                at.losses.append(loss)
                at.step += 1
                elapsed_s = time.monotonic() - started
                at.seconds, last = spent + elapsed_s, at.step == config.steps
                if at.step % config.evaluate_every == 0 or last:
                    self._evaluate(ahead)
                if at.step % config.checkpoint_every == 0 or last:
                    self._checkpoint()
                if self.main and (at.step % config.log_every == 0 or last):
                    self._log({"train/loss": loss, "train/rate": config.rate_at(at.step - 1)})
                    eta_s = elapsed_s / (at.step - first) * (config.steps - at.step)
                    tell(Progress(at.step, config.steps, eta_s, loss=loss, held_out=self._giou()))

    def _make(self, number: int) -> Batch:
        """The batch ``number`` of this process, counted from the run's first step. SAM's image encoder runs here."""
        start = (number * self.accelerator.num_processes + self.accelerator.process_index) * self.config.batch
        return self.batches.at(range(start, start + self.config.batch))

    def _update(self, ahead: Ahead[Batch]) -> float:
        """One step of the optimiser; the mean loss over all processes. Raises `RsvpError` where it is not finite."""
        config, losses = self.config, []
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate_at(self.at.step)
        try:
            for part in range(1, config.accumulate + 1):
                batch = ahead.take(last=self.at.step + 1 == config.steps and part == config.accumulate)
                with self.accelerator.accumulate(self.trainee):
                    loss = segmentation_loss(*self._forward(self.trainee, batch), batch.target.to(self.device))
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(list(self.trained.values()), _LARGEST_NORM)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                losses.append(loss.detach())
        except torch.OutOfMemoryError:
            raise RsvpError(
                f"a batch of {config.batch} does not fit into the memory of {self.device}: choose a smaller --batch "
                "and a larger --accumulate"
            ) from None
        mean = float(self.accelerator.reduce(torch.stack(losses).mean(), "mean"))
        if not math.isfinite(mean):
            raise RsvpError(f"the loss is {mean} at step {self.at.step + 1}: choose a lower --rate")
        return mean

    def _forward(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        padding = None if batch.padding is None else batch.padding.to(self.device)
        tensors = (tensor.to(self.device) for tensor in (batch.embedding, batch.beit3, batch.ids))
        logits, predicted = module(*tensors, padding)
        return logits, predicted

    def _evaluate(self, ahead: Ahead[Batch]) -> None:
        """Score the held-out samples in every view; a point of the curve."""
        at, point, values = self.at, dict[str, Any](step=self.at.step), dict[str, float]()
        point["loss"] = float(np.mean(at.losses)) if at.losses else None
        at.losses = []
        for view in self.config.views():
            scores = self.scorer.score(view, partial(self._forward, self.alone), ahead)
            point[view] = {"giou": scores.giou, "ciou": scores.ciou, "samples": scores.samples}
            values |= {f"held_out/{view}/giou": scores.giou, f"held_out/{view}/ciou": scores.ciou}
        at.curve.append(point)
        self._log(values)

    def _giou(self) -> float:
        """The last one measured, in the first view."""
        return float(self.at.curve[-1][self.config.views()[0]]["giou"])

    def _log(self, values: dict[str, float]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, self.at.step)
            self.writer.flush()

    def _checkpoint(self) -> None:
        at, shards = self.at, f"step-{self.at.step}"
        if self.sharded:
            self.trainee.save_checkpoint(str(self.out / SHARDS), tag=shards, exclude_frozen_parameters=True)
        self.accelerator.wait_for_everyone()
        if not self.main:
            return
        state: dict[str, Any] = {name: getattr(at, name) for name in Progressed.__slots__}
        state |= {"fingerprint": self.fingerprint}
        if not self.sharded:
            state["parameters"] = {name: tensor.detach() for name, tensor in self.trained.items()}
            state["optimizer"] = self.optimizer.state_dict()
        pretrain_state.write(self.out, state)
        pretrain_state.drop_shards(self.out, but=shards)
        self.batches.store.trim()

    def _resume(self) -> None:
        """Go on from the state that the first process finds; the others need not see its disk, but under DeepSpeed."""
        found: list[Any] = [None, None]
        if self.main:
            try:
                found[0] = pretrain_state.read(self.out, self.fingerprint)
            except pretrain_state.CheckpointError as error:
                found[1] = str(error)
        state, complaint = broadcast_object_list(found)
        if complaint:
            raise pretrain_state.CheckpointError(complaint)
        if state is None:
            return
        self.at = Progressed(**{name: state[name] for name in Progressed.__slots__})
        if self.sharded:
            shards = f"step-{self.at.step}"
            self.trainee.load_checkpoint(str(self.out / SHARDS), tag=shards, load_module_strict=False)
        else:
            with torch.no_grad():
                for name, tensor in self.trained.items():
                    tensor.copy_(state["parameters"][name])
            self.optimizer.load_state_dict(state["optimizer"])
        log.info("resumed at step %d of %d", self.at.step, self.config.steps)

    def finish(self, name: str) -> PretrainReport:
        """The checkpoint and the report, written by the first process, with what all of them could not read."""
        at, folder = self.at, self.out / MODEL
        unreadable = tuple(sorted(set(gather_object(list(self.batches.unreadable)))))
        version = [""]
        if self.main:
            delta = self.adapters.delta()
            self.adapters.remove()
            apply_delta(self.init.model, delta)
            version[0] = weights.save(folder, self.init.model, self.init.tokenizer, name)
        broadcast_object_list(version)
        report = PretrainReport(
            version[0], str(folder), at.step, round(at.seconds, 1), self.accelerator.num_processes,
            len(self.data.train), len(self.data.held_out), self.data.left_out, unreadable, tuple(at.curve),
        )  # fmt: skip
        if self.main:
            durable.replace(self.out / REPORT, (json.dumps(report.to_dict(), indent=2) + "\n").encode())
        return report

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.accelerator.end_training()


def _writer(folder: Path, step: int) -> SummaryWriter:
    """Goes on after ``step``: what a killed run wrote beyond its last checkpoint is dropped."""
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _precision(config: PretrainConfig, device: torch.device) -> torch.dtype:
    """``auto``: bfloat16 on GPUs that compute in it, float32 elsewhere."""
    if config.precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[config.precision]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
