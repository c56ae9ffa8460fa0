"""Where a distillation's examples come from: a project's corrections, a teacher asked about its open tasks, scenes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rsvp_backend.access import make_fetcher
from rsvp_backend.answers import Question, read_task
from rsvp_backend.errors import ImageError, InstructionError
from rsvp_backend.labelstudio.annotations import listed
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.corrections import read_corrections
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.labelstudio.instructions import prompt_text
from rsvp_backend.labelstudio.reading import Reading
from rsvp_backend.labelstudio.tags import LabelConfig, parse_label_config
from rsvp_backend.settings import Settings
from rsvp_backend.training.examples import Example, Source, by_task, corrected_proposals, make_example
from rsvp_backend.training.samples import Correction
from rsvp_backend.training.teaching import LeftOut, Task, Taught, ask_teacher
from rsvp_backend.types import Marks, Query, Reasoner

log = logging.getLogger(__name__)
JSON = Mapping[str, Any]
Tell = Callable[[str, int, int], None]
"""Hears a text, and how many of how many (0: nobody knows) are done."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How the student is asked: its marks, and whether its answers choose one of several labels."""

    marks: Marks
    chooses_label: Callable[[Query], bool]


@dataclass(slots=True)
class Project:
    """One Label Studio project as it is read. ``reading``: what its annotations came to."""

    client: LabelStudioClient
    project: int
    settings: Settings
    reading: Reading = field(default_factory=Reading)
    notes: list[str] = field(default_factory=list)

    def config(self) -> LabelConfig:
        return parse_label_config(str(self.client.project(self.project).get("label_config") or ""))


def corrected_examples(project: Project, asked: Asked, tell: Tell) -> list[Example]:
    """One example per corrected task: the instruction that it was asked with, and the regions of the masks left.

    Tasks without an instruction, or without a label where the student must choose one, are noted and left out.
    """
    settings, config = project.settings, project.config()
    fetcher, questions = make_fetcher(settings), dict[int, Question | str]()

    def seen(task: JSON) -> None:
        questions[int(task["id"])] = _question(task, config, settings)

    corrections: list[Correction] = []
    for correction in read_corrections(
        project.client, project.project, fetcher, settings.padding, project.reading,
        max_pixels=settings.image_max_pixels, seen=seen,
    ):  # fmt: skip
        corrections.append(correction)
        tell(f"{len(corrections)} corrections of {project.reading.tasks} tasks", project.reading.tasks, 0)
    examples = []
    for task, group in by_task(corrections):
        question = questions[task]
        if isinstance(question, str):
            project.notes.append(f"task {task} left out: {question}")
            continue
        query = Query(question.instruction, config.label_values)
        proposals = corrected_proposals(group, asked.marks)
        if asked.chooses_label(query) and any(one.label not in query.labels for one in proposals):
            project.notes.append(f"task {task} left out: a mask without a label, and there are several to choose from")
            continue
        example = make_example(task, query, proposals, group[0].load_image, Source.CORRECTION, question.uri)
        examples.append(example)
    return examples


def taught_examples(project: Project, teacher: Reasoner, asked: Asked, limit: int, tell: Tell) -> Taught:
    """What ``teacher`` answers about the project's open tasks, at most ``limit``, the most doubtful first."""
    settings, config = project.settings, project.config()
    fetcher, tasks = make_fetcher(settings), list[Task]()
    for task in project.client.open_tasks(project.project, limit):
        question = _question(task, config, settings)
        if isinstance(question, str):
            project.notes.append(f"task {task['id']} left out: {question}")
        else:
            tasks.append(_task(int(task["id"]), question, config, fetcher))
    labels = bool(tasks) and asked.chooses_label(tasks[0].query)
    return ask_teacher(
        teacher, tasks, asked.marks, labels=labels, workers=settings.reasoner_concurrency,
        tell=lambda done: tell("open tasks", done, len(tasks)),
    )  # fmt: skip


def _task(identity: int, question: Question, config: LabelConfig, fetcher: ImageFetcher) -> Task:
    load = partial(fetcher.fetch, question.uri, None, identity)
    return Task(identity, Query(question.instruction, config.label_values), load, question.uri)


def _question(task: JSON, config: LabelConfig, settings: Settings) -> Question | str:
    """What the task asks, or why it asks nothing.

    A prompt that was typed below the image is stored with the annotation: the newest one is what its masks answer.
    """
    context = None
    for annotation in listed(task.get("annotations")):
        if not annotation.get("was_cancelled") and prompt_text(annotation, config):
            context = annotation
    try:
        return read_task(task, config, context, settings.instruction_field, settings.default_instruction)
    except (InstructionError, ImageError) as error:
        return str(error)


__all__ = ["Asked", "LeftOut", "Project", "Tell", "corrected_examples", "taught_examples"]
