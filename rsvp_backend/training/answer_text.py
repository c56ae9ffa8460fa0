"""Proposals -> the answer's text, in the spelling that the model itself writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rsvp_backend.types import Marks, Proposal

Segment = tuple[str, bool]
"""A piece of an answer, and whether it is taught."""
_CUT = "\u241f"


def answer_segments(
    proposals: Sequence[Proposal], marks: Marks, *, labels: bool = False, edges: bool = False
) -> tuple[Segment, ...]:
    """The answer's JSON as `parsing.parse` reads it; a reasoning that nobody gave is filled in and not taught.

    ``labels``: with the label of each; ``edges``: only the first and the last row and column, the demo model's form.
    """
    text = json.dumps({"proposals": [_fields(one, marks, labels, edges) for one in proposals]}, ensure_ascii=False)
    pieces = text.split(_CUT)
    return tuple((piece, n % 2 == 0) for n, piece in enumerate(pieces) if piece)


def _fields(proposal: Proposal, marks: Marks, labels: bool, edges: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"object": _plain(proposal.object)}
    if labels:
        fields["label"] = proposal.label
    fields["present"] = proposal.present
    regions = proposal.regions
    if marks.kind == "cells":
        fields["regions"] = list(regions.cells)
    else:
        fields["rows"] = _ends(regions.rows) if edges else list(regions.rows)
        fields["columns"] = _ends(regions.columns) if edges else list(regions.columns)
    filled = f"{_CUT}It is the {_plain(proposal.object)}.{_CUT}"
    fields["reasoning"] = _plain(proposal.reasoning) or filled
    return fields


def _ends(ids: Sequence[int]) -> list[int]:
    return [ids[0], ids[-1]] if ids else []


def _plain(text: str) -> str:
    return " ".join(text.replace(_CUT, " ").split())
