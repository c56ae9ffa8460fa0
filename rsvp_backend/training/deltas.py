"""Deltas as files: what fine-tuning changed of a model (see `adapters`), written, read, and laid over base weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from rsvp_backend.errors import WeightsError
from rsvp_backend.training.adapters import expand_delta
from rsvp_backend.training.versions import VersionError
from rsvp_backend.vlsm import weights

FROZEN = "visual_model.image_encoder."
"""No version changes these: image embeddings are shared by all versions of a base."""
_SHOWN = 5


def encode(delta: Mapping[str, Tensor]) -> bytes:
    """A delta as the content of a safetensors file, values as given; equal deltas give equal bytes.

    Raises `VersionError` for a delta without tensors, with values that are not finite, or of frozen parts.
    """
    _check(delta, "the delta")
    kept = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in sorted(delta.items())}
    return safetensors.save(kept, {"format": "pt"})


def read(file: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a delta's file, on the CPU. Raises `VersionError` unless its digest is ``sha256``."""
    name = file.parent.name
    try:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise VersionError(f"version {name} is damaged: {file.name} has another sha256 than its record names")
        return safetensors.load(data)
    except (OSError, SafetensorError) as error:
        raise VersionError(f"version {name} is damaged: {file.name}: {error}") from error


def apply(base: weights.Weights, delta: Mapping[str, Tensor], version: str) -> weights.Weights:
    """``base`` with the delta over it, called ``version``.

    What the delta leaves alone is shared with ``base.model``, wherever and in whatever dtype that is by now; what it
    changes has device and dtype of what it replaces. Raises `VersionError` where it does not fit.
    """
    source = f"version {version}"
    _check(delta, source)
    state = base.model.state_dict()
    try:
        changed = expand_delta(state, delta)
    except WeightsError as error:
        raise VersionError(
            f"{source} does not fit the base weights {base.version}: {error}. Likely cause: it was trained on other "
            "weights (RSVP_VLSM)"
        ) from error
    state |= {key: tensor.to(state[key].dtype) for key, tensor in changed.items()}
    return weights.Weights(weights.build(base.model.config, state, source), base.tokenizer, base.name, version)


def _check(delta: Mapping[str, Tensor], source: str) -> None:
    if not delta:
        raise VersionError(f"{source} holds no tensors: what training changed is expected")
    frozen = [key for key in delta if key.startswith(FROZEN)]
    if frozen:
        raise VersionError(f"{source} changes the image encoder, which versions share: {_listed(frozen)}")
    broken = [key for key, tensor in delta.items() if not tensor.isfinite().all()]
    if broken:
        raise VersionError(
            f"{source} has values that are not finite in {_listed(broken)}: has training diverged, or fp16 overflowed?"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
