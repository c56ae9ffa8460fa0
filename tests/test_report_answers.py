"""What became of predictions: hand-made tasks, hand-computed pixels."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from report_project import IMAGE_PX, SQUARE, Dict, annotation, area, changed, drawn, predicted, studio, submitted, task

from rsvp_backend.evaluation.metrics import Overlap
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.images import ImageFetcher
from rsvp_backend.labelstudio.reading import Reading, Reason
from rsvp_backend.reports.answers import Answer, Fate, Judged, Kind
from rsvp_backend.reports.reading import open_project, read_answers


def read(*tasks: Dict) -> tuple[list[Answer], Reading]:
    with studio(tasks) as (_, client):
        return _read(client)


def _read(client: LabelStudioClient) -> tuple[list[Answer], Reading]:
    reading = Reading()
    project = open_project(client, 3, ImageFetcher(client.base_url, client.auth))
    return list(read_answers(client, project, reading)), reading


def one(*tasks: Dict) -> Answer:
    (answer,), reading = read(*tasks)
    assert not reading.left_out
    return answer


def test_an_untouched_prediction() -> None:
    before = predicted(area(*SQUARE), score=0.9)
    answer = one(submitted(5, before, before["result"], lead_time=12.5))
    assert answer == Answer(
        5, 5, 1, True, "rsvp-1", datetime(2026, 11, 3, 10, tzinfo=UTC), 12.5,
        (Judged(Fate.UNTOUCHED, "Key", IMAGE_PX, 100, 100, 100, 0.9),), Overlap(100, 100),
    )  # fmt: skip
    assert (answer.kind, answer.iou, answer.assisted) == (Kind.UNTOUCHED, 1.0, True)
    (region,) = answer.regions
    assert (region.iou, region.changed_px, region.changed_share) == (1.0, 0, 0.0)


def test_an_edit_is_measured_to_the_pixel() -> None:
    before = predicted(area(*SQUARE))
    answer = one(submitted(5, before, changed(before["result"], area(11, 4, 21, 17))))
    (region,) = answer.regions
    assert (region.before_px, region.after_px, region.both_px) == (100, 130, 50)
    assert (region.added_px, region.removed_px, region.changed_px) == (80, 50, 130)
    assert region.changed_share == 130 / 2400
    assert region.iou == answer.iou == 50 / 180
    assert (region.fate, answer.kind) == (Fate.EDITED, Kind.EDITED)


@pytest.mark.parametrize("how", ["deleted", "erased"])
def test_a_region_that_is_gone_is_deleted(how: str) -> None:
    before = predicted(area(*SQUARE))
    results = [] if how == "deleted" else changed(before["result"], area(0, 0, 0, 0))
    answer = one(submitted(5, before, results))
    assert answer.regions == (Judged(Fate.DELETED, "Key", IMAGE_PX, 100, 0, 0, 0.8),)
    assert (answer.kind, answer.iou, answer.regions[0].removed_px) == (Kind.DELETED, 0.0, 100)


def test_deleted_and_drawn_again_is_both() -> None:
    before = predicted(area(*SQUARE))
    answer = one(submitted(5, before, [drawn(area(6, 4, 16, 24))]))
    assert [region.fate for region in answer.regions] == [Fate.DRAWN, Fate.DELETED]
    assert answer.overlap == Overlap(100, 200)  # the masks are compared, whoever made the final one
    assert answer.kind is Kind.DELETED
    assert answer.regions[0].iou is None


def test_empty_predictions_right_and_wrong_and_none_at_all() -> None:
    empty = predicted()
    right, missed, by_hand, nothing = (
        task([annotation([], 1)], [empty], 1),
        task([annotation([drawn(area(0, 0, 20, 10))], 2, parent_prediction=7)], [empty], 2),
        task([annotation([drawn(area(0, 0, 20, 10))], 3)], [], 3),
        task([annotation([], 4)], [], 4),
    )
    answers, reading = read(right, missed, by_hand, nothing)
    assert [answer.kind for answer in answers] == [Kind.EMPTY_RIGHT, Kind.MISSED, Kind.BY_HAND]
    assert [answer.iou for answer in answers] == [None, 0.0, None]
    assert [answer.overlap for answer in answers] == [Overlap(0, 0), Overlap(0, 200), None]
    assert [answer.version for answer in answers] == ["rsvp-1", "rsvp-1", ""]
    assert reading.left_out == {Reason.EMPTY: 1}
    assert answers[1].regions == (Judged(Fate.DRAWN, "Key", IMAGE_PX, 0, 200, 0),)


def test_another_label_is_an_edit_and_a_wrong_mask() -> None:
    before = predicted(area(*SQUARE))
    answer = one(submitted(5, before, changed(before["result"], label="Cup")))
    (region,) = answer.regions
    assert (region.fate, region.relabelled, region.label) == (Fate.EDITED, True, "Key")
    assert (region.iou, region.changed_px, answer.iou) == (1.0, 0, 0.0)
    assert answer.overlap == Overlap(0, 200)


def test_what_only_claims_to_be_changed_is_untouched() -> None:
    before = predicted(area(*SQUARE))
    assert one(submitted(5, before, changed(before["result"]))).kind is Kind.UNTOUCHED


def test_what_only_claims_to_be_untouched_is_edited() -> None:
    before = predicted(area(*SQUARE))
    results = changed(before["result"], area(6, 4, 16, 15))
    results[0]["origin"] = "prediction"
    assert one(submitted(5, before, results)).kind is Kind.EDITED


def test_two_regions_and_one_that_was_missed() -> None:
    before = predicted(area(*SQUARE), area(30, 4, 40, 14))
    results = [
        *changed(before["result"][:2], area(6, 4, 16, 9)),
        *before["result"][2:],
        drawn(area(0, 30, 10, 40), "Cup"),
    ]
    answer = one(submitted(5, before, results))
    assert [region.fate for region in answer.regions] == [Fate.EDITED, Fate.UNTOUCHED, Fate.DRAWN]
    assert answer.overlap == Overlap(150, 300)
    assert answer.kind is Kind.EDITED


def test_accepted_suggestions_are_in_no_stored_prediction() -> None:
    suggested = predicted(area(*SQUARE), version="rsvp-live")
    accepted = one(task([annotation(suggested["result"])]))
    assert (accepted.kind, accepted.version, accepted.iou) == (Kind.UNTOUCHED, "rsvp-live", 1.0)
    edited = one(task([annotation(changed(suggested["result"], area(0, 0, 30, 10)))]))
    (region,) = edited.regions
    assert (edited.kind, edited.iou, edited.overlap) == (Kind.EDITED, None, None)
    assert (region.before_px, region.after_px, region.iou, region.changed_px) == (None, 300, None, None)


def test_the_version_is_that_of_the_prediction_that_was_begun_with() -> None:
    old = predicted(area(*SQUARE), number=7, version="old")
    new = predicted(area(*SQUARE), number=8, version="new", created_at="2026-11-02T11:00:00Z")
    later = predicted(number=9, version="later", created_at="2026-11-04T10:00:00Z")
    begun = [old, new, later]
    answers, _ = read(
        task([annotation(old["result"], 1, parent_prediction=7)], begun, 1),
        task([annotation(new["result"], 2)], begun, 2),
        task([annotation(old["result"], 3)], begun, 3),
        task([annotation([drawn(area(*SQUARE))], 4)], begun, 4),  # none was shown, as far as can be seen
    )
    assert [answer.version for answer in answers] == ["old", "new", "old", ""]
    assert answers[3].kind is Kind.BY_HAND


def test_what_cannot_be_compared_is_left_out_and_counted() -> None:
    before = predicted(area(*SQUARE))
    damaged = copy.deepcopy(before["result"])
    damaged[0]["value"]["rle"] = damaged[0]["value"]["rle"][:8]
    answers, reading = read(
        submitted(1, before, damaged),
        submitted(2, before, before["result"], was_cancelled=True),
        submitted(3, before, before["result"]),
    )
    assert [answer.task for answer in answers] == [3]
    assert reading.left_out == {Reason.DAMAGED: 1, Reason.SKIPPED: 1}
    assert reading.tasks_left_out[Reason.DAMAGED] == [1]
    assert reading.tasks == 3


def test_each_person_counts_once() -> None:
    before = predicted(area(*SQUARE))
    first = annotation([], 1, person=4, parent_prediction=7)
    again = annotation(before["result"], 2, person=4, parent_prediction=7, updated_at="2026-11-03T11:00:00Z")
    other = annotation(before["result"], 3, person=9, parent_prediction=7)
    answers, reading = read(task([first, again, other], [before]))
    assert [(answer.annotation, answer.annotator, answer.kind) for answer in answers] == [
        (2, 4, Kind.UNTOUCHED),
        (3, 9, Kind.UNTOUCHED),
    ]
    assert reading.left_out == {Reason.SUPERSEDED: 1}


@pytest.mark.parametrize("lead_time", [None, 0, -3, "12", True, float("1e999")])
def test_an_unusable_lead_time_is_unknown(lead_time: object) -> None:
    before = predicted(area(*SQUARE))
    assert one(submitted(5, before, before["result"], lead_time=lead_time)).lead_s is None


def test_masks_are_dropped_while_a_project_is_read() -> None:
    """Thirty tasks with two masks of one megabyte each: never more than a few are held."""
    size_px = (1000, 1000)
    before = predicted(area(10, 10, 500, 500, size_px))
    results = changed(before["result"], area(10, 10, 600, 500, size_px))

    def tasks() -> Iterator[Dict]:
        return (submitted(number, before, results) for number in range(1, 31))

    with studio(tasks) as (server, client):
        tracemalloc.start()
        try:
            answers, _ = _read(client)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(answers) == 30
    assert {answer.iou for answer in answers} == {490 / 590}
    assert peak < 15e6
    assert sum(path.startswith("/api/tasks") for path in server.paths()) > 1
