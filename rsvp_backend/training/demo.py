"""Train the demo preset's two models side by side, one core each: what `rsvp-backend train-demo` runs."""

from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path
from typing import Literal

from rsvp_backend.errors import RsvpError

Part = Literal["reasoner", "vlsm"]
PARTS: tuple[Part, ...] = ("reasoner", "vlsm")


def train(parts: tuple[Part, ...], folder: Path, minutes: float) -> None:
    """Train into ``folder/<part>``: ``model`` as a preset loads it, ``curve.jsonl``, ``state.pt`` to resume from.

    Each part is a process of its own with one thread. Raises `RsvpError` where one of them failed.
    """
    context = multiprocessing.get_context("spawn")
    runs = {part: context.Process(target=train_part, args=(part, folder / part, minutes), name=part) for part in parts}
    for run in runs.values():
        run.start()
    for run in runs.values():
        run.join()
    failed = [part for part, run in runs.items() if run.exitcode]
    if failed:
        raise RsvpError(f"training of {', '.join(failed)} failed: the log above says why; run again to resume")


def train_part(part: Part, folder: Path, minutes: float) -> None:
    """Train one model in this process. Matrix products may round to bfloat16 where the processor gains by it."""
    import torch

    from rsvp_backend.training.demo_reasoner import ReasonerRecipe, ReasonerTrainer
    from rsvp_backend.training.demo_vlsm import VlsmRecipe, VlsmTrainer

    logging.basicConfig(level=logging.INFO, format=f"{part}: %(message)s")
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    if part == "reasoner":
        ReasonerTrainer(ReasonerRecipe(minutes=minutes), folder).run()
    else:
        VlsmTrainer(VlsmRecipe(minutes=minutes), folder).run()
