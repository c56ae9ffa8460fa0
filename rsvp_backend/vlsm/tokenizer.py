"""XLM-R's tokenizer: a sentencepiece model under fairseq's numbering.

The four special tokens come first (``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3) and every piece is shifted by one.
Tokens added to a checkpoint (``[semantic]`` of ``evf-sam-multitask``) stand in ``added_tokens.json`` beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import sentencepiece
import torch
from torch import Tensor

from rsvp_backend.errors import WeightsError

BOS_ID, PAD_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
ADDED_TOKENS_FILE = "added_tokens.json"
_PIECE_OFFSET = 1


class Tokenizer:
    """Text -> ids. Immutable; safe to call from several threads."""

    def __init__(self, model: bytes, max_tokens: int = 512, added: Mapping[str, int] | None = None) -> None:
        """``model``: content of a ``sentencepiece.bpe.model``; longer texts are cut to ``max_tokens`` ids.

        ``added``: literal text -> its one id, wherever it stands in a text; what is around it is read by itself.
        Raises `WeightsError` where ``model`` is not a sentencepiece model.
        """
        if max_tokens < 2:
            raise ValueError(f"max_tokens is {max_tokens}: room for <s> and </s>, at least 2, is expected")
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise WeightsError(f"the tokenizer file ({len(model)} bytes) is no sentencepiece model: {error}") from error
        self.model = model
        self.max_tokens = max_tokens
        self.added: Mapping[str, int] = MappingProxyType(dict(added or {}))
        longest_first = sorted(map(re.escape, self.added), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(longest_first)})") if longest_first else None

    @classmethod
    def from_file(cls, path: Path, max_tokens: int = 512) -> Tokenizer:
        """Read ``path`` and, where there is one, ``added_tokens.json`` beside it.

        Raises `WeightsError` where ``path`` is missing or no sentencepiece model, or the other is no {text: id}.
        """
        try:
            model = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"tokenizer file {path} cannot be read: {error.strerror}") from error
        return cls(model, max_tokens, _read_added(path.parent / ADDED_TOKENS_FILE))

    @property
    def vocab_size(self) -> int:
        """Number of ids that can occur, special tokens included."""
        return max([self._pieces.get_piece_size() + _PIECE_OFFSET, *(number + 1 for number in self.added.values())])

    def encode(self, text: str) -> list[int]:
        """``<s>`` pieces ``</s>``, at most ``max_tokens`` ids; what is cut off is the text's end."""
        parts = [text] if self._split is None else self._split.split(text)
        ids = [number for part in parts for number in self._part(part)]
        return [BOS_ID, *ids[: self.max_tokens - 2], EOS_ID]

    def batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """ids int64 ``(B, T)``, padded on the right, and the padding mask bool ``(B, T)``, None where no id is a pad.

        At least one text is expected.
        """
        rows = [self.encode(text) for text in texts]
        length = max(map(len, rows))
        ids = torch.tensor([row + [PAD_ID] * (length - len(row)) for row in rows])
        mask = ids == PAD_ID
        return ids, mask if mask.any() else None

    def _part(self, text: str) -> list[int]:
        """Ids of an added token, or of a text without any."""
        if text in self.added:
            return [self.added[text]]
        return [piece + _PIECE_OFFSET if piece else UNK_ID for piece in self._pieces.encode(text)]


def _read_added(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict) or not all(
        text and type(number) is int and number >= 0 for text, number in data.items()
    ):
        raise WeightsError(f'{path} is expected to map texts to ids, like {{"[semantic]": 64002}}')
    return data
