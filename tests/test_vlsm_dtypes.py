"""Every dtype, on every device there is, gives fp32's masks: on the golden inputs, and on scenes with demo weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from test_vlsm_golden import FIRST, IMAGES, IMAGES_EVF, TENSORS, full, golden_model

from rsvp_backend.grid import mask_regions, regions_box
from rsvp_backend.presets import DEMO_ASSETS
from rsvp_backend.scenes import make_scene
from rsvp_backend.types import BoolMask, Marks, Prompt
from rsvp_backend.vlsm.segmenter import VlsmSegmenter

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = ["float32", "bfloat16", "float16"]


def iou(one: BoolMask, other: BoolMask) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


@cache
def demo_masks(device: str, dtype: str) -> list[BoolMask]:
    """The masks of all objects of twelve scenes, each from the crop of its true regions."""
    segmenter = VlsmSegmenter.load(DEMO_ASSETS / "vlsm", device=device, dtype=dtype)
    masks = []
    for seed in range(10_000_000, 10_000_012):
        scene = make_scene(seed, "easy", questions_per_kind=0)
        marks, size = Marks(), scene.image.size
        boxes = [regions_box(mask_regions(mask, marks), marks, *size) for mask in scene.masks]
        prompts = [
            Prompt(box.padded(0.2, *size), item.phrase)
            for box, item in zip(boxes, scene.layout.items, strict=True)
            if box
        ]
        masks += [found.logits > 0 for found in segmenter.segment([scene.image] * len(prompts), prompts)]
    return masks


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_demo_masks_are_those_of_fp32_on_the_cpu(device: str, dtype: str) -> None:
    expected = demo_masks("cpu", "float32")
    assert len(expected) > 30
    ious = [iou(ours, exact) for ours, exact in zip(demo_masks(device, dtype), expected, strict=True)]
    assert np.mean(ious) > 0.995
    assert min(ious) > 0.99


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_golden_masks_are_those_of_fp32(device: str, dtype: str) -> None:
    """The golden weights are random, their logits near 0: in bf16 the published code itself differs by 1.6 %."""
    low, wanted = getattr(torch, dtype), TENSORS["A.pred"] > 0
    with torch.no_grad():
        model = golden_model().to(device, low)
        embedding = model.embed_image(IMAGES[:1].to(device, low))
        prompt = model.encode_prompt(IMAGES_EVF[:1].to(device, low), FIRST.to(device))
        logits, _ = model.decode(embedding, prompt)
    assert (embedding.dtype, logits.dtype) == (low, torch.float32)
    published = iou((TENSORS["E.bf16.pred"] > 0).numpy(), wanted.numpy())
    bar = published - 0.005 if dtype == "bfloat16" else 0.995
    assert iou((full(logits[0].cpu(), 0) > 0).numpy(), wanted.numpy()) > bar


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_positional_encoding_stays_in_fp32(dtype: str) -> None:
    exact, ours = golden_model(), golden_model().to(getattr(torch, dtype))
    torch.testing.assert_close(ours.visual_model.dense_pe(), exact.visual_model.dense_pe(), atol=0, rtol=0)
    assert ours.text_hidden_fcs[0][0].weight.dtype == getattr(torch, dtype)
