"""What the paper (arXiv 2506.04277) reports on the same questions, as far as public sources print it, in percent."""

from __future__ import annotations

from dataclasses import dataclass

from rsvp_backend.evaluation import published


@dataclass(frozen=True, slots=True)
class Printed:
    """A row of the paper's. None: the paper has it, or should, but no public source that we know prints it."""

    what: str
    giou: float | None
    ciou: float | None


@dataclass(frozen=True, slots=True)
class Beside:
    """``comparable``: what can and what cannot be concluded from the two side by side."""

    rows: tuple[Printed, ...]
    comparable: str


_VAL = published.rows("reasonseg", "val")
_OTHER_DATA = (
    "Absolute figures cannot be compared unless the sweep ran on ReasonSeg's val split with the same reasoner and "
    "published stage 2 weights; "
)
NONE = Beside((), "The paper reports nothing on this.")
PAPER: dict[str, Beside] = {
    "grid": Beside(
        (
            Printed("5x5, GPT-4o, ReasonSeg val", None, None),
            Printed("9x9, GPT-4o, ReasonSeg val", _VAL[0].values["giou"], _VAL[0].values["ciou"]),
            Printed("13x13, GPT-4o, ReasonSeg val", None, 57.6),
        ),
        _OTHER_DATA + "what can be compared is the direction. An oracle measures the geometry of the marks alone; the "
        "paper's loss at 13x13 is GPT-4o's reading of them, which an oracle does not have.",
    ),
    "mllm": Beside(
        (
            *(Printed(f"{row.name}, ReasonSeg val", row.values["giou"], row.values["ciou"]) for row in _VAL),
            Printed("RSVP, Qwen2-VL 2B, ReasonSeg test", None, 43.7),
        ),
        _OTHER_DATA + "what can be compared is the order of reasoners and how far each stays below the oracle.",
    ),
    "padding": Beside(
        (Printed("0%, 20% (chosen), 40%, ReasonSeg val", None, None),),
        "The paper chose 20% of these three; its figures are in no public source that we know, so only the choice can "
        "be compared.",
    ),
    "connector": NONE,
    "encoding": Beside(
        (Printed("rows and columns against cells; multi-step against simple chain of thought", None, None),),
        "The paper ablates both; its figures are in no public source that we know, so nothing can be compared.",
    ),
    "zoom": Beside((), "Zoom is not the paper's: it leaves finer marks as an open question (section 6)."),
    "temperature": Beside(
        (Printed("temperatures 0.0, 0.4 and 0.8", None, None),),
        "The paper ablates it; its figures are in no public source that we know, so nothing can be compared.",
    ),
    "robustness": NONE,
}
