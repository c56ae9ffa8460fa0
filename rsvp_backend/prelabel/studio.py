"""A project of Label Studio's as the source and the goal of a run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from rsvp_backend.access import make_fetcher, make_traces, open_client
from rsvp_backend.answers import Question, answer, shown_uri
from rsvp_backend.errors import ImageError, LabelStudioError
from rsvp_backend.flights import Flights
from rsvp_backend.jobs.job import one_line
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.pushing import Items, drop_doubles, push, push_many
from rsvp_backend.labelstudio.replies import RefusedError, TaskGoneError
from rsvp_backend.labelstudio.tags import LabelConfig, parse_label_config
from rsvp_backend.pipeline import RSVP
from rsvp_backend.prelabel.journal import Failures, Sending, alone
from rsvp_backend.prelabel.patience import Patience
from rsvp_backend.prelabel.room import KEPT, size_bytes
from rsvp_backend.prelabel.running import DETAIL_CHARS, Report, Result, Run, Steps
from rsvp_backend.prelabel.selection import Selection
from rsvp_backend.prelabel.steps import Answered, Common, Work
from rsvp_backend.settings import Settings
from rsvp_backend.traces import TraceLog

log = logging.getLogger(__name__)
STATE_HOME = Path("~/.local/state/rsvp-backend")


@dataclass(frozen=True, slots=True)
class Manner:
    """How a run goes: ``fetchers`` images at a time; ``patience_s``: how long Label Studio may be away."""

    fetchers: int = 4
    patience_s: float = 600.0


class Studio:
    """One project, opened by `opened`. ``stopped`` is set while a run goes on: it then waits for nothing any more."""

    def __init__(
        self, client: LabelStudioClient, project: int, settings: Settings, folder: Path, manner: Manner
    ) -> None:
        """Raises `LabelStudioError` and `LabelConfigError` for what cannot be worked with."""
        self.client, self.project, self.settings, self.manner = client, project, settings, manner
        self.stopped: Callable[[], bool] = lambda: False
        self.patience = Patience(client, manner.patience_s, self._given_up)
        self.config, self.shown_version = _open_project(client, project)
        self.sending = Sending(folder / "sending.jsonl")
        self.failures = Failures(folder / "failed.jsonl")
        self._fetcher = make_fetcher(settings)
        self._images: Flights[Image.Image] = Flights(size_bytes, KEPT)
        self._traces = make_traces(settings)
        self._together = True

    def _given_up(self) -> bool:
        return self.stopped()

    def steps(self, version: str) -> Steps:
        default = _default_instruction(self.client, self.project) or self.settings.default_instruction
        common = Common(self.config, self.settings.instruction_field, default)
        return Steps(
            common,
            self.fetch,
            partial(encode, version=version, config=self.config, project=self.project, traces=self._traces),
            lambda results: self.store(results, version),
            fetchers=self.manner.fetchers,
            reasoners=self.settings.reasoner_concurrency,
            cut_batch=self.settings.vlsm_max_batch or 8,
        )

    def works(self, selection: Selection, version: str) -> Iterator[Work]:
        for task in selection.tasks(self.client, self.project, version, self.patience):
            yield Work(str(task["id"]), {"id": int(task["id"]), "data": task.get("data")})

    def fetch(self, question: Question) -> Image.Image:
        """A second try follows where Label Studio was away, or the first one met a short fault."""
        try:
            return self._fetch(question)
        except ImageError:
            self.patience.until_there()
            return self._fetch(question)

    def store(self, results: Sequence[Result], version: str) -> list[Result]:
        """Push them; a prediction that is refused is its task's failure. Raises `LabelStudioError` for the rest."""
        items = {int(one.key): one.item for one in results if one.item is not None}
        if not items:
            return list(results)
        self.sending.sent(items, version)
        before = self.patience.outages
        became: Mapping[int, bool | LabelStudioError]
        try:
            became = self._store_together(items, version)
        except RefusedError:
            became = {task: self._store_one(task, item, version) for task, item in items.items()}
            # Refused together and taken one by one: this project takes no others.
            self._together = any(isinstance(one, LabelStudioError) for one in became.values()) or len(items) == 1
        if self.patience.outages == before:  # else a request whose answer was lost may still be stored
            self.sending.stored(items)
        return [_stored(one, became[int(one.key)]) for one in results]

    def _store_together(self, items: Items, version: str) -> dict[int, bool]:
        if not self._together:
            raise RefusedError("predictions are stored one by one")
        return self.patience(lambda: push_many(self.client, self.project, items, version))

    def _store_one(self, task: int, item: Mapping[str, Any], version: str) -> bool | LabelStudioError:
        """A refusal stands in the place of its task, unless it concerns them all."""
        try:
            return self.patience(lambda: push(self.client, task, item, version))
        except RefusedError as error:
            if error.status in (401, 403):
                raise
            return error

    def tidy(self) -> None:
        """Where an earlier request was cut off, see that it did not come to a second prediction."""
        for task, version in self.sending.open.items():
            try:
                dropped = self.patience(lambda: drop_doubles(self.client, task, version))  # noqa: B023
            except RefusedError as error:
                log.info("task %d: %s", task, error)
                continue
            if dropped:
                log.info("task %d had %d predictions of %s too many", task, dropped, version)

    def _fetch(self, question: Question) -> Image.Image:
        # Cloud addresses are resolved by task, and a task may not be allowed what another one is.
        own = question.task_id if "://" in question.uri and not question.uri.startswith("http") else None
        return self._images.get(
            (question.uri, own), lambda: self._fetcher.fetch(question.uri, None, question.task_id), None
        )


@contextmanager
def opened(settings: Settings, project: int, manner: Manner, work: Path | None = None) -> Iterator[Studio]:
    """The project, held for this process. Raises `LabelStudioError`, `LabelConfigError` and `JournalError`."""
    with ExitStack() as stack:
        client = stack.enter_context(open_client(settings))
        folder = work_folder(settings, project, work)
        stack.enter_context(alone(folder, f"project {project}"))
        yield Studio(client, project, settings, folder, manner)


def work_folder(settings: Settings, project: int, work: Path | None = None) -> Path:
    """Where the lock and the small files of a project lie: ids mean something in one Label Studio only."""
    about = hashlib.sha256((settings.label_studio_url or "").rstrip("/").encode()).hexdigest()[:8]
    folder = (work or settings.work_folder or STATE_HOME).expanduser()
    return folder / f"prelabel-{about}-{project}"


def answer_all(studio: Studio, rsvp: RSVP, selection: Selection, run: Run, tell: Callable[[Result], None]) -> Report:
    """Answer and store; what fails is noted in the studio's file. Raises `LabelStudioError` where it cannot go on."""
    studio.stopped = lambda: run.line.stopping

    def note(result: Result) -> None:
        studio.failures.note(result)
        tell(result)

    ended = False
    try:
        studio.tidy()
        report = run.over(studio.works(selection, rsvp.version), note)
        ended = True
        return report
    finally:
        _close(studio, run, ended)


def encode(answered: Answered, version: str, config: LabelConfig, project: int, traces: TraceLog) -> Result:
    """What Label Studio stores, and the trace that belongs to it."""
    outcome, task = answered.outcome, answered.work.task["id"]
    trace = traces.add(
        outcome, task=task, project=str(project), image=shown_uri(answered.uri), size_px=answered.size_px,
        model_version=version,
    )  # fmt: skip
    item = answer(outcome, config, version, trace, traces.address(trace))
    reason = None if outcome.reason is None else str(outcome.reason)
    detail = one_line(outcome.detail, DETAIL_CHARS)
    return Result(answered.work.key, "new", item, len(outcome.instances), reason, detail)


def _close(studio: Studio, run: Run, ended: bool) -> None:
    """Requests of a run that broke off are looked at by the next one: Label Studio may be busy with them yet."""
    studio.failures.close()
    try:
        if ended:
            studio.tidy()
            studio.sending.clear()
    except LabelStudioError as error:
        run.report.notes.append(f"predictions that were cut off are looked at in the next run: {one_line(str(error))}")


def _open_project(client: LabelStudioClient, project: int) -> tuple[LabelConfig, str]:
    client.whoami()
    try:
        found = client.project(project)
    except RefusedError as error:
        if error.status != 404:
            raise
        raise LabelStudioError(
            f"there is no project {project} at {client.base_url}, or the token may not see it"
        ) from None
    return parse_label_config(str(found.get("label_config") or "")), str(found.get("model_version") or "")


def _default_instruction(client: LabelStudioClient, project: int) -> str | None:
    """What a backend of the project is told by its ``extra_params``, as the server takes it."""
    try:
        told = [backend.get("extra_params") for backend in client.ml_backends(project)]
    except RefusedError as error:
        log.info("the project's backends cannot be read: %s", error)
        return None
    texts = [params.get("instruction") for params in told if isinstance(params, Mapping)]
    return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), None)


def _stored(result: Result, became: bool | LabelStudioError) -> Result:
    if isinstance(became, TaskGoneError):
        return replace(result, state="gone")
    if isinstance(became, LabelStudioError):
        return result.failed("refused", str(became))
    return result if became else replace(result, state="held")
