"""Train the demo preset's VLSM on crops of scenes: the module, losses and preprocessing that any VLSM uses here.

Each crop comes with several texts: the target, another object of the scene (whole, partly, or not in the crop), and an
object that is not there; so the text must be read, not only the salient object cut out. Clicks and boxes come beside
them, alone and with a text; some pictures are shown to SAM as a whole (see `views`). Training-only heads name the class
and colour under each visual token.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsvp_backend.scenes import LEVELS
from rsvp_backend.scenes.language import corpus
from rsvp_backend.training import losses
from rsvp_backend.training.demo_crops import Crop, CropSampler, Mix
from rsvp_backend.training.loop import Schedule, TrainingLoop
from rsvp_backend.training.tiny_mllm import init_patch_embed
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.config import Beit3Config, SamConfig, VlsmConfig
from rsvp_backend.vlsm.model import Vlsm
from rsvp_backend.vlsm.tokenizer import Tokenizer


@dataclass(frozen=True)
class VlsmRecipe:
    """How long and on what the demo VLSM trains."""

    minutes: float = 60.0
    crops: int = 8
    learning_rate: float = 1.2e-3
    muon_rate: float = 0.006
    mix: Mix = field(default_factory=Mix)
    seed: int = 0


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
        self.sampler = CropSampler(self.config, recipe.mix)
        self.heads = Heads(self.config, 1 + len(self.sampler.classes) + len(self.sampler.colours))
        self.own(model=self.model, heads=self.heads)
        self.model.train()

    def crop(self) -> Crop:
        """The next crop of the stream."""
        crop = self.sampler.crop(self.rng, self.next_scene)
        self.next_scene += 1
        return crop

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
        count = 1 + len(self.sampler.classes)
        name, colour = words.flatten(2).unbind(1)
        weight = torch.ones(count)
        weight[0] = 0.15
        loss = 2 * F.cross_entropy(logits[..., :count].flatten(0, 1), name.flatten(), weight)
        loss = loss + 0.5 * F.cross_entropy(logits[..., count:].flatten(0, 1), colour.flatten(), ignore_index=-100)
        shown = name > 0
        return loss, (logits[..., :count].argmax(-1)[shown] == name[shown]).float().mean().item()

    def save_model(self) -> None:
        weights.save(self.folder / "model", self.model, self.tokenizer, name="demo")
