"""``FIELD OPERATOR VALUE`` -> a filter of the data manager's; see docs/prelabel.md."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from rsvp_backend.errors import SettingsError
from rsvp_backend.labelstudio.replies import JSON

_NUMBERS = (
    "id", "inner_id", "total_annotations", "cancelled_annotations", "total_predictions", "predictions_score",
)  # fmt: skip
_TIMES = ("created_at", "updated_at", "completed_at")
_TEXTS = ("file_upload", "storage_filename")
_OPERATORS = {
    "=": "equal", "!=": "not_equal", "<": "less", "<=": "less_or_equal", ">": "greater", ">=": "greater_or_equal",
    "~": "contains", "!~": "not_contains",
}  # fmt: skip
_FORM = re.compile(r"\s*(data\.[\w$]+|[a-z_]+)\s*(!=|<=|>=|!~|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_EXPECTED = (
    "FIELD OPERATOR VALUE is expected, such as 'data.camera = north', 'total_predictions = 0' or "
    "'created_at > 2026-01-31'; operators are " + " ".join(_OPERATORS)
)


def parse_filter(text: str) -> JSON:
    """``data.NAME`` is a field of the task's data: compared as a number where the value is one without quotes.

    Raises `SettingsError`.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise SettingsError(f"--filter is {text!r}: {_EXPECTED}")
    field, operator, value = found.groups()
    kind = _kind(field, value)
    if kind is None:
        known = ", ".join((*_NUMBERS, *_TIMES, *_TEXTS))
        raise SettingsError(f"--filter is {text!r}: there is no field {field!r}; data.NAME, {known} are known")
    if operator in ("~", "!~"):
        kind = "String"
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    plain = value[1:-1] if quoted else value
    try:
        shown = _typed(plain, kind)
    except ValueError:
        raise SettingsError(f"--filter is {text!r}: {value!r} is no {kind.lower()}. {_EXPECTED}") from None
    return {"filter": f"filter:tasks:{field}", "operator": _OPERATORS[operator], "type": kind, "value": shown}


def parse_ids(text: str) -> list[tuple[int, int]]:
    """``1-100,205`` -> ranges, both ends included, sorted and joined. Raises `SettingsError`."""
    ranges = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,18})\s*(?:-\s*(\d{1,18})\s*)?", part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise SettingsError(f"--ids is {text!r}: numbers and ranges are expected, such as 1-100,205")
        ranges.append((int(found[1]), int(found[2] or found[1])))
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _kind(field: str, value: str) -> str | None:
    if field.startswith("data."):
        return "Number" if _NUMBER.fullmatch(value) else "String"
    if field in _NUMBERS:
        return "Number"
    if field in _TIMES:
        return "Datetime"
    return "String" if field in _TEXTS else None


def _typed(value: str, kind: str) -> str | float:
    if kind == "Number":
        return float(value)
    if kind == "Datetime":
        moment = datetime.fromisoformat(value)
        in_utc = moment if moment.tzinfo is None else moment.astimezone(UTC)
        return f"{in_utc.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
    return value
