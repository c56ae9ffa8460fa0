"""Clicks, boxes and views: equal to segment-anything's own predictor, and one image embedding for many prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import Sam as PublicSam
from vlsm_models import random_folder

from rsvp_backend.types import Box, Click, Prompt
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.segmenter import SegmenterOptions, VlsmSegmenter
from rsvp_backend.vlsm.views import View

CLICKS = (Click(30.5, 20.5), Click(70.5, 50.5, positive=False))
BOX = Box(10, 12, 60, 44)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_folder(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def segmenter(folder: Path) -> VlsmSegmenter:
    return VlsmSegmenter.load(folder, device="cpu")


def picture(width: int = 96, height: int = 64, seed: int = 1) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def whole(image: Image.Image, **what: Any) -> Prompt:
    return Prompt(Box(0, 0, image.width, image.height), **what)


def counted(segmenter: VlsmSegmenter, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many pictures each part of the model is run on."""
    counts = {"embed_image": 0, "encode_prompt": 0}
    places = {"embed_image": (segmenter, "_embed_pixels"), "encode_prompt": (segmenter._model, "encode_prompt")}
    for name, (owner, attribute) in places.items():
        method = getattr(owner, attribute)

        def call(pixels: torch.Tensor, *rest: Any, name: str = name, method: Any = method) -> torch.Tensor:
            counts[name] += len(pixels)
            return method(pixels, *rest)

        monkeypatch.setattr(owner, attribute, call)
    return counts


@pytest.mark.parametrize(
    "what",
    [{"clicks": CLICKS}, {"clicks": CLICKS[:1]}, {"box": BOX}, {"clicks": CLICKS, "box": BOX}],
    ids=["two clicks", "one click", "box", "clicks and box"],
)
def test_clicks_and_boxes_equal_segment_anything(folder: Path, segmenter: VlsmSegmenter, what: dict[str, Any]) -> None:
    ours = weights.load(folder).model.float()
    sam = ours.visual_model
    predictor = SamPredictor(PublicSam(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder))
    image = picture()
    predictor.set_image(np.array(image))
    scale = ours.config.sam.image_size / max(image.size)
    clicks = what.get("clicks", ())
    # Theirs names a click by its pixel's index, scales that and adds the half; ours by its place.
    points = np.array([[c.x_px - 0.5 / scale, c.y_px - 0.5 / scale] for c in clicks]) if clicks else None
    _, iou, expected = predictor.predict(
        points,
        np.array([int(click.positive) for click in clicks]) if clicks else None,
        np.array(what["box"].xyxy) if "box" in what else None,
        multimask_output=False,
        return_logits=True,
    )
    view = View.of("crop", image, whole(image, **what))
    size = ours.config.sam.image_size
    with torch.inference_mode():
        tokens = sam.encode_points(*view.points(whole(image, **what), size), view.box_corners(size))
        low, _ = ours.decode(segmenter.embed([image])[0][None], tokens[None])
    np.testing.assert_allclose(low[0, 0].numpy(), expected[0], atol=1e-4)
    (found,) = segmenter.segment([image], [whole(image, **what)])
    assert found.predicted_iou == pytest.approx(float(iou[0]), abs=1e-5)
    assert found.logits.shape == (64, 96)


def test_text_and_clicks_act_together_and_clicks_alone_need_no_text_encoder(
    segmenter: VlsmSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture()
    counts = counted(segmenter, monkeypatch)
    prompts = [
        whole(image, text="the red ball"),
        whole(image, text="the red ball", clicks=CLICKS),
        whole(image, clicks=CLICKS),
        whole(image, text="the red ball", clicks=CLICKS, box=BOX),
        whole(image, clicks=CLICKS[:1]),
    ]
    found = segmenter.segment([image] * 5, prompts)
    assert counts["encode_prompt"] == 3
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert np.abs(one.logits - other.logits).max() > 1e-3
    singles = [segmenter.segment([image], [prompt])[0] for prompt in prompts]
    for ours, alone in zip(found, singles, strict=True):
        np.testing.assert_allclose(ours.logits, alone.logits, atol=1e-4)


def test_one_embedding_serves_all_prompts_on_a_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = VlsmSegmenter.load(folder, device="cpu", options=SegmenterOptions(max_batch=3))
    counts = counted(segmenter, monkeypatch)
    image, other = picture(), picture(seed=2)
    segmenter.segment([image] * 4, [whole(image, text=f"the {word}") for word in ("ball", "key", "mug", "lamp")])
    assert counts == {"embed_image": 1, "encode_prompt": 4}
    segmenter.segment([image.copy(), other], [whole(image, clicks=CLICKS), whole(other, clicks=CLICKS)])
    assert counts == {"embed_image": 2, "encode_prompt": 4}


def test_the_cache_is_capped_in_bytes_and_can_be_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = VlsmSegmenter.load(folder, device="cpu").embed([picture()])[0].nbytes
    segmenter = VlsmSegmenter.load(folder, device="cpu", options=SegmenterOptions(cache_bytes=2 * one))
    counts = counted(segmenter, monkeypatch)
    for seed in (1, 2, 3, 2, 3):
        segmenter.embed([picture(seed=seed)])
    assert counts["embed_image"] == 3
    segmenter.embed([picture(seed=1)])
    assert counts["embed_image"] == 4
    off = VlsmSegmenter.load(folder, device="cpu", options=SegmenterOptions(cache_bytes=0))
    counts = counted(off, monkeypatch)
    off.embed([picture()])
    off.embed([picture()])
    assert counts["embed_image"] == 2


def test_the_full_view_embeds_the_image_once_for_all_crops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = VlsmSegmenter.load(folder, device="cpu", options=SegmenterOptions(view="full+box"))
    assert segmenter.version.endswith("-full+box")
    counts = counted(segmenter, monkeypatch)
    image = picture(120, 80)
    crops = [Box(0, 0, 40, 40), Box(50, 10, 120, 80)]
    found = segmenter.segment([image] * 2, [Prompt(crop, text="the red ball") for crop in crops])
    assert counts == {"embed_image": 1, "encode_prompt": 2}
    assert [one.logits.shape for one in found] == [(40, 40), (70, 70)]


def test_the_full_view_is_the_whole_images_answer_cut_to_the_crop(folder: Path) -> None:
    segmenter = VlsmSegmenter.load(folder, device="cpu", options=SegmenterOptions(view="full+box"))
    image, crop = picture(120, 80), Box(30, 20, 90, 70)
    (cut,) = segmenter.segment([image], [Prompt(crop, clicks=CLICKS, box=BOX)])
    (all_of_it,) = segmenter.segment([image], [whole(image, clicks=CLICKS, box=BOX)])
    np.testing.assert_allclose(cut.logits, all_of_it.logits[20:70, 30:90], atol=1e-5)


def test_clicks_are_placed_in_the_frame_that_sam_sees() -> None:
    image, crop = picture(400, 200), Box(100, 50, 300, 150)
    prompt = Prompt(crop, clicks=(Click(100, 50), Click(300, 150, positive=False)), box=Box(100, 50, 200, 100))
    view = View.of("crop", image, prompt)
    assert view.points(prompt, 64) == ([(0.0, 0.0), (64.0, 32.0)], [1, 0])
    assert view.box_corners(64) == [(0.0, 0.0), (32.0, 16.0)]
    assert View.of("full+box", image, prompt).points(prompt, 64)[0] == [(16.0, 8.0), (48.0, 24.0)]


def test_an_empty_prompt_and_a_crop_beyond_the_image_are_refused(segmenter: VlsmSegmenter) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        Prompt(Box(0, 0, 5, 5))
    image = picture()
    with pytest.raises(ValueError, match="beyond the image of 96 x 64"):
        segmenter.segment([image], [Prompt(Box(0, 0, 97, 64), text="x")])
