"""Stage 1 without a model: an oracle that knows the truth, with a known share of errors, and a stand-in for no stage 1.

The oracle turns the true mask into regions of whatever marks it is shown. What is lost with it is lost to the marks,
the padding or stage 2, never to a language model; what a language model loses is the distance to it.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from rsvp_backend.errors import ReasonerError
from rsvp_backend.grid import mask_regions
from rsvp_backend.reasoner.schema import region_fields
from rsvp_backend.types import Answer, BoolMask, Deadline, Marks, Proposal, Query, Regions


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is known of one question. ``mask``: bool ``(height, width)`` of the picture that is asked about, all False
    where nothing is meant; ``name``: of what is meant, as stage 2 is to be told it."""

    id: str
    mask: BoolMask
    name: str


@dataclass(frozen=True, slots=True)
class OracleReasoner:
    """A `Reasoner` that knows the answer to one question about one whole picture, in any marks.

    Right answers name every region that the true mask touches. With the probability ``noise`` one region is off: one
    of those named, drawn by chance, is left out (the only one moves to a neighbour), or an unnamed neighbour of one is
    named too, either with the same chance. Objects that are not there are always called absent. Chance depends on
    ``seed``, ``repeat``, the question and the marks alone.
    """

    known: Known
    noise: float = 0.0
    seed: int = 0
    repeat: int = 0
    canvas_px: tuple[int, int] | None = field(default=None, init=False)
    max_side_px: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise is {self.noise}: a probability from 0 to 1 is expected")

    @property
    def version(self) -> str:
        """The same for all questions: it tells kinds of oracles apart."""
        return f"oracle-{self.noise:g}-{self.seed}" if self.noise else "oracle"

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        """See `Reasoner.propose`. Raises `ReasonerError` for a picture of another size, such as a zoom's window."""
        height, width = self.known.mask.shape
        if visual_prompt.size != (width, height):
            raise ReasonerError(
                f"the oracle knows the whole picture of {width} x {height} px, it is shown one of "
                f"{visual_prompt.width} x {visual_prompt.height}: leave zoom off"
            )
        named = _named(mask_regions(self.known.mask, marks))
        rng = np.random.default_rng([self.seed, self.repeat, zlib.crc32(f"{self.known.id} {marks!r}".encode())])
        if named and rng.random() < self.noise:
            named = _one_off(named, marks, rng)
        present = bool(named)
        why = "It is where the true mask is." if present else "The true mask is empty."
        return _answer(Proposal(self.known.name, present, _regions(named), why), marks)


@dataclass(frozen=True, slots=True)
class WholeImageReasoner:
    """A `Reasoner` that does not reason: every region, and the instruction as it stands for the object.

    Stage 2 alone answers then, which is what a stage 1 has to be better than. It calls nothing absent.
    """

    version: str = field(default="whole-image", init=False)
    canvas_px: tuple[int, int] | None = field(default=None, init=False)
    max_side_px: int | None = field(default=None, init=False)

    def propose(self, visual_prompt: Image.Image, query: Query, marks: Marks, deadline: Deadline | None) -> Answer:
        """See `Reasoner.propose`."""
        rows, columns = range(1, marks.rows + 1), range(1, marks.columns + 1)
        cells = tuple(range(1, marks.rows * marks.columns + 1))
        regions = Regions(cells=cells) if marks.kind == "cells" else Regions(tuple(rows), tuple(columns))
        return _answer(Proposal(query.instruction, True, regions, "Not reasoned about."), marks)


_Named = dict[str, tuple[int, ...]]
"""Ids by the field of `Regions` that holds them; fields without ids are left out."""


def _named(regions: Regions) -> _Named:
    fields = {"rows": regions.rows, "columns": regions.columns, "cells": regions.cells}
    return {name: ids for name, ids in fields.items() if ids}


def _regions(named: _Named) -> Regions:
    return Regions(**named)


def _one_off(named: _Named, marks: Marks, rng: np.random.Generator) -> _Named:
    if rng.random() < 0.5:
        places = [(name, region) for name, ids in named.items() for region in ids]
        name, region = places[rng.integers(len(places))]
        kept = tuple(other for other in named[name] if other != region)
        if kept:
            return {**named, name: kept}
        around = _neighbours(name, (region,), marks)
        return {**named, name: (around[rng.integers(len(around))],)} if around else named
    added = [(name, region) for name, ids in named.items() for region in _neighbours(name, ids, marks)]
    if not added:
        return named
    name, region = added[rng.integers(len(added))]
    return {**named, name: tuple(sorted({*named[name], region}))}


def _neighbours(name: str, ids: tuple[int, ...], marks: Marks) -> list[int]:
    """The regions that share an edge with one of ``ids`` and are none of them, in order."""
    if name != "cells":
        last = marks.rows if name == "rows" else marks.columns
        return sorted({near for one in ids for near in (one - 1, one + 1) if 1 <= near <= last} - set(ids))
    around = set()
    for one in ids:
        row, column = divmod(one - 1, marks.columns)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= r < marks.rows and 0 <= c < marks.columns:
                around.add(r * marks.columns + c + 1)
    return sorted(around - set(ids))


def _answer(proposal: Proposal, marks: Marks) -> Answer:
    """With the text that a model would have written."""
    ids = {"regions": proposal.regions.cells, "rows": proposal.regions.rows, "columns": proposal.regions.columns}
    said: dict[str, Any] = {"object": proposal.object, "present": proposal.present}
    said |= {name: list(ids[name]) for name in region_fields(marks)} | {"reasoning": proposal.reasoning}
    return Answer((proposal,), (json.dumps({"proposals": [said]}),))
