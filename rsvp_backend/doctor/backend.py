"""How the backend stands in the project's settings: connected, under its version's name, and with its webhook."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

import httpx

from rsvp_backend.doctor.finding import Findings, advice, ok, problem
from rsvp_backend.errors import LabelStudioError
from rsvp_backend.labelstudio.auth import origin
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.promotion import OURS
from rsvp_backend.labelstudio.replies import JSON
from rsvp_backend.security.credentials import WEBHOOK_HEADER
from rsvp_backend.settings import Settings

EVENTS = frozenset({"ANNOTATION_CREATED", "ANNOTATION_UPDATED"})
CONNECTED = "CO"
_FIX = "`rsvp-backend doctor --fix`"
_FIX_AT = "`rsvp-backend doctor --fix --backend-url ADDRESS`"


def ours(backends: Sequence[JSON], url: str | None) -> JSON | None:
    """The project's backend that is this one: at ``url`` where that is known, else one that names a version of ours,
    else the only one."""
    if url is not None:
        at = [one for one in backends if same_place(str(one["url"]), url)]
        if at:
            return at[0]
    named = [one for one in backends if str(one.get("model_version")).startswith(OURS)]
    return named[0] if named else backends[0] if len(backends) == 1 else None


def backend_findings(client: LabelStudioClient, backend: JSON | None, project: JSON, settings: Settings) -> Findings:
    """``backend``: see `ours`; ``project``: as Label Studio has it."""
    if backend is None:
        yield problem(
            f"backend: project {project['id']} has none",
            f"{_FIX_AT}, or Settings, Model, Connect Model in Label Studio",
        )
        return
    if backend.get("state") != CONNECTED:
        why = _why(client, backend)
        yield problem(f"backend: Label Studio cannot use {plain(backend['url'])}: {short(why)}", unreachable(why))
        return
    yield ok(f"backend: connected at {plain(backend['url'])}, serving {backend.get('model_version')}")
    yield from _version(backend, project)
    if not backend.get("is_interactive"):
        yield problem(
            "backend: interactive pre-annotations are off, so prompts and clicks are not sent",
            f"{_FIX}, or switch them on in the backend's settings",
        )


def _version(backend: JSON, project: JSON) -> Findings:
    title, version = backend.get("title"), backend.get("model_version")
    if title != version:
        yield problem(
            f"backend: its title is {title!r}, its version {version!r}: Label Studio neither shows scores nor sorts "
            "by them",
            _FIX,
        )
    elif project.get("model_version") != title:
        yield problem(
            f"project: its model version is {project.get('model_version')!r}, not the backend's {title!r}: Label "
            "Studio shows other predictions, or none",
            f"{_FIX}, or Settings, Annotation, Live Predictions",
        )


def webhook_findings(webhooks: Sequence[JSON], backend: JSON | None, settings: Settings) -> Findings:
    """Whether events of annotations reach the backend."""
    if backend is None:
        return
    hook = webhook_of(webhooks, str(backend["url"]))
    if hook is None:
        yield problem(f"webhook: there is none for {plain(backend['url'])}, so corrections start no training",
                      f"{_FIX}{_no_dot(str(backend['url']))}")  # fmt: skip
        return
    wrong = list(_faults(hook, settings))
    for text in wrong:
        yield problem(f"webhook: {text}", _FIX)
    if not wrong:
        yield ok(f"webhook: {plain(hook['url'])}, active")
    orphans = [one for one in webhooks if one is not hook and str(one["url"]).endswith("/webhook")]
    if orphans:
        where = ", ".join(plain(one["url"]) for one in orphans[:3])
        yield advice(f"webhook: others go to {where}", "delete those of backends that are gone: Settings, Webhooks")


def _faults(hook: JSON, settings: Settings) -> Iterator[str]:
    if not hook.get("is_active"):
        yield "it is switched off"
    if not hook.get("send_payload"):
        yield "it sends no data"
    if not tells_of_annotations(hook):
        yield "it does not send the events of annotations"
    if not has_secret(hook, settings):
        yield f"it does not send RSVP_WEBHOOK_SECRET, so its events are refused (header {WEBHOOK_HEADER})"


def tells_of_annotations(hook: JSON) -> bool:
    return bool(hook.get("send_for_all_actions")) or EVENTS.issubset(hook.get("actions", ()))


def has_secret(hook: JSON, settings: Settings) -> bool:
    """Whether it sends the secret that the settings ask for, if any."""
    if settings.webhook_secret is None:
        return True
    secret = settings.webhook_secret.get_secret_value()
    headers = {str(name).lower(): value for name, value in (hook.get("headers") or {}).items()}
    return headers.get(WEBHOOK_HEADER.lower()) == secret or httpx.URL(str(hook["url"])).password == secret


def webhook_of(webhooks: Sequence[JSON], backend_url: str) -> JSON | None:
    """That of the backend at this address, an active one first."""
    url = f"{backend_url.rstrip('/')}/webhook"
    found = [one for one in webhooks if same_place(str(one["url"]), url)]
    return next((one for one in found if one.get("is_active")), found[0] if found else None)


def same_place(one: str, other: str) -> bool:
    """Whether two addresses mean the same, whoever they log in as."""
    left, right = httpx.URL(one), httpx.URL(other)
    return origin(left) == origin(right) and left.path.rstrip("/") == right.path.rstrip("/")


def _why(client: LabelStudioClient, backend: JSON) -> str:
    """Label Studio keeps no reason for a backend that it does not reach: saving it as it is makes it say one."""
    told = str(backend.get("error_message") or "")
    if told or backend.get("auth_method") != "NONE":
        return told or "it is not reached"
    try:
        client.update_ml_backend(
            int(backend["id"]), int(backend["project"]), str(backend["url"]), str(backend["title"])
        )
    except LabelStudioError as error:
        return str(error)
    return "it did not answer in time; now it does"


def unreachable(error: str) -> str:
    """The cure for what Label Studio says when it cannot use an address."""
    if "reserved network" in error or "not allowed" in error.lower():
        return (
            "Label Studio refuses private addresses: start it with LABEL_STUDIO_ML_BLOCK_LOCAL_IP=false and "
            "LABEL_STUDIO_SSRF_PROTECTION_ENABLED=false, or open one network as docs/deploy.md does"
        )
    if "resolve" in error or "Name or service" in error:
        return "Label Studio does not know this host name: give the backend's address as Label Studio's machine sees it"
    if "401" in error or "Unauthorized" in error:
        return f"the backend asks for RSVP_BASIC_AUTH_USER and its password: {_FIX} enters them"
    if "refused" in error:
        return f"nothing listens there: start `rsvp-backend serve`, or correct the address: {_FIX_AT}"
    return f"see that Label Studio's machine reaches the backend; {_FIX_AT} corrects the address"


def _no_dot(url: str) -> str:
    """Label Studio refuses a webhook to a name without a dot, and says nothing of it when it connects a backend."""
    host = httpx.URL(url).host
    return "" if host == "localhost" or "." in host or _is_ip(host) else (
        f" with another address: Label Studio takes no webhook to {host!r}, a name without a dot; give the backend one "
        "such as backend.rsvp.internal (docs/deploy.md)"
    )  # fmt: skip


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def plain(url: object) -> str:
    """Without user and password."""
    return str(httpx.URL(str(url)).copy_with(userinfo=b""))


def short(message: object) -> str:
    """The part of Label Studio's long message that says why."""
    text = str(message or "it gives no reason")
    return text.rpartition("Additional info: ")[2][:300]
