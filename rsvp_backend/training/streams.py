"""Training samples without an end: scenes are drawn in other processes, ahead of time, and mixed.

A drawn scene gives several samples. They are spread out, so that drawing once serves many steps without a batch of
look-alikes; a scene's pixels move to the training device once.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
import torch

T = TypeVar("T")
Drawn = TypeVar("Drawn")

_AHEAD_PER_WORKER = 3


class Stream(Generic[Drawn, T]):
    """Samples of ``draw(first_seed)``, ``draw(first_seed + 1)``, ..., in mixed order; ``next_seed`` is drawn next.

    ``draw`` and what it gives must be picklable; ``receive`` makes samples of it here, on the training device.
    ``workers``: processes that draw, 0 for none beside this one; which scenes come does not depend on it. ``kept``: how
    many samples are mixed.
    """

    def __init__(
        self,
        draw: Callable[[int], Drawn],
        receive: Callable[[Drawn], Sequence[T]],
        first_seed: int,
        *,
        workers: int = 0,
        kept: int = 64,
    ) -> None:
        self.next_seed = first_seed
        self._draw, self._kept, self._receive = draw, kept, receive
        self._samples: list[T] = []
        self._asked: deque[Future[Drawn]] = deque()
        self._workers, self._pool = workers, None if workers == 0 else _pool(draw, workers)

    def take(self, rng: np.random.Generator, count: int) -> list[T]:
        """The next ``count`` samples. Raises what drawing raised."""
        while len(self._samples) < max(self._kept, count):
            self._samples += self._receive(self._next())
            self.next_seed += 1
        taken = []
        for _ in range(count):
            n = int(rng.integers(len(self._samples)))
            self._samples[n], self._samples[-1] = self._samples[-1], self._samples[n]
            taken.append(self._samples.pop())
        return taken

    def close(self) -> None:
        """End the other processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _next(self) -> Drawn:
        if self._pool is None:
            return self._draw(self.next_seed)
        while len(self._asked) < self._workers * _AHEAD_PER_WORKER:
            self._asked.append(self._pool.submit(_drawn, self.next_seed + len(self._asked)))
        return self._asked.popleft().result()


def _pool(draw: Callable[[int], Any], workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(draw,))


_DRAW: list[Callable[[int], Any]] = []


def _start(draw: Callable[[int], Any]) -> None:
    """In a drawing process: what it draws with, which is sent once."""
    _DRAW.append(draw)
    torch.set_num_threads(1)


def _drawn(seed: int) -> Any:
    return _DRAW[0](seed)
