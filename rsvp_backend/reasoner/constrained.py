"""Decoding under a grammar: a local model can only write answers of the asked form, and always comes to their end.

The model's own choice is asked first and taken wherever the grammar allows it, so an answer that would have been valid
without a grammar stays the same, token by token. What is forced is never written in the grammar's spelling (models
spell JSON in tokens of their own): the best token among those allowed is taken.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from tokenizers import Tokenizer
from torch import Tensor

from rsvp_backend.errors import ReasonerError
from rsvp_backend.reasoner.parsing import MAX_OBJECT_CHARS

Reasoning = Literal["full", "short"]
REASONING_CHARS: dict[Reasoning, int] = {"full": 1000, "short": 80}
MAX_GRAMMARS = 64
# A visible first character: the parser refuses objects of blanks.
_OBJECT = rf"^ ?[\p{{L}}\p{{N}}\p{{P}}\p{{S}}].{{0,{MAX_OBJECT_CHARS - 2}}}$"
_BLANKS = r"[ \n\r\t]{1,32}"
_OPENER, _BLANK_BYTES = b"{", b" \n\r\t"
_CLOSE_SLACK_TOKENS = 8


class Guide(Protocol):
    """Chooses the tokens of one answer, in order."""

    @property
    def complete(self) -> bool:
        """Whether the answer is known to be complete before the model is asked again."""
        ...

    def take(self, scores: Tensor, best: int, left: int) -> int | None:
        """The next token: the best one allowed; None where the answer is complete.

        ``scores``: ``(vocabulary,)``, any device; ``best``: their arg max; ``left``: tokens that may still be written,
        this one included.
        """
        ...


class FreeGuide:
    """No grammar: the model's own choice, up to an end token."""

    def __init__(self, end_tokens: frozenset[int]) -> None:
        self._end_tokens = end_tokens
        self.complete = False

    def take(self, scores: Tensor, best: int, left: int) -> int | None:
        return None if best in self._end_tokens else best


class Grammars:
    """Guides for one tokenizer, from JSON schemas; compiled grammars are kept. Not for several threads at once.

    ``vocabulary``: length of the model's scores, which may exceed the tokenizer's. Raises `ValueError` for tokenizers
    other than transformers' fast ones.
    """

    def __init__(
        self, tokenizer: Any, vocabulary: int, end_tokens: Sequence[int], reasoning: Reasoning = "full"
    ) -> None:
        self._tokenizer = _read_tokenizer(tokenizer, max(vocabulary, len(tokenizer)), end_tokens)
        self._reasoning_chars = REASONING_CHARS[reasoning]
        self._vocabulary = vocabulary
        self._kinds = _Kinds.of(self._tokenizer, vocabulary)
        self._compiled: dict[str, tuple[LLMatcher, int]] = {}

    def guide(self, schema: dict[str, Any]) -> Guide:
        """A guide through one answer of `answer_schema`'s form. Raises `ReasonerError` for a schema without grammar."""
        key = json.dumps(schema)
        if key not in self._compiled:
            if len(self._compiled) >= MAX_GRAMMARS:
                self._compiled.clear()
            self._compiled[key] = self._compile(schema)
        matcher, reserve = self._compiled[key]
        return GrammarGuide(matcher.deep_copy(), self._kinds, reserve)

    def _compile(self, schema: dict[str, Any]) -> tuple[LLMatcher, int]:
        """A fresh matcher and the tokens that it may take to close an answer from anywhere in it."""
        answer = json.dumps(bounded(schema, self._reasoning_chars))
        # Sentencepiece models start with a blank; after thinking there are line breaks.
        lark = f"start: LEAD? answer\nLEAD: /[ \\n]{{1,4}}/\nanswer: %json {answer}"
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0)
        if matcher.is_error():
            raise ReasonerError(f"the answer's schema gives no grammar: {matcher.get_error()}")
        longest_label = max((len(self._tokenizer.tokenize_str(label)) for label in _labels(schema)), default=0)
        return matcher, self._closing_tokens(matcher.deep_copy()) + longest_label + _CLOSE_SLACK_TOKENS

    def _closing_tokens(self, matcher: LLMatcher) -> int:
        """Tokens of the shortest proposal, the whole answer around it included, in its longest spelling."""
        matcher.consume_tokens(self._tokenizer.greedy_tokenize('{"proposals": [{"object": "a'))
        guide, scores = GrammarGuide(matcher, self._kinds, 0), -self._kinds.lengths
        count = 0
        while guide.take(scores, -1, 0) is not None:
            count += 1
        return count


class GrammarGuide:
    """One answer under a grammar. From ``reserve`` tokens before the limit on, only its shortest end is allowed."""

    def __init__(self, matcher: LLMatcher, kinds: _Kinds, reserve: int) -> None:
        self._matcher, self._kinds, self._reserve = matcher, kinds, reserve

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_stopped())

    def take(self, scores: Tensor, best: int, left: int) -> int | None:
        """See `Guide.take`. Raises `ReasonerError` where the grammar gets stuck."""
        if self.complete:
            return None
        closing = left <= self._reserve
        if closing or best < 0 or not self._matcher.validate_tokens([best]):
            best = self._best_allowed(scores, closing)
        if not self._matcher.consume_token(best):
            raise ReasonerError(f"the grammar got stuck: {self._matcher.get_error()}")
        return best

    def _best_allowed(self, scores: Tensor, closing: bool) -> int:
        words = allocate_token_bitmask(1, self._kinds.padded)
        fill_next_token_bitmask(self._matcher, words)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: len(scores)]
        allowed: npt.NDArray[np.bool_] = bits.astype(bool)
        if closing:
            for kind in (self._kinds.quote, self._kinds.bracket, self._kinds.solid):
                if (allowed & kind).any():
                    allowed &= kind
                    break
        forbidden = torch.from_numpy(~allowed).to(scores.device)
        return int(scores.masked_fill(forbidden, float("-inf")).argmax())


class _Kinds:
    """What tokens are made of, each ``(vocabulary,)``.

    ``quote`` (bool): ends a text; ``bracket`` (bool): ends a list or an object; neither opens an object. ``solid``
    (bool): more than blanks; ``lengths`` (float32): bytes. ``padded``: the grammar's vocabulary.
    """

    def __init__(self, spellings: list[bytes], padded: int) -> None:
        bare = [spelling.lstrip(_BLANK_BYTES) for spelling in spellings]
        self.quote = np.array([b.startswith(b'"') and _OPENER not in b for b in bare])
        self.bracket = np.array([b.startswith((b"]", b"}")) and _OPENER not in b for b in bare])
        self.solid = np.array([b != b"" for b in bare])
        self.lengths = torch.tensor([float(len(spelling)) for spelling in spellings])
        self.padded = padded

    @classmethod
    def of(cls, tokenizer: LLTokenizer, vocabulary: int) -> _Kinds:
        return cls([tokenizer.decode_bytes([token]) for token in range(vocabulary)], tokenizer.vocab_size)


class ThinkingGuide:
    """Free text up to ``</think>``, of at most ``budget`` tokens, and the answer's guide after it.

    ``tokenizer``: transformers' own; its end token closes the thinking, not the answer.
    """

    END = "</think>"

    def __init__(self, tokenizer: Any, answer: Guide, budget: int) -> None:
        self._tokenizer, self._answer, self._budget = tokenizer, answer, budget
        self._forced: list[int] = []
        self._tail: list[int] = []
        self._thinking = True

    @property
    def complete(self) -> bool:
        return not self._thinking and not self._forced and self._answer.complete

    def take(self, scores: Tensor, best: int, left: int) -> int | None:
        if self._forced:
            return self._forced.pop(0)
        if not self._thinking:
            return self._answer.take(scores, best, left)
        self._budget -= 1
        if self._budget < 0 or best == self._tokenizer.eos_token_id:
            self._thinking = False
            self._forced = self._tokenizer.encode(f"\n{self.END}\n\n", add_special_tokens=False)
            return self._forced.pop(0)
        self._tail = [*self._tail[-15:], best]
        self._thinking = self.END not in self._tokenizer.decode(self._tail, skip_special_tokens=False)
        return best


def _read_tokenizer(tokenizer: Any, vocabulary: int, end_tokens: Sequence[int]) -> LLTokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(f"{type(tokenizer).__name__} is given, a fast tokenizer is expected")
    backend = Tokenizer.from_str(backend.to_str())
    backend.no_padding()
    backend.no_truncation()
    if backend.normalizer is not None and "Aa" not in backend.normalizer.normalize_str("Aa"):
        backend.normalizer = None  # a tokenizer that lowers its input could not spell what a grammar forces
    return LLTokenizer(backend.to_str(), n_vocab=vocabulary, eos_token=list(end_tokens))


def bounded(schema: dict[str, Any], reasoning_chars: int) -> dict[str, Any]:
    """`answer_schema`'s ``schema`` with bounds on its texts and blanks, which remote services' strict modes refuse."""
    limited = copy.deepcopy(schema)
    fields = limited["properties"]["proposals"]["items"]["properties"]
    fields["object"]["pattern"] = _OBJECT
    fields["reasoning"]["maxLength"] = reasoning_chars
    limited["x-guidance"] = {"whitespace_flexible": True, "whitespace_pattern": _BLANKS}
    return limited


def _labels(schema: dict[str, Any]) -> list[str]:
    fields = schema["properties"]["proposals"]["items"]["properties"]
    return list(fields["label"]["enum"]) if "label" in fields else []
