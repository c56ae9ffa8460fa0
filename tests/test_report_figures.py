"""Counts, shares, distributions, times and minutes of answers: hand-computed, and sums that must add up."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_project import CONFIG

from rsvp_backend.evaluation.metrics import Overlap
from rsvp_backend.labelstudio.compared import Source
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.labelstudio.reading import Reading
from rsvp_backend.reports.answers import Answer, Fate, Judged, Kind
from rsvp_backend.reports.over_time import timeline
from rsvp_backend.reports.overlays import worst
from rsvp_backend.reports.page import page
from rsvp_backend.reports.reading import Project
from rsvp_backend.reports.report import Report, Wanted, summarize
from rsvp_backend.reports.saved import lead_times, saved
from rsvp_backend.reports.summary import Calibration, Group, Tally, by_label, by_version
from rsvp_backend.reports.tables import answers_csv, regions_csv

PROJECT = Project(3, "Doors", None, Source(CONFIG, frozenset(), ImageFetcher(None), 0.0, 10**6, False))
MONDAY = datetime(2026, 11, 2, 9, tzinfo=UTC)
UNTOUCHED = Judged(Fate.UNTOUCHED, "Key", 2400, 100, 100, 100, 0.9)
EDITED = Judged(Fate.EDITED, "Key", 2400, 100, 150, 50, 0.7)  # 100 px added, 50 removed, IoU 0.25
DELETED = Judged(Fate.DELETED, "Cup", 2400, 100, 0, 0, 0.3)
DRAWN = Judged(Fate.DRAWN, "Cup", 2400, 0, 240, 0)


def answer(
    *regions: Judged,
    task: int = 1,
    version: str = "v",
    predicted: bool = True,
    at: datetime | None = MONDAY,
    lead_s: float | None = None,
    person: int = 1,
) -> Answer:
    both = sum(region.both_px or 0 for region in regions)
    either = sum((region.before_px or 0) + region.after_px - (region.both_px or 0) for region in regions)
    overlap = Overlap(both, either) if predicted else None
    return Answer(task, task, person, predicted, version if predicted else "", at, lead_s, regions, overlap)


def report(answers: Sequence[Answer], **wanted: float) -> Report:
    return summarize(PROJECT, answers, Reading(), Wanted("http://ls", **wanted))


def test_a_tally_by_hand() -> None:
    tally = Tally.of([(1, UNTOUCHED), (1, EDITED), (2, EDITED), (3, DELETED), (4, DRAWN)])
    assert tally.fates == {Fate.UNTOUCHED: 1, Fate.EDITED: 2, Fate.DELETED: 1, Fate.DRAWN: 1}
    assert (tally.predicted, tally.final) == (4, 4)
    assert [tally.share(fate) for fate in Fate] == [0.25, 0.5, 0.25, 0.25]
    assert (tally.iou.count, tally.iou.mean, tally.iou.median) == (4, (1 + 0.25 + 0.25 + 0) / 4, 0.25)
    assert (tally.changed_px, tally.added_px, tally.removed_px) == (300, 200, 100)
    assert tally.changed_share.median == 150 / 2400


def test_a_group_by_hand() -> None:
    group = Group.of("all", [
        answer(UNTOUCHED, lead_s=10), answer(EDITED, DELETED, task=2, lead_s=30), answer(task=3), answer(DRAWN, task=4),
        answer(DRAWN, task=4, predicted=False),
    ])  # fmt: skip
    assert (group.answers, group.tasks, group.empty) == (5, 4, 2)
    assert group.kinds == {
        Kind.UNTOUCHED: 1, Kind.EDITED: 1, Kind.DELETED: 0, Kind.MISSED: 1, Kind.EMPTY_RIGHT: 1, Kind.BY_HAND: 1,
    }  # fmt: skip
    assert (group.iou.count, group.iou.mean) == (3, pytest.approx((1 + 50 / 300 + 0) / 3))
    assert (group.lead_s.count, group.lead_s.median) == (2, 20)
    assert group.iou.interval[0] <= group.iou.mean <= group.iou.interval[1]


def test_calibration_by_hand() -> None:
    found = Calibration.of([answer(UNTOUCHED, DELETED), answer(EDITED, DRAWN, task=2)])
    assert [(b.count, b.predicted, b.reached) for b in found.table] == [(1, 0.3, 0), (1, 0.7, 0.25), (1, 0.9, 1)]
    assert found.count == 3
    assert found.error == pytest.approx((0.3 + 0.45 + 0.1) / 3)


def test_versions_come_in_the_order_of_their_first_answer() -> None:
    groups = by_version([answer(version="b"), answer(version="a"), answer(version="b"), answer(predicted=False)])
    assert [(group.name, group.answers) for group in groups] == [("b", 2), ("a", 1)]


def test_regions_count_under_the_predicted_label() -> None:
    relabelled = Judged(Fate.EDITED, "Key", 2400, 100, 100, 100, 0.7, relabelled=True)
    found = by_label([answer(relabelled, UNTOUCHED), answer(DRAWN)])
    assert [(name, tally.predicted, tally.fates[Fate.DRAWN]) for name, tally in found] == [("Key", 2, 0), ("Cup", 0, 1)]


@pytest.mark.parametrize(
    ("days", "unit", "groups", "label"),
    [
        ((0, 2), "day", 3, "2 Nov"),
        ((1, 40), "week", 6, "2 Nov"),  # from a Tuesday to a Sunday: weeks begin on Monday
        ((0, 430), "month", 15, "Nov 2026"),
    ],
)
def test_time_is_cut_into_days_weeks_or_months(days: tuple[int, int], unit: str, groups: int, label: str) -> None:
    first, last = (MONDAY + timedelta(days=day) for day in days)
    line = timeline([answer(UNTOUCHED, at=first, version="a"), answer(at=last, version="b"), answer(at=None)])
    assert (line.unit, len(line.groups), line.labels[0]) == (unit, groups, label)
    assert [group.answers for group in line.groups] == [1, *[0] * (groups - 2), 1]
    assert line.begins == ((0, "a"), (groups - 1, "b"))


def by_hand(seconds: Sequence[float]) -> list[Answer]:
    return [answer(DRAWN, task=100 + n, predicted=False, lead_s=lead) for n, lead in enumerate(seconds)]


def assisted(seconds: Sequence[float]) -> list[Answer]:
    return [answer(EDITED, task=n, lead_s=lead) for n, lead in enumerate(seconds)]


def test_minutes_saved_by_hand() -> None:
    found = saved([*by_hand([50, 60, 60, 70, 3600]), *assisted([10, 20, 20, 20, 30, 7200])])
    assert (found.known, found.source, found.by_hand, found.assisted) == (True, "measured", 5, 6)
    assert (found.by_hand_s, found.assisted_s, found.per_answer_s, found.total_s) == (60, 20, 40, 240)
    low_s, high_s = found.interval_s
    assert low_s <= 40 <= high_s


def test_minutes_saved_with_a_time_that_is_given() -> None:
    found = saved([*by_hand([50]), *assisted([10, 20, 20, 20, 30])], minutes_by_hand=2)
    assert (found.source, found.by_hand_s, found.per_answer_s, found.total_s) == ("given", 120, 100, 500)
    equal = saved(assisted([20] * 5), minutes_by_hand=2)
    assert equal.interval_s == (100, 100)


def test_predictions_can_cost_time() -> None:
    found = saved([*by_hand([10] * 5), *assisted([30] * 6)])
    assert (found.per_answer_s, found.total_s, found.interval_s) == (-20, -120, (-20, -20))


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([answer(UNTOUCHED)] * 9, "no annotation has a lead_time"),
        (
            [*by_hand([9] * 9), *assisted([9] * 4)],
            "answers with a predicted mask and a lead_time: 4, at least 5 are needed",
        ),
        (
            [*by_hand([9] * 4), *assisted([9] * 9)],
            "answers drawn by hand and with a lead_time: 4, at least 5 are needed",
        ),
    ],
)
def test_minutes_saved_are_not_known(answers: list[Answer], why: str) -> None:
    found = saved(answers)
    assert found.why.startswith(why)
    assert math.isnan(found.total_s)
    assert "<b>Not known</b>" in page(report(answers))


def test_lead_times_by_kind() -> None:
    found = dict(lead_times([*by_hand([9, 11]), *assisted([3]), answer(UNTOUCHED)]))
    assert {kind: (spread.count, spread.median) for kind, spread in found.items()} == {
        "by hand": (2, 10),
        "edited": (1, 3),
    }


def test_the_worst_come_first_and_perfect_ones_never() -> None:
    bad, worse = answer(EDITED, task=1), answer(DELETED, task=2)
    large = answer(DELETED, DELETED, task=3)
    assert worst([answer(UNTOUCHED, task=4), bad, worse, large, answer(task=5)], 20) == [large, worse, bad]
    assert worst([bad, worse, large], 1) == [large]


def test_csv_lines_hold_the_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(answers_csv([answer(EDITED, DRAWN, lead_s=12.25)], {}))))
    assert rows == [{
        "task": "1", "annotation": "1", "annotator": "1", "submitted": "2026-11-02T09:00:00+00:00", "version": "v",
        "kind": "edited", "iou": f"{50 / 440:.6g}", "intersection_px": "50", "union_px": "440", "untouched": "0",
        "edited": "1", "deleted": "0", "drawn": "1", "lead_s": "12.25",
    }]  # fmt: skip
    edited, drawn = csv.DictReader(io.StringIO(regions_csv([answer(EDITED, DRAWN)], {1: "=cmd|'/c calc'!A1"})))
    assert (edited["added_px"], edited["removed_px"], edited["changed_px"], edited["iou"]) == (
        "100",
        "50",
        "150",
        "0.25",
    )
    assert (drawn["fate"], drawn["iou"], drawn["added_px"]) == ("drawn", "", "240")
    assert edited["annotator"] == "'=cmd|'/c calc'!A1"  # a spreadsheet shows it, and does not run it


pixels = st.integers(0, 300)


@st.composite
def regions(draw: st.DrawFn) -> Judged:
    fate = draw(st.sampled_from(Fate))
    label, score = draw(st.sampled_from(["Key", "Cup", None])), draw(st.none() | st.floats(0, 1))
    before, after = 1 + draw(pixels), 1 + draw(pixels)
    both = draw(st.integers(0, min(before, after)))
    counts: dict[Fate, tuple[int | None, int, int | None]] = {
        Fate.UNTOUCHED: (before, before, before),
        Fate.EDITED: draw(st.sampled_from([(before, after, both), (None, after, None)])),
        Fate.DELETED: (before, 0, 0), Fate.DRAWN: (0, after, 0),
    }  # fmt: skip
    return Judged(fate, label, 2400, *counts[fate], score if fate is not Fate.DRAWN else None)


@st.composite
def any_answer(draw: st.DrawFn) -> Answer:
    found = draw(st.lists(regions(), max_size=4))
    predicted = any(region.predicted for region in found) or not found or draw(st.booleans())
    moment = draw(st.none() | st.integers(0, 3000).map(lambda hours: MONDAY + timedelta(hours=hours)))
    version, person, lead_s = (
        draw(st.sampled_from(["a", "b", ""])),
        draw(st.integers(1, 3)),
        draw(st.none() | st.floats(0.1, 900)),
    )
    task = draw(st.integers(1, 9))
    return answer(*found, task=task, version=version, predicted=predicted, at=moment, lead_s=lead_s, person=person)


@settings(max_examples=40)
@given(st.lists(any_answer(), max_size=12))
def test_numbers_add_up(answers: list[Answer]) -> None:
    made = report(answers)
    flat = [region for one in answers for region in one.regions]
    whole = made.all.regions
    assert whole.predicted + whole.fates[Fate.DRAWN] == len(flat) == sum(tally.predicted + tally.fates[Fate.DRAWN]
                                                                         for _, tally in made.labels)  # fmt: skip
    assert sum(made.all.kinds.values()) == made.all.answers == len(answers)
    assert whole.changed_px == whole.added_px + whole.removed_px
    assert sum(group.answers for group in made.versions) == sum(one.predicted for one in answers)
    assert sum(group.answers for group in made.annotators) == len(answers)
    assert sum(group.answers for group in made.timeline.groups) == sum(one.submitted is not None for one in answers)
    for fate in Fate:
        assert sum(group.regions.fates[fate] for group in made.annotators) == whole.fates[fate]
    assert sum(b.count for b in made.calibration.table) == made.calibration.count
    assert sum(spread.count for _, spread in made.leads) == made.all.lead_s.count
    assert Counter(one.kind for one in answers) == Counter({kind: n for kind, n in made.all.kinds.items() if n})
    assert len(answers_csv(answers, {}).splitlines()) == 1 + len(answers)
    assert len(regions_csv(answers, {}).splitlines()) == 1 + len(flat)
    json.dumps(made.to_dict(), allow_nan=False)
    assert "nan" not in page(made)
