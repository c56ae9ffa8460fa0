"""The stages of a run: nothing lost, nothing unbounded, an end for every way to end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from PIL import Image

from rsvp_backend.prelabel.line import Line, Stage
from rsvp_backend.prelabel.room import Room


def doubled(items: Sequence[int]) -> list[int]:
    return [2 * item for item in items]


def worded(items: Sequence[int]) -> list[str]:
    return [str(item) for item in items]


def test_every_item_goes_through_every_stage_once() -> None:
    line = Line([Stage("a", int, doubled, workers=3), Stage("b", int, doubled, batch=4), Stage("c", int, worded, 2, 3)])
    assert sorted(line.run(range(100)), key=int) == [str(4 * n) for n in range(100)]
    assert [line.clocks[name].items for name in "abc"] == [100, 100, 100]


def test_an_empty_source_ends() -> None:
    assert list(Line([Stage("a", int, doubled, workers=2)]).run([])) == []


def test_items_of_other_types_pass_by() -> None:
    line = Line(
        [Stage("a", int, worded), Stage("b", int, worded), Stage("c", str, lambda items: [f"{i}!" for i in items])]
    )
    assert sorted(line.run([1, "x", 2])) == ["1!", "2!", "x!"]


def test_a_batch_holds_what_has_come_and_no_more_than_its_size() -> None:
    sizes: list[int] = []
    gate = threading.Event()

    def held(items: Sequence[int]) -> Sequence[int]:
        assert gate.wait(20)
        sizes.append(len(items))
        return items

    def source() -> Iterator[int]:
        yield from range(5)
        gate.set()
        yield from range(5, 30)

    assert len(list(Line([Stage("a", int, held, batch=4)]).run(source()))) == 30
    assert max(sizes) == 4


def test_the_source_is_not_read_ahead_of_what_fits() -> None:
    read: list[int] = []
    gate, full = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            if number == 6:
                full.set()
            yield number

    def held(items: Sequence[int]) -> Sequence[int]:
        assert gate.wait(20)
        return items

    line = Line([Stage("a", int, held, workers=2, batch=2)])
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(line.run(source())))
    thread.start()
    assert full.wait(20)
    assert len(read) <= 10  # 4 under way, 5 in the queue, 1 that waits for room
    gate.set()
    thread.join(20)
    assert sorted(found) == list(range(1000))


@pytest.mark.parametrize("where", ["source", "stage"])
def test_an_error_ends_the_run_and_is_raised(where: str) -> None:
    def source() -> Iterator[int]:
        yield from range(50)
        if where == "source":
            raise RuntimeError("no more tasks can be read")

    def fails(items: Sequence[int]) -> Sequence[int]:
        if where == "stage" and 7 in items:
            raise RuntimeError("the disk is full")
        return items

    with pytest.raises(RuntimeError, match=r"no more tasks|disk is full"):
        list(Line([Stage("a", int, fails, workers=2), Stage("b", int, doubled)]).run(source()))


def test_after_a_stop_what_has_begun_is_finished_and_nothing_else_begins() -> None:
    line: Line

    def paid(items: Sequence[int]) -> Sequence[int]:
        if 3 in items:
            line.stop()
        return items

    line = Line([Stage("free", int, lambda items: items, droppable=True), Stage("paid", int, paid)])
    found = list(line.run(range(1000)))
    assert 3 in found
    assert found == list(range(len(found)))
    assert line.clocks["paid"].items == len(found) < 20


def test_the_room_lets_one_large_image_in_and_further_ones_after_it() -> None:
    room, large = Room(max_bytes=100), Image.new("RGB", (100, 100))
    room.take(large, lambda: False)
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (room.take(Image.new("L", (2, 2)), lambda: False), entered.set()))
    thread.start()
    assert not entered.wait(0.3)
    room.give(large)
    assert entered.wait(20)
    thread.join()
    room.take(large, lambda: True)  # given up: it does not wait
