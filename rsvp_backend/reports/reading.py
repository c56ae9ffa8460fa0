"""A Label Studio project -> the answers of its annotators, task by task; masks are dropped once they are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rsvp_backend.errors import LabelStudioError
from rsvp_backend.labelstudio.annotations import JSON, listed
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.compared import Annotated, Source, TaskImage
from rsvp_backend.labelstudio.corrections import PAGE_SIZE, chosen_of, prompt_controls
from rsvp_backend.labelstudio.images import ImageFetcher, ImageLimits
from rsvp_backend.labelstudio.reading import LeftOutError, Reading, Reason
from rsvp_backend.labelstudio.tags import parse_label_config
from rsvp_backend.reports.answers import Answer
from rsvp_backend.reports.measuring import measure

Seen = Callable[[JSON], None]


@dataclass(frozen=True, slots=True)
class Project:
    """``annotated``: how many tasks have annotations, skipped ones too; None where Label Studio does not tell."""

    id: int
    title: str
    annotated: int | None
    source: Source


def open_project(
    client: LabelStudioClient, project: int, fetcher: ImageFetcher, max_pixels: int = ImageLimits().max_pixels
) -> Project:
    """Raises `LabelStudioError` (no access, no such project) and `LabelConfigError`."""
    found = client.project(project)
    xml, annotated = str(found.get("label_config") or ""), found.get("num_tasks_with_annotations")
    source = Source(parse_label_config(xml), prompt_controls(xml), fetcher, 0.0, max_pixels, False, client.there)
    known = annotated if isinstance(annotated, int) else None
    return Project(project, str(found.get("title") or f"project {project}"), known, source)


def read_answers(
    client: LabelStudioClient,
    project: Project,
    reading: Reading,
    *,
    page_size: int = PAGE_SIZE,
    seen: Seen = lambda _: None,
) -> Iterator[Answer]:
    """The answers that count (by the rules of `corrections`), paged through the API while it is iterated.

    What does not count is counted in ``reading`` with its reason. Images are fetched only where the results leave
    their size in doubt. ``seen`` gets each task before its answers come. Raises `LabelStudioError`.
    """
    for task in client.annotated_tasks(project.id, page_size):
        reading.tasks += 1
        seen(task)
        for annotated in annotated_of(task, project.source, reading):
            try:
                answer = measure(annotated, task.get("predictions"), reading)
            except LeftOutError as left_out:
                reading.leave_out(left_out.reason, annotated.task, detail=left_out.detail)
                continue
            if answer is not None:
                yield answer


def annotated_of(task: JSON, source: Source, reading: Reading) -> Iterator[Annotated]:
    """The annotations of a task that count, each with what it is compared to."""
    identity, data = int(task["id"]), task.get("data")
    uri = data.get(source.config.image_field) if isinstance(data, Mapping) else None
    image = TaskImage(identity, uri if isinstance(uri, str) else "", source.fetcher, source.check)
    for annotation in chosen_of(listed(task.get("annotations")), identity, source.include_imported, reading):
        yield Annotated(task, annotation, source, image)


def annotation_of(client: LabelStudioClient, project: Project, answer: Answer) -> tuple[JSON, Annotated]:
    """An answer's task and annotation once more. Raises `LabelStudioError` where they are gone meanwhile."""
    task = client.task(project.id, answer.task)
    for annotated in annotated_of(task, project.source, Reading()):
        if annotated.annotation.get("id") == answer.annotation:
            return task, annotated
    raise LabelStudioError(f"annotation {answer.annotation} of task {answer.task} is gone")


def not_comparable(reading: Reading) -> int:
    """Annotations and regions that people made, but whose masks cannot be compared."""
    excused = (Reason.SKIPPED, Reason.IMPORTED, Reason.NOT_GROUND_TRUTH, Reason.SUPERSEDED, Reason.EMPTY, Reason.PROMPT)
    return sum(count for reason, count in reading.left_out.items() if reason not in excused)
