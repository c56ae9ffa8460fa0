"""Label Studio's replies: JSON, or the error that says what it complained about."""

from __future__ import annotations

from typing import Any

import httpx

from rsvp_backend.errors import LabelStudioAwayError, LabelStudioError

JSON = dict[str, Any]
_SHOWN_CHARS = 700


class RefusedError(LabelStudioError):
    """Label Studio answered with an error of the request's. ``status``: the HTTP status, 400 to 499."""

    def __init__(self, message: str, status: int = 404) -> None:
        super().__init__(message)
        self.status = status


class TaskGoneError(RefusedError):
    """There is no such task (any more)."""


def json_object(response: httpx.Response) -> JSON:
    request = f"{response.request.method} {response.request.url.path}"
    if not response.is_success:
        raise refusal(response)
    answer = any_json(response)
    if not isinstance(answer, dict):
        raise LabelStudioError(f"{request} answered {response.status_code} without a JSON object: is it Label Studio?")
    return answer


def refusal(response: httpx.Response) -> LabelStudioError:
    status = response.status_code
    message = f"{response.request.method} {response.request.url.path} answered {status}: {complaint(response)}"
    if status == 429 or response.is_server_error:
        return LabelStudioAwayError(message)
    return RefusedError(message, status) if response.is_client_error else LabelStudioError(message)


def validation_errors(response: httpx.Response) -> JSON:
    answer = any_json(response)
    found = answer.get("validation_errors") if isinstance(answer, dict) else None
    return found if isinstance(found, dict) else {}


def complaint(response: httpx.Response) -> str:
    answer = any_json(response)
    if isinstance(answer, dict) and "detail" in answer:
        shown = [str(answer[key]) for key in ("detail", "validation_errors") if answer.get(key)]
        return " ".join(shown)[:_SHOWN_CHARS]
    return response.text[:_SHOWN_CHARS]


def any_json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None
