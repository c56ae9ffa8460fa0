"""Fine-tuning on tiny random weights: it learns, keeps what it knew, stops, resumes, and fits into little memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from vlsm_models import random_folder, tiny_config

from rsvp_backend.errors import ImageError, RsvpError, WeightsError
from rsvp_backend.scenes import make_scene
from rsvp_backend.scenes.parts import PARTS, part_mask
from rsvp_backend.training import finetune as finetuning
from rsvp_backend.training.adapters import Adapters, apply_delta, compose_deltas
from rsvp_backend.training.features import FeatureStore, encoder_digest, names_a_side
from rsvp_backend.training.finetune import EARLY_STOP_FROM, FinetuneResult, finetune
from rsvp_backend.training.finetune_config import FinetuneConfig, split
from rsvp_backend.training.fitting import Progress
from rsvp_backend.training.replay import NoReplay, SceneReplay
from rsvp_backend.training.samples import Correction, Origin
from rsvp_backend.training.scoring import FeatureVlsm, Scores
from rsvp_backend.types import Box
from rsvp_backend.vlsm import weights

NEW, OLD = "the red ball", "a small blue mug"
CONFIG = FinetuneConfig(
    steps=60, batch=6, learning_rate=4e-3, variants=1, replay_crops=6, replay_scored=4, evaluate_every=20, device="cpu"
)


def disc(task: int, text: str = NEW, origin: Origin = Origin.DRAWN) -> Correction:
    """A bright disc somewhere on a dark picture; the mask is the disc, or nothing where it was refused."""
    rng = np.random.default_rng(task)
    x, y = (int(v) for v in rng.integers(4, 36, 2))
    picture = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(picture).ellipse([x, y, x + 24, y + 24], fill=255)
    mask = np.asarray(picture) > 0
    image = Image.merge("RGB", [picture.point([20 + i * 200 // 255 for i in range(256)])] * 3)
    if origin == Origin.REFUSED:
        mask = np.zeros_like(mask)
    return Correction(f"{text}:{task}:{origin}", task, text, mask, Box(0, 0, 64, 64), origin, lambda: image)


@dataclass(frozen=True)
class Discs:
    """Replay of other pictures, asked about with another text."""

    def training(self, count: int) -> Sequence[Correction]:
        return [disc(1000 + n, OLD) for n in range(count)]

    def scoring(self, count: int) -> Sequence[Correction]:
        return [disc(2000 + n, OLD) for n in range(count)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> weights.Weights:
    return weights.load(random_folder(tmp_path_factory.mktemp("weights") / "tiny"))


@pytest.fixture(scope="module")
def corrections() -> list[Correction]:
    return [disc(n) for n in range(20)]


@pytest.fixture(scope="module")
def result(
    base: weights.Weights, corrections: list[Correction], tmp_path_factory: pytest.TempPathFactory
) -> FinetuneResult:
    return finetune(base, corrections, Discs(), CONFIG, tmp_path_factory.mktemp("run"))


def short(base: weights.Weights, corrections: Sequence[Correction], folder: Path, **changes: object) -> FinetuneResult:
    config = replace(CONFIG, **{"steps": 6, "evaluate_every": 3, "checkpoint_every": 2, **changes})  # type: ignore[arg-type]
    return finetune(base, corrections, Discs(), config, folder)


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_held_out_corrections_are_answered_better_and_old_ones_as_before(result: FinetuneResult) -> None:
    assert len(result.before.ious) == 4
    assert result.after.mean > result.before.mean + 0.3
    assert result.replay_after.mean > result.replay_before.mean - 0.15
    assert [point.step for point in result.curve][-1] == result.steps
    assert result.curve[-1].loss < result.curve[0].loss


def test_the_delta_gives_the_measured_scores_and_leaves_the_base_alone(
    base: weights.Weights, corrections: list[Correction], result: FinetuneResult, tmp_path: Path
) -> None:
    fresh = weights.load(random_folder(tmp_path / "tiny"))
    assert_equal(dict(base.model.state_dict()), dict(fresh.model.state_dict()))
    apply_delta(fresh.model, result.delta)
    model = fresh.model.float()
    scores = FeatureVlsm(model, fresh.tokenizer, FeatureStore(model, "crop", None)).score(split(corrections)[1])
    assert scores == result.after


def test_a_refused_prediction_teaches_an_empty_mask(
    base: weights.Weights, result: FinetuneResult, tmp_path: Path
) -> None:
    apply_delta(tuned := weights.load(random_folder(tmp_path / "tiny")).model, result.delta)
    refused = [disc(n, NEW, Origin.REFUSED) for n in range(15)]
    found = finetune(replace(base, model=tuned), refused, NoReplay(), CONFIG, tmp_path / "run")
    assert found.before.mean < 0.3
    assert found.after.mean > 0.9
    assert all(found.after.empty)


def test_the_view_of_the_whole_image_is_learned_as_well(base: weights.Weights, tmp_path: Path) -> None:
    part = [replace(disc(n), crop=Box(2, 0, 62, 60)) for n in range(15)]
    found = finetune(base, part, NoReplay(), replace(CONFIG, view="full+box"), tmp_path)
    assert found.after.mean > found.before.mean + 0.2


def test_a_killed_run_goes_on_to_the_same_result(
    base: weights.Weights, corrections: list[Correction], tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    seen: list[Progress] = []

    def kill(progress: Progress) -> None:
        seen.append(progress)
        if progress.stage == "training" and progress.step == 5:
            raise KilledError

    config = replace(CONFIG, steps=8, evaluate_every=3, checkpoint_every=2)
    whole = finetune(base, corrections, Discs(), config, tmp_path / "whole")
    with pytest.raises(KilledError):
        finetune(base, corrections, Discs(), config, tmp_path / "killed", kill)
    after = finetune(base, corrections, Discs(), config, tmp_path / "killed", seen.append)
    assert_equal(after.delta, whole.delta)
    assert after.curve == whole.curve
    images = [progress.step for progress in seen if progress.stage == "images"]
    assert images == [*range(1, 21)] * 2
    trained = [progress for progress in seen if progress.stage == "training"]
    assert [progress.step for progress in trained] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert trained[-1].eta_s == 0 < trained[-2].eta_s
    assert trained[-1].loss > 0
    stages = [progress.stage for progress in seen]
    assert list(dict.fromkeys(stages)) == ["images", "replay", "training", "comparing"]


def test_a_checkpoint_of_other_corrections_or_settings_is_not_resumed(
    base: weights.Weights, corrections: list[Correction], tmp_path: Path
) -> None:
    fresh = short(base, corrections[:9], tmp_path / "fresh")
    short(base, corrections, tmp_path / "used")
    assert_equal(short(base, corrections[:9], tmp_path / "used").delta, fresh.delta)
    other_seed = short(base, corrections[:9], tmp_path / "used", seed=1)
    assert not torch.equal(other_seed.delta["text_hidden_fcs.0.0.weight"], fresh.delta["text_hidden_fcs.0.0.weight"])


def test_too_little_memory_halves_the_batch_and_gives_the_same(
    base: weights.Weights, corrections: list[Correction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = short(base, corrections, tmp_path / "whole", batch=8)
    sizes = fail_above(1, monkeypatch)
    found = short(base, corrections, tmp_path / "split", batch=8)
    assert max(sizes[3:]) == 1
    for name, tensor in whole.delta.items():
        torch.testing.assert_close(found.delta[name].float(), tensor.float(), atol=0.01, rtol=0.01)
    fail_above(0, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        short(base, corrections, tmp_path / "none")


def fail_above(limit: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The loss of more than ``limit`` crops at a time runs out of memory; gives the sizes that were tried."""
    sizes: list[int] = []
    original = finetuning.anchor_loss

    def loss(logits: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(len(logits))
        if len(logits) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(logits, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(finetuning, "anchor_loss", loss)
    return sizes


def test_training_stops_where_enough_held_out_corrections_gain_no_more(
    base: weights.Weights, corrections: list[Correction], tmp_path: Path
) -> None:
    slow = {"learning_rate": 1e-12, "evaluate_every": 2, "patience": 2}
    found = short(base, corrections, tmp_path / "a", steps=40, held_out_share=0.6, **slow)
    assert len(found.after.ious) == EARLY_STOP_FROM
    assert found.steps == 6
    few = short(base, corrections[:5], tmp_path / "b", steps=12, **slow)
    assert few.steps == 12


def test_where_too_much_would_be_forgotten_part_of_the_way_is_kept(
    base: weights.Weights, corrections: list[Correction], tmp_path: Path
) -> None:
    whole = short(base, corrections, tmp_path / "a", replay_loss=1.0)
    part = short(base, corrections, tmp_path / "b", replay_loss=-1.0)
    name = "text_hidden_fcs.0.0.weight"
    start = base.model.state_dict()[name]
    torch.testing.assert_close(part.delta[name] - start, 0.7 * (whole.delta[name] - start), atol=1e-3, rtol=0.01)
    assert part.after != whole.after
    assert_equal(dict(base.model.state_dict()), {**base.model.state_dict(), name: start})


@pytest.mark.parametrize(("text", "expected"), [("red mug", False), ("the LEFT mug", True), ("左边的杯子", True)])
def test_texts_that_may_name_a_side_are_not_seen_mirrored(text: str, expected: bool) -> None:
    assert names_a_side(text) is expected


def test_every_other_variant_is_mirrored(base: weights.Weights, tmp_path: Path) -> None:
    sample = disc(3)
    store = FeatureStore(base.model, "crop", None)
    kept = FeatureStore(base.model, "crop", None).features(replace(sample, text="the left ball"), 1)
    other = store.features(sample, 1)
    columns = [features.target.float().sum(0) for features in (kept, other)]
    centres = [float((column * torch.arange(len(column))).sum() / column.sum()) for column in columns]
    assert centres[0] + centres[1] == pytest.approx(len(columns[0]) - 1, abs=3)
    assert abs(centres[0] - centres[1]) > 1


def test_without_corrections_there_is_a_clear_refusal(base: weights.Weights, tmp_path: Path) -> None:
    with pytest.raises(RsvpError, match="no correction to learn from"):
        finetune(base, [], Discs(), CONFIG, tmp_path)


def gone() -> Image.Image:
    raise ImageError("404")


def test_corrections_without_their_image_are_left_out_and_named(base: weights.Weights, tmp_path: Path) -> None:
    some = [disc(n) if n % 2 else replace(disc(n), load_image=gone) for n in range(8)]
    found = short(base, some, tmp_path / "some")
    assert found.unreadable == ((0, "404"), (2, "404"), (4, "404"), (6, "404"))
    assert found.trained_on + len(found.before.ious) == 4
    with pytest.raises(ImageError, match="no image of 4 corrections can be read: 404"):
        short(base, some[::2], tmp_path / "none")


def test_an_image_that_goes_while_it_trains_costs_variants_only(base: weights.Weights, tmp_path: Path) -> None:
    def once(correction: Correction) -> Correction:
        loads = iter([correction.load_image])

        def load() -> Image.Image:
            return next(loads, gone)()

        return replace(correction, load_image=load)

    found = short(base, [once(disc(n)) for n in range(8)], tmp_path)
    assert (found.steps, found.unreadable) == (6, ())


def test_a_checkpoint_that_cannot_be_written_ends_the_run_clearly(base: weights.Weights, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(RsvpError, match=r"checkpoint .*state.pt cannot be written"):
        short(base, [disc(n) for n in range(4)], tmp_path / "run")


def test_a_single_task_is_trained_on_and_nothing_is_held_out(base: weights.Weights, tmp_path: Path) -> None:
    found = short(base, [disc(0)], tmp_path)
    assert found.trained_on == 1
    assert found.after == Scores()
    assert np.isnan(found.after.mean)


@given(tasks=st.lists(st.integers(0, 10**9), min_size=2, max_size=60), share=st.floats(0.05, 0.5))
def test_split_keeps_tasks_whole_and_holds_out_about_its_share(tasks: list[int], share: float) -> None:
    blank = disc(0)
    made = [replace(blank, key=str(n), task=task) for n, task in enumerate(tasks)]
    train, held = split(made, share)
    trained, apart = {c.task for c in train}, {c.task for c in held}
    assert len(train) + len(held) == len(made)
    assert not trained & apart
    count = len(set(tasks))
    if count > 1:
        assert min(share * count, count - 1) <= len(apart) <= max(1, 1.5 * share * count + 1)
    assert split(made[::-1], share)[1] == held[::-1]


def test_a_new_task_moves_few_others() -> None:
    blank = disc(0)
    made = [replace(blank, task=task) for task in range(201)]
    held, later = ({c.task for c in split(some)[1]} for some in (made[:200], made))
    assert len(held ^ later) <= 1


@pytest.mark.parametrize("changes", [{"steps": 0}, {"replay_share": 1.0}, {"held_out_share": -0.1}])
def test_settings_that_make_no_sense_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(CONFIG, **changes)  # type: ignore[arg-type]


def test_wider_models_learn_in_smaller_steps() -> None:
    config = FinetuneConfig(warmup_steps=2, steps=10)
    assert config.rate(0, 10, 128) == pytest.approx(3e-4)
    assert config.rate(5, 10, 1024) == pytest.approx(config.rate(5, 10, 128) / 8)
    assert config.rate(9, 10, 128) < config.rate(5, 10, 128)


def test_more_corrections_are_seen_in_more_steps() -> None:
    assert [FinetuneConfig().steps_for(count) for count in (1, 20, 40, 10_000)] == [400, 400, 800, 1500]
    assert FinetuneConfig(steps=7).steps_for(50) == 7


# ---- adapters


def model_of(folder: Path) -> weights.Weights:
    return weights.load(random_folder(folder / "tiny"))


def answers(loaded: weights.Weights, text: str = NEW) -> torch.Tensor:
    sample = disc(3)
    store = FeatureStore(loaded.model.float(), "crop", None)
    with torch.no_grad():
        return FeatureVlsm(loaded.model, loaded.tokenizer, store).decode([store.features(sample)], [text])[0]


def trained_adapters(loaded: weights.Weights, seed: int) -> Adapters:
    """Adapters that a few random steps have moved away from the start."""
    adapters = Adapters(loaded.model.float(), 2, loaded.tokenizer.encode(NEW), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapters.parameters.values():
            tensor.add_(0.02 * torch.randn(tensor.shape, generator=generator))
    return adapters


def test_fresh_adapters_change_neither_answers_nor_names(tmp_path: Path) -> None:
    loaded = model_of(tmp_path)
    names, before = list(loaded.model.state_dict()), answers(loaded)
    adapters = Adapters(loaded.model, 4, loaded.tokenizer.encode(NEW))
    torch.testing.assert_close(answers(loaded), before)
    assert list(loaded.model.state_dict()) == names
    lora = [name for name in adapters.parameters if name.endswith(".lora_a")]
    assert len(lora) == 4 * tiny_config().beit3.layers
    assert not any("image_encoder" in name for name in adapters.parameters)


def test_a_delta_answers_as_the_adapters_did(tmp_path: Path) -> None:
    loaded, fresh = model_of(tmp_path / "a"), model_of(tmp_path / "b")
    adapters, before = trained_adapters(loaded, 1), answers(fresh)
    hooked = answers(loaded)
    apply_delta(fresh.model, adapters.delta())
    torch.testing.assert_close(answers(fresh), hooked, atol=0.01, rtol=0.02)
    assert (hooked - before).abs().max() > 0.04
    assert sum(t.nbytes for t in adapters.delta().values()) < sum(t.nbytes for t in fresh.model.state_dict().values())


def test_two_deltas_compose_to_one(tmp_path: Path) -> None:
    loaded = model_of(tmp_path / "a")
    first, second = trained_adapters(loaded, 1).delta(), trained_adapters(model_of(tmp_path / "b"), 2).delta()
    second = {k: v for k, v in second.items() if not k.startswith("text_hidden_fcs")}
    twice, once = model_of(tmp_path / "c"), model_of(tmp_path / "d")
    apply_delta(twice.model, first)
    apply_delta(twice.model, second)
    apply_delta(once.model, compose_deltas(first, second))
    for (name, ours), theirs in zip(once.model.named_parameters(), twice.model.parameters(), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), atol=2e-4, rtol=2e-3, msg=name)


@pytest.mark.parametrize("spoil", ["name", "shape", "lora", "rows"])
def test_a_delta_of_other_weights_is_refused_before_anything_changes(tmp_path: Path, spoil: str) -> None:
    loaded = model_of(tmp_path)
    delta = trained_adapters(model_of(tmp_path / "b"), 1).delta()
    name = next(n for n in delta if n.endswith({"lora": ".lora_a", "rows": ".rows"}.get(spoil, "weight")))
    tensor = delta.pop(name)
    if spoil == "name":
        delta["another.weight"] = tensor
    elif spoil == "shape":
        delta[name] = tensor[:1]
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    with pytest.raises(WeightsError):
        apply_delta(loaded.model, delta)
    assert_equal(dict(loaded.model.state_dict()), before)


def test_training_that_diverged_is_an_error(tmp_path: Path) -> None:
    adapters = Adapters(model_of(tmp_path).model.float(), 0, ())
    next(iter(adapters.parameters.values())).data.fill_(float("nan"))
    with pytest.raises(WeightsError, match="lower learning rate"):
        adapters.delta()


# ---- features


def unavailable() -> Image.Image:
    raise AssertionError("the image is loaded again")


def test_a_second_run_needs_neither_images_nor_the_image_encoder(base: weights.Weights, tmp_path: Path) -> None:
    model, sample = base.model, disc(1)
    first = [FeatureStore(model, "crop", tmp_path).features(sample, variant) for variant in (0, 1)]
    later = FeatureStore(model, "crop", tmp_path)
    later._embed = unavailable  # type: ignore[assignment]
    again = [later.features(replace(sample, load_image=unavailable), variant) for variant in (0, 1)]
    for ours, theirs in zip(again, first, strict=True):
        assert torch.equal(ours.embedding, theirs.embedding)
        assert torch.equal(ours.target, theirs.target)
    assert not torch.equal(first[0].beit3, first[1].beit3)


def test_later_versions_share_embeddings_but_other_encoders_do_not(
    base: weights.Weights, result: FinetuneResult, tmp_path: Path
) -> None:
    tuned = model_of(tmp_path).model
    apply_delta(tuned, result.delta)
    assert encoder_digest(tuned.float()) == encoder_digest(base.model)
    with torch.no_grad():
        next(tuned.visual_model.image_encoder.parameters()).add_(0.1)
    assert encoder_digest(tuned) != encoder_digest(base.model)


def test_damaged_and_deleted_files_are_made_again(base: weights.Weights, tmp_path: Path) -> None:
    first = FeatureStore(base.model, "crop", tmp_path).features(disc(1))
    files = [path for path in tmp_path.rglob("*.safetensors") if path.is_file()]
    assert len(files) == 2
    for damage in (lambda path: path.write_bytes(b"half a fi"), Path.unlink):
        for path in files:
            damage(path)
        again = FeatureStore(base.model, "crop", tmp_path).features(disc(1))
        assert torch.equal(again.embedding, first.embedding)
        assert all(path.stat().st_size > 100 for path in files)


def test_a_folder_that_cannot_be_written_costs_time_only(base: weights.Weights, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    found = FeatureStore(base.model, "crop", tmp_path / "file").features(disc(1))
    assert torch.equal(found.target, FeatureStore(base.model, "crop", None).features(disc(1)).target)


def test_the_least_recently_used_files_go_first(base: weights.Weights, tmp_path: Path) -> None:
    store = FeatureStore(base.model, "crop", tmp_path)
    store.features(disc(1))
    old = set(tmp_path.rglob("*.safetensors"))
    store.features(disc(2))
    new = set(tmp_path.rglob("*.safetensors")) - old
    for path in old | new:
        os.utime(path, (0, 0))  # the file system's clock ticks too slowly to tell them apart
    FeatureStore(base.model, "crop", tmp_path).features(disc(1))  # read again: now the younger ones
    store.limit_bytes = sum(path.stat().st_size for path in old)
    assert store.trim() > 0
    assert set(tmp_path.rglob("*.safetensors")) == old
    assert new


def test_small_masks_and_cells_beyond_the_crop_are_scored_fairly(base: weights.Weights) -> None:
    sample = disc(1)
    wide = replace(sample, crop=Box(0, 16, 64, 48))
    features = FeatureStore(base.model, "crop", None).features(wide)
    rows = features.inside.any(dim=1)
    assert rows[: len(rows) // 2].all()
    assert not rows[len(rows) // 2 :].any()
    assert (features.target[~features.inside] == 0).all()


# ---- replay and parts


def test_scene_replay_is_the_same_every_time_and_scores_on_other_scenes() -> None:
    replay = SceneReplay()
    first, again, other = replay.training(7), replay.training(7), replay.scoring(7)
    assert [c.key for c in first] == [c.key for c in again]
    assert len(first) == len(other) == 7
    assert not {c.task for c in first} & {c.task for c in other}
    for n, sample in enumerate(first):
        image = sample.load_image()
        assert sample.mask.shape == (image.height, image.width)
        crop = sample.mask[sample.crop.top : sample.crop.bottom, sample.crop.left : sample.crop.right]
        assert bool(sample.mask.any()) == (n % 3 != 2)
        assert n % 3 != 0 or crop.sum() == sample.mask.sum()


@pytest.mark.parametrize(("name", "part"), sorted(PARTS))
def test_a_part_lies_in_its_object_and_is_not_all_of_it(name: str, part: str) -> None:
    seen = 0
    for seed in range(12):
        scene = make_scene(seed, "crowded", 320, questions_per_kind=0)
        for item, drawn in enumerate(scene.layout.items):
            if drawn.name == name:
                mask = part_mask(scene, item, part)
                seen += 1
                assert not (mask & ~scene.masks[item]).any()
                assert 0.03 < mask.sum() / scene.masks[item].sum() < 0.9
    assert seen


def test_the_head_of_the_hammer_is_at_its_top() -> None:
    find: Callable[[int], list[int]] = lambda seed: [  # noqa: E731
        i for i, item in enumerate(make_scene(seed, "easy", 320, 0).layout.items) if item.name == "hammer"
    ]
    seed = next(seed for seed in range(50) if find(seed))
    scene = make_scene(seed, "easy", 320, 0)
    item = find(seed)[0]
    head, whole = part_mask(scene, item, "head"), scene.masks[item]
    assert np.nonzero(head)[0].mean() < np.nonzero(whole)[0].mean()
    assert np.nonzero(head)[0].min() <= np.nonzero(whole)[0].min() + 1
