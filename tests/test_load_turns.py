"""Who goes next on the models, and whose task is begun next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from rsvp_backend.errors import DeadlineError
from rsvp_backend.serving.crew import INTERACTIVE_ONLY, MORE_REQUESTS, Crew, Party
from rsvp_backend.serving.turns import Demand, Turns, Urgency
from rsvp_backend.types import Deadline

INTERACTIVE, BATCH, BACKGROUND = Urgency


def until(reached: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < end_s
        time.sleep(0.002)


class Row:
    """Threads that each want a turn; ``order`` lists the names of those that had one."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.order: list[str] = []
        self._threads: list[threading.Thread] = []

    def join_in(self, name: str, demand: Demand) -> None:
        def take() -> None:
            with self.turns.turn(demand):
                self.order.append(name)

        waiting = len(self.turns._waiting)
        self._threads.append(threading.Thread(target=take))
        self._threads[-1].start()
        until(lambda: len(self.turns._waiting) > waiting)

    def end(self) -> list[str]:
        for thread in self._threads:
            thread.join(20)
        return self.order


def test_the_most_urgent_is_next_then_the_first_that_came() -> None:
    turns = Turns()
    row = Row(turns)
    with turns.turn(Demand(BATCH)):
        for name, urgency in (("z", BACKGROUND), ("a", BATCH), ("b", BATCH), ("click", INTERACTIVE)):
            row.join_in(name, Demand(urgency))
        assert turns.running == 1
    assert row.end() == ["click", "a", "b", "z"]
    assert turns.running == 0


def test_what_somebody_waits_for_is_no_longer_background() -> None:
    turns = Turns()
    row = Row(turns)
    opened = Demand(BACKGROUND)
    with turns.turn(Demand(BATCH)):
        row.join_in("opened", opened)
        row.join_in("batch", Demand(BATCH))
        turns.hurry(opened, INTERACTIVE)
        turns.hurry(opened, BATCH)  # less urgent than it is: changes nothing
    assert row.end() == ["opened", "batch"]


def test_who_gets_no_turn_in_time_is_told_and_leaves_the_row() -> None:
    turns = Turns()
    with turns.turn(Demand(BATCH)):
        with pytest.raises(DeadlineError), turns.turn(Demand(INTERACTIVE), Deadline.after(0.01)):
            raise AssertionError("no turn was free")
        row = Row(turns)
        row.join_in("next", Demand(BATCH))
    assert row.end() == ["next"]


def test_a_spare_turn_is_for_clicks_only() -> None:
    turns = Turns(slots=2, spare=1)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(turns.turn(Demand(BATCH)))
        with turns.turn(Demand(INTERACTIVE), Deadline.after(20)):
            assert turns.running == 3
        with pytest.raises(DeadlineError):
            stack.enter_context(turns.turn(Demand(BATCH), Deadline.after(0.01)))


@pytest.mark.parametrize("numbers", [(0, 0), (1, -1)])
def test_no_turns_are_none(numbers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Turns(*numbers)


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.close()


class Log:
    """Work that notes its name, and that waits for ``gate`` on the way."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def work(self, name: str) -> Callable[[], None]:
        def run() -> None:
            self.begun.append(name)
            assert self.gate.wait(20)

        return run

    def party(self, name: str, count: int, urgency: Urgency = BATCH) -> Party:
        return Party(urgency, [self.work(f"{name}{number}") for number in range(count)])


def test_a_request_is_prepared_a_little_ahead_and_no_more(crew: Crew) -> None:
    log = Log()
    log.gate.clear()
    crew.add(log.party("a", 5))
    crew.start()
    until(lambda: len(log.begun) == 2)
    assert crew.waiting() == {INTERACTIVE: 0, BATCH: 3, BACKGROUND: 0}
    log.gate.set()
    until(lambda: len(log.begun) == 5)
    assert crew.waiting()[BATCH] == 0


def test_requests_take_turns_and_background_work_waits_for_all_of_them(crew: Crew) -> None:
    log = Log()
    log.gate.clear()
    parties = [log.party("big", 4), log.party("one", 1), log.party("idle", 1, BACKGROUND)]
    for party in parties:
        crew.add(party)
    crew.start()
    until(lambda: len(log.begun) == 3)
    assert sorted(log.begun) == ["big0", "big1", "one0"]
    log.gate.set()
    until(lambda: len(log.begun) == 6)
    assert log.begun[-1] == "idle0"


def test_clicks_are_begun_however_many_batches_hang(crew: Crew) -> None:
    log = Log()
    log.gate.clear()
    for number in range(MORE_REQUESTS + 3):
        crew.add(log.party(f"hung{number}-", 3))
    crew.start()
    until(lambda: len(log.begun) == 1 + MORE_REQUESTS)
    crew.add(log.party("click", INTERACTIVE_ONLY, INTERACTIVE))
    until(lambda: sum(name.startswith("click") for name in log.begun) == INTERACTIVE_ONLY)
    log.gate.set()


def test_what_is_withdrawn_is_not_begun_and_a_fault_ends_no_thread(crew: Crew) -> None:
    log = Log()
    withdrawn = log.party("never", 3)
    crew.add(withdrawn)
    crew.withdraw(withdrawn)

    def fault() -> None:
        raise RuntimeError("a bug")

    crew.add(Party(BATCH, [fault] * 30))
    crew.add(log.party("after", 1, BACKGROUND))
    crew.start()
    until(lambda: bool(log.begun))
    assert log.begun == ["after0"]
