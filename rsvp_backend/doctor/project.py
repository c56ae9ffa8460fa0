"""A project: its labeling config, what its predictions name in it, and one task's instruction and image."""

from __future__ import annotations

import re

from rsvp_backend.access import make_fetcher
from rsvp_backend.answers import read_task, shown_uri
from rsvp_backend.doctor.finding import Finding, Findings, advice, ok, problem, skipped
from rsvp_backend.doctor.label_studio import visible_projects
from rsvp_backend.errors import DeadlineError, ImageError, InstructionError, LabelConfigError
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.replies import JSON, RefusedError
from rsvp_backend.labelstudio.tags import MASK_TAGS, LabelConfig, parse_label_config
from rsvp_backend.settings import Settings
from rsvp_backend.types import Deadline

_FETCH_S = 30.0


def open_project(client: LabelStudioClient, project: int) -> JSON | Finding:
    """What Label Studio says of the project, or the problem that it is not there."""
    try:
        return client.project(project)
    except RefusedError as error:
        if error.status != 404:
            raise
        return problem(
            f"project {project}: it is not there, or the token's user may not see it",
            f"name one of these by --project: {visible_projects(client)}; or have this person added to it",
        )


def config_findings(xml: str) -> Findings:
    """Whether masks, reasoning and prompts have a place."""
    try:
        config = parse_label_config(xml)
    except LabelConfigError as error:
        yield problem(
            f"labeling config: {error}",
            "change it under Settings, Labeling Interface; `rsvp-backend label-config --labels A,B` prints a whole one",
        )
        return
    labels = ", ".join(config.label_values[:10]) + (", ..." if len(config.label_values) > 10 else "")
    yield ok(f'labeling config: masks go into <{MASK_TAGS[config.kind]} name="{config.mask_name}"> (labels {labels})')
    if config.reasoning_name is None:
        yield problem(
            'labeling config: there is no <TextArea perRegion="true">, so reasons are only in a region\'s Info panel',
            "`rsvp-backend doctor --fix` adds one",
        )
    else:
        yield ok(f"labeling config: the reasoning goes into {config.reasoning_name!r}, beside each mask")
    if config.prompt_name is None:
        yield advice(
            "labeling config: annotators have no field for an instruction of their own",
            'add below the image <TextArea name="prompt" toName="..." rows="2" editable="true" maxSubmissions="1" '
            'showSubmitButton="true"/>',
        )
    if config.instruction_field is None:
        yield advice(
            "labeling config: it does not show the task's instruction", 'add <Header value="$instruction"/> on top'
        )


def task_findings(settings: Settings, client: LabelStudioClient, project: int, xml: str) -> Findings:
    """The first task: what its predictions name, its instruction, and its image, hop by hop."""
    try:
        config = parse_label_config(xml)
    except LabelConfigError:
        return  # told by `config_findings`
    task = next(client.tasks(project, page_size=1), None)
    if task is None:
        yield skipped(f"image: project {project} has no tasks: import some, each with an image and an instruction")
        return
    yield from _predictions(task, config, xml)
    try:
        question = read_task(task, config, None, settings.instruction_field, settings.default_instruction)
    except InstructionError as error:
        yield problem(f"task: {error}")
        return
    except ImageError as error:
        yield problem(f"task: {error}", "correct the task's data, or the labeling config's <Image>")
        return
    yield ok(f"task {question.task_id}: instruction {question.instruction[:80]!r}")
    yield from _image(settings, question.uri, question.task_id)


def _image(settings: Settings, uri: str, task_id: int | None) -> Findings:
    hops: list[str] = []

    def tell(address: str, with_token: bool) -> None:
        hops.append(f"{address} ({'with the token' if with_token else 'without the token'})")

    try:
        image = make_fetcher(settings).fetch(uri, Deadline.after(_FETCH_S), task_id, tell)
    except (ImageError, DeadlineError) as error:
        way = f", by way of {' -> '.join(hops)}" if hops else ""
        yield problem(f"image: {error}{way}", _cure(str(error)))
        return
    way = f", by way of {' -> '.join(hops)}" if hops else ""
    yield ok(f"image: {shown_uri(uri)} is {image.width} x {image.height} px{way}")


def _cure(error: str) -> str:
    """By what `ImageFetcher` says; empty where that names the cure."""
    if "the file is gone" in error:
        return "import the image anew, or add the storage under Settings, Cloud Storage"
    if re.search("Name or service not known|Connection refused|no complete answer", error):
        return "see that this machine reaches that address: it is asked from here, not from your browser"
    if "token may not read" in error:
        return "use the token of somebody who may see the project"
    return ""


def _predictions(task: JSON, config: LabelConfig, xml: str) -> Findings:
    """Label Studio shows nothing of results that name what is not in the config, and says nothing about it."""
    names = set(re.findall(r'\bname="([^"]*)"', xml))
    results = [result for one in task.get("predictions", ()) for result in one.get("result", ())]
    lost = {str(result.get("from_name")) for result in results} - names
    key = f"{config.kind}labels"
    labels = {str(label) for result in results for label in result.get("value", {}).get(key, ())}
    unknown = labels - {label.output for label in config.labels}
    if lost or unknown:
        what = [f"the control{'s' * (len(lost) > 1)} {', '.join(sorted(lost))}"] if lost else []
        what += [f"the label{'s' * (len(unknown) > 1)} {', '.join(sorted(unknown))}"] if unknown else []
        yield problem(
            f"predictions: those of task {task['id']} name {' and '.join(what)}, which the labeling config lacks: "
            "Label Studio does not show them",
            "delete them in the data manager (Delete Predictions) and retrieve them again, or take the names back",
        )
