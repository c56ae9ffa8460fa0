"""``rsvp-backend doctor``: one finding per hop between this backend, Label Studio, a project, and the models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from rsvp_backend import presets
from rsvp_backend.access import make_fetcher
from rsvp_backend.answers import read_task, shown_uri
from rsvp_backend.errors import RsvpError
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.tags import LabelConfig, parse_label_config
from rsvp_backend.metrics import meter_of
from rsvp_backend.pipeline import RSVP
from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, make_scene
from rsvp_backend.settings import Settings
from rsvp_backend.types import Deadline, EmptyReason

_NO_ANSWER = frozenset(
    {EmptyReason.REASONER_FAILED, EmptyReason.INVALID_ANSWER, EmptyReason.DEADLINE, EmptyReason.SEGMENTER_FAILED}
)


@dataclass(frozen=True, slots=True)
class Finding:
    """``text`` says what was seen and, for a problem, what to do."""

    state: Literal["ok", "problem", "skipped"]
    text: str


def examine(settings: Settings, project: int | None, models: bool = True) -> Iterator[Finding]:
    """The findings in order, each as soon as it is known. Settings were read already, or there would be none."""
    yield Finding("ok", "settings")
    yield from _label_studio(settings, project)
    if models:
        yield from _models(settings)


def _label_studio(settings: Settings, project: int | None) -> Iterator[Finding]:
    if not settings.label_studio_url or not settings.label_studio_token:
        yield Finding("skipped", "Label Studio: set RSVP_LABEL_STUDIO_URL and RSVP_LABEL_STUDIO_TOKEN to check it")
        return
    try:
        with LabelStudioClient(settings.label_studio_url, settings.label_studio_token.get_secret_value()) as client:
            user = client.whoami()
            yield Finding("ok", f"Label Studio at {client.base_url}: {client.auth.kind} token of {user.get('email')}")
            if project is None:
                yield Finding("skipped", "project: name one by --project ID to check its labeling config and an image")
            else:
                yield from _project(settings, client, project)
    except RsvpError as error:
        yield Finding("problem", str(error))


def _project(settings: Settings, client: LabelStudioClient, project: int) -> Iterator[Finding]:
    config = parse_label_config(str(_get(client, f"/api/projects/{project}/").get("label_config", "")))
    reasoning = f"TextArea {config.reasoning_name!r}" if config.reasoning_name else "no per-region TextArea"
    yield Finding("ok", f"labeling config: masks go to {config.mask_name!r}, the reasoning to {reasoning}")
    yield from _image(settings, client, project, config)


def _image(settings: Settings, client: LabelStudioClient, project: int, config: LabelConfig) -> Iterator[Finding]:
    task = next(client.tasks(project, page_size=1), None)
    if task is None:
        yield Finding("skipped", f"image: project {project} has no tasks")
        return
    question = read_task(task, config, None, settings.instruction_field, settings.default_instruction)
    yield Finding("ok", f"task {question.task_id}: instruction {question.instruction[:80]!r}")
    image = make_fetcher(settings).fetch(question.uri, None, question.task_id)
    yield Finding("ok", f"image {shown_uri(question.uri)}: {image.width} x {image.height}")


def _models(settings: Settings) -> Iterator[Finding]:
    try:
        rsvp = presets.build(settings.model_copy(update={"answer_cache": None}))  # a kept answer would prove nothing
    except RsvpError as error:
        yield Finding("problem", f"models: {error}")
        return
    yield Finding("ok", f"models: {rsvp.version} (reasoner {rsvp.reasoner.version})")
    yield _question(rsvp, settings)


def _question(rsvp: RSVP, settings: Settings) -> Finding:
    """One question on a drawn scene: what a wrong model says is still an answer, its form is what is checked."""
    scene = make_scene(EVALUATION_SEEDS_FROM + 1, "easy")
    asked = next(question for question in scene.questions if question.kind == "function")
    outcome = rsvp(scene.image, asked.instruction, deadline=Deadline.after(settings.predict_timeout_s))
    took = f"{outcome.trace.timings_s.get('reason', 0.0):.2f} s{_spent(rsvp)}"
    question = f"question {asked.instruction!r} ({asked.object} is right)"
    if outcome.reason in _NO_ANSWER:
        return Finding("problem", f"{question}: {outcome.reason}: {outcome.detail}; {took}")
    answers = "; ".join(f"{p.object if p.present else 'nothing'} ({p.reasoning})" for p in outcome.trace.proposals)
    return Finding("ok", f"{question}: {answers or 'nothing'}; {took}")


def _spent(rsvp: RSVP) -> str:
    """Tokens and cost since start, for a reasoner that counts them."""
    meter = meter_of(rsvp.reasoner)
    if meter is None:
        return ""
    usage = meter.usage
    calls = sum(usage.calls.values())
    tokens = f"{usage.prompt_tokens} + {usage.completion_tokens} tokens"
    priced = f", cost {usage.cost:.4g}" if usage.cost else ""
    return f", {calls} call{'' if calls == 1 else 's'}, {tokens}{priced}"


def _get(client: LabelStudioClient, path: str) -> dict[str, Any]:
    try:
        response = httpx.get(f"{client.base_url}{path}", auth=client.auth, timeout=30.0)
        answer = response.raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise RsvpError(f"GET {path} failed: {error or type(error).__name__}") from error
    return answer if isinstance(answer, dict) else {}
