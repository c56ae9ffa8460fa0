"""What a person sees of a run: a progress bar, how it ended, and which tasks failed."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from rsvp_backend.jobs.job import one_line
from rsvp_backend.prelabel.running import Report, Result, Run
from rsvp_backend.settings import Settings
from rsvp_backend.training.registry import Registry

SHOWN = 20
DONE, FAILED, INTERRUPTED = 0, 1, 130


class Teller:
    """The bar on ``console`` while a run goes on, a context manager. Keeps the first `SHOWN` failures.

    ``trouble``: what is being waited for, empty where nothing is.
    """

    def __init__(self, console: Console, run: Run, total: int, trouble: Callable[[], str] = lambda: "") -> None:
        self.failures: list[Result] = []
        columns = (
            TextColumn("pre-labelling"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
            _Stages(run, trouble),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console, transient=True, refresh_per_second=2)
        self._bar = self._progress.add_task("", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def tell(self, result: Result) -> None:
        self._progress.advance(self._bar)
        if result.state == "failed" and len(self.failures) < SHOWN:
            self.failures.append(result)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "-/s")


class _Stages(ProgressColumn):
    """How busy each stage is; failures and cost where there are any."""

    def __init__(self, run: Run, trouble: Callable[[], str]) -> None:
        super().__init__()
        self._run, self._trouble = run, trouble

    def render(self, task: Task) -> Text:
        if self._trouble():
            return Text(one_line(f"waiting: {self._trouble()}", 100), style="yellow")
        report = self._run.refresh()
        shown = " ".join(f"{name} {share:.0%}" for name, share in report.shares.items())
        if report.states["failed"]:
            shown += f", {report.states['failed']} failed"
        if report.cost:
            shown += f", cost {report.cost:.4g}"
        return Text(shown + (", ending" if self._run.line.stopping else ""))


@contextmanager
def interruptible(run: Run) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the run after what is under way, the second at once."""

    def end(number: int, frame: FrameType | None) -> None:
        if run.report.stopped:
            raise KeyboardInterrupt
        run.stop("interrupted")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def promoted(settings: Settings) -> tuple[str | None, ...]:
    """The current versions of what the settings serve."""
    folders = (settings.versions, settings.reasoner_versions)
    return tuple(Registry(folder).current() for folder in folders if folder is not None)


def conclude(out: Console, report: Report, teller: Teller, changed: bool, as_json: bool) -> int:
    """Print what the run came to, and give the exit status. ``changed``: a version was promoted meanwhile."""
    if changed:
        report.notes.append(f"another version was promoted meanwhile: all of this run is of {report.version}; "
                            "run again for the new one")  # fmt: skip
    if as_json:
        failures = [{"task": one.key, "reason": one.reason, "detail": one.detail} for one in teller.failures]
        out.out(json.dumps({**report.to_dict(), "first_failures": failures}), highlight=False)
    else:
        for line in _lines(report, teller.failures):
            out.print(line, markup=False)
    if report.stopped == "interrupted":
        return INTERRUPTED
    return FAILED if report.stopped or report.states["failed"] else DONE


def _lines(report: Report, failures: list[Result]) -> Iterator[str]:
    figures: dict[str, Any] = report.to_dict()
    held = f", {figures['held']} had one already" if figures["held"] else ""
    gone = f", {figures['gone']} are gone" if figures["gone"] else ""
    yield f"{figures['new']} predictions of {report.version} stored, {report.masks} masks{held}{gone}"
    if report.tasks:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in report.shares.items())
        rate = f"{report.seconds:.1f} s, {figures['tasks_per_s']:.2f} tasks/s"
        yield f"{rate}; busy: {shares} (slowest: {report.slowest})"
    if report.cost is not None:
        yield f"reasoner: {report.calls} calls, cost {report.cost:.6g}"
    for reason, count in report.reasons.most_common():
        yield f"  {count:6} {reason}"
    if failures:
        yield f"{report.states['failed']} tasks failed (again with --retry-failed):"
        for one in failures:
            yield f"  task {one.key}: {one.reason}: {one.detail}"
        if report.states["failed"] > len(failures):
            yield f"  and {report.states['failed'] - len(failures)} more"
    if report.stopped:
        yield f"ended early: {report.stopped}; run it again to go on"
    yield from report.notes
