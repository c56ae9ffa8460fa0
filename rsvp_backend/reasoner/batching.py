"""Many questions at once to a reasoner that answers one at a time: their turns meet and run as one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Rendezvous(Generic[Job, Result]):
    """Members hand in one job each and wait; once all members that have not left did, one of them runs the jobs.

    ``run``: jobs, in order of their members -> one result or error each, or an error that befell them all.
    """

    def __init__(self, members: int, run: Callable[[Sequence[Job]], Sequence[Result | Exception]]) -> None:
        self._run, self._present = run, members
        self._jobs: dict[int, Job] = {}
        self._results: dict[int, Result | Exception] = {}
        self._changed = threading.Condition()

    def submit(self, member: int, job: Job) -> Result:
        """The result of ``job``; raises its error."""
        with self._changed:
            self._jobs[member] = job
            self._run_if_all_are_here()
            self._changed.wait_for(lambda: member in self._results)
            result = self._results.pop(member)
        if isinstance(result, Exception):
            raise result
        return result

    def leave(self) -> None:
        """One member has no further job."""
        with self._changed:
            self._present -= 1
            self._run_if_all_are_here()

    def _run_if_all_are_here(self) -> None:
        if not self._jobs or len(self._jobs) < self._present:
            return
        members = sorted(self._jobs)
        results: Sequence[Result | Exception]
        try:
            results = self._run([self._jobs[member] for member in members])
        except Exception as error:  # handed to every member, who raises it
            results = [error] * len(members)
        self._jobs.clear()
        self._results.update(zip(members, results, strict=True))
        self._changed.notify_all()
