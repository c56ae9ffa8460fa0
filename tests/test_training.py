"""The demo models' training, through the same classes that made the shipped weights, for a few steps."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsvp_backend.reasoner.local import LocalReasoner
from rsvp_backend.scenes import make_scene
from rsvp_backend.training import losses, tiny_mllm
from rsvp_backend.training.demo_reasoner import ReasonerRecipe, ReasonerTrainer, cell_targets
from rsvp_backend.training.demo_vlsm import VlsmRecipe, VlsmTrainer
from rsvp_backend.training.hints import clickable, sample_hint
from rsvp_backend.training.loop import Schedule
from rsvp_backend.types import Box, Prompt
from rsvp_backend.vlsm.segmenter import VlsmSegmenter
from rsvp_backend.vlsm.views import View


@pytest.fixture(scope="module")
def reasoner_trainer(tmp_path_factory):
    recipe = ReasonerRecipe(minutes=1, pictures=2, questions=3, vision_only_steps=0)
    return ReasonerTrainer(recipe, tmp_path_factory.mktemp("reasoner"))


@pytest.fixture(scope="module")
def vlsm_trainer(tmp_path_factory):
    return VlsmTrainer(VlsmRecipe(minutes=1, crops=2), tmp_path_factory.mktemp("vlsm"))


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
    pictures = [reasoner_trainer.picture() for _ in range(2)]
    seen = fit(reasoner_trainer, lambda: reasoner_trainer.loss(pictures)[0], 12)
    assert seen[-1] < 0.8 * seen[0]


def test_packed_turns_equal_turns_alone(reasoner_trainer):
    """A question packed behind others gets the same hidden states as one asked alone."""
    trainer = reasoner_trainer
    picture = trainer.picture()
    with torch.no_grad():
        visual = trainer._visual([picture])
        together = trainer._hidden(visual, trainer._pack([picture]))
        packed = trainer._pack([picture])
        for number, sequence in enumerate(picture.sequences):
            alone_picture = type(picture)(picture.patches, picture.cells, [sequence])
            alone = trainer._pack([alone_picture])
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
    text = tiny_mllm.answer_text("red key", (3, 4, 5), (6,), "because.")
    (proposal,) = json.loads(text)["proposals"]
    assert proposal == {
        "object": "red key", "present": True, "rows": [3, 5], "columns": [6, 6], "reasoning": "because.",
    }  # fmt: skip
    (proposal,) = json.loads(tiny_mllm.answer_text("red key", (), (), "no key."))["proposals"]
    assert proposal["present"] is False
    assert proposal["rows"] == proposal["columns"] == []


def test_the_vlsms_loss_falls_on_two_crops_and_the_saved_folder_segments(vlsm_trainer):
    crops = [vlsm_trainer.crop() for _ in range(2)]
    seen = fit(vlsm_trainer, lambda: vlsm_trainer.loss(crops)[0], 12)
    assert seen[-1] < 0.8 * seen[0]
    vlsm_trainer.save_model()
    segmenter = VlsmSegmenter.load(vlsm_trainer.folder / "model", device="cpu")
    picture = make_scene(1, "easy", 200).image
    (found,) = segmenter.segment([picture], [Prompt(Box(0, 0, *picture.size), "red key")])
    assert found.logits.shape == (picture.height, picture.width)


def test_a_vlsm_crop_holds_its_target(vlsm_trainer):
    for _ in range(5):
        crop = vlsm_trainer.crop()
        assert crop.targets[0].sum() > 1
        assert crop.targets[2].sum() == 0
        assert crop.texts[0] != crop.texts[1] != crop.texts[2]


def test_training_resumes_where_it_stopped(tmp_path):
    recipe = ReasonerRecipe(minutes=0.002, pictures=1, questions=2)
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
