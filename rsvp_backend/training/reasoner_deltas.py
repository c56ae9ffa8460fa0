"""Versions of a local reasoner: base weights, and a small delta over them (LoRA, see `adapters` for its form)."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from rsvp_backend.errors import WeightsError
from rsvp_backend.reasoner.loading import LoadedModel
from rsvp_backend.reasoner.local import Decoding, LocalReasoner
from rsvp_backend.training.adapters import Delta, expand_delta
from rsvp_backend.training.versions import VersionError
from rsvp_backend.types import Marks


class ReasonerBase:
    """A loaded model with all that decides how it is asked: what versions are made over.

    ``marks``: those that it is asked with; ``prompts``: the user's folder of prompts, if any. ``version`` is the base's
    name in versions: another model, prompt or form of marks is another base.
    """

    def __init__(
        self, loaded: LoadedModel, marks: Marks, decoding: Decoding | None = None, prompts: Path | None = None
    ) -> None:
        self.loaded, self.marks, self.decoding, self.prompts = loaded, marks, decoding or Decoding(), prompts
        self.plain = LocalReasoner(loaded, self.decoding, prompts)
        parts = (loaded.digest, self.plain.prompt_digest, repr(marks))
        self.version = f"{loaded.name}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:8]}"

    @property
    def edges(self) -> bool:
        """Whether the model writes the demo's form of answers, which it learned from scenes."""
        return self.loaded.marker.prompt == "demo"

    def reasoner(self, delta: Delta | None, version: str = "") -> LocalReasoner:
        """The base, or the base with ``delta`` over it. See `with_delta`."""
        if delta is None:
            return self.plain
        return LocalReasoner(with_delta(self.loaded, delta, version), self.decoding, self.prompts)


def with_delta(base: LoadedModel, delta: Delta, version: str) -> LoadedModel:
    """``base`` with ``delta`` merged in, its digest ``version``. What the delta leaves alone is shared.

    Raises `VersionError` where it does not fit.
    """
    model = shared_copy(base.model)
    named = dict(model.named_parameters())
    try:
        changed = expand_delta(named, delta)
    except WeightsError as error:
        raise VersionError(f"version {version} does not fit the reasoner {base.name}: {error}") from error
    for name, tensor in changed.items():
        place, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(place), leaf, nn.Parameter(tensor.to(named[name].dtype), requires_grad=False))
    return replace(base, model=model, digest=version)


def shared_copy(model: Any) -> Any:
    """A copy of ``model``'s modules over the same tensors: parts of it can be swapped, and the original stays."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
