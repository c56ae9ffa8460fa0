"""How the process logs: text or JSON, each line with the id of its request and without secrets."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from datetime import UTC, datetime

from rsvp_backend.security.masking import Mask
from rsvp_backend.security.request_ids import request_id
from rsvp_backend.settings import Settings

_QUIET = ("httpx", "httpx2", "httpcore", "httpcore2")
"""They log addresses, which may be signed."""
_PLAIN = logging.Formatter()
# What would begin a line, move a terminal's cursor or turn the direction of writing.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_CONTROLS |= {code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_CONTROLS |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\t"}
_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access")
"""Loggers that uvicorn gives handlers of their own, unless it is told not to."""


def set_up_logging(settings: Settings) -> None:
    """One handler, on stderr, for everything that is logged in this process; a second call replaces the first one's."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RecordFilter(Mask.of(settings)))
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # one for each odd tag of a picture
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _UVICORN:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


class RecordFilter(logging.Filter):
    """Passes every record, with the message and the traceback masked, and ``request_id`` set."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self._mask = mask

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._mask(_message(record)), None
        if record.exc_info and not record.exc_text:
            record.exc_text = _PLAIN.formatException(record.exc_info)
        record.exc_text = self._mask(record.exc_text) if record.exc_text else None
        if record.stack_info:
            record.stack_info = self._mask(record.stack_info)
        if not hasattr(record, "request_id"):
            record.request_id = request_id()
        return True


class TextFormatter(logging.Formatter):
    """``TIME LEVEL LOGGER [REQUEST]: MESSAGE``; a record is one line, and a traceback's lines are indented.

    So no text of a task, an address or an answer can pass for a line of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        name = getattr(record, "request_id", None)
        line = f"{_time(record)} {record.levelname} {record.name}{f' [{name}]' if name else ''}: {_message(record)}"
        below = [text for text in (record.exc_text, record.stack_info) if text]
        return "\n  ".join([line.translate(_CONTROLS), *(one.translate(_CONTROLS) for one in _lines(below))])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, and where there are: ``request_id``,
    ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            "request_id": getattr(record, "request_id", None),
            "traceback": "\n".join(text for text in (record.exc_text, record.stack_info) if text) or None,
        }
        return json.dumps({name: value for name, value in fields.items() if value is not None})


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # a library's own mistake must not silence what it says
        return f"{record.msg} {record.args}"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _lines(texts: list[str]) -> list[str]:
    return [line for text in texts for line in text.split("\n")]
