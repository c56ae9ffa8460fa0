"""Guesses at what comes next, from what came before: answers repeat their question, and one another.

A model checks several guessed tokens in one forward pass for little more than the price of one, and keeps those that
it would have chosen itself: guesses change the time an answer takes, not the answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

CONTEXT_TOKENS = 3
MAX_DRAFT_TOKENS = 5
MAX_PROMPT_TOKENS = 256  # the end of a prompt, where the instruction and the answer's form stand
MAX_KNOWN = 20_000

_Context = tuple[int, ...]


class Drafts:
    """What followed each short run of tokens in earlier answers, when it was last seen; the oldest are forgotten."""

    def __init__(self) -> None:
        self.known: OrderedDict[_Context, int] = OrderedDict()

    def start(self, prompt: Sequence[int]) -> Draft:
        """Guesses for one answer to ``prompt``."""
        return Draft(self, prompt[-MAX_PROMPT_TOKENS:])

    def learn(self, tokens: Sequence[int]) -> None:
        """Remember a finished answer."""
        for at in range(1, len(tokens)):
            for context in _contexts(tokens[:at]):
                self.known[context] = tokens[at]
                self.known.move_to_end(context)
        while len(self.known) > MAX_KNOWN:
            self.known.popitem(last=False)


class Draft:
    """Guesses for one answer under way: its own words and its question's come before those of other answers."""

    def __init__(self, drafts: Drafts, prompt: Sequence[int]) -> None:
        self._drafts = drafts
        self._here: dict[_Context, int] = {}
        self.text: list[int] = []
        self.add(prompt)

    def add(self, tokens: Sequence[int]) -> None:
        """Add what was written."""
        for token in tokens:
            for context in _contexts(self.text):
                self._here[context] = token
            self.text.append(token)

    def guess(self, room: int) -> list[int]:
        """At most ``room`` tokens that may follow."""
        recent = self.text[-CONTEXT_TOKENS:]
        guessed: list[int] = []
        while len(guessed) < min(room, MAX_DRAFT_TOKENS):
            token = self._next(recent)
            if token is None:
                break
            guessed.append(token)
            recent = [*recent[1 - CONTEXT_TOKENS :], token]
        return guessed

    def _next(self, recent: Sequence[int]) -> int | None:
        contexts, known = _contexts(recent), self._drafts.known
        sources = [(self._here, contexts[:-1]), (known, contexts[:-2]), (self._here, contexts[-1:]), (known, contexts)]
        return next((source[c] for source, some in sources for c in some if c in source), None)


def _contexts(tokens: Sequence[int]) -> list[_Context]:
    """The last three, two and one tokens (as many as there are)."""
    return [tuple(tokens[-count:]) for count in range(min(CONTEXT_TOKENS, len(tokens)), 0, -1)]
