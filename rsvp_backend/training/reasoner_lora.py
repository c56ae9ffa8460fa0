"""LoRA on the language model of a local reasoner, by peft; its vision part stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rsvp_backend.errors import WeightsError
from rsvp_backend.training.adapters import Delta

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
_NAME = "learned"
_SCALE = 2.0  # alpha / r


class ReasonerLora:
    """The adapters of ``model``, which is changed in place: all else of it is frozen.

    ``start``: the delta to go on from, of whatever rank; None for adapters that change nothing yet.
    """

    def __init__(self, model: Any, rank: int, mlp: bool = False, start: Delta | None = None, seed: int = 0) -> None:
        begun = {} if start is None else dict(start)
        known = {name.removesuffix(".weight.lora_b") for name in begun if name.endswith(".lora_b")}
        targets = sorted({*adapted_layers(model, mlp), *known})
        rank = max([rank, *(begun[f"{name}.weight.lora_a"].shape[0] for name in known)])
        model.requires_grad_(False)
        config = LoraConfig(r=rank, lora_alpha=_SCALE * rank, target_modules=targets)  # type: ignore[arg-type]
        inject_adapter_in_model(config, model, _NAME)
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        generator = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, nn.Parameter] = {}
        for name in targets:
            a, b = (getattr(layers[name], side)[_NAME] for side in ("lora_A", "lora_B"))
            for side in (a, b):
                side.to(torch.float32).requires_grad_()
            _fill(a.weight, b.weight, name, begun, generator)
            self.parameters |= {f"{name}.weight.lora_a": a.weight, f"{name}.weight.lora_b": b.weight}

    def delta(self) -> dict[str, Tensor]:
        """What was learned, relative to the base weights, float16 on the CPU. Raises `WeightsError` where training
        diverged."""
        found = {name: tensor.detach() for name, tensor in self.parameters.items()}
        found |= {name: _SCALE * tensor for name, tensor in found.items() if name.endswith(".lora_b")}
        halves = {name: tensor.to("cpu", torch.float16).contiguous() for name, tensor in found.items()}
        broken = [name for name, tensor in halves.items() if not tensor.isfinite().all()]
        if broken:
            raise WeightsError(f"{broken[0]} is not finite after training: choose a lower learning rate")
        return halves


def adapted_layers(model: Any, mlp: bool = False) -> list[str]:
    """Names of the linear layers of ``model``'s language model that LoRA adapts. Raises `WeightsError` for none."""
    text = model.get_decoder()
    place = next(name for name, module in model.named_modules() if module is text)
    leaves: Sequence[str] = (*ATTENTION, *MLP) if mlp else ATTENTION
    found = [
        f"{place}.{name}"
        for name, module in text.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in leaves
    ]
    if not found:
        raise WeightsError(
            f"the language model {type(text).__name__} has no layer named {', '.join(leaves)}: distill a Qwen-VL or "
            "LLaVA model"
        )
    return found


@torch.no_grad()
def _fill(a: Tensor, b: Tensor, name: str, begun: Delta, generator: torch.Generator) -> None:
    """Random ``a (r, in)`` and zero ``b (out, r)``, with what was begun, of the same or a lower rank, in front."""
    a.copy_(torch.randn(a.shape, generator=generator) / a.shape[1] ** 0.5)
    b.zero_()
    old_a, old_b = begun.get(f"{name}.weight.lora_a"), begun.get(f"{name}.weight.lora_b")
    if old_a is None or old_b is None:
        return
    rank = old_a.shape[0]
    if old_a.shape[1] != a.shape[1] or old_b.shape[0] != b.shape[0]:
        raise WeightsError(f"the delta's {name} does not fit the model: it belongs to other weights")
    a[:rank].copy_(old_a)
    b[:, :rank].copy_(old_b.float() / _SCALE)
