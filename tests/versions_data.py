"""Small deltas and records for the tests of versions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rsvp_backend.training.versions import Record
from rsvp_backend.vlsm.weights import Weights

PROJECTOR = "text_hidden_fcs.0.2.bias"
WORDS = "mm_extractor.beit3.text_embed.weight"
ADAPTED = "mm_extractor.beit3.encoder.layers.1.self_attn.q_proj.B.weight"


def projector_delta(base: Weights, seed: int = 1) -> dict[str, Tensor]:
    """The projector's last bias, changed; float16."""
    bias = base.model.state_dict()[PROJECTOR]
    noise = torch.randn(bias.shape, generator=torch.Generator().manual_seed(seed))
    return {PROJECTOR: (bias.cpu().float() + noise).half()}


def whole_delta(base: Weights) -> dict[str, Tensor]:
    """All kinds of entries: a whole tensor, LoRA and word rows."""
    state, generator = base.model.state_dict(), torch.Generator().manual_seed(3)
    out_features, in_features = state[ADAPTED].shape
    return {
        **projector_delta(base),
        f"{ADAPTED}.lora_a": torch.randn(2, in_features, generator=generator).half(),
        f"{ADAPTED}.lora_b": torch.randn(out_features, 2, generator=generator).half(),
        f"{WORDS}.rows": torch.tensor([5, 9]),
        f"{WORDS}.added": torch.randn(2, state[WORDS].shape[1], generator=generator).half(),
    }


def record(base: str, **known: Any) -> Record:
    return Record(base, **known)
