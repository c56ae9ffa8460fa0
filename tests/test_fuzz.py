"""A small, fixed share of what benchmarks/fuzz.py does a hundred thousand times."""

from __future__ import annotations

import pytest
from fuzz_targets import TARGETS, Target
from hypothesis import HealthCheck, Phase, given, settings

INPUTS = 1500


def test_the_shares_are_a_whole() -> None:
    assert sum(target.share for target in TARGETS) == pytest.approx(1.0)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_only_documented_errors_come_of_hostile_inputs(target: Target) -> None:
    with target.opened() as run:

        @settings(
            max_examples=round(INPUTS * target.share),
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(target.inputs)
        def take(value: object) -> None:
            run(value)

        take()
