"""Stage 1 by any OpenAI-compatible endpoint: OpenAI, Azure, vLLM, Ollama, LM Studio, ``transformers serve``...

What an endpoint refuses (JSON schema, JSON mode, temperature, the name of the token limit, image detail, image size) is
found out on the first refusal and remembered.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import re
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from rsvp_backend.errors import AnswerError, ReasonerError
from rsvp_backend.reasoner.base import Message, MllmReasoner
from rsvp_backend.reasoner.endpoint import Endpoint, EndpointConfig, RefusedError
from rsvp_backend.reasoner.parsing import without_thinking
from rsvp_backend.reasoner.usage import Budget, Meter, Prices, Usage
from rsvp_backend.types import Deadline

log = logging.getLogger(__name__)
OPENAI_URL = "https://api.openai.com/v1"
ImageFormat = Literal["jpeg", "png"]
MIN_IMAGE_PX = 256
_TOO_LARGE = re.compile(
    r"image.*\b(large|larger|big|size|sizes|dimensions?|resolution|pixels?|megapixels?|exceeds?)\b",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """Whom to ask and how. ``prompt``, ``canvas_px``, ``prompts``: see `MllmReasoner`. ``max_tokens`` bounds an answer.

    ``image_px``: the longest side of the images sent, see `Reasoner.max_side_px`; None for no limit.
    """

    model: str
    endpoint: EndpointConfig = field(default_factory=lambda: EndpointConfig(OPENAI_URL))
    max_tokens: int = 2048
    image_format: ImageFormat = "jpeg"
    prompt: str | None = None
    canvas_px: tuple[int, int] | None = None
    image_px: int | None = 1024
    prices: Prices = field(default_factory=Prices)
    budget: Budget = field(default_factory=Budget)
    prompts: Path | None = None


@dataclass(frozen=True, slots=True)
class Features:
    """What the endpoint is known to accept. ``image_px``: the longest side of an image, None while any was taken."""

    response_format: Literal["json_schema", "json_object", "text"] = "json_schema"
    temperature: bool = True
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    detail: bool = True
    image_px: int | None = None

    def simpler(self, refusal: RefusedError, image_px: int) -> Features | None:
        """What to try after a refusal of a request with an image of ``image_px``; None where nothing is left."""
        text = str(refusal)
        if "max_tokens" in text and self.token_limit == "max_tokens":
            return replace(self, token_limit="max_completion_tokens")
        if "temperature" in text and self.temperature:
            return replace(self, temperature=False)
        if "detail" in text and self.detail:
            return replace(self, detail=False)
        if (refusal.too_large or _TOO_LARGE.search(text)) and image_px // 2 >= MIN_IMAGE_PX:
            return replace(self, image_px=image_px // 2)
        if self.response_format == "json_schema":
            return replace(self, response_format="json_object")
        if self.response_format == "json_object":
            return replace(self, response_format="text")
        return None


class ChatReasoner(MllmReasoner):
    """A `Reasoner` behind an HTTP endpoint. Making one sends nothing."""

    def __init__(self, config: ChatConfig) -> None:
        super().__init__(config.prompt, config.canvas_px, config.prompts)
        self.config = config
        self.meter = Meter(config.model, config.prices, config.budget, config.max_tokens)
        self._features = Features()
        self._endpoint = Endpoint(config.endpoint, self.meter)
        self._lock = threading.Lock()

    @property
    def version(self) -> str:
        config = self.config
        parts = (
            config.endpoint.base_url,
            config.model,
            self.prompt_digest,
            config.image_format,
            str(config.max_tokens),
            str(config.image_px),
        )
        return f"{config.model.rsplit('/', 1)[-1]}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:8]}"

    @property
    def features(self) -> Features:
        with self._lock:
            return self._features

    @property
    def usage(self) -> Usage:
        return self.meter.usage

    @property
    def max_side_px(self) -> int | None:
        limits = [px for px in (self.config.image_px, self.features.image_px) if px is not None]
        return min(limits, default=None)

    def complete(self, messages: tuple[Message, ...], schema: dict[str, Any], deadline: Deadline | None) -> str:
        known = features = self.features
        while True:
            turns = [self._turn(message, features) for message in messages]
            try:
                completion = self._endpoint.chat(self._body(turns, schema, features), deadline)
            except RefusedError as refusal:
                if self.features != known:  # another thread has found out in the meantime
                    known = features = self.features
                else:
                    features = self._simpler(features, refusal, messages)
            else:
                with self._lock:
                    self._features = features
                return self._text(completion)

    def _simpler(self, features: Features, refusal: RefusedError, messages: tuple[Message, ...]) -> Features:
        """Raises `ReasonerError` where nothing is left to leave out."""
        shown_url = self.config.endpoint.shown_url
        sides_px = [max(message.image.size) for message in messages if message.image is not None]
        sent_px = min(max(sides_px, default=0), features.image_px or max(sides_px, default=0))
        simpler = features.simpler(refusal, sent_px)
        if simpler is None:
            raise ReasonerError(f"{shown_url} refuses the request: {refusal}") from None
        log.info("%s refuses a request (%s): trying %s", shown_url, refusal, simpler)
        return simpler

    def _turn(self, message: Message, features: Features) -> dict[str, Any]:
        if message.image is None:
            return {"role": message.role, "content": message.text}
        image = {"url": image_url(shrunk(message.image, features.image_px), self.config.image_format)}
        if features.detail:  # the lowest detail would blur the marks
            image["detail"] = "high"
        content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": message.text}]
        return {"role": message.role, "content": content}

    def _body(self, turns: list[dict[str, Any]], schema: dict[str, Any], features: Features) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.config.model, "messages": turns}
        body[features.token_limit] = self.config.max_tokens
        if features.temperature:
            body["temperature"] = 0
        if features.response_format == "json_schema":
            form = {"name": "answer", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif features.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _text(self, completion: dict[str, Any]) -> str:
        """The answer's text; a reasoning model's thinking is put before it, in its tags, for the trace.

        Raises `AnswerError` where the thinking alone reached the token limit: a repair try would end there again.
        """
        try:
            choice = completion["choices"][0]
            message, finish = choice["message"], choice.get("finish_reason")
            content = message.get("content") or message.get("refusal") or ""
            thinking = message.get("reasoning_content") or message.get("reasoning") or ""
        except (LookupError, TypeError, AttributeError):
            content = thinking = finish = None
        if not isinstance(content, str) or not isinstance(thinking, str):
            keys = ", ".join(sorted(completion))[:200]
            shown_url = self.config.endpoint.shown_url
            raise ReasonerError(f"{shown_url} sends no chat completion but an object of: {keys}; check the base URL")
        text = f"<think>{thinking}</think>\n{content}" if thinking else content
        if finish == "length" and not without_thinking(text):
            limit = self.config.max_tokens
            raise AnswerError(f"no answer within {limit} tokens: raise RSVP_REASONER_MAX_TOKENS", (text,))
        return text


def shrunk(image: Image.Image, longest_px: int | None) -> Image.Image:
    """``image`` with its longest side at most ``longest_px``."""
    if longest_px is None or max(image.size) <= longest_px:
        return image
    scale = longest_px / max(image.size)
    size_px = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size_px, Image.Resampling.LANCZOS)


def image_url(image: Image.Image, image_format: ImageFormat) -> str:
    """``image`` (RGB) as a data URL."""
    file = io.BytesIO()
    if image_format == "jpeg":
        image.save(file, "JPEG", quality=92)
    else:
        image.save(file, "PNG")
    return f"data:image/{image_format};base64,{base64.b64encode(file.getvalue()).decode()}"
