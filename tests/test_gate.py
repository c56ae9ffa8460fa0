"""The gate's decisions and the calibration of scores, on made-up scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsvp_backend.training.gate import Calibration, calibrate, decide, gain_interval
from rsvp_backend.training.reliability import expected_error
from rsvp_backend.training.scoring import Scores

IOUS = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def scores(ious: list[float], tasks: list[int] | None = None, empty: list[bool] | None = None) -> Scores:
    count = len(ious)
    return Scores(tuple(ious), (0.5,) * count, tuple(tasks or range(count)), tuple(empty or [False] * count))


OLD = scores([0.9] * 20)


def test_a_clear_gain_without_loss_is_promoted() -> None:
    decision = decide(scores([0.1, 0.2, 0.1, 0.3]), scores([0.6, 0.7, 0.5, 0.8]), OLD, OLD)
    assert decision.promote
    low, high = decision.interval
    assert 0 < low <= 0.475 <= high
    assert len(decision.reasons) == 2


def test_a_gain_within_noise_is_kept_as_a_candidate() -> None:
    decision = decide(scores([0.5] * 6), scores([0.9, 0.1, 0.8, 0.3, 0.9, 0.2]), OLD, OLD)
    assert not decision.promote
    assert decision.interval[0] < 0


def test_equal_scores_are_no_gain() -> None:
    assert not decide(OLD, OLD, OLD, OLD).promote


@pytest.mark.parametrize(("after", "promoted"), [(0.895, True), (0.88, False)])
def test_forgetting_stops_a_promotion(after: float, promoted: bool) -> None:
    decision = decide(scores([0.1] * 5), scores([0.7] * 5), OLD, scores([after] * 20))
    assert decision.promote is promoted
    assert any("replay" in reason for reason in decision.reasons)


def test_too_few_tasks_prove_nothing() -> None:
    decision = decide(scores([0.1] * 8, [1, 2] * 4), scores([0.9] * 8, [1, 2] * 4), OLD, OLD)
    assert not decision.promote
    assert "only 2 tasks" in decision.reasons[0]


def test_without_replay_only_the_gain_counts() -> None:
    assert decide(scores([0.1] * 5), scores([0.7] * 5), scores([]), scores([])).promote


def test_learning_to_answer_nothing_is_no_gain() -> None:
    empty = [False] * 4 + [True] * 8
    before, after = scores([0.6] * 4 + [0.0] * 8, empty=empty), scores([0.0] * 4 + [1.0] * 8, empty=empty)
    decision = decide(before, after, OLD, OLD)
    assert decision.interval[0] > 0
    assert not decision.promote


def test_scores_of_different_corrections_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs"):
        decide(scores([0.1] * 4), scores([0.1] * 5), OLD, OLD)


def test_regions_of_one_task_count_as_one_piece_of_evidence() -> None:
    before, after = [0.5] * 40, [0.9] * 10 + [0.4] * 30
    one_each = gain_interval(scores(before), scores(after))
    of_four = gain_interval(scores(before, [n // 10 for n in range(40)]), scores(after, [n // 10 for n in range(40)]))
    assert of_four[0] < one_each[0] < one_each[1] < of_four[1]


@given(before=IOUS, shift=st.floats(0.001, 0.5))
def test_the_interval_holds_the_mean_gain_and_the_decision_is_repeatable(before: list[float], shift: float) -> None:
    after = [min(1.0, iou + shift) for iou in before]
    low, high = gain_interval(scores(before), scores(after))
    gain = float(np.mean(after) - np.mean(before))
    assert low - 1e-9 <= gain <= high + 1e-9
    assert gain_interval(scores(before), scores(after)) == (low, high)


def predicted(pairs: list[tuple[float, float]]) -> Scores:
    return Scores(
        tuple(r for _, r in pairs), tuple(p for p, _ in pairs), tuple(range(len(pairs))), (False,) * len(pairs)
    )


PAIRS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=10, max_size=60)


@given(pairs=PAIRS, first=st.floats(0, 1), second=st.floats(0, 1))
def test_calibration_stays_in_range_and_keeps_the_order(
    pairs: list[tuple[float, float]], first: float, second: float
) -> None:
    calibration = calibrate(predicted(pairs))
    low, high = sorted((first, second))
    assert 0 <= calibration.apply(low) <= calibration.apply(high) <= 1
    assert sum(b.count for b in calibration.table) == len(pairs)
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


def test_overconfident_scores_are_brought_down() -> None:
    rng = np.random.default_rng(0)
    said = rng.uniform(0.5, 1.0, 200)
    raw = predicted([(float(p), float(np.clip(p - 0.3 + rng.normal(0, 0.05), 0, 1))) for p in said])
    calibration = calibrate(raw)
    assert calibration.apply(0.8) == pytest.approx(0.5, abs=0.05)
    better = predicted([(calibration.apply(p), r) for p, r in zip(raw.predicted, raw.ious, strict=True)])
    assert expected_error(calibrate(better).table) < 0.2 * expected_error(calibration.table)


def test_few_corrections_leave_scores_as_they_are() -> None:
    calibration = calibrate(predicted([(0.9, 0.1)] * 9))
    assert calibration.apply(0.7) == 0.7
    assert calibration.apply(1.7) == 1.0
    assert [(b.count, b.predicted, b.reached) for b in calibration.table] == [
        (9, pytest.approx(0.9), pytest.approx(0.1))
    ]
    assert np.isnan(expected_error(calibrate(scores([])).table))
