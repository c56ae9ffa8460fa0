"""Training pictures of the demo reasoner: a marked scene, what each cell shows, and questions with their answers.

Scenes are drawn and asked about in any process (`PicturePlanner`); marks and patches are made on the training device
(`MarkedPatches`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLProcessor

from rsvp_backend import grid
from rsvp_backend.grid import draw_marks, mask_regions
from rsvp_backend.scenes import LEVELS, LevelName, Scene, make_scene
from rsvp_backend.scenes.language import Kind, Truth, draw_truth
from rsvp_backend.training import tiny_mllm
from rsvp_backend.training.augment import mirrored, relit, tone_curves
from rsvp_backend.types import BoolMask, Marks

MARKS = {kind: Marks(kind, tiny_mllm.BANDS, tiny_mllm.BANDS) for kind in tiny_mllm.ASKED_IN}
KIND_SHARES: dict[Kind, float] = {"name": 0.25, "function": 0.25, "absent": 0.2, "relation": 0.15, "several": 0.15}
TOKENS = tiny_mllm.BANDS**2


@dataclass(frozen=True)
class PictureMix:
    """Shares of the training pictures: ``crowded``, ``small`` and ``full`` scenes (the rest are easy).

    ``zoomed``: share of the small ones that are cut to the surroundings of one object, as `zoom` does; ``cells``: share
    marked with cells instead of bands; ``rounds``: pictures made of each scene, with ``questions`` each.
    """

    crowded: float = 0.05
    small: float = 0.15
    full: float = 0.7
    zoomed: float = 0.6
    cells: float = 0.2
    questions: int = 5
    rounds: int = 2


@dataclass(frozen=True)
class Asked:
    """One question: prompt and answer ids, the cells of all that it means ``(81,)``, and those of each object that is
    there, in the answer's order."""

    prompt: list[int]
    answer: list[int]
    shares: npt.NDArray[np.float32]
    parts: list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class PlannedPicture:
    """A drawn scene as it leaves the drawing process. ``image``: uint8 ``(3, CANVAS_PX, CANVAS_PX)``, without marks;
    ``cells``: `cell_targets`; ``rounds``: for each training picture made of it, kind of the marks and questions."""

    image: npt.NDArray[np.uint8]
    cells: dict[str, npt.NDArray[np.int64]]
    rounds: list[tuple[str, list[Asked]]]


@dataclass(frozen=True)
class Picture:
    """A scene on the training device, its marks, and tokenised questions."""

    image: Tensor
    cells: dict[str, Tensor]
    marks: str
    asked: list[Asked]

    @classmethod
    def all_of(cls, planned: PlannedPicture, device: torch.device) -> list[Picture]:
        """The pictures of one scene, which they share."""
        image = torch.from_numpy(planned.image).to(device)
        cells = {name: torch.from_numpy(values).to(device) for name, values in planned.cells.items()}
        return [cls(image, cells, marks, asked) for marks, asked in planned.rounds]


class MarkedPatches:
    """Pictures -> what the vision tower reads, ``(B * 324, 768)``, as the processor makes it of a marked picture."""

    def __init__(self, processor: Qwen2VLProcessor, device: torch.device) -> None:
        images, side = processor.image_processor, tiny_mllm.CANVAS_PX
        self._mean, self._std = (
            torch.tensor(values, device=device).view(3, 1, 1) * 255 for values in (images.image_mean, images.image_std)
        )
        black, white = (
            {
                kind: _channels(draw_marks(Image.new("RGB", (side, side), colour), marks))
                for kind, marks in MARKS.items()
            }
            for colour in ("black", "white")
        )
        # What marks are laid over: out = picture * through + ink.
        self._ink = {kind: black[kind].to(device) for kind in MARKS}
        self._through = {kind: ((white[kind] - black[kind]) / 255).to(device) for kind in MARKS}

    def __call__(self, pictures: list[Picture], rng: np.random.Generator) -> Tensor:
        """Of ``pictures``, some of them in another light."""
        pixels = torch.stack([picture.image for picture in pictures]).float()
        lit = relit(pixels, tone_curves(rng, len(pictures)).to(pixels.device))
        marked = lit * torch.stack([self._through[picture.marks] for picture in pictures])
        marked = marked + torch.stack([self._ink[picture.marks] for picture in pictures])
        normal = (marked - self._mean) / self._std
        pairs, half = 2, tiny_mllm.BANDS
        # Rows of patches come in 2 x 2 groups, which the tower merges into one token.
        count, side = len(pictures), tiny_mllm.PATCH_PX
        split = normal.reshape(count, 3, half, pairs, side, half, pairs, side)
        return split.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(count * 4 * half * half, 3 * side * side)


def _channels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32))


class PicturePlanner:
    """Scenes -> pictures for a reasoner with ``processor``; ``seed``: of the run."""

    def __init__(self, processor: Qwen2VLProcessor, mix: PictureMix, seed: int = 0) -> None:
        self._tokenizer, self.mix, self.seed = processor.tokenizer, mix, seed
        self.classes, self.colours = list(LEVELS["full"].classes), list(LEVELS["full"].colours)

    def __call__(self, scene_seed: int) -> PlannedPicture:
        """The scene, half the time mirrored, with questions of all kinds."""
        mix, rng = self.mix, np.random.default_rng([self.seed, scene_seed])
        shares = {"full": mix.full, "small": mix.small, "crowded": mix.crowded}
        shares["easy"] = 1.0 - sum(shares.values())
        level: LevelName = rng.choice(list(shares), p=list(shares.values())).item()
        scene = make_scene(scene_seed, level, int(rng.integers(288, 480)), questions_per_kind=0)
        if rng.random() < 0.5:
            scene = mirrored(scene)
        zoomed = level == "small" and rng.random() < mix.zoomed
        if zoomed:
            scene = _zoomed(rng, scene)
        image = scene.image.resize((tiny_mllm.CANVAS_PX,) * 2, Image.Resampling.BILINEAR)
        rounds = [self._round(rng, scene, level, zoomed) for _ in range(mix.rounds)]
        cells = {name: values.numpy() for name, values in cell_targets(scene, self.classes, self.colours).items()}
        return PlannedPicture(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)), cells, rounds)

    def _round(self, rng: np.random.Generator, scene: Scene, level: LevelName, zoomed: bool) -> tuple[str, list[Asked]]:
        marks = MARKS["cells" if rng.random() < self.mix.cells else "bands"]
        asked: list[Asked] = []
        while len(asked) < self.mix.questions:
            kind: Kind = rng.choice(list(KIND_SHARES), p=list(KIND_SHARES.values())).item()
            truth = draw_truth(rng, scene.layout, LEVELS[level], kind)
            if truth is not None and not (zoomed and _misleading(scene, truth)):
                asked.append(self._asked(scene, truth, marks))
        return marks.kind, asked

    def prompt(self, instruction: str, kind: str) -> list[int]:
        """The ids that the model reads before it answers, on marks of ``kind``."""
        image = tiny_mllm.START + tiny_mllm.IMAGE * TOKENS + tiny_mllm.STOP
        return self._ids(image + tiny_mllm.ASKED_IN[kind] + instruction + tiny_mllm.ASK)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])

    def _asked(self, scene: Scene, truth: Truth, marks: Marks) -> Asked:
        empty = np.zeros_like(scene.masks[0])
        masks = [empty if one.target is None else scene.masks[one.target] for one in truth.referents]
        parts = [
            tiny_mllm.Part(one.object, mask_regions(mask, marks), one.reasoning)
            for one, mask in zip(truth.referents, masks, strict=True)
        ]
        answer = self._ids(tiny_mllm.answer_text(parts, marks.kind) + tiny_mllm.END)
        shown = [cell_shares(mask) for mask in masks if mask.any()]
        everything = cell_shares(np.logical_or.reduce(masks))
        return Asked(self.prompt(truth.instruction, marks.kind), answer, everything, shown)


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
    return truth.kind == "relation" or not all(scene.masks[target].any() for target in truth.targets)


def cell_shares(mask: BoolMask) -> npt.NDArray[np.float32]:
    """The share of each of the 81 cells that ``mask`` covers, ``(81,)``."""
    return grid.cell_shares(mask, MARKS["bands"]).astype(np.float32).ravel()


def covered(shares: Tensor, least: float) -> Tensor:
    """``shares (N, 81)`` -> bool: cells of which a mask covers ``least``; of a small mask, those it covers most."""
    most = shares.amax(dim=-1, keepdim=True)
    return (shares > least) | ((shares >= 0.6 * most) & (most > 0.005))


def cell_targets(scene: Scene, classes: list[str], colours: list[str]) -> dict[str, Tensor]:
    """Per visual token: class (0 = background), colour and band edges of the object that owns it (-100 = none)."""
    shares = torch.from_numpy(np.stack([cell_shares(mask) for mask in scene.masks]))
    owner = shares.argmax(dim=0)
    owned = covered(shares, 0.12).any(dim=0)
    regions = [mask_regions(mask, MARKS["bands"]) for mask in scene.masks]
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
    cells["cell"] = torch.arange(TOKENS)
    return cells
