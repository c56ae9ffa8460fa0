"""The instructions of scenes in other words: the same question in each carrier that the language of scenes has."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rsvp_backend.scenes.language import FUNCTION_CARRIERS, FUNCTION_HELD_OUT, NAME_CARRIERS, NAME_HELD_OUT

FAMILIES = ((*FUNCTION_CARRIERS, *FUNCTION_HELD_OUT), (*NAME_CARRIERS, *NAME_HELD_OUT))
"""Carriers that may stand for each other; those of functions are told first, as names have the shorter ones."""


def reworded(instruction: str, number: int) -> str:
    """``instruction`` in its ``number``-th other wording (from 0, in a circle).

    Raises `ValueError` for one that the language of scenes does not have.
    """
    found = max(_readings(instruction), key=lambda reading: len(reading[1]), default=None)
    if found is None:
        raise ValueError(f"{instruction!r} is no instruction of the scenes' language: it has no other wordings")
    family, carrier, said = found
    others = [other for other in family if other != carrier]
    return others[number % len(others)].format(x=said)


def _readings(instruction: str) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Family, carrier and what is said in it; "find something to cut paper" can be read in several."""
    for family in FAMILIES:
        for carrier in family:
            before, after = carrier.split("{x}")
            match = re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", instruction)
            if match:
                yield family, carrier, match[1]
