import hashlib

import numpy as np
import pytest

from rsvp_backend.scenes import EVALUATION_SEEDS_FROM, LEVELS, make_scene
from rsvp_backend.scenes.language import (
    FUNCTION_CARRIERS,
    FUNCTION_HELD_OUT,
    FUNCTIONS,
    NAME_CARRIERS,
    NAME_HELD_OUT,
)
from rsvp_backend.scenes.shapes import DRAWINGS, Pen

PINNED = {"easy": "45968fe781494c7c", "crowded": "20d68b5d765cd0ee", "full": "e93d6e862639e52b"}


@pytest.mark.parametrize("level", list(PINNED))
def test_scenes_of_a_level_stay_what_they_are_when_levels_are_added(level):
    digest = hashlib.sha256()
    for seed in (3, 10_000_001):
        scene = make_scene(seed, level)
        digest.update(scene.image.tobytes())
        for mask in scene.masks:
            digest.update(mask.tobytes())
        digest.update(repr([q.instruction for q in scene.questions if q.kind != "several"]).encode())
        digest.update(repr(scene.layout).encode())
    assert digest.hexdigest()[:16] == PINNED[level]


@pytest.mark.parametrize("seed", range(12))
def test_small_objects_are_smaller_than_a_cell_of_the_default_marks(seed):
    scene = make_scene(seed, "small")
    assert all(mask.mean() < 1 / 81 for mask in scene.masks)


@pytest.mark.parametrize("level", list(LEVELS))
def test_same_seed_same_scene(level):
    first, second = make_scene(7, level), make_scene(7, level)
    assert first.image.tobytes() == second.image.tobytes()
    assert [q.instruction for q in first.questions] == [q.instruction for q in second.questions]
    assert first.image.tobytes() != make_scene(8, level).image.tobytes()


@pytest.mark.parametrize("level", list(LEVELS))
@pytest.mark.parametrize("seed", range(12))
def test_masks_are_disjoint_visible_and_answer_the_questions(level, seed):
    scene = make_scene(seed, level)
    assert scene.image.mode == "RGB"
    assert max(scene.image.size) <= 1024
    assert min(scene.image.size) >= 320
    stack = np.stack(scene.masks)
    assert stack.shape[1:] == (scene.image.height, scene.image.width)
    assert stack.sum(axis=0).max() == 1
    assert stack.any(axis=(1, 2)).all()
    for question in scene.questions:
        for one in question.truth.referents:
            assert one.object in one.reasoning
            if one.target is not None:
                assert one.object == scene.layout.items[one.target].phrase
        assert (question.kind == "absent") == (not question.present)
        if question.present:
            assert (question.mask == stack[list(question.truth.targets)].any(axis=0)).all()
        else:
            assert not question.mask.any()
            assert question.objects[0] not in [item.phrase for item in scene.layout.items]


def test_mask_holds_the_objects_own_colour():
    scene = make_scene(3, "easy")
    pixels = np.asarray(scene.image)
    for item, mask in zip(scene.layout.items, scene.masks, strict=True):
        median = np.median(pixels[mask], axis=0)
        assert np.abs(median - item.rgb).max() < 60


def test_rendering_at_another_size_keeps_the_layout():
    large, small = make_scene(5, "easy"), make_scene(5, "easy", longest_px=160)
    assert large.layout == small.layout
    assert max(small.image.size) == 160
    for a, b in zip(large.masks, small.masks, strict=True):
        assert abs(a.mean() - b.mean()) < 0.01


def test_several_objects_are_asked_for_at_the_full_level_only():
    asked = {level: [q for n in range(40) for q in make_scene(n, level, 160).questions] for level in ("easy", "full")}
    assert not any(q.kind == "several" for q in asked["easy"])
    several = [q for q in asked["full"] if q.kind == "several"]
    assert len(several) == 40
    assert all(len(q.objects) == len(q.truth.targets) >= 2 for q in several)
    every = [q for q in several if "every" in q.instruction]
    assert 0 < len(every) < 40
    for question in every:
        assert {phrase.split()[1] for phrase in question.objects} == {question.instruction.rstrip("?").split()[-1]}


def test_classes_can_be_left_out():
    names = {
        item.name for seed in range(30) for item in make_scene(seed, "full", 64, without={"mushroom"}).layout.items
    }
    assert "mushroom" not in names
    assert len(names) == len(DRAWINGS) - 1


def test_all_four_kinds_appear_with_held_out_wording_in_evaluation_only():
    training = [q for seed in range(60) for q in make_scene(seed, "easy", 160).questions]
    evaluation = [q for n in range(60) for q in make_scene(EVALUATION_SEEDS_FROM + n, "easy", 160).questions]
    assert {q.kind for q in training} == {"name", "relation", "function", "absent"}
    assert not any(q.truth.held_out for q in training)
    assert 0.3 < np.mean([q.truth.held_out for q in evaluation]) < 0.7
    assert not set(NAME_CARRIERS) & set(NAME_HELD_OUT)
    assert not set(FUNCTION_CARRIERS) & set(FUNCTION_HELD_OUT)


def test_every_class_draws_something_and_has_functions():
    assert len(DRAWINGS) >= 16
    pictures = set()
    for name, draw in DRAWINGS.items():
        pen = Pen(64)
        draw(pen, 0.5)
        share = np.asarray(pen.silhouette).mean() / 255
        assert 0.08 < share < 0.9, name
        pictures.add(hashlib.sha256(pen.silhouette.tobytes()).digest())
        assert len(FUNCTIONS[name]) >= 3
    assert len(pictures) == len(DRAWINGS)
