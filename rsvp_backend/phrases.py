"""Cheap mode: an instruction that is a plain noun phrase ("red mug") needs no reasoning and no reasoner.

The rule is small, knows English only, and is meant to err on the side of asking:

- one to five words of ASCII letters, hyphens and apostrophes, and no punctuation;
- at most one determiner, and that first; it does not count, nor does it enter the text that is segmented;
- no word of `_TELLING`: verbs and orders, questions, relative clauses, pronouns, generic nouns ("something"),
  conjunctions, comparisons, and prepositions and places, which ask to tell one of several apart ("of" is allowed);
- no participle or superlative by its ending (``-ing``, ``-est``), but for a few plain nouns.
"""

from __future__ import annotations

import re

from rsvp_backend.types import Answer, Marks, Proposal, Query, Regions

MAX_WORDS = 5
REASONING = "Taken as a name; the reasoner was not asked."
_PHRASE = re.compile(r"[A-Za-z][A-Za-z'-]*(?: [A-Za-z][A-Za-z'-]*)*")
_DETERMINERS = {"the", "a", "an", "all", "every", "each", "any"}
_TELLING_WORDS = """
is are was were be been being am do does did done has have had can could will would shall should may might must
find segment show mark select highlight locate point detect give get identify draw label outline look see choose
pick count describe tell ignore answer return say write make take put use used using need needs want wants help
helps keep keeps hold holds held open opens eat eats drink drinks cut cuts wear wears worn wore ride rides sit sits
stand stands carry carries go goes run runs let lets please mask delete remove forget repeat stop disregard
what which who whom whose where when why how that whether if because as than so
i you he she it we they me him her us them my your his its our their this these those here there
something anything everything nothing someone anyone somebody one ones thing things object objects item items
stuff area region part parts
and or but nor not no never without except only other another same both either neither else also
more most less least very too first second third last next left right top bottom middle centre center upper
lower leftmost rightmost topmost bottommost nearest front back
in on at by to from with into onto over under above below behind beside between near inside outside around along
across through against among beneath within for about
nun nur alle der die das ein eine le la les un une el los las que qui est para mit und was wo ist
"""
_TELLING = frozenset(_TELLING_WORDS.split())
_PLAIN_ENDINGS = {
    "awning", "building", "ceiling", "chest", "earring", "forest", "painting", "railing", "string",
}  # fmt: skip


def noun_phrase(instruction: str) -> str | None:
    """The phrase to segment, less its determiner, where ``instruction`` is a plain noun phrase; else None."""
    text = " ".join(instruction.split())
    if not _PHRASE.fullmatch(text):
        return None
    words = text.split(" ")
    if words[0].casefold() in _DETERMINERS:
        words = words[1:]
    if not 1 <= len(words) <= MAX_WORDS or not all(_plain(word.casefold()) for word in words):
        return None
    if "of" in (words[0].casefold(), words[-1].casefold()):
        return None
    return " ".join(words)


def taken_as_name(query: Query, marks: Marks) -> Answer | None:
    """The answer that a plain noun phrase stands for: it is present, somewhere in the whole image; else None."""
    phrase = noun_phrase(query.instruction)
    if phrase is None:
        return None
    rows, columns = tuple(range(1, marks.rows + 1)), tuple(range(1, marks.columns + 1))
    cells = tuple(range(1, marks.rows * marks.columns + 1))
    everywhere = Regions(cells=cells) if marks.kind == "cells" else Regions(rows, columns)
    return Answer((Proposal(phrase, True, everywhere, REASONING),), ())


def _plain(word: str) -> bool:
    if word in _TELLING or word in _DETERMINERS:
        return False
    return word in _PLAIN_ENDINGS or not (len(word) > 4 and word.endswith(("ing", "est")))
