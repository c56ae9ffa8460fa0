"""The examination: every finding in the order of the way that a task takes, each as soon as it is known."""

from __future__ import annotations

from dataclasses import dataclass

from rsvp_backend.access import open_client
from rsvp_backend.doctor.backend import backend_findings, ours, webhook_findings
from rsvp_backend.doctor.finding import Finding, Findings, problem, skipped
from rsvp_backend.doctor.label_studio import server_findings
from rsvp_backend.doctor.machine import folder_findings, settings_findings
from rsvp_backend.doctor.models import model_findings
from rsvp_backend.doctor.project import config_findings, open_project, task_findings
from rsvp_backend.errors import RsvpError
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.settings import Settings


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined. ``backend_url``: this backend's address as Label Studio's machine sees it, where known;
    ``models``: whether to load them and to ask one question."""

    project: int | None = None
    backend_url: str | None = None
    models: bool = True


def examine(settings: Settings, subject: Subject) -> Findings:
    """Settings were read already, or there would be none.

    Nothing in Label Studio is changed; a backend that it does not reach is saved as it is, which makes it say why.
    """
    yield from settings_findings(settings)
    yield from folder_findings(settings)
    yield from _label_studio(settings, subject)
    if subject.models:
        yield from model_findings(settings)


def _label_studio(settings: Settings, subject: Subject) -> Findings:
    if not settings.label_studio_url or not settings.label_studio_token:
        yield skipped("Label Studio: set RSVP_LABEL_STUDIO_URL and RSVP_LABEL_STUDIO_TOKEN to check it")
        return
    try:
        with open_client(settings) as client:
            broken = False
            for finding in server_findings(client):
                broken = broken or finding.state == "problem"
                yield finding
            if broken:
                yield skipped("project: Label Studio must be reached and know the token first")
            elif subject.project is None:
                yield skipped("project: name one by --project ID to check its labeling config, backend and an image")
            else:
                yield from _project(settings, client, subject.project, subject.backend_url)
    except RsvpError as error:
        yield problem(f"Label Studio: {error}")


def _project(settings: Settings, client: LabelStudioClient, number: int, backend_url: str | None) -> Findings:
    project = open_project(client, number)
    if isinstance(project, Finding):
        yield project
        return
    xml = str(project.get("label_config", ""))
    yield from config_findings(xml)
    backend = ours(client.ml_backends(number), backend_url)
    project = client.project(number)  # listing the backends can change the project's model version
    yield from backend_findings(client, backend, project, settings)
    yield from webhook_findings(client.webhooks(number), backend, settings)
    yield from task_findings(settings, client, number, xml)
