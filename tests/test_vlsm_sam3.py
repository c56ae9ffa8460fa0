"""SAM 3 as the segmenter: a tiny one with random weights, loaded and run as the published one is."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import numpy.typing as npt
import pytest
import torch
from fake_models import FakeReasoner
from PIL import Image
from sam3_models import MASK_PX, QUERIES, hub, save_as_published, save_random_sam3

from rsvp_backend import presets
from rsvp_backend.errors import SegmenterError, WeightsError
from rsvp_backend.pipeline import RSVP
from rsvp_backend.settings import Settings
from rsvp_backend.types import Box, Click, EmptyReason, Prompt
from rsvp_backend.vlsm import sam3_weights
from rsvp_backend.vlsm.sam3 import Sam3Segmenter

CROP, OTHER = Box(4, 6, 4 + MASK_PX, 6 + MASK_PX), Box(0, 0, 90, 41)
CUP = Prompt(CROP, text="red cup")
KEY_BOX = Box(8, 9, 17, 16)
PROMPTS = [
    CUP,
    Prompt(OTHER, text="a key"),
    Prompt(CROP, text="red cup", box=KEY_BOX),
    Prompt(CROP, box=KEY_BOX),
    Prompt(CROP, text="a key"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_sam3(tmp_path_factory.mktemp("sam3"))


@pytest.fixture(scope="module")
def all_pass(folder: Path) -> Sam3Segmenter:
    """Every instance belongs to the mask."""
    return Sam3Segmenter.load(str(folder), device="cpu", threshold=0.0)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def one(segmenter: Sam3Segmenter, image: Image.Image, prompt: Prompt) -> npt.NDArray[np.float32]:
    return segmenter.segment([image], [prompt])[0].logits


def expected(folder: Path, image: Image.Image, prompt: Prompt, threshold: float) -> tuple[npt.NDArray[np.bool_], float]:
    """Mask and best score by transformers' own processor, from pixels to instances; the crop has the masks' size."""
    weights = sam3_weights.load(str(folder))
    boxes = None
    if prompt.box is not None:
        b, c = prompt.box, prompt.crop
        boxes = [[[b.left - c.left, b.top - c.top, b.right - c.left, b.bottom - c.top]]]
    crop = image.crop(prompt.crop.xyxy)
    inputs = weights.processor(images=crop, text=prompt.text, input_boxes=boxes, return_tensors="pt")
    inputs.pop("original_sizes")
    with torch.inference_mode():
        output = weights.model(**inputs)
    found = weights.processor.post_process_instance_segmentation(output, threshold=threshold)[0]
    assert len(found["masks"]) > 0
    return found["masks"].amax(dim=0).bool().numpy(), float(found["scores"].max())


@pytest.mark.parametrize("prompt", [CUP, PROMPTS[2], PROMPTS[3]], ids=["text", "text+box", "box"])
def test_answers_equal_transformers_own(folder: Path, image: Image.Image, prompt: Prompt) -> None:
    probe = Sam3Segmenter.load(str(folder), device="cpu", threshold=0.0).segment([image], [prompt])[0]
    threshold = probe.predicted_iou * 0.98  # some instances pass and some do not
    found = Sam3Segmenter.load(str(folder), device="cpu", threshold=threshold).segment([image], [prompt])[0]
    mask, score = expected(folder, image, prompt, threshold)
    assert mask.any()
    assert not mask.all()
    assert np.array_equal(found.logits > 0, mask)
    assert found.predicted_iou == pytest.approx(score, abs=1e-6)


def test_the_union_takes_the_instances_above_the_threshold_only(folder: Path, image: Image.Image) -> None:
    weights = sam3_weights.load(str(folder))
    with torch.inference_mode():
        inputs = weights.processor(images=image.crop(CROP.xyxy), text="red cup", return_tensors="pt")
        inputs.pop("original_sizes")
        output = weights.model(**inputs)
    scores = (output.pred_logits.sigmoid() * output.presence_logits.sigmoid())[0]
    ranked = scores.sort(descending=True)
    for kept in range(1, QUERIES):
        threshold = float(ranked.values[kept - 1 : kept + 1].mean())
        found = one(Sam3Segmenter.load(str(folder), device="cpu", threshold=threshold), image, CUP)
        union = output.pred_masks[0, ranked.indices[:kept]].amax(dim=0)
        np.testing.assert_allclose(found, union.numpy(), atol=1e-5)


def test_no_instance_above_the_threshold_is_an_empty_mask(folder: Path, image: Image.Image) -> None:
    strict = Sam3Segmenter.load(str(folder), device="cpu", threshold=0.999)
    found = strict.segment([image], [CUP])[0]
    assert (found.logits < 0).all()
    assert 0 < found.predicted_iou < 0.999


def test_logits_have_the_size_of_the_crop(all_pass: Sam3Segmenter, image: Image.Image) -> None:
    for prompt, found in zip(PROMPTS, all_pass.segment([image] * 5, PROMPTS), strict=True):
        assert found.logits.shape == (prompt.crop.height, prompt.crop.width)
        assert found.logits.dtype == np.float32


def test_text_box_and_crop_change_the_answer(all_pass: Sam3Segmenter, image: Image.Image) -> None:
    other_box = Prompt(CROP, text="red cup", box=Box(4, 6, 9, 20))
    answers = [one(all_pass, image, prompt) for prompt in (CUP, PROMPTS[4], PROMPTS[2], PROMPTS[3], other_box)]
    answers.append(one(all_pass, image, Prompt(Box(40, 30, 40 + MASK_PX, 30 + MASK_PX), text="red cup")))
    for i, first in enumerate(answers):
        for second in answers[i + 1 :]:
            assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("max_batch", [1, 2, 8])
def test_many_prompts_equal_the_single_ones(folder: Path, image: Image.Image, max_batch: int) -> None:
    segmenter = Sam3Segmenter.load(str(folder), device="cpu", threshold=0.0, max_batch=max_batch)
    flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    images, prompts = [image] * 5 + [flipped] * 5, PROMPTS * 2
    together = segmenter.segment(images, prompts)
    assert segmenter.segment([], []) == []
    for picture, prompt, found in zip(images, prompts, together, strict=True):
        np.testing.assert_allclose(found.logits, one(segmenter, picture, prompt), rtol=1e-4, atol=1e-3)


def test_a_crop_is_encoded_once_for_all_its_prompts(
    all_pass: Sam3Segmenter, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encoded = all_pass._model, []
    encode = model.get_vision_features
    monkeypatch.setattr(
        model, "get_vision_features", lambda pixel_values: encoded.append(len(pixel_values)) or encode(pixel_values)
    )
    all_pass.segment([image] * 5, PROMPTS)
    assert sum(encoded) == 2  # CROP and OTHER


def test_threads_get_what_one_alone_gets(all_pass: Sam3Segmenter, image: Image.Image) -> None:
    alone = [one(all_pass, image, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda prompt: one(all_pass, image, prompt), PROMPTS)
            for first, second in zip(alone, found, strict=True):
                np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_text_longer_than_the_model_reads_is_cut(all_pass: Sam3Segmenter, image: Image.Image) -> None:
    long = "a very long name of a thing " * 20
    assert np.isfinite(one(all_pass, image, Prompt(CROP, text=long))).all()


@pytest.mark.parametrize(("dtype", "iou"), [("bfloat16", 0.9), ("float16", 0.98)])
def test_half_precision_agrees(
    folder: Path, all_pass: Sam3Segmenter, image: Image.Image, dtype: str, iou: float
) -> None:
    half = Sam3Segmenter.load(str(folder), device="cpu", dtype=dtype, threshold=0.0)
    for whole, found in zip(all_pass.segment([image] * 5, PROMPTS), half.segment([image] * 5, PROMPTS), strict=True):
        a, b = whole.logits > 0, found.logits > 0
        assert (a & b).sum() >= iou * (a | b).sum()
        assert found.predicted_iou == pytest.approx(whole.predicted_iou, abs=0.02)


def test_clicks_are_refused(all_pass: Sam3Segmenter, image: Image.Image) -> None:
    with pytest.raises(SegmenterError, match=r"2 clicks.*draw a box.*RSVP_VLSM"):
        all_pass.segment([image], [Prompt(CROP, text="red cup", clicks=(Click(9, 9), Click(12, 9, positive=False)))])


def test_a_box_outside_of_its_crop_is_refused(all_pass: Sam3Segmenter, image: Image.Image) -> None:
    with pytest.raises(SegmenterError, match="does not lie in its crop"):
        all_pass.segment([image], [Prompt(CROP, box=Box(0, 0, 10, 10))])


def test_bad_arguments_are_refused(folder: Path, all_pass: Sam3Segmenter, image: Image.Image) -> None:
    with pytest.raises(ValueError, match="one prompt per image"):
        all_pass.segment([image], PROMPTS)
    with pytest.raises(ValueError, match=r"threshold is 1.0"):
        Sam3Segmenter.load(str(folder), device="cpu", threshold=1.0)
    with pytest.raises(ValueError, match="max_batch is 0"):
        Sam3Segmenter.load(str(folder), device="cpu", max_batch=0)


def test_values_that_are_not_finite_are_an_error(folder: Path, image: Image.Image) -> None:
    segmenter = Sam3Segmenter.load(str(folder), device="cpu", threshold=0.0)
    with torch.no_grad():
        segmenter._model.mask_decoder.instance_projection.weight.fill_(float("nan"))
    with pytest.raises(SegmenterError, match="not finite"):
        segmenter.segment([image], [CUP])


def test_the_version_tells_weights_configuration_and_threshold(folder: Path, tmp_path: Path) -> None:
    version = Sam3Segmenter.load(str(folder), device="cpu").version
    assert version.startswith("sam3-")
    assert len(version) == len("sam3-") + 8
    assert Sam3Segmenter.load(str(shutil.copytree(folder, tmp_path / "copy")), device="cpu").version == version
    assert Sam3Segmenter.load(str(folder), device="cpu", threshold=0.4).version != version
    changed = tmp_path / "copy" / "processor_config.json"
    changed.write_text(changed.read_text() + "\n")
    assert Sam3Segmenter.load(str(tmp_path / "copy"), device="cpu").version != version


def test_the_published_folders_layout_gives_the_same_masks(
    folder: Path, tmp_path: Path, all_pass: Sam3Segmenter, image: Image.Image
) -> None:
    published = Sam3Segmenter.load(str(save_as_published(folder, tmp_path)), device="cpu", threshold=0.0)
    for prompt in PROMPTS:
        np.testing.assert_allclose(one(published, image, prompt), one(all_pass, image, prompt), atol=1e-5)


def test_the_pipeline_runs_with_it(folder: Path, all_pass: Sam3Segmenter, image: Image.Image) -> None:
    outcome = RSVP(FakeReasoner(), all_pass)(image, "the red cup")
    assert outcome.reason is None, outcome.detail
    assert outcome.instances[0].mask.shape == (60, 90)
    assert 0 <= outcome.instances[0].score <= 1
    strict = Sam3Segmenter.load(str(folder), device="cpu", threshold=0.999)
    assert RSVP(FakeReasoner(), strict)(image, "the red cup").reason == EmptyReason.EMPTY_MASK


def test_the_setting_chooses_it(folder: Path, image: Image.Image) -> None:
    settings = Settings(vlsm=f"sam3:{folder}", device="cpu")
    rsvp = presets.build(settings)
    assert rsvp.segmenter.version == Sam3Segmenter.load(str(folder), device="cpu").version
    assert rsvp.segmenter.segment([image], [CUP])[0].logits.shape == (MASK_PX, MASK_PX)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.mark.parametrize("status", [401, 403])
def test_gated_weights_are_explained(empty_cache: Path, status: int) -> None:
    expected = rf"gated.*{status}.*https://huggingface.co/facebook/sam3.*SAM License.*HF_TOKEN.*folder"
    with hub(None, status, "GatedRepo") as address, pytest.raises(WeightsError, match=expected):
        sam3_weights.load("", endpoint=address)


def test_an_unknown_repository_is_explained(empty_cache: Path) -> None:
    with hub(None, 404, "RepoNotFound") as address, pytest.raises(WeightsError, match=r"no repository.*HF_TOKEN"):
        sam3_weights.load("nobody/sam3", endpoint=address)


def test_no_connection_is_explained_and_the_cache_serves(
    folder: Path, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"facebook/sam3 is not in the local cache.*cannot be reached"):
        sam3_weights.load("")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    copy = shutil.copytree(folder, tmp_path / "repository")
    (copy / "sam3.pt").write_bytes(b"the same weights once more")
    with hub(copy) as address:
        weights = sam3_weights.load("", endpoint=address)
    assert weights.digest == sam3_weights.load(str(folder)).digest
    assert not list(empty_cache.rglob("sam3.pt"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert sam3_weights.load("").digest == weights.digest


def test_folders_that_are_no_sam3_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no folder"):
        sam3_weights.load("/not/there")
    with pytest.raises(WeightsError, match=r"config.json cannot be read"):
        sam3_weights.load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam"}))
    with pytest.raises(WeightsError, match=r"type 'sam': sam3 or sam3_video is expected"):
        sam3_weights.load(str(tmp_path))


@pytest.mark.parametrize("lost", ["model.safetensors", "processor_config.json", "tokenizer.json"])
def test_a_folder_with_a_file_missing_is_refused(folder: Path, tmp_path: Path, lost: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / lost).unlink()
    with pytest.raises(WeightsError, match=r"cannot be loaded as SAM 3|has no tokenizer"):
        sam3_weights.load(str(copy))


def test_damaged_and_incomplete_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(folder, tmp_path / "copy")
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be loaded as SAM 3"):
        sam3_weights.load(str(copy))
    state = load_file(folder / "model.safetensors")
    state.pop("text_projection.weight")
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"lack 1 tensors of SAM 3 \(text_projection.weight\)"):
        sam3_weights.load(str(copy))
    state["text_projection.weight"] = torch.zeros(3, 3)
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="cannot be loaded as SAM 3"):
        sam3_weights.load(str(copy))
