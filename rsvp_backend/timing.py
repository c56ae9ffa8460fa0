"""How long the stages of one task take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def timed(timings_s: dict[str, float], stage: str) -> Iterator[None]:
    """Write the seconds that the block takes to ``timings_s[stage]``, also where it raises."""
    start = time.perf_counter()
    try:
        yield
    finally:
        timings_s[stage] = time.perf_counter() - start
