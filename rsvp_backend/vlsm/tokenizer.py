"""XLM-R's tokenizer: a sentencepiece model under fairseq's numbering.

The four special tokens come first (``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3) and every piece is shifted by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor

from rsvp_backend.errors import WeightsError

BOS_ID, PAD_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
_PIECE_OFFSET = 1


class Tokenizer:
    """Text -> ids. Immutable; safe to call from several threads."""

    def __init__(self, model: bytes, max_tokens: int = 512) -> None:
        """``model``: content of a ``sentencepiece.bpe.model``; longer texts are cut to ``max_tokens`` ids.

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

    @classmethod
    def from_file(cls, path: Path, max_tokens: int = 512) -> Tokenizer:
        """Read ``path``. Raises `WeightsError` where it is missing or no sentencepiece model."""
        try:
            model = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"tokenizer file {path} cannot be read: {error.strerror}") from error
        return cls(model, max_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of ids that can occur, special tokens included."""
        return self._pieces.get_piece_size() + _PIECE_OFFSET

    def encode(self, text: str) -> list[int]:
        """``<s>`` pieces ``</s>``, at most ``max_tokens`` ids; what is cut off is the text's end."""
        pieces = self._pieces.encode(text)[: self.max_tokens - 2]
        return [BOS_ID, *(piece + _PIECE_OFFSET if piece else UNK_ID for piece in pieces), EOS_ID]

    def batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """ids int64 ``(B, T)``, padded on the right, and the padding mask bool ``(B, T)``, None where no id is a pad.

        At least one text is expected.
        """
        rows = [self.encode(text) for text in texts]
        length = max(map(len, rows))
        ids = torch.tensor([row + [PAD_ID] * (length - len(row)) for row in rows])
        mask = ids == PAD_ID
        return ids, mask if mask.any() else None
