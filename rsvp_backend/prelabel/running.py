"""One run: the stages put together, their results counted, and an end where every task fails for the same reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from rsvp_backend.errors import RsvpError
from rsvp_backend.jobs.job import one_line
from rsvp_backend.metrics import meter_of
from rsvp_backend.pipeline import RSVP
from rsvp_backend.prelabel.line import Clock, Line, Stage
from rsvp_backend.prelabel.looking import BATCH, batches, look_many
from rsvp_backend.prelabel.room import Room
from rsvp_backend.prelabel.steps import Answered, Asked, Common, Fetch, Seen, Work, ask, cut, failed, fault
from rsvp_backend.types import EmptyReason

IN_A_ROW = 20
"""Failures of the models, one after another, that end a run: it is not the tasks' fault then."""
DETAIL_CHARS = 300
STORE_BATCH = 32
_MODELS = frozenset({EmptyReason.REASONER_FAILED, EmptyReason.SEGMENTER_FAILED, EmptyReason.INTERNAL})


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one task. ``state``: `new` (stored now), `held` (it had its answer already), `gone` or `failed`.

    ``item``: what is stored, None of a failed one. ``reason`` and ``detail``: why it failed, or has no mask.
    """

    key: str
    state: str
    item: dict[str, Any] | None
    masks: int = 0
    reason: str | None = None
    detail: str = ""

    def failed(self, reason: str, detail: str) -> Result:
        return replace(self, state="failed", reason=reason, detail=one_line(detail, DETAIL_CHARS))


@dataclass(frozen=True, slots=True)
class Steps:
    """Where tasks come from and go: ``encode`` makes what is stored, ``store`` stores several.

    ``fetchers``: images fetched at a time; ``reasoners``: questions at a time to a reasoner on a server;
    ``cut_batch``: tasks that stage 2 takes at once.
    """

    common: Common
    fetch: Fetch
    encode: Callable[[Answered], Result]
    store: Callable[[Sequence[Result]], Sequence[Result]]
    fetchers: int = 4
    reasoners: int = 4
    cut_batch: int = 8


@dataclass(slots=True)
class Report:
    """What a run came to. ``states``: of tasks, by `Result.state`; ``reasons``: of those without a mask or failed.

    ``stopped``: why it ended before its tasks did; empty where it did not.
    """

    version: str
    states: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    masks: int = 0
    seconds: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    seconds_a_task: dict[str, float] = field(default_factory=dict)
    slowest: str = ""
    cost: float | None = None
    calls: int | None = None
    stopped: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def tasks(self) -> int:
        return self.states.total()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "version": self.version,
            "tasks": self.tasks,
            **{state: self.states[state] for state in ("new", "held", "gone", "failed")},
            "masks": self.masks,
            "reasons": dict(self.reasons),
            "seconds": round(self.seconds, 2),
            "tasks_per_s": round(self.tasks / self.seconds, 3) if self.seconds else 0.0,
            "stage_shares": {name: round(share, 3) for name, share in self.shares.items()},
            "stage_seconds_a_task": {name: round(value, 5) for name, value in self.seconds_a_task.items()},
            "slowest": self.slowest,
            "reasoner_calls": self.calls,
            "cost": None if self.cost is None else round(self.cost, 6),
            "stopped": self.stopped,
            "notes": self.notes,
        }


class Engine(Protocol):
    """What does the steps: `Line` in this process, `RayLine` on a cluster."""

    clocks: dict[str, Clock]

    @property
    def stopping(self) -> bool: ...
    @property
    def seconds(self) -> float: ...
    def stop(self) -> None: ...
    def slowest(self) -> str: ...
    def run(self, source: Iterable[Any]) -> Iterator[Any]: ...


class Run:
    """One run of ``steps`` with the models of ``rsvp``, which stay the same to its end."""

    def __init__(
        self, rsvp: RSVP, steps: Steps, engine: Engine | None = None,
        spent: Callable[[], tuple[float, int] | None] | None = None,
    ) -> None:  # fmt: skip
        """``engine``: what does them, in this process by default; ``spent``: cost and calls of its reasoner so far."""
        self.report = Report(rsvp.version)
        self.line: Engine = engine or Line(_stages(rsvp, steps, Room(), lambda: self.line.stopping))
        self._spent = spent or partial(_spent, rsvp)
        self._row: list[Result] = []

    def stop(self, why: str) -> None:
        """End after what is under way."""
        self.report.stopped = self.report.stopped or why
        self.line.stop()

    def over(self, source: Iterable[Work], tell: Callable[[Result], None]) -> Report:
        """Answer the tasks of ``source``; ``tell`` hears of each as soon as it is stored or has failed.

        Raises what ``source``, ``tell`` or storing raised, after what was under way has ended.
        """
        try:
            for result in self.line.run(source):
                self._count(result)
                tell(result)
        finally:
            self._close()
        return self.report

    def refresh(self) -> Report:
        """The report as it stands."""
        report, line = self.report, self.line
        report.seconds = line.seconds
        report.shares = {name: clock.share(line.seconds) for name, clock in line.clocks.items()}
        report.seconds_a_task = {n: clock.busy_s / clock.items for n, clock in line.clocks.items() if clock.items}
        report.slowest = line.slowest()
        if (spent := self._spent()) is not None:
            report.cost, report.calls = spent
        return report

    def _close(self) -> None:
        self.line.stop()
        self.refresh()

    def _count(self, result: Result) -> None:
        report = self.report
        report.states[result.state] += 1
        report.masks += result.masks
        if result.reason is not None:
            report.reasons[str(result.reason)] += 1
        self._row = [*self._row, result] if result.reason in _MODELS else []
        if len(self._row) >= IN_A_ROW and not report.stopped:
            self.stop(f"the last {IN_A_ROW} tasks failed, {result.reason}: {result.detail}")


def _spent(rsvp: RSVP) -> tuple[float, int] | None:
    meter = meter_of(rsvp.reasoner)
    return None if meter is None else (meter.usage.cost, sum(meter.usage.calls.values()))


def _stages(rsvp: RSVP, steps: Steps, room: Room, given_up: Callable[[], bool]) -> list[Stage]:
    together = batches(rsvp.reasoner)

    def fetch(works: Sequence[Work]) -> list[Asked | Answered]:
        found = [ask(work, steps.common, steps.fetch) for work in works]
        for one in found:
            if isinstance(one, Asked):
                room.take(one.image, given_up)
        return found

    def see(asked: Sequence[Asked]) -> list[Seen | Answered]:
        seen = look_many(rsvp, asked)
        for one, result in zip(asked, seen, strict=True):
            if isinstance(result, Answered):
                room.give(one.image)
        return seen

    def finish(seen: Sequence[Seen]) -> list[Answered]:
        found = cut(rsvp, seen)
        for one in seen:
            room.give(one.asked.image)
        return found

    def encode(answered: Sequence[Answered]) -> list[Result]:
        return [encoded(one, steps.encode) for one in answered]

    def store(results: Sequence[Result]) -> Sequence[Result]:
        return [one for one in results if one.item is None] + list(
            steps.store([one for one in results if one.item is not None])
        )

    return [
        Stage("fetch", Work, fetch, workers=steps.fetchers, droppable=True),
        Stage("reason", Asked, see, 1 if together else steps.reasoners, BATCH if together else 1, droppable=True),
        Stage("segment", Seen, finish, batch=steps.cut_batch),
        Stage("encode", Answered, encode),
        Stage("store", Result, store, batch=STORE_BATCH),
    ]


def encoded(answered: Answered, encode: Callable[[Answered], Result]) -> Result:
    """What comes of an answer: its result by ``encode``, or the task's failure."""
    try:
        if answered.final:
            return encode(answered)
    except RsvpError:
        raise  # not this task's: the disk is full, say
    except Exception as error:
        answered = failed(answered.work, EmptyReason.INTERNAL, fault(answered.work, error))
    outcome = answered.outcome
    return Result(answered.work.key, "failed", None).failed(str(outcome.reason), outcome.detail)
