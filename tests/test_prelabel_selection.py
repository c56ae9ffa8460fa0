"""What --filter, --ids, --view and --order choose."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prelabel_studio import PROJECT, TOKEN, FakeStudio, fake_studio

from rsvp_backend.errors import SettingsError
from rsvp_backend.labelstudio import listing
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.filters import parse_filter, parse_ids
from rsvp_backend.prelabel.selection import Order, Selection

VERSION = "rsvp-demo-12345678"


@pytest.fixture
def studio() -> Iterator[FakeStudio]:
    with fake_studio() as studio:
        yield studio


def chosen(studio: FakeStudio, selection: Selection) -> list[int]:
    with LabelStudioClient(studio.server.url, TOKEN) as client:
        found = [int(one["id"]) for one in selection.tasks(client, PROJECT, VERSION, listing.at_once)]
        assert len(found) <= selection.count(client, PROJECT, VERSION)
    return found


@pytest.mark.parametrize(
    ("text", "field", "operator", "kind", "value"),
    [
        ("data.camera = north", "data.camera", "equal", "String", "north"),
        ("data.lux >= 20.5", "data.lux", "greater_or_equal", "Number", 20.5),
        ("data.zip = '0123'", "data.zip", "equal", "String", "0123"),
        ("data.note ~ red mug", "data.note", "contains", "String", "red mug"),
        ("data.note !~ 7", "data.note", "not_contains", "String", "7"),
        ("total_predictions=0", "total_predictions", "equal", "Number", 0.0),
        ("created_at > 2026-01-31", "created_at", "greater", "Datetime", "2026-01-31T00:00:00.000Z"),
        ("updated_at < 2026-01-31T12:00:00+02:00", "updated_at", "less", "Datetime", "2026-01-31T10:00:00.000Z"),
    ],
)
def test_filters(text: str, field: str, operator: str, kind: str, value: object) -> None:
    found = parse_filter(text)
    assert found == {"filter": f"filter:tasks:{field}", "operator": operator, "type": kind, "value": value}


@pytest.mark.parametrize(
    "text", ["", "camera", "camera = 3", "total_predictions = many", "created_at > soon", "a..b = 1"]
)
def test_filters_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(SettingsError, match="--filter is"):
        parse_filter(text)


def test_ids() -> None:
    assert parse_ids("205, 1-100,101-110, 3") == [(1, 110), (205, 205)]
    for text in ("", "1-", "9-3", "a", "1,,2"):
        with pytest.raises(SettingsError, match="--ids is"):
            parse_ids(text)


def test_by_default_open_tasks_that_lack_the_version_by_id(studio: FakeStudio) -> None:
    studio.add(250)
    studio.annotated |= {3}
    studio.hold(5, VERSION)
    studio.hold(6, f"{VERSION}-retry", None)
    studio.hold(7, VERSION)
    studio.hold(7, f"{VERSION}-retry", None)
    studio.hold(8, "rsvp-demo-other")
    wanted = [task for task in range(1, 251) if task not in (3, 5, 6, 7)]
    assert chosen(studio, Selection()) == [*wanted, 6]  # what was answered emptily comes last
    assert 3 in chosen(studio, Selection(annotated=True))
    assert chosen(studio, Selection(limit=2)) == [1, 2]
    assert chosen(studio, Selection(ranges=((4, 9), (249, 400)))) == [4, 8, 9, 6, 249, 250]
    assert chosen(studio, Selection(only=(9, 5, 2))) == [2, 9]


def test_filters_reach_the_data_manager(studio: FakeStudio) -> None:
    studio.add(4)
    studio.tasks[2]["camera"] = "north"
    assert chosen(studio, Selection((parse_filter("data.camera = north"),))) == [2]


def test_orders(studio: FakeStudio) -> None:
    studio.add(6)
    for task, score in ((2, 0.2), (2, 0.9), (4, 0.1), (5, 0.4), (5, None)):
        studio.hold(task, "rsvp-demo-older", score)
    assert chosen(studio, Selection(order="doubt")) == [4, 5, 2, 1, 3, 6]
    assert chosen(studio, Selection(order="doubt", ranges=((1, 4),), limit=2)) == [4, 2]
    assert chosen(studio, Selection(view=3)) == [6, 5, 4, 3, 2, 1]
    order: Order = "random"
    first = chosen(studio, Selection(order=order, seed=1))
    assert sorted(first) == [1, 2, 3, 4, 5, 6]
    assert first == chosen(studio, Selection(order=order, seed=1)) != chosen(studio, Selection(order=order, seed=2))


def test_many_versions_of_one_task_are_read_from_its_predictions(studio: FakeStudio) -> None:
    studio.add(1)
    for number in range(40):
        studio.hold(1, f"rsvp-demo-{number:08d}")
    studio.hold(1, f"{VERSION}-retry")
    studio.hold(1, VERSION)
    assert chosen(studio, Selection()) == []
