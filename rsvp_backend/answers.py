"""The pure parts of answering Label Studio: what a task asks, which label a mask gets, what is sent back."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from rsvp_backend.errors import ImageError, InstructionError
from rsvp_backend.labelstudio.hints import drawn_hints
from rsvp_backend.labelstudio.instructions import find_instruction, prompt_text
from rsvp_backend.labelstudio.regions import RECORD_KEY, choose_label, prediction
from rsvp_backend.labelstudio.tags import LabelConfig, match_label
from rsvp_backend.types import EmptyReason, Instance, Outcome

RETRY_SUFFIX = "-retry"
FINAL_REASONS = frozenset(
    {EmptyReason.ABSENT, EmptyReason.NO_REGIONS, EmptyReason.EMPTY_MASK, EmptyReason.INVALID_ANSWER, None}
)
"""Outcomes that the same task would get again: they are kept, and Label Studio need not ask for them once more."""

_SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True)
class Question:
    """What one task asks. ``uri``: the image as the task's data spells it; ``instruction`` is empty only where hints
    ask instead."""

    uri: str
    instruction: str
    config: LabelConfig
    task_id: int | None = None


def read_task(
    task: Mapping[str, Any],
    config: LabelConfig,
    context: Mapping[str, Any] | None,
    field: str | None,
    default: str | None,
) -> Question:
    """See `find_instruction` for the arguments. Raises `ImageError` or `InstructionError` for what is missing.

    Where the context holds hints, the instruction may be missing: it is empty then.
    """
    data = task.get("data")
    data = data if isinstance(data, Mapping) else {}
    uri = data.get(config.image_field)
    if not isinstance(uri, str) or not uri.strip():
        raise ImageError(
            f"task {task.get('id')} has {uri!r:.50} in data.{config.image_field}: an image address is expected, as "
            f"the labeling config's <Image> shows ${config.image_field}"
        )
    try:
        instruction = find_instruction(task, config, context, field=field, default=default)
    except InstructionError:
        if not drawn_hints(context, config):
            raise
        instruction = ""
    task_id = task.get("id")
    return Question(uri.strip(), instruction, config, task_id if isinstance(task_id, int) else None)


def asks_something(context: Mapping[str, Any] | None, label_config: LabelConfig) -> bool:
    """Whether an interactive context calls for an answer: it holds a prompt, or a region drawn by hand.

    Label Studio also asks with an empty context after each submit, and with one that holds only the other fields of
    the task after each edit of those; a prediction would then put suggestions back that the annotator had dealt with.
    """
    results = context.get("result") if isinstance(context, Mapping) else None
    if not isinstance(results, list):
        return False
    drawn = any(isinstance(result, Mapping) and "original_width" in result for result in results)
    return drawn or prompt_text(context, label_config) is not None


def fitting_label(instances: Sequence[Instance], label: str | None, config: LabelConfig) -> list[Instance]:
    """Those that a hint with ``label`` may mean: the ones of that label, and the ones that no label fits."""
    found = []
    for instance in instances:
        own = match_label(instance.label, config.labels) or match_label(instance.object, config.labels)
        if label is None or own is None or own.value == label:
            found.append(instance)
    return found


def settle_labels(outcome: Outcome, config: LabelConfig) -> Outcome:
    """Give each instance the label that its own words name, and note in the trace where none does.

    Order: the reasoner's label, the object as a whole (each exact, alias, normalised), the object's words, the only
    label, else the first label.
    """
    notes, settled = [], []
    for instance in outcome.instances:
        settled.append(_by_words(instance, config))
        label, sure = choose_label(settled[-1], config)
        if not sure:
            notes.append(
                f"no label fits {instance.object!r} (reasoner's label {instance.label!r}): {label.value} taken"
            )
    trace = replace(outcome.trace, notes=(*outcome.trace.notes, *notes))
    return replace(outcome, instances=tuple(settled), trace=trace)


def answer(
    outcome: Outcome, config: LabelConfig | None, version: str, trace_id: str, trace_url: str | None = None
) -> dict[str, Any]:
    """One item of ``/predict``'s results.

    A task that could not be answered (image, instruction, time, failure) is empty, without a score, and carries
    the version with `RETRY_SUFFIX`: Label Studio never asks again for a task that has a prediction of the version.
    ``trace_url``: where a person sees the trace; it goes into each mask's record.
    """
    if outcome.reason in FINAL_REASONS and config is not None:
        return _linked(prediction(outcome, config, version, trace_id), trace_url)
    return {"result": [], "score": None, "model_version": version + RETRY_SUFFIX}


def with_message(item: dict[str, Any], outcome: Outcome, config: LabelConfig | None) -> dict[str, Any]:
    """``item`` of an interactive reply with a text for the annotator, to whom Label Studio shows no error otherwise.

    Only where the config has a TextArea for it; each message replaces the last one.
    """
    if config is None or config.message_name is None:
        return item
    text = summary(outcome) if outcome.instances else f"Nothing segmented: {outcome.detail}"
    message = {
        "id": str(uuid.uuid4()),
        "from_name": config.message_name,
        "to_name": config.image_name,
        "type": "textarea",
        "origin": "prediction",
        "value": {"text": [text]},
    }
    return {**item, "result": [*item["result"], message]}


def summary(outcome: Outcome) -> str:
    """One line: the objects with their scores, else why there is none."""
    if outcome.instances:
        return ", ".join(f"{instance.object} {instance.score:.2f}" for instance in outcome.instances)
    return f"empty, {outcome.reason}: {outcome.detail}"


def shown_uri(uri: str) -> str:
    """An image address for logs and traces: without a data URL's payload, credentials, or a signed query."""
    if uri[:5].lower() == "data:":
        return f"{uri.partition(',')[0][:50]},..."
    if uri.startswith("/"):
        return uri[:_SHOWN_CHARS]
    try:
        parts = urlsplit(uri)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()[:_SHOWN_CHARS]
    except ValueError:
        return uri.partition("?")[0][:_SHOWN_CHARS]


def _linked(item: dict[str, Any], trace_url: str | None) -> dict[str, Any]:
    """``item`` with the address of its trace beside the id, where people can open it."""
    for result in item["result"] if trace_url is not None else ():
        record = result.get("meta", {}).get(RECORD_KEY)
        if record is not None:
            record["trace_url"] = trace_url
    return item


def _by_words(instance: Instance, config: LabelConfig) -> Instance:
    """The longest run of the object's words that is a label; of equally long ones the last (``red cup`` is a cup)."""
    if match_label(instance.label, config.labels) or match_label(instance.object, config.labels):
        return instance
    words = re.findall(r"\w+", instance.object)
    for length in range(len(words), 0, -1):
        for start in range(len(words) - length, -1, -1):
            found = match_label(" ".join(words[start : start + length]), config.labels)
            if found is not None:
                return replace(instance, label=found.value)
    return instance
