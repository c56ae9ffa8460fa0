"""Label Studio itself: address, release, clock, token and its rights."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from rsvp_backend.doctor.finding import Finding, Findings, advice, ok, problem
from rsvp_backend.errors import LabelStudioAwayError, LabelStudioError
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.replies import JSON, RefusedError

OLDEST_RELEASE = (1, 16)  # the first with personal access tokens
TESTED_RELEASE = "1.23"
MOST_SKEW_S = 60.0
NEEDED = (
    "projects.view", "projects.change", "tasks.view", "annotations.view", "predictions.any", "actions.perform",
    "models.view", "models.change", "webhooks.view", "webhooks.change",
)  # fmt: skip
_NEW_TOKEN = (
    "make a personal access token in Label Studio under Account & Settings, Personal Access Token, and set it as "
    "RSVP_LABEL_STUDIO_TOKEN"
)


def server_findings(client: LabelStudioClient) -> Findings:
    """Reached at all? Raises nothing: the caller goes on only where no finding is a problem."""
    try:
        release, date = client.release()
    except LabelStudioAwayError as error:
        yield problem(f"Label Studio: {error}", _where(str(error), client.base_url))
        return
    except LabelStudioError as error:
        yield _refused(error, client)
        return
    yield _release(release, client.base_url)
    yield from clock_findings(date)
    yield from _token(client)


def _token(client: LabelStudioClient) -> Findings:
    try:
        user = client.whoami()
    except LabelStudioError as error:
        yield _refused(error, client)
        return
    yield ok(f"token: {client.auth.kind}, of {user.get('email')}")
    if client.auth.kind == "legacy":
        yield advice("token: legacy ones can be switched off for the whole organization", _NEW_TOKEN)
    lacking = [right for right in NEEDED if right not in user.get("permissions", NEEDED)]
    if lacking:
        yield problem(
            f"token: {user.get('email')} lacks the rights {', '.join(lacking)}",
            "give this person a role that has them, or use the token of somebody who has",
        )


def _refused(error: LabelStudioError, client: LabelStudioClient) -> Finding:
    text = str(error)
    if "legacy token authentication has been disabled" in text:
        return problem(
            "token: it is a legacy token, which this Label Studio's organization has switched off",
            f"{_NEW_TOKEN}; or switch legacy tokens on under Organization, API Tokens Settings",
        )
    if isinstance(error, RefusedError) and error.status in (401, 403):
        return problem(f"token: Label Studio does not know this {client.auth.kind} token ({text})", _NEW_TOKEN)
    if "refused the personal access token" in text:
        return problem("token: Label Studio refused the personal access token: it was revoked, or is of another Label "
                       "Studio", _NEW_TOKEN)  # fmt: skip
    return problem(
        f"Label Studio: {text}", f"is {client.base_url} (RSVP_LABEL_STUDIO_URL) the address of a Label Studio?"
    )


def _where(text: str, url: str) -> str:
    """What is wrong with an address that nobody answers at."""
    if any(sign in text for sign in ("Name or service not known", "name resolution", "nodename nor servname")):
        return (
            f"the host name of RSVP_LABEL_STUDIO_URL ({url}) is unknown on this machine: correct it. In Docker Compose "
            "it is the service's name, such as http://label-studio:8080"
        )
    if "refused" in text:
        return (
            f"nothing listens at {url} (RSVP_LABEL_STUDIO_URL): start Label Studio, or correct the port. Inside of a "
            "container, localhost is the container itself"
        )
    return f"see that Label Studio runs and that this machine reaches {url} (RSVP_LABEL_STUDIO_URL)"


def _release(release: str, url: str) -> Finding:
    parts = tuple(int(part) for part in release.split(".")[:2] if part.isdigit())
    text = f"Label Studio at {url}: release {release or 'unknown'}"
    if len(parts) == 2 and parts < OLDEST_RELEASE:
        oldest = ".".join(map(str, OLDEST_RELEASE))
        return problem(text, f"{oldest} or newer is expected; {TESTED_RELEASE} is what this backend is tested with")
    return ok(text)


def clock_findings(date: str) -> Findings:
    """Signed addresses of cloud storage end by the clock. ``date``: HTTP's ``Date``; nothing if it is none."""
    try:
        there = parsedate_to_datetime(date)
    except ValueError:
        return
    skew_s = (datetime.now(UTC) - there.replace(tzinfo=there.tzinfo or UTC)).total_seconds()
    if abs(skew_s) > MOST_SKEW_S:
        late = "behind" if skew_s > 0 else "ahead of"
        yield problem(
            f"clock: Label Studio's is {abs(skew_s):.0f} s {late} this machine's", "let both follow a time server (NTP)"
        )
    else:
        yield ok("clock: the same as Label Studio's")


def visible_projects(client: LabelStudioClient) -> str:
    """Those of the token's user, for a message about one that is missing."""
    found: list[JSON] = client.projects()
    return ", ".join(f"{one['id']} ({one.get('title')})" for one in found[:10]) or "none"
