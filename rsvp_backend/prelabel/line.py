"""`Line`: stages in threads with bounded queues between, so that the slowest is always busy and memory stays flat."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

_END = object()
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Stage:
    """``run``: up to ``batch`` items of the type ``takes`` -> as many items, in ``workers`` threads at a time.

    Items of other types pass by. A stage that is ``droppable`` begins no item any more after `Line.stop`.
    """

    name: str
    takes: type
    run: Callable[[list[Any]], Sequence[Any]]
    workers: int = 1
    batch: int = 1
    droppable: bool = False


@dataclass(slots=True)
class Clock:
    """What one stage did: items, and the seconds that its threads worked, added up."""

    workers: int
    items: int = 0
    busy_s: float = 0.0

    def share(self, seconds: float) -> float:
        """Of its threads' time, in [0, 1]: the stage nearest to 1 is the slowest."""
        return min(1.0, self.busy_s / max(1e-9, seconds * self.workers))


@dataclass(slots=True)
class _Inlet:
    items: queue.Queue[Any]
    lock: threading.Lock = field(default_factory=threading.Lock)
    working: int = 0


class Line:
    """Runs once. Batches are what has come by the time a thread is free: nothing waits for one to fill."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self.clocks = {stage.name: Clock(stage.workers) for stage in stages}
        self._inlets = [_Inlet(queue.Queue(stage.workers * stage.batch + 1), working=stage.workers) for stage in stages]
        self._results: queue.Queue[Any] = queue.Queue(64)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self.began_s = self.ended_s = 0.0

    def stop(self) -> None:
        """Begin nothing new; what has passed the droppable stages is finished. Safe in a signal handler."""
        self._stopped.set()

    @property
    def stopping(self) -> bool:
        return self._stopped.is_set() or self._error is not None

    @property
    def seconds(self) -> float:
        return (self.ended_s or time.monotonic()) - self.began_s if self.began_s else 0.0

    def slowest(self) -> str:
        return max(self.clocks, key=lambda name: self.clocks[name].share(self.seconds))

    def run(self, source: Iterable[Any]) -> Iterator[Any]:
        """The last stage's items as they come, in any order. Raises what ``source`` or a stage raised, at the end."""
        self.began_s = time.monotonic()
        threads = [threading.Thread(target=self._feed, args=(source,), name="prelabel-source", daemon=True)]
        for number, stage in enumerate(self.stages):
            for _ in range(stage.workers):
                name = f"prelabel-{stage.name}"
                threads.append(threading.Thread(target=self._work, args=(number,), name=name, daemon=True))
        for thread in threads:
            thread.start()
        while (item := self._results.get()) is not _END:
            yield item
        for thread in threads:
            thread.join()
        self.ended_s = time.monotonic()
        if self._error is not None:
            raise self._error

    def _feed(self, source: Iterable[Any]) -> None:
        first = self._inlets[0].items
        try:
            for item in source:
                if not self._put(first, item):
                    break
        except BaseException as error:  # raised again by `run`
            self._fail(error)
        first.put(_END)

    def _put(self, items: queue.Queue[Any], item: Any) -> bool:
        """Whether there was room for ``item`` before the line had to stop."""
        while not self.stopping:
            try:
                items.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def _work(self, number: int) -> None:
        stage, inlet = self.stages[number], self._inlets[number]
        outlet = self._inlets[number + 1].items if number + 1 < len(self.stages) else self._results
        while taken := _taken(inlet.items, stage.batch):
            mine = []
            for item in taken:
                if isinstance(item, stage.takes):
                    mine.append(item)
                else:
                    outlet.put(item)
            for item in self._run(stage, mine):
                outlet.put(item)
        with inlet.lock:
            inlet.working -= 1
            last = not inlet.working
        if last:
            outlet.put(_END)

    def _run(self, stage: Stage, items: list[Any]) -> Sequence[Any]:
        if not items or self._error is not None or (stage.droppable and self._stopped.is_set()):
            return ()
        began_s = time.monotonic()
        try:
            return stage.run(items)
        except BaseException as error:  # raised again by `run`
            self._fail(error)
            return ()
        finally:
            with self._lock:
                self.clocks[stage.name].busy_s += time.monotonic() - began_s
                self.clocks[stage.name].items += len(items)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error


def _taken(items: queue.Queue[Any], most: int) -> list[Any]:
    """One item, and as many more as are there; none at the end, which stays for the stage's other threads."""
    taken: list[Any] = []
    try:
        while len(taken) < most:
            item = items.get(block=not taken)
            if item is _END:
                items.put(_END)
                break
            taken.append(item)
    except queue.Empty:
        pass
    return taken
