"""Stage 1 by a local MLLM of any family that transformers' ``AutoModelForImageTextToText`` knows."""

from __future__ import annotations

import copy
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rsvp_backend.errors import DeadlineError, ReasonerError
from rsvp_backend.reasoner.base import Message, MllmReasoner
from rsvp_backend.reasoner.batching import Rendezvous
from rsvp_backend.reasoner.constrained import FreeGuide, Grammars, Guide, Reasoning, ThinkingGuide
from rsvp_backend.reasoner.decoding import Decoder
from rsvp_backend.reasoner.loading import LoadedModel, greedy_config, load_model, special_texts, thinks_first
from rsvp_backend.types import Answer, Deadline, Marks, Query

log = logging.getLogger(__name__)
SHORT_REASONING = "\nGive the rationale in at most ten words."


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are written: all of it is part of the version.

    ``constrained``: only answers of the asked form can be written; ``reasoning``: `short` bounds each proposal's
    reasoning to about ten words, under the constraint only; ``max_thinking_tokens``: for models that think first,
    besides ``max_new_tokens``.
    """

    max_new_tokens: int = 512
    constrained: bool = True
    reasoning: Reasoning = "full"
    max_thinking_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class Question:
    """One item of `LocalReasoner.propose_many`: the arguments of `Reasoner.propose`."""

    visual_prompt: Image.Image
    query: Query
    marks: Marks


@dataclass(frozen=True, slots=True)
class _Turn:
    """One answer to write."""

    messages: tuple[Message, ...]
    schema: dict[str, Any]
    deadline: Deadline | None


class LocalReasoner(MllmReasoner):
    """A `Reasoner` that owns a model, its device and a lock: one batch of answers is written at a time, greedily."""

    def __init__(self, loaded: LoadedModel, decoding: Decoding | None = None, prompts: Path | None = None) -> None:
        marker, decoding = loaded.marker, decoding or Decoding()
        super().__init__(marker.prompt, marker.canvas_px, prompts)
        self.name, self.model, self.processor = loaded.name, loaded.model, loaded.processor
        self._marks, self._decoding = marker.marks, decoding
        self._lock = threading.Lock()
        self._unspellable = special_texts(self.processor)
        self._asks_for_short = decoding.reasoning == "short" and marker.prompt is None
        self._thinks = thinks_first(self.processor)
        self.processor.tokenizer.padding_side = "left"
        config = self.model.generation_config = greedy_config(self.model, self.processor)
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        self._end_tokens = tuple(ends)
        self._decoder = Decoder(self.model, config.pad_token_id, ends[0])
        self._grammars = self._make_grammars() if decoding.constrained else None
        self._route: Callable[[_Turn], str] = self._write_one
        parts = (loaded.digest, self.prompt_digest, str(self.model.dtype), str(decoding))
        self._version = f"{self.name}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:8]}"

    @classmethod
    def load(
        cls,
        name_or_folder: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        decoding: Decoding | None = None,
        prompts: Path | None = None,
    ) -> LocalReasoner:
        """See `load_model` for the model and `MllmReasoner` for ``prompts``. Raises `WeightsError`."""
        return cls(load_model(name_or_folder, device, dtype), decoding, prompts)

    @property
    def version(self) -> str:
        return self._version

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        """See `Reasoner.propose`. Raises `ReasonerError` for marks that the model was not trained on."""
        if self._marks and marks not in self._marks:
            known = " and ".join(map(str, self._marks))
            raise ReasonerError(f"{self.name} was trained on {known} and cannot read {marks}: set marks that it reads")
        return super().propose(visual_prompt, query, marks, deadline)

    def propose_many(
        self, questions: Sequence[Question], deadline: Deadline | None = None, batch: int = 16
    ) -> list[Answer | ReasonerError | DeadlineError]:
        """`propose` for all ``questions``, at most ``batch`` in one forward pass: an answer or an error each, in order.

        Answers equal those of `propose`, but for rounding in half precision. ``deadline`` holds for all together.
        """
        answers: list[Answer | ReasonerError | DeadlineError] = []
        for at in range(0, len(questions), batch):
            chunk = questions[at : at + batch]
            meeting: Rendezvous[_Turn, str] = Rendezvous(len(chunk), self._write_many)
            with ThreadPoolExecutor(len(chunk)) as pool:
                ask = partial(self._propose_in, meeting, deadline)
                answers += pool.map(ask, range(len(chunk)), chunk)
        return answers

    def _propose_in(
        self, meeting: Rendezvous[_Turn, str], deadline: Deadline | None, index: int, question: Question
    ) -> Answer | ReasonerError | DeadlineError:
        member = copy.copy(self)
        member._route = partial(meeting.submit, index)
        try:
            return member.propose(question.visual_prompt, question.query, question.marks, deadline)
        except (ReasonerError, DeadlineError) as error:
            return error
        finally:
            meeting.leave()

    def complete(self, messages: tuple[Message, ...], schema: dict[str, Any], deadline: Deadline | None) -> str:
        """See `MllmReasoner.complete`; the end of a thinking block stays in the text."""
        return self._route(_Turn(messages, schema, deadline))

    def complete_many(
        self, conversations: Sequence[tuple[Message, ...]], schema: dict[str, Any], deadline: Deadline | None
    ) -> list[str]:
        """`complete` for several conversations in one batch, which fails as a whole."""
        return self._write([_Turn(messages, schema, deadline) for messages in conversations])

    def read(self, conversations: Sequence[tuple[Message, ...]]) -> Any:
        """The processor's output for one batch, on the CPU, up to where the model's turn begins; padded on the left."""
        return self.processor.apply_chat_template(
            [[self._turn(message) for message in messages] for messages in conversations],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": len(conversations) > 1},
        )  # fmt: skip

    def _write_one(self, turn: _Turn) -> str:
        return self._write([turn])[0]

    def _write_many(self, turns: Sequence[_Turn]) -> Sequence[str | Exception]:
        """A batch; where it fails as a whole (one bad image, memory), each turn alone."""
        try:
            return self._write(turns)
        except ReasonerError as error:
            if len(turns) == 1:
                return [error]
            log.warning("%s answers at once failed (%s): one by one", len(turns), error)
        results: list[str | Exception] = []
        for turn in turns:
            try:
                results.append(self._write_one(turn))
            except (ReasonerError, DeadlineError) as error:
                results.append(error)
        return results

    def _write(self, turns: Sequence[_Turn]) -> list[str]:
        """One text per turn, in one batch under the first turn's deadline."""
        deadline = turns[0].deadline
        try:
            inputs = self.read([turn.messages for turn in turns])
            with self._device(deadline), torch.inference_mode():
                return self._generate(inputs.to(self.model.device, dtype=self.model.dtype), turns, deadline)
        except (RuntimeError, ValueError) as error:
            raise ReasonerError(f"{self.name} failed on this image: {error}") from error

    def _generate(self, inputs: Any, turns: Sequence[_Turn], deadline: Deadline | None) -> list[str]:
        limit = self._decoding.max_new_tokens + (self._decoding.max_thinking_tokens if self._thinks else 0)
        guides = [self._guide(turn.schema) for turn in turns]
        try:
            tokens = self._decoder.write(dict(inputs), guides, limit, deadline)
        except DeadlineError as error:
            raise DeadlineError(f"{self.name}: {error}") from None
        return [str(text) for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]

    def _guide(self, schema: dict[str, Any]) -> Guide:
        if self._grammars is None:
            return FreeGuide(frozenset(self._end_tokens))
        answer = self._grammars.guide(schema)
        if not self._thinks:
            return answer
        return ThinkingGuide(self.processor.tokenizer, answer, self._decoding.max_thinking_tokens)

    def _make_grammars(self) -> Grammars | None:
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        try:
            return Grammars(self.processor.tokenizer, vocabulary, self._end_tokens, self._decoding.reasoning)
        except ValueError as error:
            log.warning("%s writes without constraint: its tokenizer does not fit llguidance (%s)", self.name, error)
            return None

    def _turn(self, message: Message) -> dict[str, Any]:
        text = message.text + (SHORT_REASONING if self._asks_for_short and message.role == "user" else "")
        for token in self._unspellable:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if message.image is not None:
            content.insert(0, {"type": "image", "image": message.image})
        return {"role": message.role, "content": content}

    @contextmanager
    def _device(self, deadline: Deadline | None) -> Iterator[None]:
        """The device for one caller at a time; waiting for it counts against the deadline."""
        if not self._lock.acquire(timeout=-1 if deadline is None else deadline.remaining_s):
            raise DeadlineError(f"the time of this request was over while it waited for {self.name}")
        try:
            yield
        finally:
            self._lock.release()
