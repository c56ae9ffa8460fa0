"""Pretraining on tiny weights and pictures: it learns, survives kills, spreads over processes, skips what is broken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refer_folders import draw, write_coco, write_refer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from vlsm_models import random_folder

from rsvp_backend import cli
from rsvp_backend.presets import DEMO_ASSETS
from rsvp_backend.settings import settings_rows
from rsvp_backend.training import pretrain_state
from rsvp_backend.training.features import FeatureStore, encoder_digest
from rsvp_backend.training.fitting import Progress
from rsvp_backend.training.pretrain import pretrain
from rsvp_backend.training.pretrain_batches import Ahead, Batches
from rsvp_backend.training.pretrain_config import PretrainConfig, PretrainReport
from rsvp_backend.training.pretrain_data import read_data
from rsvp_backend.training.pretrain_state import STATE_FILE, CheckpointError
from rsvp_backend.training.referring import DataError
from rsvp_backend.types import Box, Prompt
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.segmenter import VlsmSegmenter
from rsvp_backend.vlsm.weights import Weights

CONFIG = PretrainConfig(
    steps=4, batch=2, accumulate=2, warmup=2, rate=1e-3, lora_rank=2, evaluate_every=2, evaluate_on=3,
    checkpoint_every=1, log_every=1, device="cpu",
)  # fmt: skip
ARGUMENTS = [
    "--steps", "4", "--batch", "2", "--accumulate", "2", "--warmup", "2", "--rate", "1e-3", "--lora-rank", "2",
    "--evaluate-every", "2", "--evaluate-on", "3", "--checkpoint-every", "1", "--log-every", "1", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_folder(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refer(tmp_path_factory.mktemp("refer"), {"train": list(range(8)), "val": [8, 9]})


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for variable, _, _ in settings_rows():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole_run(tiny: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    pretrain(weights.load(tiny), read_data([f"refcoco:{root}"]), CONFIG, out)
    return out


def run(folder: Path, root: Path, config: PretrainConfig, out: Path, **options: Any) -> PretrainReport:
    return pretrain(weights.load(folder), read_data([f"refcoco:{root}"]), config, out, **options)


def scalars(out: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(out / "logs"))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def same_weights(first: Path, second: Path) -> bool:
    return (first / "model/model.safetensors").read_bytes() == (second / "model/model.safetensors").read_bytes()


def spoiled_demo() -> Weights:
    """The demo weights with so much noise in the projector that the mask decoder finds nothing."""
    init = weights.load(DEMO_ASSETS / "vlsm")
    generator = torch.Generator().manual_seed(0)
    for parameter in init.model.text_hidden_fcs.parameters():
        kept = parameter.data.float()
        parameter.data = kept + 2 * kept.std() * torch.randn(kept.shape, generator=generator)
    return init


def test_spoiled_weights_learn_to_cut_out_scenes_objects_again(tmp_path: Path) -> None:
    init = spoiled_demo()
    before = encoder_digest(init.model)
    config = PretrainConfig(
        steps=40, batch=6, rate=4e-3, warmup=5, lora_rank=4, view="crop", evaluate_every=40, evaluate_on=24,
        device="cpu", log_every=1,
    )  # fmt: skip
    report = pretrain(init, read_data(["scenes:easy"]), config, tmp_path, name="again")
    first, last = report.curve
    assert last["crop"]["giou"] > first["crop"]["giou"] + 0.2
    assert last["crop"]["ciou"] > first["crop"]["ciou"] + 0.4
    losses = [loss for _, loss in scalars(tmp_path)["train/loss"]]
    assert np.mean(losses[-8:]) < 0.6 * np.mean(losses[:8])
    segmenter = VlsmSegmenter.load(report.folder, device="cpu")
    assert segmenter.version == report.version
    assert report.version.startswith("again-")
    assert encoder_digest(weights.load(report.folder).model) == before
    sample = read_data(["scenes:easy"]).held_out[0]
    image, mask = sample.image.load(), sample.mask.decode()
    (found,) = segmenter.segment([image], [Prompt(Box(0, 0, *image.size), sample.text)])
    assert found.logits.shape == mask.shape


def test_what_is_written(whole_run: Path, tiny: Path) -> None:
    assert sorted(file.name for file in whole_run.iterdir()) == ["logs", "model", "report.json", "state.pt"]
    assert sorted(file.name for file in (whole_run / "model").iterdir()) == [
        "config.json", "model.safetensors", "sentencepiece.bpe.model",
    ]  # fmt: skip
    report = json.loads((whole_run / "report.json").read_text())
    assert (report["steps"], report["processes"], report["train_samples"], report["held_out_samples"]) == (4, 1, 32, 8)
    assert [point["step"] for point in report["curve"]] == [0, 2, 4]
    assert report["curve"][0]["whole"]["samples"] == report["curve"][0]["crop"]["samples"] == 3
    assert report["version"] == weights.load(whole_run / "model").version
    logged = scalars(whole_run)
    assert [step for step, _ in logged["train/loss"]] == [1, 2, 3, 4]
    assert [rate for _, rate in logged["train/rate"]] == pytest.approx([5e-4, 7.5e-4, 5e-4, 2.5e-4])
    assert [step for step, _ in logged["held_out/whole/giou"]] == [0, 2, 4]
    assert logged.keys() >= {"held_out/crop/giou", "held_out/whole/ciou", "held_out/crop/ciou"}
    old, new = weights.load(tiny).model.state_dict(), weights.load(whole_run / "model").model.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert any(name.startswith("text_hidden_fcs.") for name in changed)
    assert any(name.startswith("visual_model.mask_decoder.") for name in changed)
    assert any("q_proj" in name for name in changed)
    assert "mm_extractor.beit3.text_embed.weight" in changed
    assert not any(name.startswith(("visual_model.image_encoder.", "visual_model.prompt_encoder.")) for name in changed)


def test_without_lora_beit3_stays_as_it_is(tiny: Path, root: Path, tmp_path: Path) -> None:
    run(tiny, root, replace(CONFIG, steps=1, lora_rank=0), tmp_path)
    old, new = weights.load(tiny).model.state_dict(), weights.load(tmp_path / "model").model.state_dict()
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"text_hidden_fcs", "visual_model"}


def test_a_stopped_run_goes_on_to_the_same_result(tiny: Path, root: Path, tmp_path: Path, whole_run: Path) -> None:
    def stop(told: Progress) -> None:
        if told.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, root, CONFIG, tmp_path, tell=stop)
    assert not (tmp_path / "model").exists()
    told: list[Progress] = []
    report = run(tiny, root, CONFIG, tmp_path, tell=told.append)
    assert [one.step for one in told] == [3, 4]
    assert [point["step"] for point in report.curve] == [0, 2, 4]
    assert same_weights(tmp_path, whole_run)
    version = run(tiny, root, CONFIG, tmp_path).version
    assert version == report.version
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [1, 2, 3, 4]


def test_a_killed_process_leaves_a_state_to_go_on_from(tiny: Path, root: Path, tmp_path: Path, whole_run: Path) -> None:
    command = [sys.executable, "-m", "rsvp_backend", "pretrain", "--data", f"refcoco:{root}", "--init", str(tiny)]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "out"), *ARGUMENTS], stderr=subprocess.DEVNULL)
    while not (tmp_path / "out" / STATE_FILE).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "model").exists()
    run(tiny, root, CONFIG, tmp_path / "out")
    assert same_weights(tmp_path / "out", whole_run)


def test_two_processes_learn_what_one_learns(tiny: Path, root: Path, tmp_path: Path) -> None:
    """Two processes with a batch each make the step that one makes of two batches: the same gradients and scores."""
    out = tmp_path / "two"
    arguments = [*ARGUMENTS, "--steps", "1", "--accumulate", "1", "--device", "auto", "--json"]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = ["-m", "rsvp_backend", "pretrain", "--data", f"refcoco:{root}", "--init", str(tiny), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, *launch, *command, *arguments], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["processes"] == 2
    assert sorted(file.name for file in out.iterdir()) == ["logs", "model", "report.json", "state.pt"]
    alone = run(tiny, root, replace(CONFIG, steps=1), tmp_path / "one")
    assert report["curve"][0] == json.loads(json.dumps(alone.curve[0]))
    states = [torch.load(folder / STATE_FILE, weights_only=True) for folder in (out, tmp_path / "one")]
    # After one step AdamW's first moment is the gradient times 0.1.
    gradients = [[moments["exp_avg"] for moments in state["optimizer"]["state"].values()] for state in states]
    assert len(gradients[0]) == len(gradients[1]) > 10
    assert max(float(gradient.abs().max()) for gradient in gradients[1]) > 1e-4
    for two, one in zip(*gradients, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-8)
    assert len(list((out / "logs").iterdir())) == 1


def test_a_run_may_go_on_in_other_batches(tiny: Path, root: Path, tmp_path: Path, whole_run: Path) -> None:
    """The samples of a step count, not how they are spread over batches and processes."""

    def stop(told: Progress) -> None:
        if told.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, root, CONFIG, tmp_path, tell=stop)
    run(tiny, root, replace(CONFIG, batch=4, accumulate=1), tmp_path)
    found, wanted = (weights.load(folder / "model").model.state_dict() for folder in (tmp_path, whole_run))
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0.02, atol=2e-3)
    assert CONFIG.fingerprint(2) == replace(CONFIG, batch=4, accumulate=1).fingerprint(2)
    assert CONFIG.fingerprint(2) == replace(CONFIG, accumulate=1).fingerprint(4)
    assert CONFIG.fingerprint(1) != CONFIG.fingerprint(2)


def test_accumulated_batches_give_what_one_large_batch_gives(tiny: Path, root: Path, tmp_path: Path) -> None:
    found = []
    for name, config in (("many", CONFIG), ("one", replace(CONFIG, batch=4, accumulate=1))):
        run(tiny, root, replace(config, steps=1), tmp_path / name)
        state = torch.load(tmp_path / name / STATE_FILE, weights_only=True)
        found.append([moments["exp_avg"] for moments in state["optimizer"]["state"].values()])
    for many, one in zip(*found, strict=True):
        torch.testing.assert_close(many, one, rtol=1e-3, atol=1e-7)


def test_states_of_other_runs_and_damaged_ones_are_refused(tiny: Path, root: Path, whole_run: Path) -> None:
    before = (whole_run / STATE_FILE).read_bytes()
    with pytest.raises(CheckpointError, match="is of a run with other data, weights or options"):
        run(tiny, root, replace(CONFIG, seed=1), whole_run)
    with pytest.raises(CheckpointError, match="other data"):
        pretrain(weights.load(tiny), read_data(["scenes"]), CONFIG, whole_run)
    (whole_run / STATE_FILE).write_bytes(before[: len(before) // 2])
    try:
        with pytest.raises(CheckpointError, match="is damaged"):
            run(tiny, root, CONFIG, whole_run)
    finally:
        (whole_run / STATE_FILE).write_bytes(before)


def test_a_state_that_cannot_be_written_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain_state.write(tmp_path, {"fingerprint": "a", "step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        pretrain_state.write(tmp_path, {"fingerprint": "a", "step": 2})
    assert [file.name for file in tmp_path.iterdir()] == [STATE_FILE]
    state = pretrain_state.read(tmp_path, "a")
    assert state is not None
    assert state["step"] == 1


def test_old_shards_go_when_no_state_names_them(tmp_path: Path) -> None:
    for name in ("step-2", "step-4"):
        (tmp_path / "deepspeed" / name).mkdir(parents=True)
    pretrain_state.drop_shards(tmp_path, but="step-4")
    assert [file.name for file in (tmp_path / "deepspeed").iterdir()] == ["step-4"]


def test_broken_pictures_are_left_out_and_told(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_refer(tmp_path / "data", {"train": list(range(8)), "val": [8, 9]})
    pictures = root / "images/mscoco/images/train2014"
    for number in (2, 9):
        (pictures / f"COCO_train2014_{number:012}.jpg").write_bytes(b"\xff\xd8 no picture")
    Image.new("RGB", (10, 10)).save(pictures / f"COCO_train2014_{3:012}.jpg")
    report = run(tiny, root, replace(CONFIG, steps=8, evaluate_on=0), tmp_path / "out")
    assert any("000002.jpg cannot be read as an image" in reason for reason in report.unreadable)
    assert any("000003.jpg is 10 x 10 px" in reason for reason in report.unreadable)
    assert any("000009.jpg" in reason for reason in report.unreadable)
    assert report.curve[-1]["whole"]["samples"] == 4
    assert sum(message.startswith("left out: ") for message in caplog.messages) == len(report.unreadable) == 3


def test_nothing_but_broken_pictures_is_one_clear_error(tiny: Path, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", {"train": [1, 2], "val": [3]})
    for file in (root / "train2017").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"20 samples in a row cannot be read.*check the folder of --data"):
        pretrain(weights.load(tiny), read_data([f"coco:{root}"]), CONFIG, tmp_path / "out")


def test_kept_embeddings_give_the_same_weights(tiny: Path, root: Path, tmp_path: Path, whole_run: Path) -> None:
    config = replace(CONFIG, cache=tmp_path / "cache")
    run(tiny, root, config, tmp_path / "out")
    assert same_weights(tmp_path / "out", whole_run)
    assert list((tmp_path / "cache").rglob("*.safetensors"))


def test_every_sample_comes_once_before_any_comes_again(tiny: Path, root: Path) -> None:
    loaded, train = weights.load(tiny), read_data([f"refcoco:{root}"]).train
    batches = Batches(train, FeatureStore(loaded.model, "crop", None), loaded.tokenizer, "mixed", 3)
    orders = [[batches._index(epoch * len(train) + n) for n in range(len(train))] for epoch in range(3)]
    assert all(sorted(order) == list(range(len(train))) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    first, again = batches.at(range(5, 9)), batches.at(range(5, 9))
    for name in ("embedding", "beit3", "target", "ids"):
        assert torch.equal(getattr(first, name), getattr(again, name))


def test_what_is_made_ahead_comes_in_order_and_errors_come_to_who_waits() -> None:
    def make(number: int) -> int:
        if number == 7:
            raise ValueError("seven")
        return number

    with Ahead(make, 4) as ahead:
        assert [ahead.take(), ahead.run(lambda: "between"), ahead.take(), ahead.take()] == [4, "between", 5, 6]
        with pytest.raises(ValueError, match="seven"):
            ahead.take(last=True)


def test_bfloat16_learns_nearly_the_same(tiny: Path, root: Path, tmp_path: Path, whole_run: Path) -> None:
    report = run(tiny, root, replace(CONFIG, precision="bf16"), tmp_path)
    wanted = json.loads((whole_run / "report.json").read_text())
    assert report.curve[-1]["loss"] == pytest.approx(wanted["curve"][-1]["loss"], rel=0.05)
    assert report.curve[-1]["loss"] != wanted["curve"][-1]["loss"]


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"steps": 0}, "steps is 0"), ({"batch": 0}, "batch is 0"), ({"accumulate": -1}, "accumulate is -1"),
        ({"rate": 0.0}, "rate is 0.0"), ({"lora_rank": -1}, "lora_rank is -1"), ({"view": "half"}, "view is 'half'"),
        ({"precision": "fp8"}, "precision is 'fp8'"), ({"device": "tpu"}, "device is 'tpu'"),
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(options: dict[str, Any], seen: str) -> None:
    with pytest.raises(ValueError, match=seen):
        PretrainConfig(**options)


def test_the_rate_rises_and_falls() -> None:
    config = PretrainConfig(steps=100, rate=1e-4, warmup=10)
    assert config.rate_at(0) == pytest.approx(1e-5)
    assert max(config.rate_at(step) for step in range(100)) <= 1e-4
    assert config.rate_at(50) == pytest.approx(5e-5)
    assert config.rate_at(99) == pytest.approx(1e-6)


def test_the_command_prints_scores_and_where_the_weights_are(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "data", {"train": [1, 2, 3], "val": [4]})
    argv = ["pretrain", "--data", f"coco:{root}", "--init", str(tiny), "--out", str(tmp_path / "out"), *ARGUMENTS]
    assert cli.main([*argv, "--name", "mine"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("step      0  whole gIoU")
    assert lines[1].startswith("step      4  whole gIoU")
    assert lines[-1].startswith("mine-")
    assert lines[-1].endswith(f"RSVP_VLSM={tmp_path / 'out' / 'model'}")
    assert "step 4 of 4: loss" in printed.err
    assert cli.main([*argv, "--name", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4


@pytest.mark.parametrize(
    ("options", "status", "seen"),
    [
        (["--data", "scenes", "--steps", "0"], 2, "--steps is 0"),
        (["--data", "scenes", "--lora-rank", "-1"], 2, "--lora-rank is -1"),
        (["--data", "scenes:hard"], 1, "scenes[:LEVEL] is expected"),
        (["--data", "refcoco:/nowhere"], 1, "does not exist"),
        (["--data", "scenes", "--held-out", "testA"], 1, "has no split 'testA'"),
        (["--data", "scenes", "--init", "sam3:facebook/sam3"], 2, "SAM 3 is not fine-tuned"),
        (["--data", "scenes", "--init", "/nowhere/model.safetensors"], 1, "does not exist"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], options: list[str], status: int, seen: str) -> None:
    assert cli.main(["pretrain", "--device", "cpu", *options]) == status
    complaint = capsys.readouterr().err
    assert seen in complaint.splitlines()[-1]
    assert not Path("out").exists()


def test_pictures_are_drawn_as_their_outlines_say(tmp_path: Path) -> None:
    """The tests' own pictures: a box is where its mask is."""
    draw(tmp_path / "1.jpg", 1)
    pixels = np.asarray(Image.open(tmp_path / "1.jpg")).astype(int)
    from refer_folders import box_mask

    assert pixels[box_mask(1, "red")].mean(axis=0).tolist() == pytest.approx([200, 30, 30], abs=25)
    assert pixels[box_mask(1, "blue")].mean(axis=0).tolist() == pytest.approx([30, 30, 200], abs=25)
