"""Forward passes of a local MLLM's text model, without what ``generate`` adds around each of them.

The prompt goes through the whole model, as the family needs it. What follows is plain text in every family: token
embeddings -> text model -> head, with positions, mask and cache prepared here.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import StaticCache

from rsvp_backend.reasoner.kv_cache import BufferCache
from rsvp_backend.reasoner.prefix import Prompt

MROPE_FAMILIES = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl"})
FAMILIES = MROPE_FAMILIES | {"llava", "llava_next", "llava_onevision"}


class Steps(Protocol):
    """One batch of answers under way."""

    def start(self, inputs: dict[str, Any]) -> Tensor:
        """Read the prompts (the processor's output, padded on the left); scores of the first tokens, ``(rows, V)``."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Add ``tokens (rows, n)``; scores after each of them, ``(rows, n, V)``."""
        ...


class TextModel:
    """The parts of a model of `FAMILIES` that write text."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self.embed, self.text, self.head = model.get_input_embeddings(), model.model.language_model, model.lm_head
        self.mrope = model.config.model_type in MROPE_FAMILIES
        self.image_token = int(model.config.image_token_id)

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether ``model`` is of a known family, attends by SDPA and to everything (no sliding window)."""
        text = model.config.get_text_config(decoder=True)
        whole = set(getattr(text, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        windowed = getattr(text, "layer_types", None) is None and getattr(text, "sliding_window", None) is not None
        return model.config.model_type in FAMILIES and text._attn_implementation == "sdpa" and whole and not windowed

    def prefill(self, inputs: dict[str, Any], cache: Any) -> tuple[Tensor, Tensor]:
        """Scores ``(rows, V)`` after the prompts, and the positions ``(rows,)`` of the tokens to come."""
        mask = inputs["attention_mask"]
        positions = {} if self.mrope else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        output = self.model(**inputs, **positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        following = mask.sum(-1)
        if self.mrope:  # an image takes fewer positions than tokens
            following = following + self.model.model.rope_deltas.reshape(-1)
        return output.logits[:, -1], following

    def __call__(self, tokens: Tensor, positions: Tensor, bias: Tensor, cache: Any) -> Tensor:
        """Scores ``(rows, n, V)`` of ``tokens (rows, n)`` at ``positions (rows, n)``.

        ``bias (rows, 1, n, all)``: 0 for tokens that each of them sees, else -inf, in the model's dtype.
        """
        output = self.text(
            inputs_embeds=self.embed(tokens), position_ids=positions, attention_mask=bias, past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        return torch.as_tensor(self.head(output.last_hidden_state))


class BufferSteps:
    """Steps of any number of tokens, which can be taken back. ``capacity``: tokens, prompts included."""

    def __init__(self, text: TextModel, capacity: int) -> None:
        self._text, self.capacity = text, capacity
        self._cache = BufferCache(text.config.num_hidden_layers, capacity)
        self._prompt: Prompt | None = None
        self.length = 0

    def start(self, inputs: dict[str, Any]) -> Tensor:
        scores, self._positions = self._text.prefill(inputs, self._cache)
        mask = inputs["attention_mask"]
        self._padding: Tensor | None = None
        if not mask.all():
            self._padding = scores.new_zeros(len(mask), 1, 1, self.capacity)
            self._padding[..., : mask.shape[1]].masked_fill_(mask[:, None, None] == 0, float("-inf"))
        self._begin(inputs)
        return scores

    def again(self, inputs: dict[str, Any]) -> Tensor | None:
        """As `start` on one prompt, but reads only what comes after its last picture, or less, where pictures and text
        up to there are those of the last prompt; None where they are not."""
        shared = 0 if self._prompt is None else Prompt.of(inputs, self._text.image_token).shared_with(self._prompt)
        if not shared or self._prompt is None or self._padding is not None:
            return None
        turned = self._positions - len(self._prompt.ids)  # a picture takes fewer positions than tokens
        tokens = inputs["input_ids"]
        self._cache.keep(shared)
        self._begin(inputs)
        indices = torch.arange(shared, self._start, device=tokens.device)
        positions = indices[None] + turned[:, None]
        self._positions = turned + self._start
        return self._text(tokens[:, shared:], positions, self._bias(len(indices)), self._cache)[:, -1]

    def _begin(self, inputs: dict[str, Any]) -> None:
        ids = inputs["input_ids"]
        self._prompt = Prompt.of(inputs, self._text.image_token) if len(ids) == 1 else None
        self._start, self.length = ids.shape[1], 0
        self._offsets = torch.arange(self.capacity - self._start, device=ids.device)

    def step(self, tokens: Tensor) -> Tensor:
        start, count = self.length, tokens.shape[1]
        self.length = start + count
        positions = self._positions[:, None] + self._offsets[start : self.length]
        return self._text(tokens, positions, self._bias(count), self._cache)

    def _bias(self, count: int) -> Tensor:
        """For the last ``count`` tokens: SDPA takes this form as it is, and turns bools into it in every layer."""
        end = self._start + self.length
        bias = torch.zeros(1, 1, count, end, dtype=self._text.model.dtype, device=self._positions.device)
        if count > 1:
            unseen = torch.full((count, count), float("-inf"), dtype=bias.dtype, device=bias.device)
            bias[..., end - count :] = unseen.triu_(1)
        return bias if self._padding is None else bias + self._padding[..., :end]

    def keep(self, length: int) -> None:
        """Take back all but the first ``length`` tokens after the prompt."""
        self._cache.keep(self._start + length)
        self.length = length


class StaticSteps:
    """Steps of one token each in tensors that never move, so that a GPU can replay them as one CUDA graph."""

    def __init__(self, text: TextModel, rows: int, capacity: int) -> None:
        device = text.model.device
        self._text, self._length = text, 0
        self._cache: Any = StaticCache(config=text.model.config, max_cache_len=capacity)
        self._tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._positions = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._bias = torch.zeros(rows, 1, 1, capacity, dtype=text.model.dtype, device=device)
        self._scores: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def record(self) -> None:
        """Record the step as a CUDA graph; another thread's work on the GPU may go on. Raises `RuntimeError`."""
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # lazy initialisations must not be recorded
                self._forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._scores = self._forward()
        self._graph = graph

    def start(self, inputs: dict[str, Any]) -> Tensor:
        self._cache.reset()
        scores, positions = self._text.prefill(inputs, self._cache)
        mask = inputs["attention_mask"]
        self._length = mask.shape[1]
        self._bias.fill_(float("-inf"))
        self._bias[:, 0, 0, : self._length].masked_fill_(mask != 0, 0.0)
        self._positions.copy_(positions[:, None])
        return scores

    def step(self, tokens: Tensor) -> Tensor:
        self._tokens.copy_(tokens)
        self._bias[..., self._length] = 0.0
        self._length += 1
        if self._graph is None:
            self._scores = self._forward()
        else:
            self._graph.replay()
        self._positions.add_(1)
        assert self._scores is not None
        return self._scores

    def _forward(self) -> Tensor:
        return self._text(self._tokens, self._positions, self._bias, self._cache)
