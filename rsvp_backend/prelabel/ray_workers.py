"""The workers of `RayLine`: each loads what its stage needs once, wherever Ray puts it, and takes batches.

Ray moves rows of two columns: ``item``, a value of the steps, and ``told``, what its way has taken so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from rsvp_backend import presets
from rsvp_backend.access import make_fetcher, make_traces, open_client
from rsvp_backend.answers import Question
from rsvp_backend.errors import ImageError, SettingsError
from rsvp_backend.metrics import meter_of
from rsvp_backend.pipeline import RSVP
from rsvp_backend.prelabel.looking import batches, look_many
from rsvp_backend.prelabel.patience import Patience
from rsvp_backend.prelabel.running import Result, encoded
from rsvp_backend.prelabel.steps import Answered, Asked, Common, Seen, Work, ask, cut, look
from rsvp_backend.prelabel.studio import encode
from rsvp_backend.settings import Settings
from rsvp_backend.types import Prompt, Segmentation

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """What all workers are told. ``version``: the one that they must come to; ``reasoners``: questions at a time to a
    reasoner on a server; ``patience_s``: how long Label Studio may be away."""

    settings: Settings
    common: Common
    project: int
    version: str
    reasoners: int = 4
    patience_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Told:
    """``busy_s``: what each stage took; ``spent``: cost and calls of a reasoner that counts, by one row of a batch."""

    busy_s: Mapping[str, float] = field(default_factory=dict)
    spent: tuple[float, int] | None = None


class _Worker:
    """``name`` of its stage; `run` gives a value for each item, in order."""

    name = ""

    def run(self, items: list[Any]) -> Sequence[Any]:
        raise NotImplementedError

    def spent(self) -> tuple[float, int] | None:
        """Cost and calls so far."""
        return None

    def __call__(self, batch: Batch) -> Batch:
        items, told = list(batch["item"]), list(batch.get("told", [Told() for _ in batch["item"]]))
        began_s, before = time.monotonic(), self.spent()
        made, after = self.run(items), self.spent()
        share = (time.monotonic() - began_s) / max(1, len(items))
        told = [replace(one, busy_s={**one.busy_s, self.name: share}) for one in told]
        if told and before is not None and after is not None:
            told[0] = replace(told[0], spent=(after[0] - before[0], after[1] - before[1]))
        return {"item": _column(made), "told": _column(told)}


class Fetching(_Worker):
    name = "fetch"

    def __init__(self, job: Job) -> None:
        self._fetcher, self._common = make_fetcher(job.settings), job.common
        self._patience = Patience(open_client(job.settings), job.patience_s, lambda: False)

    def run(self, items: list[Work]) -> list[Asked | Answered]:
        return [ask(work, self._common, self._fetch) for work in items]

    def _fetch(self, question: Question) -> Image.Image:
        """A second try follows where Label Studio was away, or the first one met a short fault."""
        try:
            return self._fetcher.fetch(question.uri, None, question.task_id)
        except ImageError:
            self._patience.until_there()
            return self._fetcher.fetch(question.uri, None, question.task_id)


class Reasoning(_Worker):
    name = "reason"

    def __init__(self, job: Job) -> None:
        reasoner, marks = presets.reasoner_of(job.settings)
        self._rsvp = RSVP(reasoner, _Elsewhere(), presets.pipeline_config(job.settings, marks))
        self._pool = None if batches(reasoner) else ThreadPoolExecutor(job.reasoners)

    def run(self, items: list[Asked | Answered]) -> list[Seen | Answered]:
        asked = [one for one in items if isinstance(one, Asked)]
        if self._pool is None:
            found = iter(look_many(self._rsvp, asked))
        else:
            found = iter(list(self._pool.map(partial(look, self._rsvp), asked)))
        return [next(found) if isinstance(one, Asked) else one for one in items]

    def spent(self) -> tuple[float, int] | None:
        meter = meter_of(self._rsvp.reasoner)
        return None if meter is None else (meter.usage.cost, sum(meter.usage.calls.values()))


class Segmenting(_Worker):
    """Stage 2, and the masks written as Label Studio wants them."""

    name = "segment"

    def __init__(self, job: Job) -> None:
        """Raises `SettingsError` where this machine's weights or settings make another version."""
        self._rsvp = presets.build(job.settings)
        if self._rsvp.version != job.version:
            raise SettingsError(
                f"a machine of the cluster has {self._rsvp.version}, the run is of {job.version}: give all machines "
                "the same weights, versions and settings"
            )
        self._encode: Callable[[Answered], Result] = partial(
            encode, version=job.version, config=job.common.config, project=job.project,
            traces=make_traces(job.settings),
        )  # fmt: skip

    def run(self, items: list[Seen | Answered]) -> list[Result]:
        done = iter(cut(self._rsvp, [one for one in items if isinstance(one, Seen)]))
        answered = [next(done) if isinstance(one, Seen) else one for one in items]
        return [encoded(one, self._encode) for one in answered]


class _Elsewhere:
    """The segmenter of a worker that only reasons."""

    version = ""

    def segment(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Segmentation]:
        raise NotImplementedError("this worker only reasons")


def _column(items: Sequence[Any]) -> Any:
    """One object per row, whatever they are."""
    column = np.empty(len(items), dtype=object)
    column[:] = items
    return column
