"""Train the demo preset's reasoner: a small stock Qwen2-VL that learns to read scenes, from pictures alone.

Beside the language-model loss on the answers it uses two training-only losses that make small models ground words
quickly: *alignment* (each visual token is pulled to the words of the object it shows: class, colour, band edges) and
*pointing* (the query's last hidden state must find the target's visual tokens).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsvp_backend.scenes import LEVELS
from rsvp_backend.scenes.language import corpus
from rsvp_backend.training import tiny_mllm
from rsvp_backend.training.demo_pictures import (
    MARKS,
    TOKENS,
    Asked,
    MarkedPatches,
    Picture,
    PictureMix,
    PicturePlanner,
    covered,
)  # fmt: skip
from rsvp_backend.training.loop import CPU, Schedule, TrainingLoop
from rsvp_backend.training.streams import Stream

KEPT_BATCHES = 8

LONGEST_TURN = 256  # tokens of one question and its answer; several large objects take the most cells
CLASS_WEIGHT = 4.0  # classes are what a linear patch embedding learns last; measured in docs/demo-models.md


@dataclass(frozen=True)
class ReasonerRecipe:
    """How long and on what the demo reasoner trains."""

    minutes: float = 60.0
    pictures: int = 6
    vision_only_steps: int = 250
    learning_rate: float = 8e-4
    muon_rate: float = 0.004
    muon_start_steps: int = 1000
    mix: PictureMix = field(default_factory=PictureMix)
    seed: int = 0

    def times(self, factor: int) -> ReasonerRecipe:
        """The same with ``factor`` times the pictures in each step."""
        return replace(self, pictures=self.pictures * factor)


@dataclass(frozen=True)
class Turn:
    """One question in a packed row: its answer occupies ``start:end``."""

    row: int
    start: int
    end: int
    asked: Asked


@dataclass(frozen=True)
class Packed:
    """``ids (B, T)``, ``positions (3, B, T)``, ``visible`` bool ``(B, 1, T, T)``, turns in order of their rows."""

    ids: Tensor
    positions: Tensor
    visible: Tensor
    turns: list[Turn]


class Heads(nn.Module):
    """Training-only heads: own row and column of each visual token, and the pointing projections."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.place = nn.Linear(dim, 2 * tiny_mllm.BANDS)
        self.query = nn.Linear(dim, 128)
        self.token = nn.Linear(dim, 128)
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def point(self, hidden: Tensor, visual: Tensor) -> Tensor:
        """``hidden (N, D)``, ``visual (N, 81, D)`` -> logits ``(N, 81)``."""
        return torch.einsum("nd,ntd->nt", self.query(hidden), self.token(visual)) / 8.0 + self.bias


class ReasonerTrainer(TrainingLoop[Picture]):
    """Owns model and heads; `run` trains for the recipe's minutes."""

    def __init__(self, recipe: ReasonerRecipe, folder: Path, device: torch.device = CPU, workers: int = 0) -> None:
        schedule = Schedule(
            recipe.minutes,
            recipe.learning_rate,
            recipe.muon_rate,
            muon_start_steps=recipe.muon_start_steps,
            decay_from=0.5,
        )
        first = recipe.seed * 1_000_000
        super().__init__(schedule, folder, recipe.seed, first, recipe.pictures, device, workers)
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        # A run that goes on keeps its vocabulary: another one would mix up what was learned.
        earlier = folder / "model"
        self.processor = (
            tiny_mllm.load_processor(earlier) if earlier.exists() else tiny_mllm.build_processor(corpus(LEVELS["full"]))
        )
        self.model = tiny_mllm.build_model(self.processor)
        self.planner = PicturePlanner(self.processor, recipe.mix, recipe.seed)
        self.patches = MarkedPatches(self.processor, device)
        self.heads = Heads(self._word_table().shape[1])
        self.own(model=self.model, heads=self.heads)
        self.model.train()
        ids = self._ids
        full = LEVELS["full"]
        words = {
            "class": ids(["background", *(f" {name}" for name in full.classes)]),
            "colour": ids([f" {colour}" for colour in full.colours]),
            "colour_start": ids(list(full.colours)),
            **{f"edge{i}": ids(list(tokens)) for i, tokens in enumerate(tiny_mllm.EDGES)},
            "cell": ids(list(tiny_mllm.CELL)),
        }
        self.words = {group: own.to(device) for group, own in words.items()}
        numbers = [*(token for edge in tiny_mllm.EDGES for token in edge), *tiny_mllm.CELL, *tiny_mllm.LAST_CELL]
        self.region_words = ids(numbers).to(device)
        example = self.planner.prompt("x", "bands")
        self.positions = self._positions(len(example) + LONGEST_TURN)
        self.first_visual = example.index(self.processor.image_token_id)

    def _word_table(self) -> Tensor:
        """The tied word embeddings ``(vocabulary, D)``."""
        weight: Tensor = self.model.lm_head.weight
        return weight

    def _ids(self, texts: list[str]) -> Tensor:
        """The last token of each text."""
        return torch.tensor([self.processor.tokenizer(text)["input_ids"][-1] for text in texts])

    def _positions(self, length: int) -> Tensor:
        """Qwen2-VL's three-axis positions ``(3, 1, length)`` of image prefix and following text."""
        ids = torch.tensor([self.planner.prompt("", "bands")])
        ids = F.pad(ids, (0, length - ids.shape[1]), value=self.processor.tokenizer.eos_token_id)
        kinds = (ids == self.processor.image_token_id).int()
        sizes = torch.tensor([[1, 2 * tiny_mllm.BANDS, 2 * tiny_mllm.BANDS]])
        positions: Tensor = self.model.model.get_rope_index(ids, kinds, image_grid_thw=sizes)[0]
        return positions

    def stream(self, first_scene: int) -> Stream[Any, Picture]:
        receive, kept = partial(Picture.all_of, device=self.device), self.batch * KEPT_BATCHES
        return Stream(self.planner, receive, first_scene, workers=self.workers, kept=kept)

    def loss(self, samples: list[Picture]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """All losses on one batch, with readable parts; for the first steps, those of twice the visual tokens alone."""
        if self.step < self.recipe.vision_only_steps:
            samples = samples + self.samples(len(samples))
            return self._alignment(self._visual(samples), samples)
        visual = self._visual(samples)
        align, parts = self._alignment(visual, samples)
        packed = self._pack(samples)
        hidden = self._hidden(visual, packed)
        answer, parts_answer = self._answer(hidden, packed)
        pointing, parts_point = self._pointing(hidden, visual, packed)
        return align + answer + 2.0 * pointing, {**parts, **parts_answer, **parts_point}

    def _visual(self, pictures: list[Picture]) -> Tensor:
        """Visual tokens as the language model receives them, ``(B, 81, D)``."""
        side = 2 * tiny_mllm.BANDS
        sizes = torch.tensor([[1, side, side]] * len(pictures), device=self.device)
        patches = self.patches(pictures, self.rng)
        return torch.stack(self.model.model.get_image_features(patches, sizes).pooler_output)

    def _hidden(self, visual: Tensor, packed: Packed) -> Tensor:
        """The language model's last hidden states, ``(B, T, D)``."""
        embeds = self.model.get_input_embeddings()(packed.ids)
        at = slice(self.first_visual, self.first_visual + TOKENS)
        embeds = torch.cat([embeds[:, : at.start], visual, embeds[:, at.stop :]], dim=1)
        hidden: Tensor = self.model.model.language_model(
            inputs_embeds=embeds, position_ids=packed.positions, use_cache=False,
            attention_mask={"full_attention": packed.visible},
        )[0]  # fmt: skip
        return hidden

    def _pack(self, pictures: list[Picture]) -> Packed:
        """All turns of a picture behind its one image prefix: each turn sees the image and itself, as if alone."""
        start = self.first_visual + TOKENS + 1
        length = start + max(
            sum(len(asked.prompt) - start + len(asked.answer) for asked in picture.asked) for picture in pictures
        )
        ids = torch.full((len(pictures), length), self.processor.tokenizer.pad_token_id)
        turn = torch.full((len(pictures), length), -1)
        positions = self.positions[:, :, :1].repeat(1, len(pictures), length)
        turns = []
        for n, picture in enumerate(pictures):
            cursor = start
            ids[n, :start], turn[n, :start] = torch.tensor(picture.asked[0].prompt[:start]), 0
            positions[:, n, :start] = self.positions[:, 0, :start]
            for k, asked in enumerate(picture.asked, start=1):
                tokens = asked.prompt[start:] + asked.answer
                end = cursor + len(tokens)
                ids[n, cursor:end], turn[n, cursor:end] = torch.tensor(tokens), k
                positions[:, n, cursor:end] = self.positions[:, 0, start : start + len(tokens)]
                turns.append(Turn(n, cursor + len(asked.prompt) - start, end, asked))
                cursor = end
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        visible = causal & ((turn[:, None, :] == 0) | (turn[:, None, :] == turn[:, :, None]))
        return Packed(ids.to(self.device), positions.to(self.device), visible[:, None].to(self.device), turns)

    def _answer(self, hidden: Tensor, packed: Packed) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Cross-entropy on answer tokens; those of regions weigh as much as all other words together."""
        index = [(turn.row, t) for turn in packed.turns for t in range(turn.start, turn.end)]
        row, column = (torch.tensor(x, device=self.device) for x in zip(*index, strict=True))
        target = packed.ids[row, column]
        nll = F.cross_entropy(self.model.lm_head(hidden[row, column - 1]).float(), target, reduction="none")
        edges = torch.isin(target, self.region_words)
        loss = nll[~edges].mean() + (nll[edges].mean() if edges.any() else 0.0)
        return loss, {"words": nll[~edges].mean().detach(), "edges": nll[edges].mean().detach()}

    def _pointing(self, hidden: Tensor, visual: Tensor, packed: Packed) -> tuple[Tensor, dict[str, Tensor | float]]:
        """BCE of pointing maps: at the query's end at all that it means, after an object's phrase at that object."""
        rows = torch.tensor([turn.row for turn in packed.turns], device=self.device)
        wanted = self._covered([turn.asked.shares for turn in packed.turns])
        ends = torch.tensor([turn.start - 1 for turn in packed.turns], device=self.device)
        logits = self.heads.point(hidden[rows, ends], visual[rows])
        loss = F.binary_cross_entropy_with_logits(logits, wanted)
        present_id = self.processor.tokenizer.convert_tokens_to_ids(tiny_mllm.PRESENT)
        row, after = (packed.ids == present_id).nonzero(as_tuple=True)  # turns are in this order, too
        parts = self._covered([part for turn in packed.turns for part in turn.asked.parts])
        loss = loss + F.binary_cross_entropy_with_logits(self.heads.point(hidden[row, after], visual[row]), parts)
        shown = wanted.any(dim=-1)
        guess, truth = logits[shown] > 0, wanted[shown] > 0
        return loss, {"point": (guess & truth).sum() / (guess | truth).sum().clamp(min=1)}

    def _covered(self, shares: list[npt.NDArray[np.float32]]) -> Tensor:
        """Of each of N masks, 1.0 in the cells that it covers, ``(N, 81)``."""
        stacked = torch.from_numpy(np.array(shares, dtype=np.float32).reshape(-1, TOKENS))
        return covered(stacked, 0.15).float().to(self.device)

    def _alignment(self, visual: Tensor, pictures: list[Picture]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """One softmax per attribute over the tied word embeddings, for the object that owns each cell."""
        normed = self.heads.norm(visual)
        table = self._word_table()
        loss, parts = torch.zeros((), device=self.device), dict[str, Tensor | float]()
        for group, words in self.words.items():
            target = torch.stack([picture.cells[group.removesuffix("_start")] for picture in pictures])
            logits = normed @ table[words].T * 2.0
            weight = torch.ones(len(words), device=self.device)
            if group == "class":
                weight[0] = 0.15
            scale = {"class": CLASS_WEIGHT, "cell": 0.3}.get(group, 1.0)
            loss = loss + scale * F.cross_entropy(
                logits.float().flatten(0, 1), target.flatten(), weight, ignore_index=-100
            )
            if group in ("class", "colour", "edge0"):
                known = target > 0 if group == "class" else target >= 0
                parts[group] = (logits.argmax(-1)[known] == target[known]).float().mean()
        place = self.heads.place(normed).unflatten(-1, (2, -1))
        cells = torch.arange(TOKENS, device=self.device).expand(len(pictures), -1)
        for axis, own in enumerate((cells // tiny_mllm.BANDS, cells % tiny_mllm.BANDS)):
            loss = loss + 0.3 * F.cross_entropy(place[:, :, axis].flatten(0, 1), own.flatten())
        return loss, parts

    def save_model(self) -> None:
        canvas = [tiny_mllm.CANVAS_PX] * 2
        marks = [asdict(one) for one in MARKS.values()]
        marker = {"name": "demo", "prompt": "demo", "canvas_px": canvas, "marks": marks}
        tiny_mllm.save(self.model, self.processor, self.folder / "model", json.dumps(marker, indent=2) + "\n")
