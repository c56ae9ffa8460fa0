"""What a reasoner is taught: a picture, a query, and the answer that was right for it.

Answers come from annotators (regions of the masks that they left), from a larger reasoner, or from generated scenes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from PIL import Image

from rsvp_backend.grid import mask_regions
from rsvp_backend.training.samples import Correction, Origin
from rsvp_backend.types import Marks, Proposal, Query, Regions


class Source(StrEnum):
    """Who gave the answer."""

    CORRECTION = "correction"
    TEACHER = "teacher"
    SCENE = "scene"
    OWN = "own"  # what the model itself answered before


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One question with its right answer.

    ``load_image`` gives the upright RGB image, unmarked, when it is needed. ``proposals``: where the reasoning of one
    is empty, nobody gave one: the model is not taught what to write there. ``key`` is the same for the same content,
    ``task`` the same for all examples of a task.
    """

    key: str
    task: int
    query: Query
    proposals: tuple[Proposal, ...]
    load_image: Callable[[], Image.Image]
    source: Source

    @property
    def present(self) -> bool:
        return any(proposal.present for proposal in self.proposals)


def make_example(
    task: int,
    query: Query,
    proposals: Sequence[Proposal],
    load_image: Callable[[], Image.Image],
    source: Source,
    picture: str,
) -> Example:
    """``picture`` names the image's content or address; it is part of the key."""
    content = repr((task, picture, query, tuple(proposals), source))
    key = hashlib.sha256(content.encode()).hexdigest()
    return Example(key, task, query, tuple(proposals), load_image, source)


def corrected_proposals(corrections: Iterable[Correction], marks: Marks) -> tuple[Proposal, ...]:
    """What the right answer to a task would have been, by the corrections of that task.

    One proposal per object: the regions that the union of its masks touches, and the reasoning that a person left
    beside one of them. Where every prediction was refused, its objects are absent.
    """
    shown: dict[str, list[Correction]] = {}
    refused: dict[str, Correction] = {}
    for correction in corrections:
        if correction.origin == Origin.REFUSED:
            refused[correction.text] = correction
        else:
            shown.setdefault(correction.text, []).append(correction)
    if shown:
        return tuple(_shown(text, group, marks) for text, group in shown.items())
    return tuple(
        Proposal(text, False, Regions(), f"there is no {text} in the picture.", one.label)
        for text, one in refused.items()
    )


def _shown(text: str, group: Sequence[Correction], marks: Marks) -> Proposal:
    mask = np.logical_or.reduce([one.mask for one in group])
    reasoning = next((one.reasoning for one in group if one.reasoning), "")
    return Proposal(text, True, mask_regions(mask, marks), reasoning, group[0].label)


def by_task(corrections: Iterable[Correction]) -> Iterator[tuple[int, list[Correction]]]:
    """The corrections of each task, in rising order of the tasks."""
    groups: dict[int, list[Correction]] = {}
    for correction in corrections:
        groups.setdefault(correction.task, []).append(correction)
    yield from sorted(groups.items())
