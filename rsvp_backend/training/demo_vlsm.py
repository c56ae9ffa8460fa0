"""Train the demo preset's VLSM on crops of scenes: the module, losses and preprocessing that any VLSM uses here.

Each crop comes with several texts: the target, another object of the scene (whole, partly, or not in the crop), and an
object that is not there; so the text must be read, not only the salient object cut out. Clicks and boxes come beside
them, alone and with a text; some pictures are shown to SAM as a whole (see `views`). Training-only heads name the class
and colour under each visual token.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from rsvp_backend.grid import mask_regions, regions_box
from rsvp_backend.scenes import LEVELS, LevelName, Scene, make_scene
from rsvp_backend.scenes.language import NAME_CARRIERS, corpus
from rsvp_backend.scenes.layout import Level
from rsvp_backend.training import losses
from rsvp_backend.training.hints import Hint, clickable, sample_hint
from rsvp_backend.training.loop import Schedule, TrainingLoop
from rsvp_backend.training.tiny_mllm import init_patch_embed
from rsvp_backend.types import BoolMask, Box, Marks, Prompt, Regions
from rsvp_backend.vlsm import preprocess, weights
from rsvp_backend.vlsm.config import Beit3Config, SamConfig, VlsmConfig
from rsvp_backend.vlsm.model import Vlsm
from rsvp_backend.vlsm.tokenizer import Tokenizer
from rsvp_backend.vlsm.views import View


@dataclass(frozen=True)
class VlsmRecipe:
    """How long and on what the demo VLSM trains."""

    minutes: float = 60.0
    crops: int = 8
    learning_rate: float = 1.2e-3
    muon_rate: float = 0.006
    crowded: float = 0.35
    full: float = 0.0
    whole_views: float = 0.35
    hints: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Crop:
    """One crop with three texts, and hints on what SAM sees (the crop, or the whole picture with the crop as a box).

    ``sam``: ``(3, S, S)``; ``beit3``: ``(3, s, s)``; ``targets``: ``(3, h, w)`` at the decoder's resolution;
    ``corners``: the crop's corners where it is a box prompt, else none; ``hint_targets``: ``(hints, h, w)``;
    ``sam_words`` and ``beit3_words``: per visual token class (0 = background) and colour (-100 = none), ``(2, ., .)``;
    ``beit3_cover``: each text's share of BEiT-3's patches, ``(3, ., .)``.
    """

    sam: Tensor
    beit3: Tensor
    texts: list[str]
    targets: Tensor
    corners: list[tuple[float, float]]
    hints: list[Hint]
    hint_targets: Tensor
    sam_words: Tensor
    beit3_words: Tensor
    beit3_cover: Tensor


def demo_config(vocab_size: int) -> VlsmConfig:
    """About 2.6 M parameters; every attention is global at this size."""
    return VlsmConfig(
        SamConfig(
            image_size=224, patch_size=16, embed_dim=128, depth=4, num_heads=4, mlp_ratio=3, window_size=14,
            global_attn_indexes=(0, 1, 2, 3), prompt_embed_dim=128, mask_in_chans=16, decoder_mlp_dim=256,
            decoder_num_heads=4, iou_head_hidden_dim=128,
        ),
        Beit3Config(
            img_size=128, patch_size=16, vocab_size=vocab_size, embed_dim=128, num_heads=4, ffn_dim=384, layers=4,
            max_source_positions=64,
        ),
    )  # fmt: skip


def train_tokenizer(lines: Iterable[str]) -> Tokenizer:
    """A sentencepiece BPE model over the words of the scenes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=900, hard_vocab_limit=False,
        character_coverage=1.0, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return Tokenizer(model.getvalue(), 62)


class Heads(nn.Module):
    """Training-only heads: words under SAM's tokens and BEiT-3's patches, and the text's cover of each patch."""

    def __init__(self, config: VlsmConfig, words: int) -> None:
        super().__init__()
        self.sam = nn.Linear(config.sam.prompt_embed_dim, words)
        self.beit3 = nn.Linear(config.beit3.embed_dim, words)
        self.cover = nn.Linear(config.beit3.embed_dim, 1)


class VlsmTrainer(TrainingLoop):
    """Owns model, heads and the stream of crops; `run` trains for the recipe's minutes."""

    def __init__(self, recipe: VlsmRecipe, folder: Path) -> None:
        schedule = Schedule(recipe.minutes, recipe.learning_rate, recipe.muon_rate, decay_from=0.5)
        super().__init__(schedule, folder, recipe.seed, recipe.seed * 1_000_000 + 5_000_000)
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.tokenizer = train_tokenizer(corpus(LEVELS["full"]))
        self.model = Vlsm(demo_config(self.tokenizer.vocab_size))
        self.config = self.model.config
        init_patch_embed(self.model.visual_model.image_encoder.patch_embed.proj.weight)
        init_patch_embed(self.model.mm_extractor.beit3.vision_embed.proj.weight)
        self.classes, self.colours = list(LEVELS["full"].classes), list(LEVELS["full"].colours)
        self.heads = Heads(self.config, 1 + len(self.classes) + len(self.colours))
        self.own(model=self.model, heads=self.heads)
        self.model.train()

    def crop(self) -> Crop:
        """A crop around one object of the next scene, from jittered region marks."""
        draw = self.rng.random()
        level: LevelName = "full" if draw < self.recipe.full else "easy"
        if self.recipe.full <= draw < self.recipe.full + self.recipe.crowded:
            level = "crowded"
        scene = make_scene(self.next_scene, level, int(self.rng.integers(400, 900)), questions_per_kind=0)
        self.next_scene += 1
        target = int(self.rng.integers(len(scene.masks)))
        box = self._box(scene, target)
        texts, wanted = self._texts(scene, target, box, LEVELS[level])
        whole = self.rng.random() < self.recipe.whole_views
        view = View.of("full+box" if whole else "crop", scene.image, Prompt(box, text=texts[0]))
        size, grid = self.config.sam.image_size, self.config.sam.grid_size
        shares = torch.stack([_pooled(_cut(mask, view.frame), (4 * grid, 4 * grid), size) for mask in scene.masks])
        # What lies beyond the crop is cut off the answer to a text: it is nothing to look for.
        inside = _pooled(_cut(_filled(scene.masks[0], box), view.frame), (4 * grid, 4 * grid), size)
        patches = self.config.beit3.img_size // self.config.beit3.patch_size
        cuts = [torch.from_numpy(_cut(mask, box)).float()[None] for mask in scene.masks]
        square = torch.stack([F.adaptive_avg_pool2d(cut, patches)[0] for cut in cuts])
        empty, none = torch.zeros_like(shares[0]), torch.zeros_like(square[0])
        hints = self._hints(scene, view, wanted)
        return Crop(
            preprocess.sam_pixels(scene.image.crop(view.frame.xyxy), size),
            preprocess.beit3_pixels(scene.image.crop(box.xyxy), self.config.beit3.img_size),
            texts,
            torch.stack([empty if i is None else shares[i] * inside for i in wanted]),
            view.box_corners(size),
            hints,
            shares[[hint.item for hint in hints]],
            self._words(scene, F.avg_pool2d(shares, 4)),
            self._words(scene, square),
            torch.stack([none if i is None else square[i] for i in wanted]),
        )

    def _hints(self, scene: Scene, view: View, wanted: list[int | None]) -> list[Hint]:
        """Half of the hints stand alone; the others go with a text, mostly that of the item they mean."""
        choices = clickable(scene.masks, view.frame)
        hints = []
        for _ in range(self.recipe.hints if choices else 0):
            item, text = int(self.rng.choice(choices)), None
            if self.rng.random() < 0.5:
                text = 0 if self.rng.random() < 0.7 else int(self.rng.integers(1, 3))
                item = wanted[0] if wanted[0] in choices else item
            hints.append(sample_hint(self.rng, scene.masks, item, view, self.config.sam.image_size, text))
        return hints

    def _box(self, scene: Scene, target: int) -> Box:
        """The target's region box, with band edges moved now and then as a reasoner's would be, padded by 10-30 %."""
        marks = Marks("bands")
        regions = mask_regions(scene.masks[target], marks)
        ids = [[r[0], r[-1]] for r in (regions.rows, regions.columns)]
        for pair in ids:
            for end, sign in ((0, -1), (1, 1)):
                move = self.rng.choice([0, 1, 2, -1], p=[0.66, 0.18, 0.06, 0.10])
                pair[end] = int(np.clip(pair[end] + sign * move, 1, 9))
            pair.sort()
        width, height = scene.image.size
        box = regions_box(Regions(rows=tuple(ids[0]), columns=tuple(ids[1])), marks, width, height)
        assert box is not None  # both axes name bands
        return box.padded(float(self.rng.uniform(0.1, 0.35)), width, height)

    def _texts(self, scene: Scene, target: int, box: Box, level: Level) -> tuple[list[str], list[int | None]]:
        """Three phrases and the items they mean: the target, another object of the scene, one that is not there."""
        items = scene.layout.items
        inside = [
            i for i, mask in enumerate(scene.masks)
            if i != target and mask[box.top : box.bottom, box.left : box.right].any()
        ]  # fmt: skip
        others = inside or [i for i in range(len(items)) if i != target]
        other = int(self.rng.choice(others))
        pairs = {(item.name, item.colour) for item in items}
        near = items[target]
        while True:
            name, colour = str(self.rng.choice(level.classes)), str(self.rng.choice(level.colours))
            kind = self.rng.random()
            name, colour = (
                (near.name, colour) if kind < 0.35 else ((name, near.colour) if kind < 0.7 else (name, colour))
            )
            if (name, colour) not in pairs:
                break
        phrases = [items[target].phrase, items[other].phrase, f"{colour} {name}"]
        carried = self.rng.random() < 0.15
        if carried:
            carrier = str(self.rng.choice(NAME_CARRIERS))
            phrases = [carrier.format(x=phrase) for phrase in phrases]
        return phrases, [target, other, None]

    def _words(self, scene: Scene, shares: Tensor) -> Tensor:
        """``shares (items, h, w)`` -> class (0 = background) and colour (-100 = none) per token, ``(2, h, w)``."""
        best, owner = shares.max(dim=0)
        owned = best > 0.2
        name = torch.tensor([1 + self.classes.index(item.name) for item in scene.layout.items])[owner]
        colour = torch.tensor([self.colours.index(item.colour) for item in scene.layout.items])[owner]
        return torch.stack([torch.where(owned, name, 0), torch.where(owned, colour, -100)])

    def next_loss(self) -> tuple[Tensor, dict[str, float]]:
        return self.loss([self.crop() for _ in range(self.recipe.crops)])

    def loss(self, crops: list[Crop]) -> tuple[Tensor, dict[str, float]]:
        """All losses on one batch, with readable parts."""
        texts = len(crops[0].texts)
        embedding = self.model.embed_image(torch.stack([crop.sam for crop in crops]))
        ids, pads = self.tokenizer.batch([text for crop in crops for text in crop.texts])
        pixels = torch.stack([crop.beit3 for crop in crops]).repeat_interleave(texts, 0)
        features = self.model.beit3(pixels, ids, pads)
        prompt = self.model.prompt_tokens(features, pads)
        logits, iou = self._decode_texts(embedding, prompt, crops)
        targets = torch.stack([crop.targets for crop in crops]).flatten(0, 1)
        mask_loss = losses.segmentation_loss(logits, iou, targets)
        hint_loss, hint_parts = self._hint_loss(embedding, prompt, crops)
        patches = features[:, 1 : self.config.beit3.vision_tokens]
        cover = torch.stack([crop.beit3_cover for crop in crops]).flatten(0, 1).flatten(1)
        cover_loss = F.binary_cross_entropy_with_logits(self.heads.cover(patches)[..., 0], cover)
        sam_words, sam_seen = self._word_loss(
            self.heads.sam(embedding.flatten(2).mT), torch.stack([c.sam_words for c in crops])
        )
        beit3_words, beit3_seen = self._word_loss(
            self.heads.beit3(patches), torch.stack([c.beit3_words for c in crops]).repeat_interleave(texts, 0)
        )
        loss = mask_loss + hint_loss + cover_loss + 0.5 * sam_words + 0.25 * beit3_words
        ious = losses.mask_iou(logits, targets).view(-1, texts).mean(0)
        parts = {"iou_target": ious[0], "iou_other": ious[1], "iou_absent": ious[2], "cover": cover_loss}
        seen = {"sam_class": sam_seen, "beit3_class": beit3_seen}
        return loss, {k: v.item() for k, v in parts.items()} | hint_parts | seen

    def _decode_texts(self, embedding: Tensor, prompt: Tensor, crops: list[Crop]) -> tuple[Tensor, Tensor]:
        """Logits ``(B * texts, h, w)`` and predicted IoU of all texts; those on whole pictures with the crop as box."""
        texts = len(crops[0].texts)
        tokens = []
        for crop, own in zip(crops, prompt.view(-1, texts, *prompt.shape[1:]), strict=True):
            corners = self.model.visual_model.encode_points([], [], crop.corners) if crop.corners else own[0, :0]
            tokens += [torch.cat([corners, text]) for text in own]
        return self._decode(embedding.repeat_interleave(texts, 0), tokens)

    def _hint_loss(self, embedding: Tensor, prompt: Tensor, crops: list[Crop]) -> tuple[Tensor, dict[str, float]]:
        """The same mask loss on clicks and boxes, alone or followed by a text's token."""
        texts, tokens, rows = len(crops[0].texts), [], []
        hints = [(n, hint) for n, crop in enumerate(crops) for hint in crop.hints]
        for n, hint in hints:
            points = self.model.visual_model.encode_points(hint.points, hint.labels, hint.corners)
            tokens.append(points if hint.text is None else torch.cat([points, prompt[n * texts + hint.text]]))
            rows.append(n)
        logits, iou = self._decode(embedding[rows], tokens)
        targets = torch.cat([crop.hint_targets for crop in crops])
        ious = losses.mask_iou(logits, targets)
        kinds = {
            "iou_click": [not h.corners and h.text is None for _, h in hints],
            "iou_box": [bool(h.corners) for _, h in hints],
            "iou_text_click": [not h.corners and h.text is not None for _, h in hints],
        }
        parts = {name: ious[torch.tensor(which)].mean().item() for name, which in kinds.items() if any(which)}
        return losses.segmentation_loss(logits, iou, targets), parts

    def _decode(self, embeddings: Tensor, tokens: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Decode prompts of different lengths: logits ``(N, h, w)`` and predicted IoU ``(N,)``, in their order."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for length in {len(own) for own in tokens}:
            same = [i for i, own in enumerate(tokens) if len(own) == length]
            logits, iou = self.model.decode(embeddings[same], torch.stack([tokens[i] for i in same]))
            found |= {i: (mask[0], score[0]) for i, mask, score in zip(same, logits, iou, strict=True)}
        masks, scores = zip(*(found[i] for i in range(len(tokens))), strict=True)
        return torch.stack(masks), torch.stack(scores)

    def _word_loss(self, logits: Tensor, words: Tensor) -> tuple[Tensor, float]:
        """Class and colour cross-entropy; ``logits (B, T, words)``, ``words (B, 2, h, w)``; and class accuracy."""
        count = 1 + len(self.classes)
        name, colour = words.flatten(2).unbind(1)
        weight = torch.ones(count)
        weight[0] = 0.15
        loss = 2 * F.cross_entropy(logits[..., :count].flatten(0, 1), name.flatten(), weight)
        loss = loss + 0.5 * F.cross_entropy(logits[..., count:].flatten(0, 1), colour.flatten(), ignore_index=-100)
        shown = name > 0
        return loss, (logits[..., :count].argmax(-1)[shown] == name[shown]).float().mean().item()

    def save_model(self) -> None:
        weights.save(self.folder / "model", self.model, self.tokenizer, name="demo")


def _cut(mask: BoolMask, box: Box) -> BoolMask:
    return mask[box.top : box.bottom, box.left : box.right]


def _filled(like: BoolMask, box: Box) -> BoolMask:
    mask: BoolMask = np.zeros_like(like)
    _cut(mask, box)[:] = True
    return mask


def _pooled(mask: BoolMask, grid: tuple[int, int], image_size: int) -> Tensor:
    """A crop's mask as SAM's square sees it (longest side resized, padded right and below), averaged on ``grid``."""
    height, width = preprocess.resized_size((mask.shape[0], mask.shape[1]), image_size)
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    square = torch.zeros(image_size, image_size)
    square[:height, :width] = torch.from_numpy(np.array(picture)).float() / 255
    return F.adaptive_avg_pool2d(square[None], grid)[0]
