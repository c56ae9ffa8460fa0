"""Train the demo preset's two models side by side: what `rsvp-backend train-demo` runs.

On a CPU each model has one core. On a GPU both share it, and the other cores draw scenes for them.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rsvp_backend.errors import RsvpError

Part = Literal["reasoner", "vlsm"]
PARTS: tuple[Part, ...] = ("reasoner", "vlsm")
_GPU_BATCHES = 8  # so many times the pictures in each step, and scenes kept, of a CPU


@dataclass(frozen=True)
class Options:
    """``minutes``: of wall time; ``device``: auto, cpu, cuda or cuda:N; ``workers``: processes that draw scenes for
    each model, None for the cores that are left on a GPU, and for none on a CPU."""

    minutes: float = 60.0
    device: str = "auto"
    workers: int | None = None


def train(parts: tuple[Part, ...], folder: Path, options: Options) -> None:
    """Train into ``folder/<part>``: ``model`` as a preset loads it, ``recipe.json``, ``curve.jsonl``, and ``state.pt``
    to resume from.

    Each part is a process of its own. Raises `RsvpError` where one of them failed.
    """
    context = multiprocessing.get_context("spawn")
    runs = {
        part: context.Process(target=train_part, args=(part, folder / part, options, len(parts)), name=part)
        for part in parts
    }
    for run in runs.values():
        run.start()
    for run in runs.values():
        run.join()
    failed = [part for part, run in runs.items() if run.exitcode]
    if failed:
        raise RsvpError(f"training of {', '.join(failed)} failed: the log above says why; run again to resume")


def train_part(part: Part, folder: Path, options: Options, parts: int = 1) -> None:
    """Train one model in this process, one of ``parts`` on this machine.

    On a CPU, matrix products may round to bfloat16 where the processor gains by it.
    """
    import torch

    from rsvp_backend.training.demo_reasoner import ReasonerRecipe, ReasonerTrainer
    from rsvp_backend.training.demo_vlsm import VlsmRecipe, VlsmTrainer
    from rsvp_backend.vlsm.segmenter import choose_device

    logging.basicConfig(level=logging.INFO, format=f"{part}: %(message)s")
    device = choose_device(options.device)
    gpu = device.type == "cuda"
    if not gpu:
        torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    workers = options.workers
    if workers is None:
        workers = max(1, (os.cpu_count() or 1) // parts - 1) if gpu else 0
    times = _GPU_BATCHES if gpu else 1
    trainer: ReasonerTrainer | VlsmTrainer
    if part == "reasoner":
        reasoner = ReasonerRecipe(minutes=options.minutes)
        trainer = ReasonerTrainer(reasoner.times(times), folder, device, workers)
    else:
        vlsm = VlsmRecipe(minutes=options.minutes)
        trainer = VlsmTrainer(vlsm.times(times), folder, device, workers)
    trainer.run()
