"""Train the demo preset's reasoner: a small stock Qwen2-VL that learns to read scenes, from pictures alone.

Beside the language-model loss on the answers it uses two training-only losses that make small models ground words
quickly: *alignment* (each visual token is pulled to the words of the object it shows: class, colour, band edges) and
*pointing* (the query's last hidden state must find the target's visual tokens).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from rsvp_backend import grid
from rsvp_backend.grid import draw_marks, mask_regions
from rsvp_backend.scenes import LEVELS, LevelName, Scene, make_scene
from rsvp_backend.scenes.language import Truth, corpus, draw_truth
from rsvp_backend.training import tiny_mllm
from rsvp_backend.training.loop import Schedule, TrainingLoop
from rsvp_backend.types import BoolMask, Marks

MARKS = Marks("bands", tiny_mllm.BANDS, tiny_mllm.BANDS)
KIND_SHARES = {"name": 0.34, "function": 0.36, "absent": 0.22, "relation": 0.08}
TOKENS = tiny_mllm.BANDS**2
CLASS_WEIGHT = 4.0  # classes are what a linear patch embedding learns last; measured in docs/demo-models.md


@dataclass(frozen=True)
class ReasonerRecipe:
    """How long and on what the demo reasoner trains.

    ``crowded``, ``small``, ``full``: shares of pictures of these levels, the rest are easy. ``zoomed``: share of the
    small ones that are cut to the surroundings of one object, as `zoom` does.
    """

    minutes: float = 60.0
    pictures: int = 6
    questions: int = 5
    vision_only_steps: int = 250
    learning_rate: float = 1.5e-3
    muon_rate: float = 0.007
    muon_start_steps: int = 1000
    crowded: float = 0.1
    small: float = 0.35
    full: float = 0.1
    zoomed: float = 0.6
    seed: int = 0


@dataclass(frozen=True)
class Picture:
    """Training data of one scene: patches ``(324, 768)`` float32, per-cell classes, and tokenised questions."""

    patches: Tensor
    cells: dict[str, Tensor]
    sequences: list[tuple[list[int], list[int], Tensor]]


@dataclass(frozen=True)
class Turn:
    """One question in a packed row: its answer occupies ``start:end``; ``shares``: its target's cells ``(81,)``."""

    row: int
    start: int
    end: int
    shares: Tensor


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


class ReasonerTrainer(TrainingLoop):
    """Owns model, heads and the stream of scenes; `run` trains for the recipe's minutes."""

    def __init__(self, recipe: ReasonerRecipe, folder: Path) -> None:
        schedule = Schedule(
            recipe.minutes,
            recipe.learning_rate,
            recipe.muon_rate,
            muon_start_steps=recipe.muon_start_steps,
            decay_from=0.5,
        )
        super().__init__(schedule, folder, recipe.seed, recipe.seed * 1_000_000)
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.processor = tiny_mllm.build_processor(corpus(LEVELS["full"]))
        self.model = tiny_mllm.build_model(self.processor)
        self.heads = Heads(self._word_table().shape[1])
        self.own(model=self.model, heads=self.heads)
        self.model.train()
        ids = self._ids
        full = LEVELS["full"]
        self.words = {
            "class": ids(["background", *(f" {name}" for name in full.classes)]),
            "colour": ids([f" {colour}" for colour in full.colours]),
            "colour_start": ids(list(full.colours)),
            **{f"edge{i}": ids(list(tokens)) for i, tokens in enumerate(tiny_mllm.EDGES)},
        }
        example = self._prefix("x")
        self.positions = self._positions(len(example) + 96)
        self.first_visual = example.index(self.processor.image_token_id)

    def _word_table(self) -> Tensor:
        """The tied word embeddings ``(vocabulary, D)``."""
        weight: Tensor = self.model.lm_head.weight
        return weight

    def _ids(self, texts: list[str]) -> Tensor:
        """The last token of each text."""
        return torch.tensor([self.processor.tokenizer(text)["input_ids"][-1] for text in texts])

    def _prefix(self, instruction: str) -> list[int]:
        text = tiny_mllm.START + tiny_mllm.IMAGE * TOKENS + tiny_mllm.STOP + instruction + tiny_mllm.ASK
        return list(self.processor.tokenizer(text)["input_ids"])

    def _positions(self, length: int) -> Tensor:
        """Qwen2-VL's three-axis positions ``(3, 1, length)`` of image prefix and following text."""
        ids = torch.tensor([self._prefix("")])
        ids = F.pad(ids, (0, length - ids.shape[1]), value=self.processor.tokenizer.eos_token_id)
        kinds = (ids == self.processor.image_token_id).int()
        sizes = torch.tensor([[1, 2 * tiny_mllm.BANDS, 2 * tiny_mllm.BANDS]])
        positions: Tensor = self.model.model.get_rope_index(ids, kinds, image_grid_thw=sizes)[0]
        return positions

    def picture(self) -> Picture:
        """The next scene of the stream as training data."""
        recipe = self.recipe
        shares = {"full": recipe.full, "small": recipe.small, "crowded": recipe.crowded}
        shares["easy"] = 1.0 - sum(shares.values())
        level: LevelName = self.rng.choice(list(shares), p=list(shares.values())).item()
        scene = make_scene(self.next_scene, level, int(self.rng.integers(288, 480)), questions_per_kind=0)
        self.next_scene += 1
        zoomed = level == "small" and self.rng.random() < recipe.zoomed
        if zoomed:
            scene = _zoomed(self.rng, scene)
        prompt = draw_marks(scene.image.resize((tiny_mllm.CANVAS_PX,) * 2, Image.Resampling.BILINEAR), MARKS)
        patches = self.processor.image_processor(prompt, return_tensors="pt")["pixel_values"]
        sequences: list[tuple[list[int], list[int], Tensor]] = []
        while len(sequences) < recipe.questions:
            kind = str(self.rng.choice(list(KIND_SHARES), p=list(KIND_SHARES.values())))
            truth = draw_truth(self.rng, scene.layout, LEVELS[level], kind)  # type: ignore[arg-type]
            if truth is not None and not (zoomed and _misleading(scene, truth)):
                sequences.append(self._sequence(scene, truth))
        return Picture(
            patches, cell_targets(scene, list(LEVELS["full"].classes), list(LEVELS["full"].colours)), sequences
        )

    def _sequence(self, scene: Scene, truth: Truth) -> tuple[list[int], list[int], Tensor]:
        """Prompt ids, answer ids, and the target's share of each cell ``(81,)``."""
        mask = np.zeros_like(scene.masks[0]) if truth.target is None else scene.masks[truth.target]
        regions = mask_regions(mask, MARKS)
        text = tiny_mllm.answer_text(truth.object, regions.rows, regions.columns, truth.reasoning) + tiny_mllm.END
        return self._prefix(truth.instruction), list(self.processor.tokenizer(text)["input_ids"]), cell_shares(mask)

    def next_loss(self) -> tuple[Tensor, dict[str, float]]:
        pictures = [self.picture() for _ in range(self.recipe.pictures)]
        if self.step < self.recipe.vision_only_steps:
            return self._alignment(self._visual(pictures), pictures)
        return self.loss(pictures)

    def _visual(self, pictures: list[Picture]) -> Tensor:
        """Visual tokens as the language model receives them, ``(B, 81, D)``."""
        side = 2 * tiny_mllm.BANDS
        sizes = torch.tensor([[1, side, side]] * len(pictures))
        patches = torch.cat([picture.patches for picture in pictures])
        return torch.stack(self.model.model.get_image_features(patches, sizes).pooler_output)

    def loss(self, pictures: list[Picture]) -> tuple[Tensor, dict[str, float]]:
        """All losses on one batch, with readable parts."""
        visual = self._visual(pictures)
        align, parts = self._alignment(visual, pictures)
        packed = self._pack(pictures)
        hidden = self._hidden(visual, packed)
        answer, parts_answer = self._answer(hidden, packed)
        pointing, parts_point = self._pointing(hidden, visual, packed)
        return align + answer + 2.0 * pointing, parts | parts_answer | parts_point

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
        length = start + max(sum(len(p) - start + len(a) for p, a, _ in picture.sequences) for picture in pictures)
        ids = torch.full((len(pictures), length), self.processor.tokenizer.pad_token_id)
        turn = torch.full((len(pictures), length), -1)
        positions = self.positions[:, :, :1].repeat(1, len(pictures), length)
        turns = []
        for n, picture in enumerate(pictures):
            cursor = start
            ids[n, :start], turn[n, :start] = torch.tensor(picture.sequences[0][0][:start]), 0
            positions[:, n, :start] = self.positions[:, 0, :start]
            for k, (prompt, answer, shares) in enumerate(picture.sequences, start=1):
                tokens = prompt[start:] + answer
                end = cursor + len(tokens)
                ids[n, cursor:end], turn[n, cursor:end] = torch.tensor(tokens), k
                positions[:, n, cursor:end] = self.positions[:, 0, start : start + len(tokens)]
                turns.append(Turn(n, cursor + len(prompt) - start, end, shares))
                cursor = end
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        visible = causal & ((turn[:, None, :] == 0) | (turn[:, None, :] == turn[:, :, None]))
        return Packed(ids, positions, visible[:, None], turns)

    def _answer(self, hidden: Tensor, packed: Packed) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy on answer tokens; band edges weigh as much as all other words together."""
        index = [(turn.row, t) for turn in packed.turns for t in range(turn.start, turn.end)]
        row, column = (torch.tensor(x) for x in zip(*index, strict=True))
        target = packed.ids[row, column]
        nll = F.cross_entropy(self.model.lm_head(hidden[row, column - 1]), target, reduction="none")
        edges = torch.isin(target, torch.cat([self.words[f"edge{i}"] for i in range(4)]))
        loss = nll[~edges].mean() + (nll[edges].mean() if edges.any() else 0.0)
        return loss, {"words": nll[~edges].mean().item(), "edges": nll[edges].mean().item()}

    def _pointing(self, hidden: Tensor, visual: Tensor, packed: Packed) -> tuple[Tensor, dict[str, float]]:
        """BCE of pointing maps at the query's end and after the object phrase."""
        rows = torch.tensor([turn.row for turn in packed.turns])
        wanted = _covered(torch.stack([turn.shares for turn in packed.turns]), 0.15).float()
        ends = torch.tensor([turn.start - 1 for turn in packed.turns])
        logits = self.heads.point(hidden[rows, ends], visual[rows])
        loss = F.binary_cross_entropy_with_logits(logits, wanted)
        present_id = self.processor.tokenizer.convert_tokens_to_ids(tiny_mllm.PRESENT)
        row, after = (packed.ids == present_id).nonzero(as_tuple=True)
        shown = torch.tensor(
            [
                n
                for n, turn in enumerate(packed.turns)
                if (packed.ids[turn.row, turn.start : turn.end] == present_id).any()
            ]
        )
        later = self.heads.point(hidden[row, after], visual[row])
        loss = loss + F.binary_cross_entropy_with_logits(later, wanted[shown])
        guess = (logits[shown] > 0).float()
        overlap = (guess * wanted[shown]).sum() / ((guess + wanted[shown]) > 0).float().sum().clamp(min=1)
        return loss, {"point": overlap.item()}

    def _alignment(self, visual: Tensor, pictures: list[Picture]) -> tuple[Tensor, dict[str, float]]:
        """One softmax per attribute over the tied word embeddings, for the object that owns each cell."""
        normed = self.heads.norm(visual)
        table = self._word_table()
        loss, parts = visual.new_zeros(()), {}
        for group, words in self.words.items():
            target = torch.stack([picture.cells[group.removesuffix("_start")] for picture in pictures])
            logits = normed @ table[words].T * 2.0
            weight = torch.ones(len(words))
            if group == "class":
                weight[0] = 0.15
            scale = CLASS_WEIGHT if group == "class" else 1.0
            loss = loss + scale * F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight, ignore_index=-100)
            if group in ("class", "colour", "edge0"):
                known = target > 0 if group == "class" else target >= 0
                parts[group] = (logits.argmax(-1)[known] == target[known]).float().mean().item()
        place = self.heads.place(normed).unflatten(-1, (2, -1))
        cells = torch.arange(TOKENS).expand(len(pictures), -1)
        for axis, own in enumerate((cells // tiny_mllm.BANDS, cells % tiny_mllm.BANDS)):
            loss = loss + 0.3 * F.cross_entropy(place[:, :, axis].flatten(0, 1), own.flatten())
        return loss, parts

    def save_model(self) -> None:
        canvas = [tiny_mllm.CANVAS_PX] * 2
        marker = {"name": "demo", "prompt": "demo", "canvas_px": canvas, "marks": asdict(MARKS)}
        tiny_mllm.save(self.model, self.processor, self.folder / "model", json.dumps(marker, indent=2) + "\n")


def _zoomed(rng: np.random.Generator, scene: Scene) -> Scene:
    """``scene`` cut to a random box of 0.15 to 0.6 of its sides around one whole object."""
    mask = scene.masks[int(rng.integers(len(scene.masks)))]
    height, width = mask.shape
    spans = []
    for touched, length in ((mask.any(axis=1), height), (mask.any(axis=0), width)):
        first, last = np.flatnonzero(touched)[[0, -1]]
        side = min(length, max(int(rng.uniform(0.15, 0.6) * length), int(last - first) + 3))
        start = int(rng.integers(max(0, last + 1 - side), min(first, length - side) + 1))
        spans.append((start, start + side))
    (top, bottom), (left, right) = spans
    masks = tuple(mask[top:bottom, left:right] for mask in scene.masks)
    return replace(scene, image=scene.image.crop((left, top, right, bottom)), masks=masks)


def _misleading(scene: Scene, truth: Truth) -> bool:
    """Whether a question about the whole scene has another answer on its zoomed part: it compares, or asks for what
    lies outside."""
    return truth.kind == "relation" or (truth.target is not None and not scene.masks[truth.target].any())


def cell_shares(mask: BoolMask) -> Tensor:
    """The share of each of the 81 cells that ``mask`` covers, float32 ``(81,)``."""
    return torch.from_numpy(grid.cell_shares(mask, MARKS).astype(np.float32).ravel())


def _covered(shares: Tensor, least: float) -> Tensor:
    """``shares (N, 81)`` -> bool: cells of which a mask covers ``least``; of a small mask, those it covers most."""
    most = shares.amax(dim=-1, keepdim=True)
    return (shares > least) | ((shares >= 0.6 * most) & (most > 0.005))


def cell_targets(scene: Scene, classes: list[str], colours: list[str]) -> dict[str, Tensor]:
    """Per visual token: class (0 = background), colour and band edges of the object that owns it (-100 = none)."""
    shares = torch.stack([cell_shares(mask) for mask in scene.masks])
    owner = shares.argmax(dim=0)
    owned = _covered(shares, 0.12).any(dim=0)
    regions = [mask_regions(mask, MARKS) for mask in scene.masks]
    # What is out of sight owns no cell.
    rows, columns = [r.rows or (1,) for r in regions], [r.columns or (1,) for r in regions]
    per_item = {
        "class": [1 + classes.index(item.name) for item in scene.layout.items],
        "colour": [colours.index(item.colour) for item in scene.layout.items],
        "edge0": [ids[0] - 1 for ids in rows], "edge1": [ids[-1] - 1 for ids in rows],
        "edge2": [ids[0] - 1 for ids in columns], "edge3": [ids[-1] - 1 for ids in columns],
    }  # fmt: skip
    cells = {name: torch.where(owned, torch.tensor(values)[owner], -100) for name, values in per_item.items()}
    cells["class"] = cells["class"].clamp(min=0)
    return cells
