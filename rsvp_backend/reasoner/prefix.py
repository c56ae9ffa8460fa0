"""What two prompts share from their beginning on: the pictures, where only the question is another one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Self

import torch


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as a model reads it: its tokens, how many up to its last picture, and a digest of the pictures."""

    ids: tuple[int, ...]
    pictured: int
    pictures: bytes

    @classmethod
    def of(cls, inputs: dict[str, Any], image_token: int) -> Self:
        """Of the processor's output for one conversation."""
        ids = tuple(inputs["input_ids"][0].tolist())
        pictured = len(ids) - ids[::-1].index(image_token) if image_token in ids else 0
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(inputs):
            tensor = inputs[name]
            if tensor.shape != inputs["input_ids"].shape:  # what has one value per token is known from the tokens
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().to("cpu").contiguous().view(torch.uint8).numpy().data)
        return cls(ids, pictured, digest.digest())

    def shared_with(self, last: Prompt) -> int:
        """Tokens at the beginning that need not be read again after ``last``; 0 where pictures differ.

        At least one token is left to read.
        """
        if self.pictures != last.pictures:
            return 0
        pairs = zip(self.ids[:-1], last.ids, strict=False)
        shared = next(
            (n for n, (one, other) in enumerate(pairs) if one != other), min(len(self.ids) - 1, len(last.ids))
        )
        return shared if shared >= max(self.pictured, last.pictured) else 0
