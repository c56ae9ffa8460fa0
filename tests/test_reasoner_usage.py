"""usage.py: what is counted, and when a budget stops a call and lets calls go on."""

from __future__ import annotations

from typing import Any

import pytest

from rsvp_backend.reasoner.usage import HOUR_S, Budget, BudgetError, Meter, Prices, Usage

REPORTED = {"prompt_tokens": 1000, "completion_tokens": 100}
PRICES = Prices(input=1.0, output=10.0)  # a reported call costs 0.002


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def answered(meter: Meter, usage: Any = REPORTED) -> None:
    with meter.call() as call:
        call.answered(usage)


def test_tokens_cost_and_results_are_counted() -> None:
    meter = Meter("m", PRICES)
    answered(meter)
    answered(meter)
    with meter.call() as call:
        call.free("rate_limited")
    with pytest.raises(RuntimeError), meter.call():
        raise RuntimeError
    expected = {"answered": 2, "rate_limited": 1, "failed": 1}
    assert meter.usage == Usage(expected, 2000, 200, pytest.approx(0.006))  # the failed one counts as the dearest


@pytest.mark.parametrize(
    "usage", [None, {}, "x", {"prompt_tokens": 5}, REPORTED | {"prompt_tokens": -1}, REPORTED | {"prompt_tokens": True}]
)
def test_unreported_tokens_cost_as_much_as_the_longest_answer(usage: Any) -> None:
    meter = Meter("m", PRICES, max_tokens=2000)
    answered(meter, usage)
    assert meter.usage == Usage({"answered": 1}, 0, 0, pytest.approx(0.02))


@pytest.mark.parametrize(
    ("budget", "name"), [(Budget(cost_per_hour=0.004), "BUDGET_PER_HOUR"), (Budget(calls_per_hour=2), "CALLS_PER_HOUR")]
)
def test_a_budget_stops_calls_and_frees_up_as_the_hour_slides(budget: Budget, name: str) -> None:
    clock = Clock()
    meter = Meter("m", PRICES, budget, clock=clock)
    answered(meter)
    clock.now_s = 600.0
    answered(meter)
    for clock.now_s, left_s in ((700.0, 2900), (HOUR_S - 1, 1)):
        with pytest.raises(BudgetError, match=rf"RSVP_REASONER_{name}.*can go out in {left_s} s"):
            answered(meter)
    clock.now_s = HOUR_S
    answered(meter)
    with pytest.raises(BudgetError, match="can go out in 600 s"):
        answered(meter)
    assert meter.usage.calls == {"answered": 3, "over_budget": 3}


def test_calls_under_way_count_towards_the_budget() -> None:
    meter = Meter("m", PRICES, Budget(cost_per_hour=0.02), max_tokens=1000)  # 0.01 at most each
    with meter.call() as first, meter.call() as second:
        with pytest.raises(BudgetError, match="2 calls under way: the next call can go out when those have ended"):
            answered(meter)
        first.answered(REPORTED)
        second.free("unreachable")
    answered(meter)
    assert meter.usage.cost == pytest.approx(0.004)


def test_free_calls_leave_the_budget_alone() -> None:
    meter = Meter("m", PRICES, Budget(calls_per_hour=1))
    for _ in range(3):
        with meter.call() as call:
            call.free("server_error")
    answered(meter)
    assert meter.usage.calls == {"server_error": 3, "answered": 1}
