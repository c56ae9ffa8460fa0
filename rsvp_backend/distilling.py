"""One distillation: corrections, a teacher's answers or scenes -> a version of the local reasoner, compared with the
current one, promoted where it is better. The counterpart of `learning`, which does the same for the VLSM.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rsvp_backend import presets
from rsvp_backend.access import open_client
from rsvp_backend.distill_sources import Asked, Project, corrected_examples, taught_examples
from rsvp_backend.errors import LabelConfigError, LabelStudioError, SettingsError
from rsvp_backend.labelstudio.promotion import follow_change, predict_again, served_versions
from rsvp_backend.labelstudio.ranking import doubtful
from rsvp_backend.lessons import Tell, Told, alone, end_of, same_lesson, scores_of
from rsvp_backend.reasoner.cache import AnswerStore, CachedReasoner
from rsvp_backend.settings import Settings
from rsvp_backend.training.answer_replay import styled_examples
from rsvp_backend.training.distill_config import DistillConfig
from rsvp_backend.training.distillation import DistillResult, distill
from rsvp_backend.training.examples import Example
from rsvp_backend.training.fitting import Progress
from rsvp_backend.training.gate import Decision, decide
from rsvp_backend.training.reasoner_deltas import ReasonerBase
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.versions import Record, Version
from rsvp_backend.types import Marks, Reasoner

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sources:
    """What to learn from. ``teacher``: with the marks that it reads, asked about at most ``limit`` open tasks of
    ``project``; ``style`` of `scenes.styles`, with ``scenes`` examples."""

    project: int | None = None
    teacher: tuple[Reasoner, Marks] | None = None
    limit: int = 500
    style: str | None = None
    scenes: int = 600

    def __post_init__(self) -> None:
        if self.project is None and self.style is None:
            raise SettingsError("nothing to learn from: give a Label Studio project, or a style of scenes")
        if self.project is None and self.teacher is not None:
            raise SettingsError("the teacher is asked about the open tasks of a project: name one")


@dataclass(frozen=True, slots=True)
class Distilled:
    """What became of it. ``version``: None where there was nothing new to learn from (see ``notes``).

    ``examples``: how many of each source.
    """

    examples: dict[str, int]
    version: str | None = None
    promoted: bool = False
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {**asdict(self), "reasons": list(self.reasons), "notes": list(self.notes)}

    def __str__(self) -> str:
        counts = ", ".join(f"{count} of {source}" for source, count in self.examples.items())
        return "\n".join(
            [*self.notes, f"examples: {counts or 'none'}", *self.reasons, end_of(self.version, self.promoted)]
        )


def distill_reasoner(
    settings: Settings,
    sources: Sources,
    tell: Tell = lambda _: None,
    *,
    promote: bool = True,
    config: DistillConfig | None = None,
) -> Distilled:
    """Teach the local reasoner. ``tell`` may raise to stop it; a further call goes on from there.

    ``promote``: False keeps even a better version as a candidate. Raises `SettingsError` for what is missing,
    `ReasonerError` where the teacher is down, `LabelStudioError`, `LabelConfigError`, `WeightsError`, `VersionError`;
    the current version is then untouched.
    """
    registry = presets.reasoner_registry(settings)
    work = registry.folder.with_name(f"{registry.folder.name}-work")
    with ExitStack() as stack:
        project = None
        if sources.project is not None:
            project = Project(stack.enter_context(open_client(settings)), sources.project, settings)
        stack.enter_context(
            alone(
                work / "distill.lock",
                f"{work} is used by another distillation: wait for its end",
                "RSVP_REASONER_VERSIONS",
            )
        )
        base = presets.reasoner_base(settings)
        examples = _gathered(settings, sources, project, base, work, tell)
        found = Distilled(_counted(examples), notes=() if project is None else _notes(project))
        if not examples:
            return replace(found, notes=(*found.notes, "there is no example to learn from"))
        current = registry.current()
        keys = tuple(sorted(example.key for example in examples))
        if (known := same_lesson(registry, keys, current)) is not None:
            return replace(found, notes=(*found.notes, f"nothing new since version {known}: it learned from the same"))
        result = _train(registry, current, base, examples, config or DistillConfig(), settings, work, tell)
        decision = _decide(result)
        version = registry.add_candidate(result.delta, _record(base, current, keys, result, decision))
        shutil.rmtree(_run_folder(work), ignore_errors=True)
        found = replace(
            found,
            version=version.id,
            reasons=decision.reasons,
            notes=(*found.notes, *(f"task {task} left out: {error}" for task, error in result.unreadable)),
            scores=scores_of(version.record),
            steps=result.steps,
            seconds=round(result.seconds, 2),
        )
        if not (decision.promote and promote):
            return found
        return _promoted(registry, base, current, found, version, project, tell)


def _gathered(
    settings: Settings, sources: Sources, project: Project | None, base: ReasonerBase, work: Path, tell: Tell
) -> list[Example]:
    """Examples of all sources; corrections win over the teacher, which is asked about open tasks only."""
    examples: list[Example] = []
    if project is not None:
        asked = Asked(base.marks, lambda query: base.plain.offers_labels(query, base.marks))
        examples += corrected_examples(project, asked, lambda *told: tell(Told("reading", *told)))
        if sources.teacher is not None:
            teacher = _teacher(sources.teacher, base, settings, work)
            taught = taught_examples(project, teacher, asked, sources.limit, lambda *told: tell(Told("teacher", *told)))
            project.notes.append(str(taught))
            examples += taught.examples
    if sources.style is not None:
        examples += styled_examples(sources.style, sources.scenes, base.marks)
    return examples


def _teacher(given: tuple[Reasoner, Marks], base: ReasonerBase, settings: Settings, work: Path) -> Reasoner:
    """Its answers are kept on disk: what was paid for once is not asked again."""
    teacher, marks = given
    if marks != base.marks:
        raise SettingsError(
            f"the teacher reads {marks}, the reasoner to be taught {base.marks}: choose another teacher"
        )
    inner = teacher.inner if isinstance(teacher, CachedReasoner) else teacher
    return CachedReasoner(inner, AnswerStore(settings.answer_cache or work / "answers", settings.answer_cache_bytes))


def _train(
    registry: Registry,
    current: str | None,
    base: ReasonerBase,
    examples: Sequence[Example],
    config: DistillConfig,
    settings: Settings,
    work: Path,
    tell: Tell,
) -> DistillResult:
    delta = None
    if current is not None:
        registry.check_base(current, base.version)
        delta = registry.delta(current)

    def told(progress: Progress) -> None:
        text = f"{progress.eta_s:.0f} s left"
        if progress.stage == "training":
            measured = "" if math.isnan(progress.held_out) else f"held-out loss {progress.held_out:.3f}, "
            text = f"loss {progress.loss:.3f}, {measured}{text}"
        values = {"loss": progress.loss} if progress.stage == "training" else {}
        tell(Told(progress.stage, text, progress.step, progress.steps, values))

    return distill(base, delta, examples, config, _run_folder(work), told, replay=settings.replay == "scenes")


def _decide(result: DistillResult) -> Decision:
    scores = (result.before, result.after, result.replay_before, result.replay_after)
    return decide(*(one.scores for one in scores), measure=("score", "examples"))


def _promoted(
    registry: Registry,
    base: ReasonerBase,
    current: str | None,
    found: Distilled,
    version: Version,
    project: Project | None,
    tell: Tell,
) -> Distilled:
    """Promote; where there is a project, Label Studio's backend title follows, and doubtful open tasks are predicted
    again. What Label Studio does not do of it is told, and changes nothing else."""
    tell(Told("promoting", f"promoting {version.id}"))
    if project is None:
        registry.promote(version.id, base.version, expected_current=current)
        return replace(found, promoted=True)
    client, identity = project.client, project.project
    promoted = False
    try:
        served = served_versions(client, identity)
        # Ordered first: with the new title the old scores, by which Label Studio sorts, are gone.
        tasks = [ranked.task for ranked in doubtful(client, identity, project.settings.repredict)]
        registry.promote(version.id, base.version, expected_current=current)
        promoted = True
        follow_change(client, identity, served)
        count = predict_again(client, identity, tasks, lambda n: tell(Told("predicting", "open tasks", n, len(tasks))))
        note = f"predicted {count} open tasks again"
    except (LabelStudioError, LabelConfigError) as error:
        if not promoted:
            registry.promote(version.id, base.version, expected_current=current)
        log.warning("%s is promoted, but Label Studio does not show it: %s", version.id, error)
        note = f"Label Studio does not show it yet: {error}"
    return replace(found, promoted=True, notes=(*found.notes, note))


def _record(
    base: ReasonerBase, current: str | None, keys: tuple[str, ...], result: DistillResult, decision: Decision
) -> Record:
    sides = ((result.before, result.replay_before), (result.after, result.replay_after))
    before, after = (
        {"held_out": own.mean, "regions": own.regions, "objects": own.objects, "replay": old.mean} for own, old in sides
    )
    return Record(
        base=base.version,
        parent=current,
        data=keys,
        before=before,
        after=after,
        decision="promote" if decision.promote else "keep",
        reasons=decision.reasons,
    )


def _counted(examples: Sequence[Example]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for example in examples:
        counts[example.source] = counts.get(example.source, 0) + 1
    return counts


def _notes(project: Project) -> tuple[str, ...]:
    return (str(project.reading), *project.notes)


def _run_folder(work: Path) -> Path:
    return work / "run"
