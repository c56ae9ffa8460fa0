"""Tiny checkpoints in the form of the official ones: SAM's flat dict, BEiT-3's dict ``model`` with heads."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from vlsm_models import tokenizer_model

from rsvp_backend.vlsm.config import Beit3Config, SamConfig, VlsmConfig
from rsvp_backend.vlsm.model import Vlsm

SAM, BEIT3, PROJECTOR = "sam_vit_b_tiny.pth", "beit3_base_patch16_224.pth", "projector.safetensors"


def parts_config() -> VlsmConfig:
    """Tiny, but with the published head sizes, so that the tensors tell all of it."""
    sam = SamConfig(
        image_size=64,
        embed_dim=48,
        depth=2,
        num_heads=3,
        global_attn_indexes=(1,),
        window_size=3,
        decoder_mlp_dim=32,
        iou_head_hidden_dim=24,
    )
    beit3 = Beit3Config(vocab_size=120, embed_dim=128, num_heads=2, ffn_dim=96, layers=2, max_source_positions=64)
    return VlsmConfig(sam, beit3)


@cache
def parts_model(seed: int = 0) -> Vlsm:
    torch.manual_seed(seed)
    return Vlsm(parts_config()).eval()


def published_sizes() -> list[tuple[str, VlsmConfig]]:
    sams = {
        "b": SamConfig(embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11)),
        "l": SamConfig(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23)),
        "h": SamConfig(),
    }
    base = replace(Beit3Config(), embed_dim=768, num_heads=12, ffn_dim=3072, layers=12)
    beit3s = {"base": base, "large": Beit3Config()}
    return [(f"sam-{s}-beit3-{b}", VlsmConfig(sams[s], beit3s[b])) for s in sams for b in beit3s]


def sam_state(model: Vlsm) -> dict[str, Tensor]:
    return _under(model, "visual_model.")


def beit3_state(model: Vlsm) -> dict[str, Tensor]:
    return _under(model, "mm_extractor.")


def projector_state(model: Vlsm) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in model.state_dict().items() if key.startswith("text_hidden_fcs.")}


def write_parts(folder: Path, model: Vlsm) -> tuple[Path, Path]:
    """SAM and BEiT-3 as they are published, the tokenizer beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(sam_state(model), folder / SAM)
    heads = {"mlm_head.weight": torch.zeros(120, 128), "mim_head.bias": torch.zeros(9), "logit_scale": torch.zeros(())}
    torch.save({"model": beit3_state(model) | heads}, folder / BEIT3)
    (folder / "beit3.spm").write_bytes(tokenizer_model())
    return folder / SAM, folder / BEIT3


def _under(model: Vlsm, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in model.state_dict().items() if key.startswith(prefix)}
