"""A small MLLM of a stock class (Qwen2-VL) with its tokenizer and processor, sized for the demo preset.

Everything is a stock transformers class, so ``AutoModelForImageTextToText`` and ``AutoProcessor`` load the folder
unchanged. Frequent pieces of the JSON answer are single tokens, which makes answers short: of each object the reasoner
emits a phrase, four band ids or its cells, and a reasoning sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)  # fmt: skip

from rsvp_backend.types import Regions

CANVAS_PX = 288
PATCH_PX = 16
BANDS = 9
IMAGE, START, STOP, ASK, END, PAD = (
    "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|ask|>", "<|end|>", "<|pad|>",
)  # fmt: skip
SPECIAL = (PAD, END, ASK, START, STOP, IMAGE, "<|video_pad|>")
OPEN = '{"proposals": [{"object": "'
PRESENT = '", "present": true'
ABSENT = '", "present": false, "rows": [], "columns": [], "reasoning": "'
CLOSE = '"}]}'
FIRST_ROW = tuple(f', "rows": [{i}' for i in range(1, BANDS + 1))
LAST_ROW = tuple(f", {i}], " for i in range(1, BANDS + 1))
FIRST_COLUMN = tuple(f'"columns": [{i}' for i in range(1, BANDS + 1))
LAST_COLUMN = tuple(f', {i}], "reasoning": "' for i in range(1, BANDS + 1))
EDGES = (FIRST_ROW, LAST_ROW, FIRST_COLUMN, LAST_COLUMN)
AND = '"}, {"object": "'
FIRST_CELL = ', "regions": ['
CELL = tuple(f"{i}, " for i in range(1, BANDS**2 + 1))
LAST_CELL = tuple(f'{i}], "reasoning": "' for i in range(1, BANDS**2 + 1))
NO_CELLS = '", "present": false, "regions": [], "reasoning": "'
ASKED_IN = {"bands": "bands: ", "cells": "cells: "}
"""How a prompt names its marks: what stands before the instruction."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}<|end|>{% else %}<|ask|>{% endif %}{% endfor %}"
)


@dataclass(frozen=True, slots=True)
class Part:
    """One proposal of an answer; empty ``regions`` mean an absent object."""

    object: str
    regions: Regions
    reasoning: str


def answer_text(parts: Sequence[Part], kind: str) -> str:
    """The JSON answer in the exact spelling that the demo MLLM learns, on marks of ``kind``."""
    write = _in_cells if kind == "cells" else _in_bands
    return OPEN + AND.join(f"{part.object}{write(part.regions)}{part.reasoning}" for part in parts) + CLOSE


def _in_bands(regions: Regions) -> str:
    if regions.empty:
        return ABSENT
    edges = (regions.rows[0], regions.rows[-1], regions.columns[0], regions.columns[-1])
    return PRESENT + "".join(tokens[i - 1] for tokens, i in zip(EDGES, edges, strict=True))


def _in_cells(regions: Regions) -> str:
    if regions.empty:
        return NO_CELLS
    *cells, last = regions.cells
    return PRESENT + FIRST_CELL + "".join(CELL[i - 1] for i in cells) + LAST_CELL[last - 1]


def build_processor(corpus: Iterable[str]) -> Any:
    """Processor of byte-level BPE (each known word one token, unknown words in pieces) and a fixed-size image."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=1, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(SPECIAL),
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus, trainer)
    fused = [OPEN, PRESENT, ABSENT, CLOSE, *(token for group in EDGES for token in group)]
    fused += [AND, FIRST_CELL, *CELL, *LAST_CELL, NO_CELLS, *ASKED_IN.values()]
    tokenizer.add_tokens([AddedToken(token, normalized=False, single_word=False) for token in fused])
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, additional_special_tokens=list(SPECIAL[2:]),
        clean_up_tokenization_spaces=False, padding_side="left",
    )  # fmt: skip
    images = Qwen2VLImageProcessor(
        patch_size=PATCH_PX, temporal_patch_size=1, merge_size=2, min_pixels=CANVAS_PX**2, max_pixels=CANVAS_PX**2
    )
    videos = Qwen2VLVideoProcessor(patch_size=PATCH_PX, temporal_patch_size=1, merge_size=2)
    return Qwen2VLProcessor(images, wrapped, videos, chat_template=CHAT_TEMPLATE)  # type: ignore[no-untyped-call]


def load_processor(folder: Path) -> Any:
    """The processor that `save` wrote there."""
    return Qwen2VLProcessor.from_pretrained(folder)


def build_model(processor: Any, vision_dim: int = 128, text_dim: int = 160) -> Qwen2VLForConditionalGeneration:
    """A Qwen2-VL of about 2.5 M parameters; each of its 81 visual tokens covers one cell of the 9 x 9 marks."""
    ids = processor.tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer), "hidden_size": text_dim, "intermediate_size": 448,
            "num_hidden_layers": 6, "num_attention_heads": text_dim // 32, "num_key_value_heads": text_dim // 32,
            "max_position_embeddings": 1024, "tie_word_embeddings": True, "bos_token_id": None,
            "eos_token_id": ids(END), "pad_token_id": ids(PAD),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 4, "embed_dim": vision_dim, "num_heads": 4, "mlp_ratio": 3, "patch_size": PATCH_PX,
            "spatial_merge_size": 2, "temporal_patch_size": 1, "hidden_size": text_dim,
        },
        image_token_id=ids(IMAGE), video_token_id=ids("<|video_pad|>"), vision_start_token_id=ids(START),
        vision_end_token_id=ids(STOP), tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config)
    init_patch_embed(model.model.visual.patch_embed.proj.weight)
    return model


@torch.no_grad()
def init_patch_embed(weight: torch.Tensor) -> None:
    """Start a linear patch embedding, ``(dim, 3, [1,] side, side)``, from cosine patterns of rising frequency.

    Colours and edges are readable from the first step on, which saves much of a short training.
    """
    side = weight.shape[-1]
    grid = (torch.arange(side) + 0.5) * torch.pi / side
    order = sorted((u + v, u, v) for u in range(side) for v in range(side))
    for index in range(weight.shape[0]):
        _, u, v = order[index // 3]
        pattern = torch.outer(torch.cos(v * grid), torch.cos(u * grid))
        weight[index].zero_()
        weight[index, index % 3] = pattern / pattern.norm() * (0.12 + 0.06 * (u + v))


def save(model: Qwen2VLForConditionalGeneration, processor: Any, folder: Path, marker: str) -> None:
    """Write the whole folder in fp16, with ``rsvp.json`` (``marker``) that tells the reasoner how to ask."""
    half = {name: tensor.detach().to(torch.float16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=half)
    processor.save_pretrained(folder)
    (folder / "rsvp.json").write_text(marker)
