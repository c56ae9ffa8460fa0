"""A training loop bounded by wall time: warm-up, constant rate, cosine decay; logged, checkpointed, resumable.

Weights of linear layers are trained by Muon (orthogonalised momentum), all else by AdamW: on these small models and few
steps that learns faster (measured in docs/demo-models.md).
"""

from __future__ import annotations

import json
import logging
import time
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rsvp_backend.training.streams import Stream

T = TypeVar("T")
CPU = torch.device("cpu")
log = logging.getLogger(__name__)
CHECKPOINT_EVERY_S = 120.0
LOG_EVERY_STEPS = 50


@dataclass(frozen=True)
class Schedule:
    """``decay_from``: share of ``minutes`` after which the learning rates fall to 2 % by a cosine.

    Muon runs at ``muon_start_rate`` for the first ``muon_start_steps`` steps: visual features form quickly at a rate
    that would later keep finer ones from settling.
    """

    minutes: float
    learning_rate: float
    muon_rate: float = 0.006
    muon_start_rate: float = 0.02
    muon_start_steps: int = 0
    warmup_steps: int = 150
    decay_from: float = 0.6

    def factor(self, step: int, seconds: float) -> float:
        """What the learning rates are multiplied by at ``step``, ``seconds`` after the start."""
        late = (seconds / (self.minutes * 60) - self.decay_from) / (1 - self.decay_from)
        decay = 0.02 + 0.49 * (1 + np.cos(np.pi * np.clip(late, 0.0, 1.0)))
        return float(decay * min(1.0, (step + 1) / self.warmup_steps))


class TrainingLoop(ABC, Generic[T]):
    """Subclasses give the recipe, the stream of samples and a batch's loss, and write their model; all state that a
    resume needs is here. ``batch``: samples in each step; ``workers``: processes that draw scenes beside this one.

    On a GPU, linear layers and attention compute in bfloat16.
    """

    recipe: Any

    def __init__(
        self, schedule: Schedule, folder: Path, seed: int, first_scene: int, batch: int,
        device: torch.device = CPU, workers: int = 0,
    ) -> None:  # fmt: skip
        self.schedule, self.folder, self.seed = schedule, folder, seed
        self.batch, self.device, self.workers = batch, device, workers
        self.rng = np.random.default_rng(seed)
        self.first_scene, self.step, self.seconds = first_scene, 0, 0.0
        self._stream: Stream[Any, T] | None = None
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.modules: dict[str, nn.Module] = {}

    @abstractmethod
    def stream(self, first_scene: int) -> Stream[Any, T]:
        """Samples from scene ``first_scene`` on."""

    @abstractmethod
    def loss(self, samples: list[T]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Of one batch, with readable parts."""

    @abstractmethod
    def save_model(self) -> None:
        """Write the model as users load it, below ``self.folder / "model"``."""

    def own(self, **modules: nn.Module) -> None:
        """Register what is trained, moved to the device; makes the optimiser."""
        self.modules = {name: module.to(self.device) for name, module in modules.items()}
        self.parameters = [p for module in modules.values() for p in module.parameters()]
        matrices = {id(p): p for p in _hidden_matrices(modules["model"])}
        others = [p for p in self.parameters if id(p) not in matrices]
        self.optimizers = {
            "muon": torch.optim.Muon(matrices.values(), self.schedule.muon_rate, weight_decay=0.03),
            "adamw": torch.optim.AdamW(others, self.schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.03),
        }

    def run(self) -> None:
        """Train for the schedule's minutes: a line of JSON every 50 steps, a resumable checkpoint every two minutes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        recipe = {"recipe": asdict(self.recipe), "schedule": asdict(self.schedule), "first_scene": self.first_scene}
        (self.folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
        self._resume()
        try:
            self._train()
        finally:
            if self._stream is not None:
                self._stream.close()

    def samples(self, count: int) -> list[T]:
        """The next ones of the stream."""
        if self._stream is None:
            self._stream = self.stream(self.first_scene)
        return self._stream.take(self.rng, count)

    @property
    def next_scene(self) -> int:
        """The first one that was not drawn yet."""
        return self.first_scene if self._stream is None else self._stream.next_seed

    def _train(self) -> None:
        started, saved = time.monotonic() - self.seconds, time.monotonic()
        while self.seconds < self.schedule.minutes * 60:
            loss, parts = self._update()
            self.seconds = time.monotonic() - started
            if self.step % LOG_EVERY_STEPS == 0:
                self._log({"loss": loss, **parts})
            if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                self._checkpoint()
                saved = time.monotonic()
        self._checkpoint()

    def _update(self) -> tuple[Tensor, dict[str, Tensor | float]]:
        schedule = self.schedule
        factor = schedule.factor(self.step, self.seconds)
        muon = schedule.muon_start_rate if self.step < schedule.muon_start_steps else schedule.muon_rate
        rates = {"muon": muon, "adamw": schedule.learning_rate}
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = rates[name] * factor
            optimizer.zero_grad()
        gpu = self.device.type == "cuda"
        # On a CPU, products and a softmax take a fifth less of a step than torch's fused attention.
        attention = nullcontext() if gpu else sdpa_kernel(SDPBackend.MATH)
        with attention, torch.autocast(self.device.type, torch.bfloat16, enabled=gpu):
            loss, parts = self.loss(self.samples(self.batch))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.step += 1
        return loss.detach(), parts

    def _log(self, values: dict[str, Tensor | float]) -> None:
        line = {"step": self.step, "minutes": round(self.seconds / 60, 2), "next_scene": self.next_scene}
        line |= {key: round(float(torch.as_tensor(value).detach()), 4) for key, value in values.items()}
        with (self.folder / "curve.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s", line)

    def _checkpoint(self) -> None:
        self.save_model()
        state: dict[str, Any] = {name: module.state_dict() for name, module in self.modules.items()}
        state |= {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        state |= {"step": self.step, "seconds": self.seconds, "next_scene": self.next_scene}
        torch.save(state, self.folder / "state.tmp")
        (self.folder / "state.tmp").replace(self.folder / "state.pt")

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
        self.step, self.seconds, self.first_scene = state["step"], state["seconds"], state["next_scene"]
        self.rng = np.random.default_rng([self.seed, self.first_scene])
        log.info("resumed at step %d, %.1f minutes", self.step, self.seconds / 60)


def _hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Weights of linear layers, but for an output layer that shares the word embeddings."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [layer.weight for layer in linears if id(layer.weight) not in tables]
