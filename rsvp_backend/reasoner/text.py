"""Text that crosses the border to or from a model: one line, printable, unable to pass for a tag or a token."""

from __future__ import annotations

import re

_OPENING = re.compile(
    r"<(?=[^\s=0-9]|0x)"  # <|im_end|>, </s>, <start_of_turn>, <<SYS>>, <0x0A>
    r"|[\uff1c\ufe64](?=\S)"  # wide and small forms, which some tokenizers fold to <
    r"|\[(?=/?[A-Z_]{2,}\])"  # [INST], [/INST], [IMG]
)
_JOINERS = "\u200c\u200d"  # needed inside words of some scripts and inside emoji, though not "printable"


def one_line(text: str) -> str:
    """``text`` on one line of printable characters: control characters and lone surrogates break files and requests."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable() or c in _JOINERS)


def as_data(text: str) -> str:
    """One line that can neither close a tag nor spell a chat-template token such as ``<|im_end|>``."""
    return _OPENING.sub(lambda match: f"{match[0]} ", one_line(text))
