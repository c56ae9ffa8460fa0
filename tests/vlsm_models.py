"""Tiny VLSMs for the tests: the golden set's config, a tokenizer trained on the spot, a folder with random weights."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import sentencepiece
import torch

from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.model import Vlsm, VlsmConfig
from rsvp_backend.vlsm.tokenizer import Tokenizer

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "vlsm_golden"

_SENTENCES = [
    "the red ball left of the cup",
    "what would you use to open the door",
    "the largest key on the wooden table",
    "a small blue mug behind the lamp",
    "the thing that shows the time",
]


def tiny_config() -> VlsmConfig:
    return VlsmConfig.from_dict(json.loads((GOLDEN / "tiny_golden.json").read_text())["config"])


@cache
def tokenizer_model() -> bytes:
    """A sentencepiece model with XLM-R's special ids (unk 0, bos 1, eos 2), at most 70 pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES * 10),
        model_writer=model,
        vocab_size=70,
        model_type="unigram",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def random_model(seed: int = 0) -> Vlsm:
    """Random weights, scaled up so that crop and text both show in the logits."""
    torch.manual_seed(seed)
    model = Vlsm(tiny_config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def random_folder(folder: Path, seed: int = 0, name: str = "tiny") -> Path:
    config = tiny_config()
    weights.save(folder, random_model(seed), Tokenizer(tokenizer_model(), config.beit3.max_text_tokens), name)
    return folder


def other_depth(config: VlsmConfig, layers: int) -> VlsmConfig:
    return replace(config, beit3=replace(config.beit3, layers=layers))
