"""``doctor --fix``: adds what a project's settings lack. Nothing is taken away, a second run changes nothing."""

from __future__ import annotations

import re
from collections.abc import Generator

from rsvp_backend.access import open_client
from rsvp_backend.doctor.backend import (
    has_secret,
    ours,
    plain,
    same_place,
    short,
    tells_of_annotations,
    unreachable,
    webhook_of,
)
from rsvp_backend.doctor.finding import Finding, Findings, problem
from rsvp_backend.errors import LabelConfigError, LabelStudioError
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.replies import JSON
from rsvp_backend.labelstudio.tags import parse_label_config
from rsvp_backend.security.credentials import WEBHOOK_HEADER
from rsvp_backend.settings import Settings

_NEW_TITLE = "rsvp-backend"  # until Label Studio has asked the backend for its version


def repair(settings: Settings, project: int, backend_url: str | None) -> Findings:
    """What was changed, and what could not be; the examination afterwards says how things stand.

    ``backend_url``: as Label Studio's machine sees this backend; None: as it is connected already, else as the settings
    say. Raises `SettingsError` without an address or token of Label Studio.
    """
    try:
        with open_client(settings) as client:
            yield from _reasoning(client, project)
            backend = yield from _backend(client, project, settings, backend_url)
            if backend is not None:
                yield from _title(client, project, backend)
                yield from _webhook(client, project, settings, str(backend["url"]))
    except LabelStudioError as error:
        yield problem(f"nothing more was changed: {error}")


def with_reasoning(xml: str) -> str | None:
    """The labeling config with a TextArea for each region's reasoning at its end; None where it has one, or cannot be
    read. All else stays as it is, to the byte."""
    try:
        config = parse_label_config(xml)
    except LabelConfigError:
        return None
    end = xml.rfind("</View>")
    if config.reasoning_name is not None or end < 0:
        return None
    names = set(re.findall(r'\bname="([^"]*)"', xml))
    name = next(name for name in ("reasoning", *(f"reasoning{n}" for n in range(2, 1000))) if name not in names)
    area = (
        f'  <TextArea name="{name}" toName="{config.image_name}" perRegion="true" displayMode="region-list" '
        'editable="true" rows="3"\n            maxSubmissions="1" placeholder="why this region"/>\n'
    )
    return f"{xml[:end]}{area}{xml[end:]}"


def _reasoning(client: LabelStudioClient, project: int) -> Findings:
    xml = with_reasoning(str(client.project(project).get("label_config", "")))
    if xml is None:
        return
    try:
        client.update_project(project, label_config=xml)
    except LabelStudioError as error:
        yield problem(f"labeling config: Label Studio did not take the field for the reasoning: {error}",
                      "add it under Settings, Labeling Interface, Code")  # fmt: skip
    else:
        yield Finding("fixed", "labeling config: a field for each region's reasoning was added at its end")


def _backend(
    client: LabelStudioClient, project: int, settings: Settings, url: str | None
) -> Generator[Finding, None, JSON | None]:
    backends = client.ml_backends(project)
    found = ours(backends, url)
    wanted = url or (str(found["url"]) if found else f"http://{settings.host}:{settings.port}")
    if found is None:
        yield from _connect(client, project, settings, wanted)
    else:
        yield from _mend(client, project, found, settings, wanted)
    found = ours(client.ml_backends(project), wanted)
    return found if found and same_place(str(found["url"]), wanted) else None


def _connect(client: LabelStudioClient, project: int, settings: Settings, url: str) -> Findings:
    try:
        client.create_ml_backend(project, url, _NEW_TITLE, **_login(settings))
    except LabelStudioError as error:
        if not any(same_place(str(one["url"]), url) for one in client.ml_backends(project)):
            yield problem(
                f"backend: Label Studio did not connect {plain(url)}: {short(error)}", unreachable(str(error))
            )
            return
        # Refused for its webhook's address, the backend is connected all the same: once more would make two.
    yield Finding("fixed", f"backend: connected at {plain(url)}")


def _mend(client: LabelStudioClient, project: int, found: JSON, settings: Settings, url: str) -> Findings:
    changes: JSON = {}
    if not found.get("is_interactive"):
        changes["is_interactive"] = True
    if settings.basic_auth_user is not None and found.get("state") != "CO":
        changes |= _login(settings)
    if not changes and same_place(str(found["url"]), url):
        return
    told = [f"its address is {plain(url)}"] if not same_place(str(found["url"]), url) else []
    told += ["interactive pre-annotations are on"] if "is_interactive" in changes else []
    told += ["it has the user and the password"] if "basic_auth_user" in changes else []
    try:
        client.update_ml_backend(int(found["id"]), project, url, str(found["title"]), **changes)
    except LabelStudioError as error:
        yield problem(f"backend: Label Studio did not take {plain(url)}: {short(error)}", unreachable(str(error)))
    else:
        yield Finding("fixed", f"backend: {' and '.join(told)}")


def _title(client: LabelStudioClient, project: int, backend: JSON) -> Findings:
    """Uncertainty sampling and the score column need title, version and the project's model version to be one."""
    version = backend.get("model_version")
    if not version:
        return
    if backend.get("title") != version:
        client.update_ml_backend(int(backend["id"]), project, str(backend["url"]), str(version))
        yield Finding("fixed", f"backend: its title is its version now, {version}")
    if client.project(project).get("model_version") != version:
        client.update_project(project, model_version=version)
        yield Finding("fixed", f"project: its model version is {version} now")


def _webhook(client: LabelStudioClient, project: int, settings: Settings, backend_url: str) -> Findings:
    found = webhook_of(client.webhooks(project), backend_url)
    secret = settings.webhook_secret
    headers = {WEBHOOK_HEADER: secret.get_secret_value()} if secret else {}
    try:
        if found is None:
            client.create_webhook(project, f"{backend_url.rstrip('/')}/webhook", headers)
            yield Finding("fixed", "webhook: made, for all events, with their data")
        elif changes := _lacking(found, settings, headers):
            client.update_webhook(int(found["id"]), **changes)
            yield Finding("fixed", f"webhook: {', '.join(sorted(changes))} set")
    except LabelStudioError as error:
        yield problem(f"webhook: Label Studio did not take it: {short(error)}", unreachable(str(error)))


def _lacking(found: JSON, settings: Settings, headers: dict[str, str]) -> JSON:
    """What must be set in a webhook that is there."""
    changes: JSON = {key: True for key in ("is_active", "send_payload") if not found.get(key)}
    if not tells_of_annotations(found):
        changes["send_for_all_actions"] = True
    if not has_secret(found, settings):
        changes["headers"] = {**(found.get("headers") or {}), **headers}
    return changes


def _login(settings: Settings) -> JSON:
    if settings.basic_auth_user is None or settings.basic_auth_password is None:
        return {}
    password = settings.basic_auth_password.get_secret_value()
    return {"auth_method": "BASIC_AUTH", "basic_auth_user": settings.basic_auth_user, "basic_auth_pass": password}
