"""Run the pipeline over samples: resumable, on request several at a time, and no sample stops the others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rsvp_backend.evaluation.average_precision import components, packed
from rsvp_backend.evaluation.metrics import Overlap, box_iou, enclosing, mask_box
from rsvp_backend.evaluation.records import Found, Record, Said, Store
from rsvp_backend.evaluation.samples import Problems, Sample, Truth
from rsvp_backend.evaluation.stages import examine, fit
from rsvp_backend.pipeline import RSVP
from rsvp_backend.training.referring import SampleError
from rsvp_backend.types import BoolMask, EmptyReason, Outcome

ANSWERS = {None, EmptyReason.ABSENT, EmptyReason.NO_REGIONS, EmptyReason.INVALID_ANSWER, EmptyReason.EMPTY_MASK}
"""Outcomes that are the model's; all others are failures of what it runs on, and say nothing of it."""


def run(
    rsvp: RSVP,
    samples: Sequence[Sample],
    store: Store,
    problems: Problems,
    *,
    workers: int = 1,
    split_masks: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Score all of ``samples`` that ``store`` does not hold. ``progress`` is called for each, done before or now.

    ``split_masks``: connected parts of a mask are instances of their own. What cannot be read or run goes to
    ``problems``, and is tried again by the next run.
    """
    todo = [sample for sample in samples if sample.id not in store.records]
    for _ in range(len(samples) - len(todo)):
        progress()
    for sample, scored in _scored(rsvp, todo, workers, split_masks):
        if isinstance(scored, Record):
            store.add(scored)
        else:
            problems.add(f"{sample.id}: {scored}")
        progress()


def score(rsvp: RSVP, sample: Sample, split_masks: bool = False) -> Record:
    """Run one sample. Raises `SampleError` where its files cannot be read, or where a stage failed to run."""
    image = sample.image.load()
    truth = sample.truth.read(*image.size)
    began_s = time.perf_counter()
    outcome = rsvp(image, sample.instruction)
    seconds = time.perf_counter() - began_s
    if outcome.reason not in ANSWERS:
        raise SampleError(f"{outcome.reason}: {outcome.detail}")
    found = outcome.union(*image.size)
    overlap = Overlap.of(found, truth.mask, truth.ignore)
    return Record(
        sample.id, sample.image_id, sample.instruction, image.size, overlap.intersection_px, overlap.union_px,
        truth_px=int(truth.mask.sum()), found_px=int(found.sum()), outlined=truth.outlined,
        box_iou=_box_iou(found, truth), fit=fit(found, truth),
        stages=examine(rsvp, image, outcome, truth, sample.object), said=_said(outcome), seconds=round(seconds, 4),
        instances=_instances(outcome, split_masks), groups=dict(sample.groups),
    )  # fmt: skip


def _scored(
    rsvp: RSVP, todo: Sequence[Sample], workers: int, split_masks: bool
) -> Iterator[tuple[Sample, Record | SampleError]]:
    """In order; never more than a few ahead of what is taken."""

    def attempt(sample: Sample) -> Record | SampleError:
        try:
            return score(rsvp, sample, split_masks)
        except SampleError as error:
            return error

    if workers == 1:
        yield from ((sample, attempt(sample)) for sample in todo)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="evaluate") as pool:
        begun: deque[tuple[Sample, Future[Record | SampleError]]] = deque()
        try:
            for sample in todo:
                begun.append((sample, pool.submit(attempt, sample)))
                if len(begun) >= 2 * workers:
                    first, future = begun.popleft()
                    yield first, future.result()
            while begun:
                first, future = begun.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _box_iou(found: BoolMask, truth: Truth) -> float | None:
    if not truth.boxes:
        return None
    around_truth, around_found = enclosing(truth.boxes), mask_box(found)
    return box_iou(around_truth, around_found) if around_truth and around_found else 0.0


def _said(outcome: Outcome) -> Said:
    trace = outcome.trace
    return Said(
        trace.raw_texts, tuple(p.object for p in trace.proposals if p.present),
        tuple(box.xyxy for box in trace.crops), outcome.reason, outcome.detail,
    )  # fmt: skip


def _instances(outcome: Outcome, split_masks: bool) -> tuple[Found, ...]:
    found = []
    for instance in outcome.instances:
        whole = [(instance.mask, float(instance.score))]
        for mask, score_ in components(whole) if split_masks else whole:
            found.append(Found(packed(mask), round(score_, 6), instance.object))
    return tuple(found)
