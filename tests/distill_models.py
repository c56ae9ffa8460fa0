"""Tiny reasoners of real families, short prompts for them, and a task that they can learn in a second."""

from __future__ import annotations

from pathlib import Path

from mllm_folders import save_random_mllm
from PIL import Image

from rsvp_backend.reasoner.loading import load_model
from rsvp_backend.reasoner.local import Decoding
from rsvp_backend.training.distill_config import DistillConfig
from rsvp_backend.training.examples import Example, Source, make_example
from rsvp_backend.training.reasoner_deltas import ReasonerBase
from rsvp_backend.types import Marks, Proposal, Query, Regions

MARKS = Marks("bands", 3, 3)
CONFIG = DistillConfig(
    steps=40, batch=6, learning_rate=1e-2, lora_rank=16, lora_mlp=True, replay_share=0.25, replay_trained=4,
    replay_scored=4, answer_batch=8, evaluate_every=20,
)  # fmt: skip
RIGHT = Proposal("red key", True, Regions(rows=(3,), columns=(2,)), "it has rows")


def short_prompts(folder: Path) -> Path:
    """Prompts of a few tokens: the tiny tokenizer knows few words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rsvp_bands.txt").write_text("{instruction_json}{label_step} {example}")
    return folder


def tiny_base(family: str, folder: Path, marks: Marks = MARKS, dtype: str = "auto") -> ReasonerBase:
    """A random MLLM, whose scores are spread out as a trained model's are."""
    loaded = load_model(save_random_mllm(family, folder / "model"), "cpu", dtype)
    loaded.model.lm_head.weight.data.mul_(20)
    return ReasonerBase(loaded, marks, Decoding(max_new_tokens=90), short_prompts(folder / "prompts"))


def example(task: int, proposal: Proposal = RIGHT) -> Example:
    """A plain picture whose red grows with ``task``."""
    image = Image.new("RGB", (60, 60), (task * 11 % 255, 0, 0))
    query = Query(f"the key {task}")
    return make_example(task, query, [proposal], lambda: image, Source.CORRECTION, f"picture {task}")
