"""One lesson: what annotators left in a project -> a fine-tuned version, compared with the current one, promoted
where it is better.

Label Studio is the only source of corrections, read anew each time: a lesson that was cut off or failed has lost
nothing, and the next one goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsvp_backend.access import make_fetcher, open_client
from rsvp_backend.errors import LabelConfigError, LabelStudioError, SettingsError
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.corrections import read_corrections
from rsvp_backend.labelstudio.promotion import follow_promotion, predict_again
from rsvp_backend.labelstudio.ranking import doubtful
from rsvp_backend.labelstudio.reading import Reading
from rsvp_backend.lessons import CancelledError, Tell, Told, alone, end_of, same_lesson, scores_of
from rsvp_backend.presets import vlsm_source
from rsvp_backend.settings import Settings
from rsvp_backend.training.adapters import compose_deltas
from rsvp_backend.training.finetune import FinetuneResult, finetune
from rsvp_backend.training.finetune_config import FinetuneConfig
from rsvp_backend.training.fitting import Progress
from rsvp_backend.training.gate import Decision, calibrate, decide
from rsvp_backend.training.registry import Registry
from rsvp_backend.training.replay import NoReplay, ReplaySource, SceneReplay
from rsvp_backend.training.samples import Correction
from rsvp_backend.training.versions import Record, Version
from rsvp_backend.vlsm import weights

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What became of one lesson. ``version``: None where there was nothing new to learn from (see ``notes``)."""

    project: int
    reading: Reading
    corrections: int
    version: str | None = None
    promoted: bool = False
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        found = asdict(self)
        return {**found, "reading": str(self.reading), "reasons": list(self.reasons), "notes": list(self.notes)}

    def __str__(self) -> str:
        return "\n".join([str(self.reading), *self.notes, *self.reasons, end_of(self.version, self.promoted)])


def learn(
    settings: Settings,
    project: int,
    tell: Tell = lambda _: None,
    *,
    promote: bool = True,
    config: FinetuneConfig | None = None,
) -> Lesson:
    """Learn from ``project``'s annotations. ``tell`` may raise to stop it; a further call goes on from there.

    ``promote``: False keeps even a better version as a candidate. Raises `SettingsError` for what is missing,
    `LabelStudioError`, `LabelConfigError`, `WeightsError`, `VersionError`; the current version is then untouched.
    """
    work = settings.work_folder
    if settings.versions is None or work is None:
        raise SettingsError("RSVP_VERSIONS is not set: name a folder for what is learned")
    registry = Registry(settings.versions)
    busy = f"project {project} is being learned from by another process: wait for its end"
    with open_client(settings) as client, alone(work / f"project-{project}.lock", busy, "RSVP_VERSIONS"):
        reading = Reading()
        corrections = _read(client, settings, project, reading, tell)
        if not corrections:
            return Lesson(
                project, reading, 0, notes=("there is no correction to learn from: submit annotations first",)
            )
        base = weights.load(vlsm_source(settings))
        current = registry.current()
        plan = _Plan(settings, registry, project, work, base, current)
        keys = tuple(sorted(correction.key for correction in corrections))
        if (known := same_lesson(registry, keys, current)) is not None:
            note = f"nothing new since version {known}: it learned from these very corrections"
            lesson = Lesson(project, reading, len(corrections), notes=(note,))
            return _shown(plan, lesson, known, client, tell) if promote and known == current else lesson
        result = _train(plan, corrections, _configured(settings, work, config), tell)
        tell(Told("comparing", "comparing with the current version"))
        decision = decide(result.before, result.after, result.replay_before, result.replay_after)
        version = registry.add_candidate(_whole_delta(plan, result), _record(plan, keys, result, decision))
        shutil.rmtree(_checkpoints(work, project), ignore_errors=True)
        lesson = Lesson(
            project=project,
            reading=reading,
            corrections=len(corrections),
            version=version.id,
            reasons=decision.reasons,
            notes=tuple(f"task {task} left out: {error}" for task, error in result.unreadable),
            scores=scores_of(version.record),
            steps=result.steps,
            seconds=round(result.seconds, 2),
        )
        return _promoted(plan, lesson, version, client, tell) if decision.promote and promote else lesson


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """``base``: the weights that RSVP_VLSM names; ``current``: the version over them that training begins with."""

    settings: Settings
    registry: Registry
    project: int
    work: Path
    base: weights.Weights
    current: str | None


def _train(plan: _Plan, corrections: Sequence[Correction], config: FinetuneConfig, tell: Tell) -> FinetuneResult:
    start = plan.base if plan.current is None else plan.registry.load(plan.base, plan.current)

    def told(progress: Progress) -> None:
        text = f"{progress.eta_s:.0f} s left"
        if progress.stage == "training":
            measured = "" if math.isnan(progress.held_out) else f"held-out IoU {progress.held_out:.3f}, "
            text = f"loss {progress.loss:.3f}, {measured}{text}"
        values = {"loss": progress.loss, "held_out": progress.held_out} if progress.stage == "training" else {}
        tell(Told(progress.stage, text, progress.step, progress.steps, values))

    return finetune(start, corrections, _replay(plan.settings), config, _checkpoints(plan.work, plan.project), told)


def _promoted(plan: _Plan, lesson: Lesson, version: Version, client: LabelStudioClient, tell: Tell) -> Lesson:
    tell(Told("promoting", f"promoting {version.id}"))
    plan.registry.promote(version.id, plan.base.version, expected_current=plan.current)
    return _shown(plan, replace(lesson, promoted=True), version.id, client, tell)


def _shown(plan: _Plan, lesson: Lesson, version: str, client: LabelStudioClient, tell: Tell) -> Lesson:
    """Let Label Studio's backend title follow the current ``version``, and predict again what is open and doubtful.

    What Label Studio does not do of it, or what is cancelled, is told and changes nothing else. A lesson that was cut
    off here does it the next time: what has predictions of the version is passed over.
    """
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done = count
        tell(Told("predicting", "open tasks", count, len(tasks)))

    tasks: list[int] = []
    try:
        # Ordered first: with the new title the old scores, by which Label Studio sorts, are gone.
        order = doubtful(client, plan.project, plan.settings.repredict)
        follow_promotion(client, plan.project, version)
        tasks = [ranked.task for ranked in order]
        note = f"predicted {predict_again(client, plan.project, tasks, told)} open tasks again"
    except (LabelStudioError, LabelConfigError) as error:
        log.warning("%s is current, but Label Studio does not show it: %s", version, error)
        note = f"Label Studio does not show it yet: {error}"
    except CancelledError:
        note = f"cancelled after {done} of {len(tasks)} open tasks were predicted again; the version stays"
    return replace(lesson, notes=(*lesson.notes, note))


def _read(
    client: LabelStudioClient, settings: Settings, project: int, reading: Reading, tell: Tell
) -> list[Correction]:
    found = []
    fetcher, largest = make_fetcher(settings), settings.image_max_pixels
    for correction in read_corrections(client, project, fetcher, settings.padding, reading, max_pixels=largest):
        found.append(correction)
        tell(Told("reading", f"{len(found)} corrections of {reading.tasks} tasks", reading.tasks))
    log.info("project %d: %s", project, reading)
    return found


def _configured(settings: Settings, work: Path, config: FinetuneConfig | None) -> FinetuneConfig:
    """Settings decide where and in which view; the rest is the caller's, or by default."""
    asked = config or FinetuneConfig()
    return replace(asked, view=settings.vlsm_view, device=settings.device, cache=work / "cache")


def _replay(settings: Settings) -> ReplaySource:
    return SceneReplay(padding=settings.padding) if settings.replay == "scenes" else NoReplay()


def _whole_delta(plan: _Plan, result: FinetuneResult) -> Mapping[str, Tensor]:
    """Relative to the base weights, whatever training began with."""
    if plan.current is None:
        return result.delta
    return compose_deltas(plan.registry.delta(plan.current), result.delta)


def _record(plan: _Plan, keys: tuple[str, ...], result: FinetuneResult, decision: Decision) -> Record:
    calibration = calibrate(result.after)
    return Record(
        base=plan.base.version,
        parent=plan.current,
        data=keys,
        before={"held_out": result.before.mean, "replay": result.replay_before.mean},
        after={"held_out": result.after.mean, "replay": result.replay_after.mean},
        decision="promote" if decision.promote else "keep",
        reasons=decision.reasons,
        calibration=calibration.to_dict() if calibration.knots else None,
    )


def _checkpoints(work: Path, project: int) -> Path:
    return work / f"project-{project}"
