"""Published figures, in percent, to stand beside a run's own. Each row says where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """``values``: by name of the figure, as in a run's summary."""

    name: str
    values: Mapping[str, float]
    source: str


_PAPER = "arXiv 2506.04277, as in arXiv 2511.16719, table 39"
_EVF = "EVF-SAM, stage 2's architecture alone: arXiv 2511.16719, table 41"
# gIoU and cIoU: val, test, test's short and long instructions
_REASONSEG = {
    "RSVP, GPT-4o": (64.7, 63.1, 60.3, 60.0, 55.4, 50.4, 61.9, 62.5),
    "RSVP, LLaVA-1.6 7B": (59.2, 56.7, 56.9, 50.7, 47.9, 42.0, 58.4, 53.0),
    "RSVP, Qwen2-VL 7B": (58.6, 48.5, 56.1, 51.6, 48.5, 44.3, 57.1, 53.0),
    "RSVP, Gemini-1.5-Flash": (56.9, 49.2, 57.1, 59.2, 47.3, 40.2, 60.2, 65.6),
}
_REFCOCO = {
    ("refcoco", "val"): 82.1, ("refcoco", "testA"): 83.7, ("refcoco", "testB"): 80.0,
    ("refcoco+", "val"): 75.2, ("refcoco+", "testA"): 78.3, ("refcoco+", "testB"): 70.1,
    ("refcocog", "val"): 76.8, ("refcocog", "test"): 77.4,
}  # fmt: skip


def rows(name: str, split: str) -> list[Row]:
    """What is published for the data set ``name`` and ``split``; none for others."""
    if name == "reasonseg" and split in ("val", "test"):
        at = 0 if split == "val" else 2
        return [Row(who, {"giou": n[at], "ciou": n[at + 1]}, _PAPER) for who, n in _REASONSEG.items()]
    if name == "seginw" and split == "valid":
        source = "arXiv 2506.04277; how its instances were scored is not said"
        return [Row("RSVP", {"ap": 49.7}, source), Row("Grounded-SAM", {"ap": 48.7}, "the same paper's comparison")]
    if (name, split) in _REFCOCO:
        return [Row("EVF-SAM", {"ciou": _REFCOCO[name, split]}, _EVF)]
    return []


def group_rows(name: str, split: str, group: str) -> list[Row]:
    """The same for one of a data set's groups: ReasonSeg's ``short`` and ``long`` instructions of test."""
    if name != "reasonseg" or split != "test" or group not in ("short", "long"):
        return []
    at = 4 if group == "short" else 6
    return [Row(who, {"giou": n[at], "ciou": n[at + 1]}, _PAPER) for who, n in _REASONSEG.items()]
