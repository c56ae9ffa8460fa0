"""Train the demo preset's VLSM on crops of scenes: the module, losses and preprocessing that any VLSM uses here.

Each crop comes with several texts: the target, another object of the scene (whole, partly, or not in the crop), and an
object that is not there; so the text must be read, not only the salient object cut out. Clicks and boxes come beside
them, alone and with a text; some pictures are shown to SAM as a whole (see `views`). Training-only heads name the class
and colour under each visual token.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsvp_backend.scenes import LEVELS
from rsvp_backend.scenes.language import corpus
from rsvp_backend.training import losses
from rsvp_backend.training.demo_crops import Crop, CropBatch, CropPlanner, Mix, batch
from rsvp_backend.training.loop import CPU, Schedule, TrainingLoop
from rsvp_backend.training.streams import Stream
from rsvp_backend.training.tiny_mllm import init_patch_embed
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.config import Beit3Config, SamConfig, VlsmConfig
from rsvp_backend.vlsm.hub import TOKENIZER_FILE
from rsvp_backend.vlsm.model import Vlsm
from rsvp_backend.vlsm.tokenizer import Tokenizer

KEPT_BATCHES = 16
MAX_TEXT_TOKENS = 62


@dataclass(frozen=True)
class VlsmRecipe:
    """How long and on what the demo VLSM trains; ``sam_words``, ``beit3_words``: weights of the words under tokens."""

    minutes: float = 60.0
    crops: int = 8
    learning_rate: float = 8e-4
    muon_rate: float = 0.003
    muon_start_steps: int = 1500
    mix: Mix = field(default_factory=Mix)
    words_only_steps: int = 1000
    sam_words: float = 1.0
    beit3_words: float = 0.75
    seed: int = 0

    def times(self, factor: int) -> VlsmRecipe:
        """The same with ``factor`` times the crops in each step."""
        return replace(self, crops=self.crops * factor)


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
    return Tokenizer(model.getvalue(), MAX_TEXT_TOKENS)


class Heads(nn.Module):
    """Training-only heads: words under SAM's tokens and BEiT-3's patches, and the text's cover of each patch."""

    def __init__(self, config: VlsmConfig, words: int) -> None:
        super().__init__()
        self.sam = nn.Linear(config.sam.prompt_embed_dim, words)
        self.beit3 = nn.Linear(config.beit3.embed_dim, words)
        self.cover = nn.Linear(config.beit3.embed_dim, 1)


class VlsmTrainer(TrainingLoop[Crop]):
    """Owns model and heads; `run` trains for the recipe's minutes."""

    def __init__(self, recipe: VlsmRecipe, folder: Path, device: torch.device = CPU, workers: int = 0) -> None:
        schedule = Schedule(
            recipe.minutes, recipe.learning_rate, recipe.muon_rate, muon_start_steps=recipe.muon_start_steps,
            decay_from=0.5,
        )  # fmt: skip
        first = recipe.seed * 1_000_000 + 5_000_000
        super().__init__(schedule, folder, recipe.seed, first, recipe.crops, device, workers)
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.tokenizer = self._tokenizer(folder / "model" / TOKENIZER_FILE)
        self.model = Vlsm(demo_config(self.tokenizer.vocab_size))
        self.config = self.model.config
        init_patch_embed(self.model.visual_model.image_encoder.patch_embed.proj.weight)
        init_patch_embed(self.model.mm_extractor.beit3.vision_embed.proj.weight)
        self.classes = 1 + len(LEVELS["full"].classes)
        self.heads = Heads(self.config, self.classes + len(LEVELS["full"].colours))
        self.own(model=self.model, heads=self.heads)
        self.model.train()

    @staticmethod
    def _tokenizer(earlier: Path) -> Tokenizer:
        """That of an earlier part of this run, else a new one: another vocabulary would mix up what was learned."""
        if earlier.exists():
            return Tokenizer(earlier.read_bytes(), MAX_TEXT_TOKENS)
        return train_tokenizer(corpus(LEVELS["full"]))

    def stream(self, first_scene: int) -> Stream[Any, Crop]:
        planner = CropPlanner(self.config, self.recipe.mix, self.recipe.seed)
        kept = self.batch * KEPT_BATCHES
        receive = partial(Crop.all_of, device=self.device)
        return Stream(planner, receive, first_scene, workers=self.workers, kept=kept)

    def _words_only(self, samples: list[Crop]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The words under both branches' tokens, on three times the crops: what is decoded costs most of a step."""
        crops = batch(samples + self.samples(2 * len(samples)), self.config, self.rng)
        embedding = self.model.embed_image(crops.sam)
        ids, pads = self.tokenizer.batch([plan.texts[0] for plan in crops.plans])
        features = self.model.beit3(crops.beit3, ids.to(self.device), None if pads is None else pads.to(self.device))
        patches = features[:, 1 : self.config.beit3.vision_tokens]
        sam, sam_seen = self._word_loss(self.heads.sam(embedding.flatten(2).mT), crops.sam_words)
        beit3, beit3_seen = self._word_loss(self.heads.beit3(patches), crops.beit3_words)
        loss = self.recipe.sam_words * sam + self.recipe.beit3_words * beit3
        return loss, {"sam_class": sam_seen, "beit3_class": beit3_seen}

    def loss(self, samples: list[Crop]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """All losses on one batch, with readable parts; for the first steps, those of single tokens' words alone."""
        if self.step < self.recipe.words_only_steps:
            return self._words_only(samples)
        crops = batch(samples, self.config, self.rng)
        texts = crops.targets.shape[1]
        embedding = self.model.embed_image(crops.sam)
        ids, pads = self.tokenizer.batch([text for plan in crops.plans for text in plan.texts])
        ids, pads = ids.to(self.device), None if pads is None else pads.to(self.device)
        features = self.model.beit3(crops.beit3.repeat_interleave(texts, 0), ids, pads)
        prompt = self.model.prompt_tokens(features, pads)
        logits, iou = self._decode_texts(embedding, prompt, crops)
        targets = crops.targets.flatten(0, 1)
        mask_loss = losses.segmentation_loss(logits, iou, targets)
        hint_loss, hint_parts = self._hint_loss(embedding, prompt, crops)
        patches = features[:, 1 : self.config.beit3.vision_tokens]
        cover = crops.beit3_cover.flatten(0, 1).flatten(1)
        cover_loss = F.binary_cross_entropy_with_logits(self.heads.cover(patches)[..., 0], cover)
        sam_words, sam_seen = self._word_loss(self.heads.sam(embedding.flatten(2).mT), crops.sam_words)
        beit3_words, beit3_seen = self._word_loss(
            self.heads.beit3(patches), crops.beit3_words.repeat_interleave(texts, 0)
        )
        loss = mask_loss + hint_loss + cover_loss + self.recipe.sam_words * sam_words
        loss = loss + self.recipe.beit3_words * beit3_words
        ious = losses.mask_iou(logits, targets).view(-1, texts).mean(0)
        parts = {"iou_target": ious[0], "iou_other": ious[1], "iou_absent": ious[2], "cover": cover_loss}
        return loss, {**parts, **hint_parts, "sam_class": sam_seen, "beit3_class": beit3_seen}

    def _decode_texts(self, embedding: Tensor, prompt: Tensor, crops: CropBatch) -> tuple[Tensor, Tensor]:
        """Logits ``(B * texts, h, w)`` and predicted IoU of all texts; those on whole pictures with the crop as box."""
        texts = crops.targets.shape[1]
        tokens = []
        for plan, own in zip(crops.plans, prompt.view(-1, texts, *prompt.shape[1:]), strict=True):
            corners = self.model.visual_model.encode_points([], [], plan.corners) if plan.corners else own[0, :0]
            tokens += [torch.cat([corners, text]) for text in own]
        return self._decode(embedding.repeat_interleave(texts, 0), tokens)

    def _hint_loss(self, embedding: Tensor, prompt: Tensor, crops: CropBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The same mask loss on clicks and boxes, alone or followed by a text's token."""
        texts, tokens, rows = crops.targets.shape[1], [], []
        hints = [(n, hint) for n, plan in enumerate(crops.plans) for hint in plan.hints]
        for n, hint in hints:
            points = self.model.visual_model.encode_points(hint.points, hint.labels, hint.corners)
            tokens.append(points if hint.text is None else torch.cat([points, prompt[n * texts + hint.text]]))
            rows.append(n)
        logits, iou = self._decode(embedding[rows], tokens)
        targets = crops.hint_targets
        ious = losses.mask_iou(logits, targets).cpu()
        kinds = {
            "iou_click": [not h.corners and h.text is None for _, h in hints],
            "iou_box": [bool(h.corners) for _, h in hints],
            "iou_text_click": [not h.corners and h.text is not None for _, h in hints],
        }
        parts = {name: ious[torch.tensor(which)].mean() for name, which in kinds.items() if any(which)}
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

    def _word_loss(self, logits: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Class and colour cross-entropy; ``logits (B, T, words)``, ``words (B, 2, h, w)``; and class accuracy."""
        count = self.classes
        name, colour = words.flatten(2).unbind(1)
        weight = torch.ones(count, device=words.device)
        weight[0] = 0.15
        loss = 2 * F.cross_entropy(logits[..., :count].flatten(0, 1), name.flatten(), weight)
        loss = loss + 0.5 * F.cross_entropy(logits[..., count:].flatten(0, 1), colour.flatten(), ignore_index=-100)
        shown = name > 0
        return loss, (logits[..., :count].argmax(-1)[shown] == name[shown]).float().mean()

    def save_model(self) -> None:
        weights.save(self.folder / "model", self.model, self.tokenizer, name="demo")
