"""Which stage failed, in one sentence, and how far each stage of a trace came: read from its record alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rsvp_backend.types import EmptyReason

Record = Mapping[str, Any]

_SENTENCES = {
    EmptyReason.ABSENT: "Stage 1 answered that the object is absent.",
    EmptyReason.NO_REGIONS: "Stage 1 answered that the object is there, but named no region of the image.",
    EmptyReason.INVALID_ANSWER: "Stage 1 gave no valid answer, and none when it was asked to repair it.",
    EmptyReason.REASONER_FAILED: "Stage 1 could not be asked, or did not answer.",
    EmptyReason.EMPTY_MASK: "Stage 2 found no pixel of what stage 1 had named.",
    EmptyReason.SEGMENTER_FAILED: "Stage 2 failed.",
    EmptyReason.IMAGE: "The image could not be used: neither stage was begun.",
    EmptyReason.NO_INSTRUCTION: "There was nothing to look for: neither stage was begun.",
    EmptyReason.LABEL_CONFIG: "The labeling config cannot be used: neither stage was begun.",
    EmptyReason.INTERNAL: "This program failed: its log has the details.",
}
_OF_STAGE = {
    EmptyReason.IMAGE: "fetch",
    EmptyReason.ABSENT: "reason",
    EmptyReason.NO_REGIONS: "reason",
    EmptyReason.INVALID_ANSWER: "reason",
    EmptyReason.REASONER_FAILED: "reason",
    EmptyReason.EMPTY_MASK: "segment",
    EmptyReason.SEGMENTER_FAILED: "segment",
}
STAGES = {
    "fetch": "Image",
    "mark": "Marks",
    "reason": "Stage 1: reason",
    "zoom": "Zoom",
    "segment": "Stage 2: segment",
    "paste": "Mask",
}
"""The stages of `Trace.timings_s`, in their order, as people read them."""
_OPTIONAL = ("fetch", "zoom")


@dataclass(frozen=True, slots=True)
class Stage:
    """``state``: went, failed, or none where it was not begun; ``seconds``: None where it took none."""

    name: str
    title: str
    state: str
    seconds: float | None


def sentence(record: Record) -> str:
    """What came of it and, where that is nothing, because of which stage."""
    if record["reason"] is None:
        return _found(record)
    reason = EmptyReason(record["reason"])
    return _late(record) if reason is EmptyReason.DEADLINE else _SENTENCES[reason]


def tone(record: Record) -> str:
    """A class: empty where masks were found, ``unsure`` where nothing is to be found, ``bad`` where a stage failed."""
    if record["reason"] is None:
        return ""
    return "unsure" if record["reason"] == EmptyReason.ABSENT else "bad"


def stages(record: Record) -> list[Stage]:
    """Every stage with how it went; those that a request may do without are left out where they took no time."""
    timings, failed = record["timings_s"], failed_stage(record)
    shown = [name for name in STAGES if name in timings or name == failed or name not in _OPTIONAL]
    return [Stage(name, STAGES[name], _state(name, failed, timings), timings.get(name)) for name in shown]


def failed_stage(record: Record) -> str | None:
    """The stage that an empty outcome is due to; None where there is a mask, or no stage was begun."""
    if record["reason"] is None:
        return None
    reason = EmptyReason(record["reason"])
    if reason in (EmptyReason.DEADLINE, EmptyReason.INTERNAL):
        return _last_begun(record["timings_s"])
    return _OF_STAGE.get(reason)


def by_hand(record: Record) -> bool:
    """Whether the mask came from clicks or a rectangle: stage 1 was not asked."""
    timings = record["timings_s"]
    return "segment" in timings and "mark" not in timings and not record["raw_texts"]


def _found(record: Record) -> str:
    scores = [instance["score"] for instance in record["instances"]]
    masks = f"{len(scores)} mask{'s, the weakest with' if len(scores) > 1 else ' with'} score {min(scores):.2f}"
    if by_hand(record):
        return f"Stage 2 answered, and stage 1 was not asked: {masks}."
    return f"Both stages answered: {masks}."


def _late(record: Record) -> str:
    last = _last_begun(record["timings_s"])
    if last is None:
        return "The time of the request was over before it was begun."
    if last == "fetch":
        return "The time of the request was over before stage 1 could be asked."
    if record["proposals"]:
        return "The time of the request was over after stage 1's answer, before stage 2."
    return "The time of the request was over while stage 1 was asked."


def _last_begun(timings: Mapping[str, float]) -> str | None:
    return next((name for name in reversed(STAGES) if name in timings), None)


def _state(name: str, failed: str | None, timings: Mapping[str, float]) -> str:
    return "failed" if name == failed else "went" if name in timings else ""
