"""Distillation into tiny MLLMs of real families: they learn, keep to their base, resume, stop, fit into memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_models import CONFIG, MARKS, RIGHT, example, tiny_base
from mllm_folders import FAMILIES
from torch import Tensor, nn

from rsvp_backend.errors import ImageError, RsvpError, WeightsError
from rsvp_backend.training import deltas, distillation
from rsvp_backend.training.answer_batches import AnswerBatch, AnswerBatches, answer_loss
from rsvp_backend.training.answer_replay import own_answers, replay_to_score, replay_to_train
from rsvp_backend.training.distill_config import DistillConfig
from rsvp_backend.training.distillation import DistillResult, distill
from rsvp_backend.training.examples import Example, Source
from rsvp_backend.training.finetune_config import split
from rsvp_backend.training.fitting import Progress
from rsvp_backend.training.gate import decide
from rsvp_backend.training.prompt_store import PromptStore
from rsvp_backend.training.reasoner_deltas import ReasonerBase, shared_copy
from rsvp_backend.training.reasoner_lora import ReasonerLora, adapted_layers
from rsvp_backend.training.versions import VersionError
from rsvp_backend.types import Proposal, Query, Regions

EXAMPLES = [example(task) for task in range(15)]


@dataclass(frozen=True)
class Lesson:
    base: ReasonerBase
    result: DistillResult
    told: list[Progress]


@pytest.fixture(scope="module", params=["qwen2_vl", "llava"])
def lesson(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    folder, told = tmp_path_factory.mktemp(request.param), list[Progress]()
    base = tiny_base(request.param, folder)
    result = distill(base, None, EXAMPLES, CONFIG, folder / "run", told.append, replay=False)
    return Lesson(base, result, told)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ReasonerBase:
    return tiny_base("qwen2_vl", tmp_path_factory.mktemp("qwen2_vl"))


def short(base: ReasonerBase, folder: Path, tell: Any = lambda _: None, **changes: Any) -> DistillResult:
    settings: dict[str, Any] = {"steps": 6, "evaluate_every": 3, "checkpoint_every": 2, **changes}
    return distill(base, None, EXAMPLES, replace(CONFIG, **settings), folder, tell, replay=False)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- what is learned ---------------------------------------------------------------------------------------------


def test_held_out_examples_are_answered_right_and_the_gate_says_so(lesson: Lesson) -> None:
    result = lesson.result
    assert len(result.before.scores.ious) == 3
    assert result.before.mean < 0.5
    assert (result.after.mean, result.after.objects, result.after.regions) == (1.0, 1.0, 1.0)
    assert result.curve[-1].loss < result.curve[0].loss
    assert result.curve[-1].held_out < result.curve[0].held_out
    scores = (result.before, result.after, result.replay_before, result.replay_after)
    assert decide(*(one.scores for one in scores)).promote


def test_the_delta_is_small_touches_the_language_model_only_and_leaves_the_base_alone(
    lesson: Lesson, tmp_path: Path
) -> None:
    fresh = tiny_base(lesson.base.loaded.model.config.model_type, tmp_path)
    assert_equal(dict(fresh.loaded.model.state_dict()), dict(lesson.base.loaded.model.state_dict()))
    assert all(name.startswith("model.language_model.layers.") for name in lesson.result.delta)
    weights_bytes = sum(tensor.nbytes for tensor in fresh.loaded.model.parameters())
    assert len(deltas.encode(lesson.result.delta)) < weights_bytes / 4  # these models are all adapters, nearly


def test_every_stage_tells_how_far_it_is(lesson: Lesson) -> None:
    assert list(dict.fromkeys(progress.stage for progress in lesson.told)) == ["pictures", "answers", "training"]
    last = [progress for progress in lesson.told if progress.stage == "training"][-1]
    assert (last.step, last.steps, last.eta_s) == (40, 40, 0.0)
    assert last.held_out == lesson.result.curve[-1].held_out


def test_a_further_lesson_begins_where_the_last_one_ended(lesson: Lesson, tmp_path: Path) -> None:
    """And its delta is relative to the base, of the same rank."""
    again = distill(
        lesson.base, lesson.result.delta, EXAMPLES, replace(CONFIG, steps=2, learning_rate=1e-9), tmp_path, replay=False
    )
    assert again.before.scores == lesson.result.after.scores
    for name, tensor in lesson.result.delta.items():
        torch.testing.assert_close(again.delta[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_version_that_forgets_what_the_last_one_knew_is_kept_back(lesson: Lesson, tmp_path: Path) -> None:
    """What it is taught contradicts itself: another object and place in each task."""
    noise = [
        example(n, Proposal(f"thing {n}", True, Regions((n % 3 + 1,), (n * 2 % 3 + 1,)), "it has columns"))
        for n in range(12)
    ]
    held = [one for one in EXAMPLES if one.task in {e.task for e in split(EXAMPLES)[1]}]
    mixed = [*(one for one in noise if one.task not in {h.task for h in held}), *held]
    made = distill(lesson.base, lesson.result.delta, mixed, replace(CONFIG, patience=99), tmp_path, replay=False)
    decision = decide(made.before.scores, made.after.scores, made.replay_before.scores, made.replay_after.scores)
    assert made.before.mean == 1.0
    assert not decision.promote


def test_what_was_known_is_repeated_and_scored(base: ReasonerBase, tmp_path: Path) -> None:
    """A model that did not learn from scenes repeats its own valid answers; it is scored against the truth."""
    prompts = PromptStore(tmp_path / "pictures", MARKS)
    asked = replay_to_train(4, MARKS)
    own = own_answers(base.plain, asked, prompts)
    answer = base.plain.propose(prompts.get(asked[0]), asked[0].query, MARKS, None)
    assert (own[0].proposals, own[0].source, own[0].key) == (answer.proposals, Source.OWN, asked[0].key)
    result = distill(base, None, EXAMPLES, replace(CONFIG, steps=4), tmp_path / "run")
    assert len(result.replay_before.scores.ious) == len(result.replay_after.scores.ious) == 4
    assert not {one.task for one in asked} & {one.task for one in replay_to_score(4, MARKS)}


def test_weights_in_half_precision_are_learned_over_in_full(tmp_path: Path) -> None:
    half = tiny_base("qwen2_vl", tmp_path, dtype="bfloat16")
    assert half.loaded.model.dtype == torch.bfloat16
    found = distill(half, None, EXAMPLES, CONFIG, tmp_path / "run", replay=False)
    assert found.after.mean > found.before.mean + 0.4
    assert half.reasoner(found.delta, "new").model.dtype == torch.bfloat16


# --- runs that do not go through ---------------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_result(base: ReasonerBase, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    seen: list[Progress] = []

    def kill(progress: Progress) -> None:
        if progress.stage == "training" and progress.step == 5:
            raise KilledError

    whole = short(base, tmp_path / "whole", steps=8)
    with pytest.raises(KilledError):
        short(base, tmp_path / "killed", kill, steps=8)
    after = short(base, tmp_path / "killed", seen.append, steps=8)
    assert [progress.step for progress in seen if progress.stage == "training"] == [5, 6, 7, 8]
    assert_equal(after.delta, whole.delta)
    assert after.curve == whole.curve


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(base: ReasonerBase, tmp_path: Path) -> None:
    fresh = short(base, tmp_path / "fresh", seed=2)
    short(base, tmp_path / "used", seed=1)
    assert_equal(short(base, tmp_path / "used", seed=2).delta, fresh.delta)


def test_training_ends_when_held_out_examples_gain_no_more(base: ReasonerBase, tmp_path: Path) -> None:
    many = [example(task) for task in range(30)]
    config = replace(CONFIG, steps=40, evaluate_every=1, patience=2, learning_rate=1e-30)
    assert distill(base, None, many, config, tmp_path, replay=False).steps == 3


def test_a_batch_that_does_not_fit_is_split(
    base: ReasonerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = short(base, tmp_path / "whole")

    def small(model: Any, batch: AnswerBatch) -> Tensor:
        if len(batch.targets) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer_loss(model, batch)

    monkeypatch.setattr(distillation, "answer_loss", small)
    found = short(base, tmp_path / "small")
    assert "going on with 2 samples at a time" in caplog.text
    assert found.curve[-1].held_out == pytest.approx(whole.curve[-1].held_out, rel=0.1)
    monkeypatch.setattr(distillation, "answer_loss", lambda *_: small(None, AnswerBatch({}, torch.zeros(3, 1))))
    with pytest.raises(torch.OutOfMemoryError):
        short(base, tmp_path / "none")


def test_images_that_are_gone_are_told_and_the_rest_is_learned(base: ReasonerBase, tmp_path: Path) -> None:
    def gone() -> Any:
        raise ImageError("404")

    config = replace(CONFIG, steps=2)
    lost = replace(EXAMPLES[0], load_image=gone, key="lost")
    found = distill(base, None, [lost, *EXAMPLES[1:]], config, tmp_path / "some", replay=False)
    assert found.unreadable == ((0, "404"),)
    with pytest.raises(ImageError, match="no image of 1 examples can be read: 404"):
        distill(base, None, [lost], config, tmp_path / "none", replay=False)
    with pytest.raises(RsvpError, match="no example"):
        distill(base, None, [], config, tmp_path / "empty", replay=False)


def test_a_disk_that_cannot_be_written_is_told_in_one_line(base: ReasonerBase, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RsvpError, match=r"the marked picture .* cannot be written"):
        short(base, tmp_path / "file")


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"steps": 0}, {"lora_rank": 0}, {"replay_share": 1.0}, {"held_out_share": -0.1}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*expected"):
        DistillConfig(**wrong)


# --- adapters ----------------------------------------------------------------------------------------------------


def test_adapters_go_on_from_a_delta_of_a_lower_rank_and_of_other_layers(base: ReasonerBase) -> None:
    first = ReasonerLora(shared_copy(base.loaded.model), 2, seed=1)
    for parameter in first.parameters.values():
        nn.init.normal_(parameter, std=0.1)
    delta = first.delta()
    wider = ReasonerLora(shared_copy(base.loaded.model), 4, mlp=True, start=delta, seed=1).delta()
    assert len(wider) > len(delta)
    for name in (one for one in delta if one.endswith(".lora_b")):
        a = name.replace("lora_b", "lora_a")
        product = wider[name].float() @ wider[a].float()
        torch.testing.assert_close(product, delta[name].float() @ delta[a].float(), rtol=1e-2, atol=1e-3)


def test_a_model_without_known_layers_and_a_delta_of_another_model_are_refused(base: ReasonerBase) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = nn.Sequential(nn.Linear(2, 2))

        def get_decoder(self) -> nn.Module:
            return self.text

    with pytest.raises(WeightsError, match="Sequential has no layer named q_proj"):
        adapted_layers(Other())
    (name, *_) = adapted_layers(base.loaded.model)
    delta = {f"{name}.weight.lora_a": torch.zeros(2, 7), f"{name}.weight.lora_b": torch.zeros(32, 2)}
    with pytest.raises(WeightsError, match="belongs to other weights"):
        ReasonerLora(shared_copy(base.loaded.model), 2, start=delta)
    with pytest.raises(VersionError, match="version v does not fit the reasoner"):
        base.reasoner({"model.nothing.weight": torch.zeros(2)}, "v")
    with pytest.raises(VersionError, match="version v does not fit the reasoner"):
        base.reasoner(delta, "v")


def test_a_training_that_diverged_is_told(base: ReasonerBase) -> None:
    lora = ReasonerLora(shared_copy(base.loaded.model), 2)
    nn.init.constant_(next(iter(lora.parameters.values())), float("nan"))
    with pytest.raises(WeightsError, match="not finite after training"):
        lora.delta()


# --- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_batch_is_that_of_its_examples_one_by_one(family: str, tmp_path: Path) -> None:
    """Pictures and questions of different sizes are padded, and padding is never seen nor taught."""
    base = tiny_base(family, tmp_path)
    batches = AnswerBatches(base.plain, PromptStore(tmp_path / "pictures", MARKS), edges=False)
    longer = replace(EXAMPLES[1], query=Query("the one and only key in the image that has rows"), key="longer")
    absent = replace(EXAMPLES[2], proposals=(Proposal("key", False, Regions(), "no key"),), key="absent")
    some: list[Example] = [EXAMPLES[0], longer, absent]
    with torch.no_grad():
        alone = [float(answer_loss(base.loaded.model, batches.batch([one]))) for one in some]
        together = float(answer_loss(base.loaded.model, batches.batch(some)))
    assert together == pytest.approx(sum(alone), rel=1e-3)


def test_only_the_answer_is_taught_and_a_reasoning_that_nobody_gave_is_not(base: ReasonerBase, tmp_path: Path) -> None:
    batches = AnswerBatches(base.plain, PromptStore(tmp_path, MARKS), edges=False)
    silent = replace(EXAMPLES[1], proposals=(replace(RIGHT, reasoning=""),), key="silent")
    batch = batches.batch([EXAMPLES[0], silent])
    tokenizer = base.plain.processor.tokenizer

    def taught(row: int) -> str:
        return str(tokenizer.decode([token for token in batch.targets[row].tolist() if token != -100]))

    start = '{"proposals": [{"object": "red key", "present": true, "rows": [3], "columns": [2], "reasoning": "'
    assert taught(0) == f'{start}it has rows"}}]}}{tokenizer.eos_token}'
    assert taught(1) == f'{start}"}}]}}{tokenizer.eos_token}'
    read = tokenizer.decode(batch.inputs["input_ids"][1])
    assert f'{start}It is the red key."}}]}}' in read
    assert batch.taught == sum(token != -100 for token in batch.targets.flatten().tolist())
