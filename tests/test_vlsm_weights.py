"""Checkpoints: what is saved loads again; what is damaged, foreign or unsafe is refused with the reason."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from vlsm_models import other_depth, random_folder, random_model, tiny_config, tokenizer_model

from rsvp_backend.errors import WeightsError
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.state import read_state
from rsvp_backend.vlsm.tokenizer import Tokenizer

GAUSSIAN = "visual_model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
State = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_folder(tmp_path / "tiny")


def change_state(folder: Path, change: Callable[[State], State]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        weights.load(path)
    return str(caught.value)


def test_a_saved_folder_loads_with_the_same_weights_and_tokenizer(folder: Path) -> None:
    loaded, model = weights.load(folder), random_model()
    assert loaded.model.config == tiny_config()
    assert loaded.tokenizer.model == tokenizer_model()
    assert not loaded.model.training
    for key, tensor in loaded.model.state_dict().items():
        own = model.state_dict()[key]
        assert torch.equal(tensor.float(), own if key == GAUSSIAN else own.half().float()), key
        in_fp32 = key.startswith(("visual_model.prompt_encoder.", "visual_model.mask_decoder."))
        assert tensor.dtype == (torch.float32 if in_fp32 else torch.float16), key


def test_the_version_is_the_name_and_the_digest_of_the_weights(folder: Path) -> None:
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert weights.load(folder).version == f"tiny-{digest[:8]}"
    again = random_folder(folder.parent / "again")
    assert weights.load(again).version == weights.load(folder).version
    other = random_folder(folder.parent / "other", seed=1)
    assert weights.load(other).version != weights.load(folder).version


def test_saving_replaces_a_folder_and_leaves_nothing_aside(folder: Path) -> None:
    (folder / "stale.txt").write_text("old")
    tokenizer = Tokenizer(tokenizer_model())
    version = weights.save(folder, random_model(1), tokenizer, "next")
    assert weights.load(folder).version == version
    assert version.startswith("next-")
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "model.safetensors", "sentencepiece.bpe.model",
    ]  # fmt: skip


def test_a_failed_save_leaves_the_old_folder_alone(folder: Path) -> None:
    before = weights.load(folder).version
    broken = random_model()
    with torch.no_grad():
        broken.text_hidden_fcs[0][0].bias.fill_(1e6)
    with pytest.raises(WeightsError, match=r"text_hidden_fcs\.0\.0\.bias has values that fp16 cannot hold"):
        weights.save(folder, broken, Tokenizer(tokenizer_model()), "tiny")
    assert weights.load(folder).version == before
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth"])
def test_a_single_file_loads_with_its_neighbours(folder: Path, suffix: str) -> None:
    file = folder / f"weights{suffix}"
    state = load_file(folder / "model.safetensors")
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    loaded = weights.load(file).model.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())


def test_a_folder_with_the_published_file_name_loads(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert weights.load(folder).model.config == tiny_config()


def test_a_published_config_stands_for_the_full_size(folder: Path) -> None:
    published = {"model_type": "evf", "sam_scale": "huge", "mm_extractor_scale": "large"}
    (folder / "config.json").write_text(json.dumps(published))
    assert "image_encoder.pos_embed (1, 8, 8, 48) instead of (1, 64, 64, 1280)" in refusal(folder)
    (folder / "config.json").write_text(json.dumps(published | {"sam_scale": "large"}))
    assert "SAM 'large', BEiT-3 'large': 'huge', 'large' expected" in refusal(folder)


def test_missing_keys_are_counted_and_the_first_five_named(folder: Path) -> None:
    change_state(folder, lambda state: {k: v for k, v in state.items() if "layers.2." not in k or "beit3" not in k})
    said = refusal(folder)
    named = re.search(r"(\d+) missing \(([^)]*) and (\d+) more\)", said)
    assert named is not None
    assert len(named[2].split(", ")) == 5
    assert int(named[1]) == int(named[3]) + 5
    assert "config.json asks for more layers" in said


def test_extra_keys_are_refused(folder: Path) -> None:
    change_state(folder, lambda state: {**state, "head.weight": torch.zeros(2)})
    assert "1 not expected (head.weight)" in refusal(folder)


def test_misshaped_keys_show_both_shapes(folder: Path) -> None:
    key = "text_hidden_fcs.0.2.bias"
    change_state(folder, lambda state: {**state, key: torch.zeros(7)})
    said = refusal(folder)
    assert f"1 of another shape ({key} (7,) instead of (32,))" in said
    assert "config.json describes a model of another size" in said


def test_a_config_of_another_depth_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(other_depth(tiny_config(), 2).to_dict()))
    assert "the file holds a larger model" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda state: {f"module.{k}": v for k, v in state.items()}, "strip the 'module.' prefix"),
        (
            lambda state: {k.removeprefix("visual_model."): v for k, v in state.items() if "visual_model" in k},
            "a SAM checkpoint alone",
        ),
        (
            lambda state: {k.removeprefix("mm_extractor."): v for k, v in state.items() if "mm_extractor" in k},
            "a BEiT-3 checkpoint alone",
        ),
        (lambda state: {"visual_model.sam_mask_decoder.x": torch.zeros(1)}, "EVF-SAM2"),
        (lambda state: {"base.q_proj.lora_A.weight": torch.zeros(1)}, "an adapter"),
        (lambda state: {f"_orig_mod.{k}": v for k, v in state.items()}, "strip the '_orig_mod.' prefix"),
        (lambda state: {"image_encoder.trunk.pos_embed": torch.zeros(1)}, "this is SAM 2"),
        (lambda state: {"conv1.weight": torch.zeros(1)}, "the weights of another model"),
    ],
)
def test_weights_of_another_model_are_recognised(folder: Path, change: Callable[[State], State], cause: str) -> None:
    change_state(folder, change)
    assert cause in refusal(folder)


@pytest.mark.parametrize("keep", [5, 3000, -1])
def test_a_truncated_safetensors_file_is_refused(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "damaged, truncated or no safetensors file" in refusal(folder)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep", [5, 3000, -1000])
def test_a_truncated_pickle_is_refused(folder: Path, keep: int, legacy: bool) -> None:
    file = folder / "weights.pth"
    torch.save(load_file(folder / "model.safetensors"), file, _use_new_zipfile_serialization=not legacy)
    file.write_bytes(file.read_bytes()[:keep])
    assert "is damaged" in refusal(file)


class Payload:
    """Unpickling this without ``weights_only`` makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.marker,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_nothing_runs(folder: Path, legacy: bool) -> None:
    file, marker = folder / "weights.bin", folder.parent / "executed"
    torch.save({"w": Payload(marker)}, file, _use_new_zipfile_serialization=not legacy)
    assert "refused because loading it could run code" in refusal(file)
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists(), "the payload itself works, so the refusal above is what stopped it"


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 2630742858\n"


@pytest.mark.parametrize("name", ["weights.bin", "weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty: download it again"),
        (LFS_POINTER, "is a Git LFS pointer (135 bytes), not the weights: run 'git lfs pull'"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, not weights"),
        (b"PK\x03\x04" + bytes(900), "it is truncated (904 bytes)"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "is damaged"),
    ],
)
def test_what_is_often_saved_in_place_of_weights_is_named(folder: Path, name: str, content: bytes, said: str) -> None:
    (folder / name).write_bytes(content)
    assert said in refusal(folder / name)


def test_quantised_weights_are_refused(folder: Path) -> None:
    key = "text_hidden_fcs.0.2.weight"
    change_state(folder, lambda state: {**state, key: state[key].to(torch.int8)})
    assert f"not floating point ({key})" in refusal(folder)


def test_a_plain_pickle_with_code_is_refused_and_nothing_runs(folder: Path) -> None:
    file, marker = folder / "weights.pth", folder.parent / "executed"
    file.write_bytes(pickle.dumps(Payload(marker)))
    assert "refused because loading it could run code" in refusal(file)
    assert not marker.exists()
    pickle.loads(file.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_refused_global_is_named(folder: Path, legacy: bool) -> None:
    file = folder / "weights.bin"
    torch.save({"w": Payload(folder / "x")}, file, _use_new_zipfile_serialization=not legacy)
    assert "(it asks for getattr)" in refusal(file)


def test_a_file_is_mapped_and_not_copied(folder: Path) -> None:
    """Writing into the tensors leaves the file alone; torch's older format, which cannot be mapped, gives the same."""
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "new.pth")
    torch.save({"model": state}, folder / "old.pth", _use_new_zipfile_serialization=False)
    before = (folder / "new.pth").read_bytes()
    mapped, read = read_state(folder / "new.pth"), read_state(folder / "old.pth")
    assert mapped.keys() == read.keys() == state.keys()
    assert all(torch.equal(mapped[key], state[key]) and torch.equal(read[key], state[key]) for key in state)
    assert f"{folder / 'new.pth'}" in Path("/proc/self/maps").read_text()
    mapped[GAUSSIAN].zero_()
    assert (folder / "new.pth").read_bytes() == before


def test_added_tokens_are_kept(folder: Path) -> None:
    added = {"[semantic]": 100}
    weights.save(folder, random_model(), Tokenizer(tokenizer_model(), added=added), "tiny")
    loaded = weights.load(folder)
    assert loaded.tokenizer.encode("[semantic]") == [0, 100, 2]
    weights.save(folder, loaded.model, loaded.tokenizer, "tiny")
    assert json.loads((folder / "added_tokens.json").read_text()) == added


@pytest.mark.parametrize("content", [[1, 2], {"model": {"w": 1}}, {"w": torch.zeros(1), "step": 3}, torch.zeros(3)])
def test_a_pickle_that_is_no_flat_state_dict_is_refused(folder: Path, content: object) -> None:
    torch.save(content, folder / "weights.pth")
    assert "not a flat state dict" in refusal(folder / "weights.pth")


def test_missing_and_wrong_neighbours_are_named(folder: Path) -> None:
    assert "does not exist" in refusal(folder / "nowhere")
    assert "has none of them" in refusal(folder.parent)
    (folder / "weights.ckpt").write_bytes(b"")
    assert ".safetensors, .bin, .pth, .pt is expected" in refusal(folder / "weights.ckpt")
    (folder / "config.json").write_text("{")
    assert "is not JSON" in refusal(folder)
    (folder / "config.json").write_text("[]")
    assert "holds a list" in refusal(folder)
    (folder / "config.json").write_text(json.dumps({"name": "a/b", **tiny_config().to_dict()}))
    assert "'name' in" in refusal(folder)
    (folder / "config.json").unlink()
    assert "Put a config.json beside the file" in refusal(folder)
    (folder / "sentencepiece.bpe.model").unlink()
    (folder / "config.json").write_text(json.dumps(tiny_config().to_dict()))
    assert "sentencepiece.bpe.model cannot be read" in refusal(folder)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(folder: Path) -> None:
    data = tiny_config().to_dict()
    data["beit3"]["vocab_size"] = 20
    (folder / "config.json").write_text(json.dumps(data))
    assert "the two belong to different models" in refusal(folder)
