"""`VlsmSegmenter` on random tiny weights: shapes, batches, threads, devices, errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from vlsm_models import random_folder

from rsvp_backend.errors import SegmenterError, SettingsError
from rsvp_backend.types import Box, Prompt, Segmentation, Segmenter
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.compiled import compiled
from rsvp_backend.vlsm.segmenter import SegmenterOptions, VlsmSegmenter, choose_device, choose_dtype

SIZES = [(40, 90), (200, 33), (64, 64), (1, 17), (150, 150)]
TEXTS = ["the red ball", "the largest key on the wooden table", "", "a small blue mug", "the time"]


def crops() -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for height, width in SIZES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_folder(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def segmenter(folder: Path) -> VlsmSegmenter:
    return VlsmSegmenter.load(folder, device="cpu", options=SegmenterOptions(max_batch=3))


def whole(image: Image.Image, **what: Any) -> Prompt:
    """A prompt on all of ``image``."""
    return Prompt(Box(0, 0, image.width, image.height), **what)


def ask(segmenter: Segmenter, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Segmentation]:
    return segmenter.segment(images, [whole(image, text=text) for image, text in zip(images, texts, strict=True)])


def assert_equal(actual: list[Segmentation], expected: list[Segmentation]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4)
        assert ours.predicted_iou == pytest.approx(theirs.predicted_iou, abs=1e-4)


def test_each_crop_gets_finite_float32_logits_of_its_own_size(segmenter: VlsmSegmenter) -> None:
    protocol: Segmenter = segmenter
    found = ask(protocol, crops(), TEXTS)
    assert [s.logits.shape for s in found] == SIZES
    assert all(s.logits.dtype == np.float32 and np.isfinite(s.logits).all() for s in found)
    assert all(isinstance(s.predicted_iou, float) for s in found)
    assert protocol.version.startswith("tiny-")


def test_a_batch_equals_its_singles(segmenter: VlsmSegmenter) -> None:
    singles = [ask(segmenter, [crop], [text])[0] for crop, text in zip(crops(), TEXTS, strict=True)]
    assert_equal(ask(segmenter, crops(), TEXTS), singles)


def test_text_and_crop_both_matter(segmenter: VlsmSegmenter) -> None:
    image, other = crops()[4], Image.new("RGB", (150, 150), "white")
    base, new_text, new_crop = ask(segmenter, [image, image, other], [TEXTS[0], TEXTS[1], TEXTS[0]])
    assert np.abs(base.logits - new_text.logits).max() > 1e-3
    assert np.abs(base.logits - new_crop.logits).max() > 1e-3


def test_threads_get_the_same_answers(segmenter: VlsmSegmenter) -> None:
    pairs = list(zip(crops(), TEXTS, strict=True)) * 3
    expected = [ask(segmenter, [crop], [text])[0] for crop, text in pairs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: ask(segmenter, [pair[0]], [pair[1]])[0], pairs))
    assert_equal(found, expected)


def test_answers_carry_no_graph_and_parameters_no_gradient(folder: Path) -> None:
    loaded = weights.load(folder)
    VlsmSegmenter(loaded, torch.device("cpu"), torch.float32)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training


def test_bfloat16_agrees_on_the_mask(folder: Path, segmenter: VlsmSegmenter) -> None:
    low = VlsmSegmenter.load(folder, device="cpu", dtype="bfloat16")
    assert low.dtype == torch.bfloat16
    for ours, exact in zip(ask(low, crops(), TEXTS), ask(segmenter, crops(), TEXTS), strict=True):
        assert ours.logits.dtype == np.float32
        assert np.mean((ours.logits > 0) == (exact.logits > 0)) > 0.95


def test_no_crops_give_no_segmentations_and_uneven_lists_are_refused(segmenter: VlsmSegmenter) -> None:
    assert segmenter.segment([], []) == []
    with pytest.raises(ValueError, match="2 images and 1 prompts"):
        segmenter.segment(crops()[:2], [whole(crops()[0], text="one")])


def test_logits_that_are_not_finite_are_an_error(folder: Path) -> None:
    loaded = weights.load(folder)
    with torch.no_grad():
        loaded.model.text_hidden_fcs[0][2].bias.fill_(float("nan"))
    broken = VlsmSegmenter(loaded, torch.device("cpu"), torch.float32)
    with pytest.raises(SegmenterError, match="not finite"):
        ask(broken, crops()[:1], TEXTS[:1])


def test_a_failing_forward_pass_is_a_segmenter_error(folder: Path) -> None:
    loaded = weights.load(folder)
    loaded.model.text_hidden_fcs[0][2] = torch.nn.Linear(40, 31)
    with pytest.raises(SegmenterError, match="failed on 1 prompts on cpu"):
        ask(VlsmSegmenter(loaded, torch.device("cpu"), torch.float32), crops()[:1], TEXTS[:1])


def test_a_text_beyond_the_position_table_is_cut(segmenter: VlsmSegmenter) -> None:
    assert ask(segmenter, crops()[:1], ["the red ball " * 2000])[0].logits.shape == SIZES[0]


def test_device_and_dtype_names() -> None:
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(SettingsError, match="one of auto, float32, bfloat16, float16"):
        choose_dtype("int8", torch.device("cpu"))
    with pytest.raises(SettingsError, match="auto, cpu, cuda or cuda:N"):
        choose_device("gpu")
    with pytest.raises(SettingsError, match="CUDA devices"):
        choose_device("cuda:99")


def test_light_modules_do_not_import_segment_anything() -> None:
    code = (
        "import sys, rsvp_backend.vlsm.config, rsvp_backend.vlsm.preprocess, rsvp_backend.vlsm.tokenizer, "
        "rsvp_backend.vlsm.beit3; assert 'segment_anything' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_compiled_encoder_equals_the_eager_one_in_every_batch(folder: Path) -> None:
    """Traced, warmed up and padded as with the default backend, which needs a C++ compiler besides."""
    model = weights.load(folder).model.float()
    run = compiled(model, torch.device("cpu"), torch.float32, max_batch=3, backend="aot_eager")
    pixels = torch.randn(3, 3, model.config.sam.image_size, model.config.sam.image_size)
    with torch.inference_mode():
        for count in (1, 2, 3):
            torch.testing.assert_close(run(pixels[:count]), model.embed_image(pixels[:count]), atol=1e-5, rtol=0)


def test_a_compiler_that_fails_is_named_with_its_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = weights.load(folder).model.float()
    monkeypatch.setattr(model, "embed_image", lambda pixels: pixels.reshape(7))
    with pytest.raises(SettingsError, match="RSVP_VLSM_COMPILE is true, but compiling failed on cpu"):
        compiled(model, torch.device("cpu"), torch.float32, max_batch=1, backend="aot_eager")
