"""Which instruction a task has. The order is documented in `find_instruction` and in the README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rsvp_backend.errors import InstructionError
from rsvp_backend.labelstudio.tags import LabelConfig

DEFAULT_FIELD = "instruction"


def find_instruction(
    task: Mapping[str, Any],
    config: LabelConfig,
    context: Mapping[str, Any] | None = None,
    *,
    field: str | None = None,
    default: str | None = None,
) -> str:
    """The instruction of a task; the first of these that holds text wins:

    1. the interactive prompt: the newest text of the config's prompt TextArea in ``context`` (``params.context``);
    2. the task's data: ``field`` where the setting names one; else the field that the config shows (Header, Text or
       prompt with ``value="$field"``), then the field ``instruction``;
    3. the project's default (``default``: a setting, or ``extra_params`` of the ML backend).

    Raises `InstructionError` that names what was looked at.
    """
    prompt = prompt_text(context, config)
    if prompt:
        return prompt
    data = task.get("data")
    data = data if isinstance(data, Mapping) else {}
    fields = tuple(
        dict.fromkeys(name for name in ((field,) if field else (config.instruction_field, DEFAULT_FIELD)) if name)
    )
    for name in fields:
        if text := _text(data.get(name)):
            return text
    if text := _text(default):
        return text
    looked_at = ", ".join(f"data.{name}" for name in fields)
    prompt_name = f"TextArea {config.prompt_name!r}" if config.prompt_name else "no prompt TextArea in the config"
    raise InstructionError(
        f"task {task.get('id')} has no instruction. Looked at: the prompt ({prompt_name}), {looked_at} "
        f"(the task has: {', '.join(map(str, data)) or 'no data'}), the project's default. "
        f"Add the field {fields[0]!r} to the task's data, or set a default instruction"
    )


def prompt_text(context: Mapping[str, Any] | None, config: LabelConfig) -> str | None:
    """The newest text of the prompt TextArea in an interactive context; None where there is none.

    A context holds every task-level control, so the prompt is picked by its name, never by its type.
    """
    results = context.get("result") if isinstance(context, Mapping) else None
    if config.prompt_name is None or not isinstance(results, list):
        return None
    found = None
    for result in results:
        if isinstance(result, Mapping) and result.get("from_name") == config.prompt_name:
            value = result.get("value")
            text = value.get("text") if isinstance(value, Mapping) else None
            for entry in text if isinstance(text, list) else [text]:
                found = _text(entry) or found
    return found


def _text(value: object) -> str | None:
    return (value.strip() or None) if isinstance(value, str) else None
