"""Which of a project's tasks to answer, and in which order."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

from rsvp_backend.answers import RETRY_SUFFIX
from rsvp_backend.labelstudio import listing
from rsvp_backend.labelstudio.client import LabelStudioClient
from rsvp_backend.labelstudio.listing import Fetch
from rsvp_backend.labelstudio.replies import JSON

Order = Literal["id", "doubt", "random"]
_CHUNK = 100


@dataclass(frozen=True, slots=True)
class Selection:
    """Tasks without a prediction of the version, and of those the ones that all of this is true of.

    ``filters``: of the data manager's form; ``ranges``: of ids, both ends included; ``view``: a tab of the data
    manager, in its order; ``annotated``: also those with annotations; ``only``: ids. ``order``: ``doubt`` puts the
    lowest scores of earlier versions first and tasks without a score last; ``random`` goes by ``seed``.
    """

    filters: tuple[JSON, ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    view: int | None = None
    annotated: bool = False
    only: tuple[int, ...] | None = None
    order: Order = "id"
    limit: int | None = None
    seed: int = 0

    @property
    def conditions(self) -> tuple[JSON, ...]:
        return self.filters if self.annotated else (*listing.OPEN, *self.filters)

    @property
    def by_id(self) -> bool:
        """Tasks can be read as they are listed; else their ids are collected first."""
        return self.view is None and self.only is None and self.order == "id"

    def tasks(self, client: LabelStudioClient, project: int, version: str, fetch: Fetch) -> Iterator[JSON]:
        """The tasks, a page at a time; no more than ids are held in memory."""
        lacking = partial(listing.lacking, client, project, version, fetch=fetch)
        found: Iterator[JSON]
        if self.by_id and not self.ranges:
            found = lacking(self.conditions)
        elif self.by_id:
            found = (task for first, last in self.ranges for task in lacking(self._within(first, last)))
        else:
            found = self._in_order(client, project, version, fetch)
        return islice(found, self.limit)

    def count(self, client: LabelStudioClient, project: int, version: str) -> int:
        """How many `tasks` are there, at most; exact where they are listed by id."""
        many = partial(listing.count_lacking, client, project, version)
        if self.by_id and not self.ranges:
            found = many(self.conditions)
        elif self.by_id:
            found = sum(many(self._within(first, last)) for first, last in self.ranges)
        else:
            found = len(self._ids(client, project, version, listing.at_once))
        return found if self.limit is None else min(found, self.limit)

    def _within(self, first: int, last: int) -> tuple[JSON, ...]:
        return (listing.between(first, last), *self.conditions)

    def _in_order(self, client: LabelStudioClient, project: int, version: str, fetch: Fetch) -> Iterator[JSON]:
        wanted = self._ids(client, project, version, fetch)
        for start in range(0, len(wanted), _CHUNK):
            chunk = list(wanted[start : start + _CHUNK])
            conditions = (listing.one_of(chunk), *self.conditions)
            found = {int(one["id"]): one for one in listing.lacking(client, project, version, conditions, fetch)}
            yield from (found[task] for task in chunk if task in found)

    def _ids(self, client: LabelStudioClient, project: int, version: str, fetch: Fetch) -> Sequence[int]:
        found: Iterable[int]
        if self.only is not None:
            found = sorted(self.only)
        elif self.view is not None:
            found = listing.in_view(client, project, self.view, fetch)
        else:
            found = self._sorted(client, project, version, fetch)
        kept = array("q", (task for task in found if self._in_ranges(task)))
        if self.order == "random":
            random.Random(self.seed).shuffle(kept)
        return kept

    def _sorted(self, client: LabelStudioClient, project: int, version: str, fetch: Fetch) -> Iterator[int]:
        """Those that lack the version; the ones with an empty prediction in its place last where nothing is sorted."""
        lacking = (listing.with_version(version, present=False), listing.with_version(version + RETRY_SUFFIX))
        conditions = [(*self.conditions, one) for one in lacking]
        if self.order == "doubt":
            scored = [one for filters in conditions for one in listing.scores(client, project, filters, fetch)]
            scored.sort(key=lambda one: (one[1] is None, one[1], one[0]))
            yield from (task for task, _ in scored)
        else:
            for filters in conditions:
                yield from listing.ids(client, project, filters, fetch)

    def _in_ranges(self, task: int) -> bool:
        return not self.ranges or any(first <= task <= last for first, last in self.ranges)
