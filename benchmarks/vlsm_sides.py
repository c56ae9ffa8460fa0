"""The two sides of ``benchmarks/vlsm.py``: ours, and the reference put together from its published packages."""

from __future__ import annotations

import gc
import resource
import time
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling import Sam as PublicSam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms

import rsvp_backend
from rsvp_backend.scenes import make_scene
from rsvp_backend.types import BoolMask, Box, Prompt
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.config import Beit3Config, SamConfig, VlsmConfig
from rsvp_backend.vlsm.model import Vlsm
from rsvp_backend.vlsm.segmenter import SegmenterOptions, VlsmSegmenter
from rsvp_backend.vlsm.tokenizer import Tokenizer

DEMO = Path(rsvp_backend.__file__).parent / "demo" / "assets" / "vlsm"
_BASE = Beit3Config(embed_dim=768, num_heads=12, ffn_dim=3072, layers=12)
_CONFIGS = {
    "b": VlsmConfig(SamConfig(embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11)), _BASE),
    "l": VlsmConfig(SamConfig(embed_dim=1024, depth=24, global_attn_indexes=(5, 11, 17, 23)), Beit3Config()),
    "h": VlsmConfig(SamConfig(), Beit3Config()),
}
SIZES = (*_CONFIGS, "demo")


def load(size: str) -> weights.Weights:
    """The demo weights, or random ones (the same in both processes) of a published size; always fp32."""
    demo = weights.load(DEMO)
    if size == "demo":
        return weights.Weights(demo.model.float(), demo.tokenizer, "demo", demo.version)
    with torch.device("meta"):
        model = Vlsm(_CONFIGS[size])
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.normal_(0.0, 0.02 if tensor.ndim > 1 else 0.1, generator=generator)
    return weights.Weights(model.eval(), Tokenizer(demo.tokenizer.model, 1022), size, f"{size}-random")


def picture() -> Image.Image:
    return make_scene(10_000_003, "full", 1024).image


class Side(ABC):
    """What both sides can do; seconds are wall time of one call, the device awaited."""

    def __init__(self, size: str, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.image = picture()
        self.build(load(size))
        gc.collect()

    @abstractmethod
    def build(self, loaded: weights.Weights) -> None:
        """Take ``loaded`` over; no second copy may stay."""

    @abstractmethod
    def masks(self, text: str, batch: int) -> list[BoolMask]:
        """The whole way: ``batch`` times the picture with ``text`` -> masks of the picture's size."""

    @abstractmethod
    def embed(self) -> Tensor:
        """SAM's image encoder on one picture of random pixels."""

    def mask(self, text: str) -> BoolMask:
        return self.masks(text, 1)[0]

    def end_to_end(self, text: str, batch: int) -> float:
        return self.timed(lambda: self.masks(text, batch))

    def encode_image(self) -> float:
        return self.timed(self.embed)

    def timed(self, call: Any) -> float:
        started = time.perf_counter()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def peak_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Ours(Side):
    def build(self, loaded: weights.Weights) -> None:
        self.segmenter = VlsmSegmenter(loaded, self.device, self.dtype, SegmenterOptions(cache_bytes=0))
        self.keeping = VlsmSegmenter(loaded, self.device, self.dtype, SegmenterOptions())
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer

    def masks(self, text: str, batch: int) -> list[BoolMask]:
        prompt = Prompt(Box(0, 0, *self.image.size), text)
        # Copies, for equal pictures of one call are embedded once.
        images = [self.image] if batch == 1 else [_shifted(self.image, n) for n in range(batch)]
        return [found.logits > 0 for found in self.segmenter.segment(images, [prompt] * batch)]

    @torch.inference_mode()
    def embed(self) -> Tensor:
        return self.model.embed_image(self._pixels())

    def repeat_ratio(self, texts: list[str], repeats: int) -> float:
        """Seconds of a further instruction on a picture, the median, over those of the first."""
        box = Box(0, 0, *self.image.size)
        seconds = [self.timed(lambda t=text: self.keeping.segment([self.image], [Prompt(box, t)])) for text in texts]
        for _ in range(repeats - 1):
            seconds += [self.timed(lambda: self.keeping.segment([self.image], [Prompt(box, texts[0])]))]
        return float(np.median(seconds[1:])) / seconds[0]

    @torch.inference_mode()
    def parts(self, text: str) -> list[dict[str, Any]]:
        """Milliseconds and GFLOP (2 per multiply-add, matrix products and convolutions) of each part at batch 1."""
        ids = torch.tensor([self.tokenizer.encode(text)], device=self.device)
        side = self.model.config.beit3.img_size
        square = torch.rand(1, 3, side, side, device=self.device, dtype=self.dtype)
        embedding, prompt = self.embed(), self.model.encode_prompt(square, ids)
        calls = {
            "image encoder": self.embed,
            "BEiT-3": lambda: self.model.encode_prompt(square, ids),
            "mask decoder": lambda: self.model.decode(embedding, prompt),
        }
        table = []
        for name, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            seconds, gflop = self.timed(call), counter.get_total_flops() / 1e9
            table.append(
                {
                    "part": name,
                    "ms": round(seconds * 1e3, 2),
                    "gflop": round(gflop, 1),
                    "gflop_s": round(gflop / seconds),
                }
            )
        return table

    def _pixels(self) -> Tensor:
        side = self.model.config.sam.image_size
        return torch.rand(1, 3, side, side, device=self.device, dtype=self.dtype)


class Reference(Side):
    """segment-anything's modules and torchscale's BEiT-3, put together as EVF-SAM does; no line of ours runs in it."""

    def build(self, loaded: weights.Weights) -> None:
        model, self.config = loaded.model, loaded.model.config
        self.tokenizer = loaded.tokenizer
        sam = self.config.sam
        with torch.device("meta"):
            encoder = ImageEncoderViT(
                img_size=sam.image_size, patch_size=sam.patch_size, embed_dim=sam.embed_dim, depth=sam.depth,
                num_heads=sam.num_heads, mlp_ratio=sam.mlp_ratio, out_chans=sam.prompt_embed_dim,
                norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True,
                global_attn_indexes=sam.global_attn_indexes, window_size=sam.window_size,
            )  # fmt: skip
            beit3 = _public_beit3(self.config.beit3)
        encoder.load_state_dict(model.visual_model.image_encoder.state_dict(), assign=True)
        beit3.load_state_dict(model.mm_extractor.beit3.state_dict(), assign=True)
        public = PublicSam(encoder, model.visual_model.prompt_encoder, model.visual_model.mask_decoder)
        self.sam = public.eval().to(self.device, self.dtype)
        self.beit3 = beit3.eval().to(self.device, self.dtype)
        self.projector = model.text_hidden_fcs[0].to(self.device, self.dtype)
        self.resize = transforms.Resize(
            (self.config.beit3.img_size,) * 2, interpolation=InterpolationMode.BICUBIC, antialias=False
        )

    @torch.inference_mode()
    def masks(self, text: str, batch: int) -> list[BoolMask]:
        sam, size = self.sam, self.config.sam.image_size
        images = [self.image] if batch == 1 else [_shifted(self.image, n) for n in range(batch)]
        resized = [ResizeLongestSide(size).apply_image(np.array(image)) for image in images]
        chw = [torch.from_numpy(picture).permute(2, 0, 1).contiguous().to(self.device) for picture in resized]
        pixels = torch.stack([sam.preprocess(picture) for picture in chw]).to(self.dtype)
        squares = torch.stack([self.resize(torch.from_numpy(np.array(i)).permute(2, 0, 1) / 255.0) for i in images])
        ids = torch.tensor([self.tokenizer.encode(text)] * batch, device=self.device)
        embeddings = sam.image_encoder(pixels)
        features = self.beit3(
            visual_tokens=((squares - 0.5) / 0.5).to(self.device, self.dtype),
            textual_tokens=ids,
            text_padding_position=torch.zeros_like(ids),
        )["encoder_out"]
        prompts = self.projector(features[:, :1])
        return [
            self._mask(e[None], p[None], picture.shape[:2])
            for e, p, picture in zip(embeddings, prompts, resized, strict=True)
        ]

    def _mask(self, embedding: Tensor, prompt: Tensor, resized_px: tuple[int, int]) -> BoolMask:
        sparse, dense = self.sam.prompt_encoder(points=None, boxes=None, masks=None)
        low, _ = self.sam.mask_decoder(
            image_embeddings=embedding, image_pe=self.sam.prompt_encoder.get_dense_pe().to(self.dtype),
            sparse_prompt_embeddings=torch.cat([sparse.to(self.dtype), prompt], dim=1),
            dense_prompt_embeddings=dense.to(self.dtype), multimask_output=False,
        )  # fmt: skip
        side = self.config.sam.image_size
        full = F.interpolate(low.float(), (side, side), mode="bilinear", align_corners=False)
        full = full[..., : resized_px[0], : resized_px[1]]
        original = self.image.height, self.image.width
        logits = F.interpolate(full, original, mode="bilinear", align_corners=False)[0, 0]
        mask: BoolMask = (logits > 0).cpu().numpy()
        return mask

    @torch.inference_mode()
    def embed(self) -> Tensor:
        side = self.config.sam.image_size
        pixels: Tensor = self.sam.image_encoder(torch.rand(1, 3, side, side, device=self.device, dtype=self.dtype))
        return pixels


def _public_beit3(config: Beit3Config) -> nn.Module:
    from torchscale.architecture.config import EncoderConfig
    from torchscale.model.BEiT3 import BEiT3

    return BEiT3(
        EncoderConfig(
            img_size=config.img_size, patch_size=config.patch_size, vocab_size=config.vocab_size, multiway=True,
            layernorm_embedding=False, normalize_output=True, no_output_layer=True, drop_path_rate=0,
            encoder_embed_dim=config.embed_dim, encoder_attention_heads=config.num_heads,
            encoder_ffn_embed_dim=config.ffn_dim, encoder_layers=config.layers, checkpoint_activations=False,
            max_source_positions=config.max_source_positions,
        )
    )  # fmt: skip


def _shifted(image: Image.Image, by_px: int) -> Image.Image:
    return Image.fromarray(np.roll(np.array(image), by_px, axis=1))
