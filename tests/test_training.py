"""The demo models' training, through the same classes that made the shipped weights, for a few steps."""

import json
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rsvp_backend.grid import draw_marks
from rsvp_backend.reasoner.local import LocalReasoner
from rsvp_backend.scenes import make_scene
from rsvp_backend.scenes.language import position
from rsvp_backend.training import losses, tiny_mllm
from rsvp_backend.training.augment import mirrored, relit, tone_curves
from rsvp_backend.training.demo_crops import HELD_OUT, Crop, CropPlanner, Mix, batch
from rsvp_backend.training.demo_pictures import MARKS, MarkedPatches, PictureMix, cell_targets
from rsvp_backend.training.demo_reasoner import ReasonerRecipe, ReasonerTrainer
from rsvp_backend.training.demo_views import Cut, views
from rsvp_backend.training.demo_vlsm import VlsmRecipe, VlsmTrainer
from rsvp_backend.training.hints import clickable, sample_hint
from rsvp_backend.training.loop import Schedule
from rsvp_backend.training.streams import Stream
from rsvp_backend.training.targets import decoder_target
from rsvp_backend.types import Box, Prompt, Regions
from rsvp_backend.vlsm.preprocess import beit3_pixels, sam_normalised, sam_pixels
from rsvp_backend.vlsm.segmenter import VlsmSegmenter
from rsvp_backend.vlsm.views import View


@pytest.fixture(scope="module")
def reasoner_trainer(tmp_path_factory):
    recipe = ReasonerRecipe(minutes=1, pictures=2, mix=PictureMix(questions=3, cells=0.5), vision_only_steps=0)
    return ReasonerTrainer(recipe, tmp_path_factory.mktemp("reasoner"))


@pytest.fixture(scope="module")
def vlsm_trainer(tmp_path_factory):
    recipe = VlsmRecipe(minutes=1, crops=2, words_only_steps=0)
    return VlsmTrainer(recipe, tmp_path_factory.mktemp("vlsm"))


def fit(trainer, loss, steps):
    """Losses of ``steps`` updates on one batch."""
    seen = []
    for _ in range(steps):
        for optimizer in trainer.optimizers.values():
            optimizer.zero_grad()
        value = loss()
        value.backward()
        for optimizer in trainer.optimizers.values():
            optimizer.step()
        seen.append(value.item())
    return seen


def test_the_reasoners_loss_falls_on_two_pictures(reasoner_trainer):
    pictures = reasoner_trainer.samples(2)
    seen = fit(reasoner_trainer, lambda: reasoner_trainer.loss(pictures)[0], 12)
    assert seen[-1] < 0.8 * seen[0]


def test_packed_turns_equal_turns_alone(reasoner_trainer):
    """A question packed behind others gets the same hidden states as one asked alone."""
    trainer = reasoner_trainer
    (picture,) = trainer.samples(1)
    with torch.no_grad():
        visual = trainer._visual([picture])
        together = trainer._hidden(visual, trainer._pack([picture]))
        packed = trainer._pack([picture])
        for number, asked in enumerate(picture.asked):
            alone = trainer._pack([replace(picture, asked=[asked])])
            hidden = trainer._hidden(visual, alone)
            turn, other = packed.turns[number], alone.turns[0]
            torch.testing.assert_close(
                together[0, turn.start : turn.end], hidden[0, other.start : other.end], atol=1e-4, rtol=1e-3
            )


def test_cell_targets_name_the_object_under_each_cell(reasoner_trainer):
    from rsvp_backend.scenes import LEVELS, make_scene

    scene = make_scene(11, "easy", 320)
    classes, colours = list(LEVELS["full"].classes), list(LEVELS["full"].colours)
    cells = cell_targets(scene, classes, colours)
    for item, mask in zip(scene.layout.items, scene.masks, strict=True):
        ys, xs = np.nonzero(mask)
        cell = int(np.median(ys) * 9 // mask.shape[0]) * 9 + int(np.median(xs) * 9 // mask.shape[1])
        if cells["class"][cell]:
            assert classes[int(cells["class"][cell]) - 1] == item.name
            assert colours[int(cells["colour"][cell])] == item.colour
    assert (cells["class"] > 0).any()
    assert ((cells["colour"] == -100) == (cells["class"] == 0)).all()


def test_answers_are_whole_json_in_one_spelling():
    key = tiny_mllm.Part("red key", Regions((3, 4, 5), (6,)), "because.")
    mug = tiny_mllm.Part("blue mug", Regions(cells=(5, 14, 81)), "why.")
    (proposal,) = json.loads(tiny_mllm.answer_text([key], "bands"))["proposals"]
    assert proposal == {
        "object": "red key", "present": True, "rows": [3, 5], "columns": [6, 6], "reasoning": "because.",
    }  # fmt: skip
    both = json.loads(tiny_mllm.answer_text([mug, mug], "cells"))["proposals"]
    assert both == 2 * [{"object": "blue mug", "present": True, "regions": [5, 14, 81], "reasoning": "why."}]
    absent = tiny_mllm.Part("red key", Regions(), "no key.")
    for kind, fields in (("bands", ("rows", "columns")), ("cells", ("regions",))):
        (proposal,) = json.loads(tiny_mllm.answer_text([absent], kind))["proposals"]
        assert proposal["present"] is False
        assert all(proposal[field] == [] for field in fields)


def test_each_region_is_one_token_and_every_answer_comes_back():
    tokenizer = tiny_mllm.build_processor(["the red key", "because why"]).tokenizer
    for cells in ((1,), (9, 10), (5, 14, 81), (1, 2, 3, 11, 12)):
        text = tiny_mllm.answer_text([tiny_mllm.Part("red key", Regions(cells=cells), "why")], "cells")
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        own = set(tokenizer.convert_tokens_to_ids([*tiny_mllm.CELL, *tiny_mllm.LAST_CELL]))
        assert sum(i in own for i in ids) == len(cells)


def test_the_vlsms_loss_falls_on_two_crops_and_the_saved_folder_segments(vlsm_trainer):
    crops = vlsm_trainer.samples(2)
    seen = fit(vlsm_trainer, lambda: vlsm_trainer.loss(crops)[0], 12)
    assert seen[-1] < 0.8 * seen[0]
    vlsm_trainer.save_model()
    segmenter = VlsmSegmenter.load(vlsm_trainer.folder / "model", device="cpu")
    picture = make_scene(1, "easy", 200).image
    (found,) = segmenter.segment([picture], [Prompt(Box(0, 0, *picture.size), "red key")])
    assert found.logits.shape == (picture.height, picture.width)


def test_a_vlsm_crop_holds_its_target_and_nothing_that_is_held_out(vlsm_trainer):
    crops = batch(vlsm_trainer.samples(8), vlsm_trainer.config, np.random.default_rng(0))
    assert (crops.targets[:, 0].sum((1, 2)) > 1).all()
    assert (crops.targets[:, 2] == 0).all()
    for plan in crops.plans:
        assert len(set(plan.texts)) == 3
        assert not {word for text in plan.texts for word in text.split()} & set(HELD_OUT)


def test_views_equal_what_users_images_go_through(vlsm_trainer):
    """Grid sampling on the device against PIL's resizing: pictures, masks and padding."""
    config = vlsm_trainer.config
    size = config.sam.image_size
    planned = CropPlanner(config, Mix(full=1.0, crowded=0.0, whole_views=0.5))(3)
    image = Image.fromarray(planned.image.transpose(1, 2, 0))
    for crop in Crop.all_of(planned, torch.device("cpu")):
        frame, box = crop.plan.frame, crop.plan.crop
        seen = views([Cut(crop.scene, frame, box)], config)
        sam = sam_normalised(seen.sam, size).masked_fill(seen.padding[:, None], 0.0)[0]
        assert (sam - sam_pixels(image.crop(frame.xyxy), size)).abs().mean() < 0.02
        assert (
            seen.beit3[0] / 127.5 - 1 - beit3_pixels(image.crop(box.xyxy), config.beit3.img_size)
        ).abs().mean() < 0.02
        target = crop.plan.wanted[0]
        wanted, _ = decoder_target(planned.owner == target, View(frame, box, None), size, config.sam.grid_size)
        found = seen.shares[0, target] * seen.inside[0]
        assert (found - wanted).abs().mean() < 0.01


def test_marked_patches_equal_the_processors(reasoner_trainer):
    trainer = reasoner_trainer
    patches = MarkedPatches(trainer.processor, torch.device("cpu"))
    same_light = types.SimpleNamespace(uniform=lambda low, high, size: np.ones(size), random=np.ones)
    pictures = trainer.samples(4)
    found = patches(pictures, same_light).view(4, -1, 768)
    assert {picture.marks for picture in pictures} == {"bands", "cells"}
    for picture, own in zip(pictures, found, strict=True):
        image = Image.fromarray(picture.image.numpy().transpose(1, 2, 0))
        marked = draw_marks(image, MARKS[picture.marks])
        wanted = trainer.processor.image_processor(marked, return_tensors="pt")["pixel_values"]
        assert (own - wanted).abs().max() < 0.03


def test_light_changes_some_of_the_pictures_and_keeps_their_range():
    pixels = torch.full((200, 3, 2, 2), 200.0)
    lit = relit(pixels, tone_curves(np.random.default_rng(0), 200))
    same = (lit == pixels).flatten(1).all(1)
    assert 100 < same.sum() < 160
    assert lit.min() > 20
    assert lit.max() <= 255


def test_a_mirrored_scene_is_asked_about_as_it_looks():
    scene = make_scene(4, "easy", 200)
    other = mirrored(scene)
    assert (np.asarray(other.image)[:, ::-1] == np.asarray(scene.image)).all()
    assert not other.questions
    for item, twin, mask, flipped in zip(scene.layout.items, other.layout.items, scene.masks, other.masks, strict=True):
        assert (mask[:, ::-1] == flipped).all()
        before, after = position(scene.layout, item).split(), position(other.layout, twin).split()
        swap = {"left": "right", "right": "left"}
        assert [swap.get(word, word) for word in before] == after


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_mix_and_do_not_depend_on_the_processes_that_draw(workers):
    stream = Stream(_seed_and_square, list, 10, workers=workers, kept=6)
    try:
        taken = stream.take(np.random.default_rng(0), 10)
        assert stream.next_seed >= 15
    finally:
        stream.close()
    assert taken == Stream(_seed_and_square, list, 10, kept=6).take(np.random.default_rng(0), 10)
    assert taken != sorted(taken)
    assert len(set(taken)) == 10


def _seed_and_square(seed):
    return (seed, seed * seed)


def test_training_resumes_where_it_stopped(tmp_path):
    recipe = ReasonerRecipe(minutes=0.002, pictures=1, mix=PictureMix(questions=2))
    first = ReasonerTrainer(recipe, tmp_path)
    first.run()
    assert first.step >= 1
    again = ReasonerTrainer(recipe, tmp_path)
    again.run()
    assert again.step == first.step
    assert again.next_scene == first.next_scene
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert LocalReasoner.load(str(tmp_path / "model"), device="cpu").canvas_px == (288, 288)


@pytest.mark.parametrize("kind", ["reasoner", "vlsm"])
def test_a_run_that_goes_on_keeps_its_vocabulary(kind, tmp_path, monkeypatch):
    def trainer():
        if kind == "vlsm":
            return VlsmTrainer(VlsmRecipe(minutes=1), tmp_path)
        return ReasonerTrainer(ReasonerRecipe(minutes=1), tmp_path)

    def ids(of):
        return of.tokenizer.encode("the red key") if kind == "vlsm" else of.planner.prompt("the red key", "cells")

    first = trainer()
    first.save_model()
    monkeypatch.setattr(f"rsvp_backend.training.demo_{kind}.corpus", lambda level: ["other words entirely"] * 3)
    assert ids(trainer()) == ids(first)


def test_the_schedule_warms_up_and_decays():
    schedule = Schedule(minutes=10, learning_rate=1.0, warmup_steps=100, decay_from=0.5)
    assert schedule.factor(0, 0) == pytest.approx(0.01)
    assert schedule.factor(200, 60) == pytest.approx(1.0)
    assert schedule.factor(200, 450) == pytest.approx(0.51)
    assert schedule.factor(200, 600) == pytest.approx(0.02)


def test_losses_by_hand():
    sure = torch.tensor([[[20.0, -20.0]]])
    right, wrong = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    assert losses.dice_loss(sure, right).item() == pytest.approx(0, abs=1e-4)
    assert losses.dice_loss(sure, wrong).item() == pytest.approx(1 - 1 / 3, abs=1e-4)
    assert losses.bce_loss(sure, right).item() == pytest.approx(0, abs=1e-4)
    assert losses.bce_loss(sure, wrong).item() == pytest.approx(20, abs=1e-3)
    nothing = torch.full((1, 1, 2), -20.0)
    assert losses.dice_loss(nothing, torch.zeros(1, 1, 2)).item() == pytest.approx(0, abs=1e-4)
    assert losses.mask_iou(torch.cat([sure, nothing]), torch.cat([wrong, torch.zeros(1, 1, 2)])).tolist() == [0.0, 1.0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_hints_point_at_what_they_mean(seed, whole):
    rng = np.random.default_rng(seed)
    scene = make_scene(seed % 50, "easy", 160, questions_per_kind=0)
    full = Box(0, 0, *scene.image.size)
    frame = full if whole else Box(full.width // 4, 0, full.width, full.height)
    view = View(frame, frame, None)
    for item in clickable(scene.masks, frame):
        hint = sample_hint(rng, scene.masks, item, view, 64, text=None)
        assert bool(hint.corners) != bool(hint.points)
        scale = 64 / max(frame.width, frame.height)
        for (x, y), positive in zip(hint.points, hint.labels, strict=True):
            row, column = frame.top + int(y / scale), frame.left + int(x / scale)
            assert bool(scene.masks[item][row, column]) == bool(positive)
        for x, y in hint.corners:
            assert 0 <= x <= 64
            assert 0 <= y <= 64


def test_nothing_is_clicked_where_nothing_shows():
    empty = [np.zeros((20, 30), dtype=bool)] * 2
    assert clickable(empty, Box(0, 0, 30, 20)) == []
