import numpy as np
import pytest

from rsvp_backend.evaluation.metrics import Overlap, bootstrap_interval, ciou, giou


def mask(*pixels: int) -> np.ndarray:
    out = np.zeros((2, 3), dtype=bool)
    out.flat[list(pixels)] = True
    return out


def test_hand_computed_scores():
    samples = [Overlap.of(mask(0, 1), mask(1, 2)), Overlap.of(mask(), mask()), Overlap.of(mask(0), mask())]
    assert [s.iou for s in samples] == [pytest.approx(1 / 3), 1.0, 0.0]
    assert giou(samples) == pytest.approx(4 / 9)
    assert ciou(samples) == pytest.approx(1 / 4)


def test_all_empty_counts_as_right():
    assert ciou([Overlap.of(mask(), mask())]) == 1.0


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="equal shapes"):
        Overlap.of(mask(0), np.zeros((3, 2), dtype=bool))


def test_bootstrap_interval_covers_the_mean_and_shrinks():
    values = np.random.default_rng(0).random(50)
    low, high = bootstrap_interval(list(values))
    assert low < values.mean() < high
    wider = bootstrap_interval(list(values[:5]))
    assert high - low < wider[1] - wider[0]
