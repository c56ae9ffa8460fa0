"""Weights and inputs of the published size that anyone can make again: drawn tensor by tensor, seeded by its name."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from rsvp_backend.vlsm.config import VlsmConfig
from rsvp_backend.vlsm.model import Vlsm

IDS = [0, 581, 70, 9732, 450, 51, 12765, 70, 11341, 2]


def drawn(name: str, shape: torch.Size | tuple[int, ...], std: float = 1.0, mean: float = 0.0) -> Tensor:
    """float32 normal values that depend on ``name`` and ``shape`` only."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.empty(shape).normal_(mean, std, generator=generator)


def drawn_model(config: VlsmConfig) -> Vlsm:
    """Norms near one, everything else small, so that activations stay in the range of trained weights."""
    with torch.device("meta"):
        model = Vlsm(config)
    state = {}
    for name, tensor in model.state_dict().items():
        if "gaussian_matrix" in name:
            state[name] = drawn(name, tensor.shape)
        elif tensor.ndim == 1 and name.endswith("weight"):
            state[name] = drawn(name, tensor.shape, 0.1, mean=1.0)
        else:
            state[name] = drawn(name, tensor.shape, 0.02)
    model.load_state_dict(state, assign=True)
    return model.eval()


def drawn_inputs(config: VlsmConfig) -> tuple[Tensor, Tensor, Tensor]:
    """SAM's pixels ``(1, 3, S, S)``, BEiT-3's ``(1, 3, s, s)``, ids ``(1, T)``."""
    sam, beit3 = config.sam.image_size, config.beit3.img_size
    return drawn("sam", (1, 3, sam, sam)), drawn("beit3", (1, 3, beit3, beit3)), torch.tensor([IDS])


def statistics(values: Tensor) -> dict[str, float | list[float]]:
    """Mean, standard deviation, and seven values spread over the tensor."""
    flat = values.detach().float().flatten()
    places = torch.linspace(0, len(flat) - 1, 7).long()
    return {"mean": flat.mean().item(), "std": flat.std().item(), "values": flat[places].tolist()}
