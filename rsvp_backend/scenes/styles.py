"""Further styles of asking about a scene, apart from `language`: no demo model was trained on them.

They are there to be learned (``rsvp-backend distill --scenes``), with other seeds than evaluation's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from rsvp_backend.scenes.language import FUNCTIONS, Kind, Truth, draw_truth
from rsvp_backend.scenes.layout import LEVELS, LevelName
from rsvp_backend.scenes.scene import Question, Scene

STYLED_KINDS: tuple[Kind, ...] = ("name", "function", "absent")
_SMALL_WORDS = frozenset({"the", "a", "an", "in", "at", "to", "for", "some", "with"})


@dataclass(frozen=True, slots=True)
class Style:
    """How names (of ``noun`` and ``colour``) and functions (of ``verb``) are asked for; one of each is drawn."""

    names: tuple[str, ...]
    functions: tuple[str, ...]
    shorten: Callable[[str], str] = str


def _telegraphic(phrase: str) -> str:
    return " ".join(word for word in phrase.split() if word not in _SMALL_WORDS)


STYLES: Final[dict[str, Style]] = {
    "telegraphic": Style(
        names=("need {noun} {colour} stop", "locate {noun}, {colour}", "want {noun} stop colour {colour} stop"),
        functions=("must {verb} stop", "need tool stop {verb} stop", "{verb} stop advise"),
        shorten=_telegraphic,
    )
}


def styled_questions(scene: Scene, style: str, level: LevelName = "easy") -> tuple[Question, ...]:
    """One question of each of `STYLED_KINDS` on ``scene``, in ``style``; always the same ones for the same scene."""
    rng = np.random.default_rng([scene.seed, *style.encode()])
    found = []
    for kind in STYLED_KINDS:
        truth = draw_truth(rng, scene.layout, LEVELS[level], kind)
        if truth is None:
            continue
        styled = replace(truth, instruction=_said(rng, truth, STYLES[style]), held_out=True)
        found.append(Question.of(styled, scene.masks))
    return tuple(found)


def _said(rng: np.random.Generator, truth: Truth, style: Style) -> str:
    """``truth``'s instruction in the words of ``style``."""
    *colours, noun = truth.referents[0].object.split()
    verb = next((verb for verb in FUNCTIONS[noun] if verb in truth.instruction), None)
    if verb is None:
        return str(rng.choice(style.names)).format(noun=noun, colour=colours[0])
    return str(rng.choice(style.functions)).format(verb=style.shorten(verb))
