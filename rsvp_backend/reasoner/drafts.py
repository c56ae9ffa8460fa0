"""Guesses at what comes next, from what came before: answers repeat themselves, and their prompts.

A model checks several guessed tokens in one forward pass for little more than the price of one, and keeps those that
it would have chosen itself: guesses change the time an answer takes, not the answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

CONTEXTS = (3, 2, 1)  # tokens looked back, the longest first
MAX_DRAFT_TOKENS = 4
MAX_KNOWN = 20_000


class Drafts:
    """What followed each short run of tokens when it was last seen; the oldest are forgotten."""

    def __init__(self) -> None:
        self._next: OrderedDict[tuple[int, ...], tuple[int, ...]] = OrderedDict()

    def learn(self, tokens: Sequence[int]) -> None:
        """Remember a finished text."""
        for at in range(1, len(tokens)):
            after = tuple(tokens[at : at + MAX_DRAFT_TOKENS])
            for context in CONTEXTS:
                if context <= at:
                    key = tuple(tokens[at - context : at])
                    self._next[key] = after
                    self._next.move_to_end(key)
        while len(self._next) > MAX_KNOWN:
            self._next.popitem(last=False)

    def guess(self, tokens: Sequence[int], room: int) -> tuple[int, ...]:
        """At most ``room`` tokens that may follow ``tokens``."""
        for context in CONTEXTS:
            found = self._next.get(tuple(tokens[-context:]))
            if found is not None:
                return found[: max(room, 0)]
        return ()
