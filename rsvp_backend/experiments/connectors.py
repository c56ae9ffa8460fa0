"""Stage 2 with another connector: its BEiT-3 and SAM kept, connector and projector fresh, all trained alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from rsvp_backend.training.fitting import Tell
from rsvp_backend.training.pretrain import MODEL, pretrain
from rsvp_backend.training.pretrain_config import PretrainConfig
from rsvp_backend.training.pretrain_data import Data
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.config import ConnectorConfig
from rsvp_backend.vlsm.model import Vlsm
from rsvp_backend.vlsm.weights import Weights

CONNECTORS: dict[str, ConnectorConfig] = {
    "cls": ConnectorConfig("cls"),
    "cls-depth1": ConnectorConfig("cls", depth=1),
    "cls-depth3": ConnectorConfig("cls", depth=3),
    "cls-wide": ConnectorConfig("cls", width=512),
    "cross-attention": ConnectorConfig("cross_attention", depth=1),
    "cross-attention-depth2": ConnectorConfig("cross_attention", depth=2),
    "concat": ConnectorConfig("concat"),
}
"""Kind, depth and width by name; ``cls`` is EVF-SAM's and the default (see `vlsm.connector`)."""

_FRESH = ("connector.", "text_hidden_fcs.")


def config_of(steps: int, seed: int) -> PretrainConfig:
    """How each is trained: a short pretraining at the rate that suits fresh connectors of the demo's size."""
    return PretrainConfig(
        steps=steps, rate=1e-3, warmup=min(50, steps), lora_rank=16, view="crop", evaluate_every=steps,
        evaluate_on=100, checkpoint_every=50, log_every=25, seed=seed,
    )  # fmt: skip


def with_connector(base: Weights, connector: ConnectorConfig, seed: int = 0) -> Weights:
    """``base``'s encoders and decoder under a fresh connector and projector; the same ones for the same seed."""
    config = replace(base.model.config, connector=connector)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Vlsm(config)
    kept = {key: value for key, value in base.model.state_dict().items() if not key.startswith(_FRESH)}
    model.load_state_dict(kept, strict=False)
    return Weights(model.eval(), base.tokenizer, base.name, f"{base.version}-{connector}")


def train(
    source: str | Path, connector: ConnectorConfig, data: Data, config: PretrainConfig, out: Path, tell: Tell
) -> Path:
    """The folder of the trained weights. A run that was killed goes on; one that is done is not done again."""
    init = with_connector(weights.load(source), connector, config.seed)
    pretrain(init, data, config, out, out.name, tell)
    return out / MODEL
