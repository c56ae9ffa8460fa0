"""Run all variants over all questions: resumable, on request several questions at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rsvp_backend.evaluation.samples import Problems, Sample
from rsvp_backend.experiments.measuring import Row, measure
from rsvp_backend.experiments.store import Store
from rsvp_backend.experiments.variants import Plan, Variant
from rsvp_backend.training.referring import SampleError

Tell = Callable[[Variant, int], None]
"""Hears, per variant, how many of its answers are there."""


def run(
    plan: Plan,
    samples: Sequence[Sample],
    store: Store,
    problems: Problems,
    *,
    threads: int = 1,
    tell: Tell = lambda *_: None,
) -> dict[str, list[Row]]:
    """The rows of each variant by its name, in the order of ``samples``; those in ``store`` are not asked again.

    What cannot be read or run goes to ``problems``, and is tried again by the next run.
    """
    return {variant.name: _run(variant, samples, store, problems, threads, tell) for variant in plan.variants}


def _run(
    variant: Variant, samples: Sequence[Sample], store: Store, problems: Problems, threads: int, tell: Tell
) -> list[Row]:
    pipeline = variant.load()
    version = pipeline.version
    wanted = [(sample, repeat) for sample in samples for repeat in range(variant.repeats)]
    keys = [(variant.name, sample.id, repeat, version) for sample, repeat in wanted]
    todo = [ask for ask, key in zip(wanted, keys, strict=True) if key not in store.rows]
    done = len(wanted) - len(todo)
    tell(variant, done)

    def attempt(ask: tuple[Sample, int]) -> Row | str:
        try:
            return measure(variant, pipeline, version, *ask)
        except SampleError as error:
            return f"{variant.name}, {ask[0].id}: {error}"

    for result in _results(todo, attempt, threads):
        if isinstance(result, Row):
            store.add(result)
        else:
            problems.add(result)
        done += 1
        tell(variant, done)
    return [store.rows[key] for key in keys if key in store.rows]


def _results(
    todo: Sequence[tuple[Sample, int]], attempt: Callable[[tuple[Sample, int]], Row | str], threads: int
) -> Iterator[Row | str]:
    """In order; never more than a few ahead of what is taken."""
    if threads == 1:
        yield from map(attempt, todo)
        return
    begun: deque[Future[Row | str]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="experiment") as pool:
        try:
            for ask in todo:
                begun.append(pool.submit(attempt, ask))
                if len(begun) >= 2 * threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
