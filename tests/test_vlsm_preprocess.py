"""Preprocessing against the public code's own operations: segment-anything's transforms and torchvision's resize."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms

from rsvp_backend.vlsm.preprocess import beit3_pixels, full_size_logits, resized_size, sam_pixels

SIZES = [(200, 150), (90, 171), (37, 600), (64, 64), (5, 3)]


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def reference_sam(side: int) -> SimpleNamespace:
    return SimpleNamespace(
        pixel_mean=torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
        pixel_std=torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
        image_encoder=SimpleNamespace(img_size=side),
    )


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_sam_pixels_equal_segment_anything(height: int, width: int) -> None:
    image = noise(height, width)
    resized = torch.from_numpy(ResizeLongestSide(128).apply_image(np.array(image))).permute(2, 0, 1)
    assert torch.equal(sam_pixels(image, 128), Sam.preprocess(reference_sam(128), resized))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_beit3_pixels_equal_torchvision_without_antialias(height: int, width: int) -> None:
    image = noise(height, width)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)

    def public(antialias: bool) -> torch.Tensor:
        resize = transforms.Resize((224, 224), InterpolationMode.BICUBIC, antialias=antialias)
        return transforms.Normalize([0.5] * 3, [0.5] * 3)(resize(tensor))

    ours = beit3_pixels(image, 224)
    torch.testing.assert_close(ours, public(antialias=False), atol=1e-6, rtol=0)
    if width > 224:
        assert (ours - public(antialias=True)).abs().max() > 0.1


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_full_size_logits_equal_segment_anything(height: int, width: int) -> None:
    low_res = torch.randn(2, 32, 32)
    public = Sam.postprocess_masks(
        reference_sam(128), low_res[None], input_size=resized_size((height, width), 128), original_size=(height, width)
    )[0]
    assert torch.equal(full_size_logits(low_res, (height, width), 128), public)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_image_mode_is_read_as_rgb(mode: str) -> None:
    image = noise(20, 30).convert(mode)
    assert torch.equal(sam_pixels(image, 32), sam_pixels(image.convert("RGB"), 32))
    assert torch.equal(beit3_pixels(image, 48), beit3_pixels(image.convert("RGB"), 48))


@given(st.integers(1, 20000), st.integers(1, 20000), st.sampled_from([128, 192, 1024]))
def test_resized_size_fills_the_longest_side_and_keeps_the_ratio(height: int, width: int, side: int) -> None:
    resized = resized_size((height, width), side)
    assert max(resized) == side
    assert min(resized) >= 1
    assert abs(resized[0] - height * side / max(height, width)) <= 1
    assert abs(resized[1] - width * side / max(height, width)) <= 1


@pytest.mark.parametrize(("height", "width"), [(1, 3000), (3000, 1), (1, 1)])
def test_slivers_survive_the_way_there_and_back(height: int, width: int) -> None:
    assert sam_pixels(noise(height, width), 128).shape == (3, 128, 128)
    assert beit3_pixels(noise(height, width), 48).shape == (3, 48, 48)
    assert full_size_logits(torch.randn(1, 32, 32), (height, width), 128).shape == (1, height, width)
