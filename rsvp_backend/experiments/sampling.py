"""Answers drawn at a temperature, in place of the most probable one; for measuring what that does, not for serving.

A token is drawn by adding Gumbel noise to its scores over the temperature and taking the best: so drafts and grammars
work as they do for greedy answers, and a token that the grammar forbids is drawn again among those it allows.
"""

from __future__ import annotations

import copy
import zlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rsvp_backend.errors import ReasonerError
from rsvp_backend.reasoner.chat import ChatConfig, ChatReasoner, Features
from rsvp_backend.reasoner.constrained import Guide
from rsvp_backend.reasoner.loading import LoadedModel
from rsvp_backend.reasoner.local import Decoding, LocalReasoner
from rsvp_backend.types import Answer, Deadline, Marks, Query


class SampledGuide:
    """``guide``, which is shown noisy scores: what it takes for the best token is a draw at ``temperature`` (> 0)."""

    def __init__(self, guide: Guide, temperature: float, source: torch.Generator) -> None:
        self._guide, self._temperature, self._source = guide, temperature, source

    @property
    def complete(self) -> bool:
        return self._guide.complete

    def take(self, scores: Tensor, best: int, left: int) -> int | None:
        """See `Guide.take`."""
        uniform = torch.rand(scores.shape, generator=self._source).clamp_(1e-20, 1 - 1e-7).to(scores.device)
        noisy = scores.float() / self._temperature - torch.log(-torch.log(uniform))
        return self._guide.take(noisy, int(noisy.argmax()), left)


class SampledLocal(LocalReasoner):
    """A local reasoner that draws its answers. The same question, ``repeat`` and seed give the same answer."""

    def __init__(
        self, loaded: LoadedModel, decoding: Decoding, prompts: Path | None, temperature: float, repeat: int = 0
    ) -> None:
        super().__init__(loaded, decoding, prompts)
        self.temperature, self.repeat = temperature, repeat
        self._source = torch.Generator()

    @property
    def version(self) -> str:
        return f"{super().version}-t{self.temperature:g}"

    def repeated(self, repeat: int) -> SampledLocal:
        """The same model, drawing other answers."""
        other = copy.copy(self)
        other.repeat = repeat
        return other

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        """See `Reasoner.propose`."""
        seed = zlib.crc32(query.instruction.encode() + visual_prompt.tobytes(), self.repeat)
        member = copy.copy(self)
        member._source = torch.Generator().manual_seed(seed)
        member._route = member._write_one
        return super(SampledLocal, member).propose(visual_prompt, query, marks, deadline)

    def _guide(self, schema: dict[str, Any]) -> Guide:
        return SampledGuide(super()._guide(schema), self.temperature, self._source)


class SampledChat(ChatReasoner):
    """A reasoner on a server that is asked for draws; the server's own, which a further run does not repeat."""

    def __init__(self, config: ChatConfig, temperature: float, repeat: int = 0) -> None:
        super().__init__(config)
        self.temperature, self.repeat = temperature, repeat

    @property
    def version(self) -> str:
        return f"{super().version}-t{self.temperature:g}"

    def repeated(self, repeat: int) -> SampledChat:
        """The same model on the same server, drawing other answers."""
        other = copy.copy(self)
        other.repeat = repeat
        return other

    def _body(self, turns: list[dict[str, Any]], schema: dict[str, Any], features: Features) -> dict[str, Any]:
        """Raises `ReasonerError` where the server takes no temperature: what it does then is not known."""
        if not features.temperature:
            raise ReasonerError(f"{self.config.model} takes no temperature: it cannot be varied here")
        return super()._body(turns, schema, features) | {"temperature": self.temperature, "seed": self.repeat}
