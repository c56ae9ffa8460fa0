"""Examples -> what a local MLLM trains on: its own prompt, then the answer, of which alone the loss is taken."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rsvp_backend.reasoner.loading import thinks_first
from rsvp_backend.reasoner.local import LocalReasoner
from rsvp_backend.training.answer_text import answer_segments
from rsvp_backend.training.examples import Example
from rsvp_backend.training.prompt_store import PromptStore

_IGNORED = -100
_NO_THOUGHTS = "\n</think>\n\n"


@dataclass(frozen=True, slots=True)
class AnswerBatch:
    """``inputs``: of ``forward``; ``targets (B, A)``: the last ``A`` tokens, `_IGNORED` where not taught."""

    inputs: dict[str, Any]
    targets: Tensor

    @property
    def taught(self) -> int:
        """Tokens that the loss is taken of."""
        return int((self.targets != _IGNORED).sum())


class AnswerBatches:
    """Makes batches for ``reasoner``, which is asked exactly as it will be where it serves.

    ``edges``: see `answer_segments`.
    """

    def __init__(self, reasoner: LocalReasoner, prompts: PromptStore, edges: bool) -> None:
        self.reasoner, self.prompts, self.edges = reasoner, prompts, edges
        tokenizer, config = reasoner.processor.tokenizer, reasoner.model.generation_config
        ends = config.eos_token_id
        self._end = int(ends[0] if isinstance(ends, list) else ends)
        self._pad = int(config.pad_token_id)
        # The chat template has opened a thinking block already.
        self._first = self._tokens(tokenizer, _NO_THOUGHTS) if thinks_first(reasoner.processor) else []

    def batch(self, examples: Sequence[Example]) -> AnswerBatch:
        """Raises `ImageError` where a picture cannot be had."""
        marks = self.prompts.marks
        asked = [(self.reasoner.question(self.prompts.get(one), one.query, marks),) for one in examples]
        inputs = dict(self.reasoner.read(asked))
        answers = [self._answer(one) for one in examples]
        longest = max(len(ids) for ids, _ in answers)
        rows = torch.full((len(answers), longest), self._pad)
        targets = torch.full_like(rows, _IGNORED)
        read = torch.zeros_like(rows)
        for row, (ids, taught) in enumerate(answers):
            rows[row, : len(ids)] = torch.tensor(ids)
            targets[row, : len(ids)] = torch.tensor(taught)
            read[row, : len(ids)] = 1
        shape = inputs["input_ids"].shape
        more = {"input_ids": rows, "attention_mask": read}
        for name, tensor in inputs.items():
            if isinstance(tensor, Tensor) and tensor.shape == shape:  # one value per token; 0 stands for text
                inputs[name] = torch.cat([tensor, more.get(name, torch.zeros_like(rows)).to(tensor.dtype)], dim=1)
        return AnswerBatch(inputs, targets)

    def _answer(self, example: Example) -> tuple[list[int], list[int]]:
        """The answer's tokens with the end token, and the same with `_IGNORED` where nothing is taught."""
        labels = self.reasoner.offers_labels(example.query, self.prompts.marks)
        ids, taught = [*self._first], [*self._first]
        for text, own in answer_segments(example.proposals, self.prompts.marks, labels=labels, edges=self.edges):
            tokens = self._tokens(self.reasoner.processor.tokenizer, text)
            ids += tokens
            taught += tokens if own else [_IGNORED] * len(tokens)
        return [*ids, self._end], [*taught, self._end]

    @staticmethod
    def _tokens(tokenizer: Any, text: str) -> list[int]:
        return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def answer_loss(model: Any, batch: AnswerBatch) -> Tensor:
    """Summed cross-entropy of the taught tokens; in bfloat16 inside, on a GPU."""
    device, count = model.device, batch.targets.shape[1]
    inputs: dict[str, Any] = {
        name: value.to(device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in batch.inputs.items()
        if isinstance(value, Tensor)
    }
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = count + 1
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(**inputs, use_cache=False).logits[:, -count - 1 : -1]
    return F.cross_entropy(
        logits.float().flatten(0, 1), batch.targets.to(device).flatten(), ignore_index=_IGNORED, reduction="sum"
    )
