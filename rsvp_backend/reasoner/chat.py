"""Stage 1 by any OpenAI-compatible endpoint: OpenAI, Azure, vLLM, Ollama, LM Studio, ``transformers serve``...

What an endpoint refuses (JSON schema, JSON mode, temperature, the name of the token limit) is found out on the first
refusal and remembered.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import threading
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from PIL import Image

from rsvp_backend.errors import ReasonerError
from rsvp_backend.reasoner.base import Message, MllmReasoner
from rsvp_backend.reasoner.endpoint import Endpoint, EndpointConfig, RefusedError
from rsvp_backend.types import Deadline

log = logging.getLogger(__name__)
OPENAI_URL = "https://api.openai.com/v1"
ImageFormat = Literal["jpeg", "png"]


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """Whom to ask and how. ``prompt``, ``canvas_px``: see `MllmReasoner`. ``max_tokens`` bounds an answer."""

    model: str
    endpoint: EndpointConfig = field(default_factory=lambda: EndpointConfig(OPENAI_URL))
    max_tokens: int = 2048
    image_format: ImageFormat = "jpeg"
    prompt: str | None = None
    canvas_px: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Features:
    """What the endpoint is known to accept."""

    response_format: Literal["json_schema", "json_object", "text"] = "json_schema"
    temperature: bool = True
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    def simpler(self, refusal: str) -> Features | None:
        """What to try after the endpoint's ``refusal`` of a request; None where nothing is left to leave out."""
        if "max_tokens" in refusal and self.token_limit == "max_tokens":
            return replace(self, token_limit="max_completion_tokens")
        if "temperature" in refusal and self.temperature:
            return replace(self, temperature=False)
        if self.response_format == "json_schema":
            return replace(self, response_format="json_object")
        if self.response_format == "json_object":
            return replace(self, response_format="text")
        return None


@dataclass(frozen=True, slots=True)
class Usage:
    """Counted since start; tokens as far as the endpoint reports them."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatReasoner(MllmReasoner):
    """A `Reasoner` behind an HTTP endpoint. Making one sends nothing."""

    def __init__(self, config: ChatConfig) -> None:
        super().__init__(config.prompt, config.canvas_px)
        self.config = config
        self.features = Features()
        self.usage = Usage()
        self._endpoint = Endpoint(config.endpoint)
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
        )
        return f"{config.model.rsplit('/', 1)[-1]}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:8]}"

    def complete(self, messages: tuple[Message, ...], schema: dict[str, Any], deadline: Deadline | None) -> str:
        turns = [self._turn(message) for message in messages]
        features = self.features
        while True:
            try:
                completion = self._endpoint.chat(self._body(turns, schema, features), deadline)
            except RefusedError as refusal:
                simpler = features.simpler(str(refusal))
                if simpler is None:
                    raise ReasonerError(f"{self.config.endpoint.base_url} refuses the request: {refusal}") from None
                log.info("%s refuses a request (%s): trying %s", self.config.endpoint.base_url, refusal, simpler)
                features = simpler
            else:
                self.features = features
                return self._text(completion)

    def _turn(self, message: Message) -> dict[str, Any]:
        if message.image is None:
            return {"role": message.role, "content": message.text}
        url = image_url(message.image, self.config.image_format)
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": message.text}]
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
        """The answer's text; a reasoning model's thinking is put before it, in its tags, for the trace."""
        try:
            message = completion["choices"][0]["message"]
            content = message.get("content") or message.get("refusal") or ""
            thinking = message.get("reasoning_content") or message.get("reasoning") or ""
        except (LookupError, TypeError, AttributeError):
            content = thinking = None
        if not isinstance(content, str) or not isinstance(thinking, str):
            keys = ", ".join(sorted(completion))[:200]
            base_url = self.config.endpoint.base_url
            raise ReasonerError(f"{base_url} sends no chat completion but an object of: {keys}; check the base URL")
        self._count(completion.get("usage"))
        return f"<think>{thinking}</think>\n{content}" if thinking else content

    def _count(self, usage: Any) -> None:
        usage = usage if isinstance(usage, dict) else {}
        prompt, completion = (usage.get(key) for key in ("prompt_tokens", "completion_tokens"))
        with self._lock:
            self.usage = Usage(
                self.usage.answers + 1,
                self.usage.prompt_tokens + (prompt if isinstance(prompt, int) else 0),
                self.usage.completion_tokens + (completion if isinstance(completion, int) else 0),
            )


def image_url(image: Image.Image, image_format: ImageFormat) -> str:
    """``image`` (RGB) as a data URL."""
    file = io.BytesIO()
    if image_format == "jpeg":
        image.save(file, "JPEG", quality=92)
    else:
        image.save(file, "PNG")
    return f"data:image/{image_format};base64,{base64.b64encode(file.getvalue()).decode()}"
