"""What fine-tuning changes of a VLSM, and a version's small delta of it: mask decoder, projector, LoRA, word rows.

LoRA (arXiv 2106.09685) is added by forward hooks: peft's layers rename the weights that they wrap (``base_layer``), and
hooks leave every state-dict name as public checkpoints have it. A delta maps names to tensors:

- ``NAME``: the new values of a trained tensor (mask decoder, projector, connector);
- ``NAME.lora_a`` ``(r, in)`` and ``NAME.lora_b`` ``(out, r)``: ``lora_b @ lora_a`` is added to the weight ``NAME``;
- ``NAME.rows`` int64 ``(n,)`` and ``NAME.added`` ``(n, C)``: added to these rows of the embedding ``NAME``.

Floats are stored as float16: 1.3 MB for the demo's weights, 14 MB for SAM-H with BEiT-3 large.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from rsvp_backend.errors import WeightsError
from rsvp_backend.vlsm.model import Vlsm

Delta = Mapping[str, Tensor]
TRAINED = ("text_hidden_fcs.", "connector.", "visual_model.mask_decoder.")
WORDS = "mm_extractor.beit3.text_embed.weight"
_ADAPTED = re.compile(r"mm_extractor\.beit3\..*\.self_attn\.[qv]_proj\.[AB]")
_SCALE = 2.0  # alpha / r


class Adapters:
    """The trainable tensors of ``model``, by their delta's names; all else of it is frozen."""

    def __init__(self, model: Vlsm, lora_rank: int, word_ids: Sequence[int], seed: int = 0) -> None:
        """``lora_rank``: of BEiT-3's q and v projections, 0 for neither LoRA nor words; ``word_ids``: ids to train."""
        self.model = model.requires_grad_(False)
        self.parameters = {n: p.requires_grad_() for n, p in model.named_parameters() if n.startswith(TRAINED)}
        self._handles: list[RemovableHandle] = []
        if lora_rank:
            generator = torch.Generator().manual_seed(seed)
            for name, module in model.named_modules():
                if isinstance(module, nn.Linear) and _ADAPTED.fullmatch(name):
                    self._add_lora(f"{name}.weight", module, lora_rank, generator)
            self._add_words(model.mm_extractor.beit3.text_embed, sorted(set(word_ids)))

    def _add_lora(self, name: str, layer: nn.Linear, rank: int, generator: torch.Generator) -> None:
        start = torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5
        a = nn.Parameter(start.to(layer.weight.device))
        b = nn.Parameter(torch.zeros(layer.out_features, rank, device=layer.weight.device))
        self.parameters |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
        self._handles.append(layer.register_forward_hook(_lora(a, b)))

    def _add_words(self, table: nn.Embedding, word_ids: list[int]) -> None:
        device = table.weight.device
        self._word_ids = torch.tensor(word_ids, dtype=torch.int64)
        place = torch.zeros(table.num_embeddings, dtype=torch.int64, device=device)
        place[self._word_ids.to(device)] = torch.arange(1, len(word_ids) + 1, device=device)
        added = nn.Parameter(torch.zeros(len(word_ids), table.embedding_dim, device=device))
        self.parameters[f"{WORDS}.added"] = added
        self._handles.append(table.register_forward_hook(_rows(place, added)))

    def delta(self) -> dict[str, Tensor]:
        """What was learned, float16 on the CPU. Raises `WeightsError` where training diverged."""
        found = {name: tensor.detach() for name, tensor in self.parameters.items()}
        found |= {name: _SCALE * tensor for name, tensor in found.items() if name.endswith(".lora_b")}
        halves = {name: tensor.to("cpu", torch.float16).contiguous() for name, tensor in found.items()}
        broken = [name for name, tensor in halves.items() if not tensor.isfinite().all()]
        if broken:
            raise WeightsError(f"{broken[0]} is not finite after fine-tuning: choose a lower learning rate")
        if f"{WORDS}.added" in halves:
            halves[f"{WORDS}.rows"] = self._word_ids
        return halves

    def remove(self) -> None:
        """Take the hooks off: the model is as before, but for the tensors that were trained as a whole."""
        for handle in self._handles:
            handle.remove()
        self.model.requires_grad_(False)


def _lora(a: Tensor, b: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + _SCALE * F.linear(F.linear(inputs[0], a), b)

    return hook


def _rows(place: Tensor, added: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """``place``: id -> row of ``added`` counted from 1, 0 for ids that are not trained."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + F.embedding(place[inputs[0]], F.pad(added, (0, 0, 1, 0)))

    return hook


def apply_delta(model: Vlsm, delta: Delta) -> None:
    """Put ``delta`` into ``model``, as `weights.load` gave it or moved; the changed tensors become float32.

    Raises `WeightsError`, before anything is changed, where ``delta`` belongs to another model.
    """
    named = dict(model.named_parameters())
    for name, new in expand_delta(named, delta).items():
        named[name].data = new


@torch.no_grad()
def expand_delta(state: Mapping[str, Tensor], delta: Delta) -> dict[str, Tensor]:
    """The whole tensors that ``delta`` makes of a model's ``state``, under their public names, float32, on its device.

    ``state`` stays as it is. Raises `WeightsError` where ``delta`` belongs to another model.
    """
    changed: dict[str, Tensor] = {}
    for name, tensor in delta.items():
        target, kind = _split(name)
        if target not in state:
            raise WeightsError(f"the delta holds {name}, which the model lacks: it belongs to other weights")
        if kind in ("lora_a", "rows"):
            continue
        old = state[target]
        new = tensor.to(old.device, torch.float32)
        try:
            if kind == "lora_b":
                new = old.float() + new @ delta[f"{target}.lora_a"].to(new)
            elif kind == "added":
                new = old.float().index_add(0, delta[f"{target}.rows"].to(old.device), new)
        except (KeyError, RuntimeError, IndexError) as error:
            raise WeightsError(f"the delta's {name} does not fit the model's {target}: {error}") from error
        if new.shape != old.shape:
            raise WeightsError(f"the delta's {name} is {tuple(new.shape)}, the model's {tuple(old.shape)}")
        changed[target] = new
    return changed


def shortened(state: Mapping[str, Tensor], delta: Delta, share: float) -> dict[str, Tensor]:
    """``delta`` with only a ``share`` of its way from ``state`` on (weight interpolation, arXiv 2109.01903)."""
    found = dict(delta)
    for name, tensor in delta.items():
        target, kind = _split(name)
        if kind in ("lora_b", "added"):
            found[name] = tensor * share
        elif not kind:
            old = state[target].to("cpu", torch.float32)
            found[name] = torch.lerp(old, tensor.float(), share).to(tensor.dtype)
    return found


def compose_deltas(first: Delta, second: Delta) -> dict[str, Tensor]:
    """The one delta that does what ``first``, then ``second`` do: versions need no chain of parents."""
    found = {**first, **second}
    for name in first.keys() & second.keys():
        _, kind = _split(name)
        if kind in ("lora_a", "lora_b"):
            found[name] = torch.cat([first[name], second[name]], dim=0 if kind == "lora_a" else 1)
        elif kind == "rows":
            added = name.removesuffix("rows") + "added"
            rows, place = torch.unique(torch.cat([first[name], second[name]]), return_inverse=True)
            values = torch.cat([first[added], second[added]]).float()
            summed = torch.zeros(len(rows), values.shape[1]).index_add(0, place, values)
            found |= {name: rows, added: summed.to(first[added].dtype)}
    return found


def _split(name: str) -> tuple[str, str]:
    """A delta's name -> the tensor of the model that it changes, and how ("" for as a whole)."""
    target, _, kind = name.rpartition(".")
    return (target, kind) if kind in ("lora_a", "lora_b", "rows", "added") else (name, "")
