"""Official parts joined to a VLSM, and configs read off the tensors."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from official_parts import (
    BEIT3,
    PROJECTOR,
    SAM,
    beit3_state,
    parts_config,
    parts_model,
    projector_state,
    published_sizes,
    sam_state,
    write_parts,
)  # fmt: skip
from safetensors.torch import save_file
from torch import Tensor
from vlsm_models import random_model, tokenizer_model

from rsvp_backend.errors import WeightsError
from rsvp_backend.vlsm import infer, weights
from rsvp_backend.vlsm.compose import fresh_projector, split_parts
from rsvp_backend.vlsm.config import VlsmConfig
from rsvp_backend.vlsm.model import Vlsm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """In a folder with a plus in its name, which parts no files."""
    folder = tmp_path / "a+b"
    write_parts(folder, parts_model())
    save_file(projector_state(parts_model()), folder / PROJECTOR)
    return folder


def spec(folder: Path, *names: str) -> str:
    return "+".join(str(folder / name) for name in names)


def refusal(source: str) -> str:
    with pytest.raises(WeightsError) as caught:
        weights.load(source)
    return str(caught.value)


def answer(model: Vlsm) -> Tensor:
    """Logits for fixed inputs."""
    torch.manual_seed(7)
    size = model.config.sam.image_size
    with torch.inference_mode():
        prompt = model.encode_prompt(torch.randn(1, 3, 224, 224), torch.tensor([[0, 5, 9, 2]]))
        return model.decode(model.embed_image(torch.randn(1, 3, size, size)), prompt)[0]


def assert_same(model: Vlsm, other: Vlsm) -> None:
    """The weights bit by bit; the logits but for rounding, which depends on how the tensors lie in memory."""
    expected = other.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
    torch.testing.assert_close(answer(model), answer(other), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name_and_config", published_sizes(), ids=lambda pair: pair[0])
def test_published_sizes_are_read_off_their_tensors(name_and_config: tuple[str, VlsmConfig]) -> None:
    name, config = name_and_config
    with torch.device("meta"):
        state = Vlsm(config).state_dict()
    assert infer.vlsm_config(state, "meta") == config
    assert infer.size_name(config) == name


@pytest.mark.parametrize("names", [(SAM, BEIT3, PROJECTOR), (PROJECTOR, BEIT3, SAM)])
def test_parts_make_the_model_that_they_came_from(
    folder: Path, names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rsvp_backend")
    loaded = weights.load(spec(folder, *names))
    assert loaded.model.config == parts_config()
    assert loaded.tokenizer.model == tokenizer_model()
    assert loaded.version.startswith("sam-48-beit3-128-")
    assert "3 tensors of heads are not used (mlm_head.weight" in caplog.text
    assert "UNTRAINED" not in caplog.text
    assert_same(loaded.model, parts_model())


def test_without_a_projector_a_fresh_one_is_made_and_warned_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = weights.load(spec(folder, SAM, BEIT3))
    assert "UNTRAINED" in caplog.text
    assert loaded.version.startswith("sam-48-beit3-128-untrained-")
    by_hand = Vlsm(parts_config()).eval()
    by_hand.load_state_dict(parts_model().state_dict() | fresh_projector(parts_config()))
    assert_same(loaded.model, by_hand)
    assert not torch.allclose(answer(loaded.model), answer(parts_model()), atol=1e-3)
    torch.manual_seed(99)
    assert weights.load(spec(folder, BEIT3, SAM)).version == loaded.version


def test_the_version_covers_every_part(folder: Path) -> None:
    other = parts_model(1)
    seen = {weights.load(spec(folder, SAM, BEIT3, PROJECTOR)).version, weights.load(spec(folder, SAM, BEIT3)).version}
    save_file(projector_state(other), folder / "p.safetensors")
    seen.add(weights.load(spec(folder, SAM, BEIT3, "p.safetensors")).version)
    torch.save(sam_state(other), folder / "s.pth")
    seen.add(weights.load(spec(folder, "s.pth", BEIT3, PROJECTOR)).version)
    torch.save({"model": beit3_state(other)}, folder / "b.pth")
    seen.add(weights.load(spec(folder, SAM, "b.pth", PROJECTOR)).version)
    assert len(seen) == 5


def test_a_composition_saves_and_loads_as_a_folder(folder: Path) -> None:
    loaded = weights.load(spec(folder, SAM, BEIT3, PROJECTOR))
    weights.save(folder / "whole", loaded.model, loaded.tokenizer, loaded.name)
    again = weights.load(folder / "whole")
    assert again.model.config == parts_config()
    torch.testing.assert_close(answer(again.model.float()), answer(parts_model()), atol=0.05, rtol=0.05)


def test_a_folder_without_config_is_read_off_its_tensors(folder: Path) -> None:
    whole = folder / "whole"
    whole.mkdir()
    save_file(parts_model().state_dict(), whole / "model.safetensors")
    (whole / "sentencepiece.bpe.model").write_bytes(tokenizer_model())
    loaded = weights.load(whole)
    assert loaded.model.config == parts_config()
    assert loaded.name == "sam-48-beit3-128"
    assert_same(loaded.model, parts_model())


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((SAM, PROJECTOR), "has no BEiT-3 checkpoint"),
        ((BEIT3, PROJECTOR), "has no SAM checkpoint"),
        ((SAM, SAM), "are both a SAM checkpoint"),
        ((SAM, BEIT3, "none.pth"), "none.pth does not exist"),
    ],
)
def test_wrong_sets_of_parts_are_refused(folder: Path, names: tuple[str, ...], said: str) -> None:
    assert said in refusal(spec(folder, *names))
    assert "SAM.pth+BEIT3.pth[+PROJECTOR.safetensors] is expected" in refusal(spec(folder, *names))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["conv1.weight"], "its first tensors are conv1.weight. Likely cause: these are the weights of another model"),
        (["image_encoder.trunk.pos_embed"], "this is SAM 2"),
        (["image_encoder.patch_embed.seq.0.c.weight"], "this is MobileSAM"),
        (["shared_image_embedding.positional_embedding"], "SAM under transformers' names"),
        (["visual_model.image_encoder.pos_embed"], "this is a whole checkpoint: give it alone"),
        (["image_encoder.blocks.0.norm1.weight"], "visual_model.image_encoder.pos_embed is missing"),
    ],
)
def test_parts_of_another_make_are_recognised(folder: Path, keys: list[str], said: str) -> None:
    torch.save({key: torch.zeros(2) for key in keys}, folder / "odd.pth")
    assert said in refusal(spec(folder, "odd.pth", BEIT3))


class Payload:
    """Unpickling this without ``weights_only`` makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", [SAM, BEIT3])
def test_a_part_with_code_is_refused_and_nothing_runs(folder: Path, name: str) -> None:
    marker = folder / "executed"
    torch.save({"model": beit3_state(parts_model()), "args": Payload(marker)}, folder / name)
    assert "refused because loading it could run code" in refusal(spec(folder, SAM, BEIT3))
    assert not marker.exists()
    torch.load(folder / name, weights_only=False)
    assert marker.exists()


def test_one_official_part_alone_is_told_how_to_compose(folder: Path) -> None:
    assert "written SAM.pth+BEIT3.pth" in refusal(str(folder / SAM))
    assert "written SAM.pth+BEIT3.pth" in refusal(str(folder / BEIT3))


@pytest.mark.parametrize(("rows", "said"), [(579, "for pictures of 384 px"), (150, "for 147 patches")])
def test_position_tables_of_another_size_are_refused(folder: Path, rows: int, said: str) -> None:
    key = "beit3.encoder.embed_positions.A.weight"
    torch.save({"model": beit3_state(parts_model()) | {key: torch.zeros(rows, 128)}}, folder / BEIT3)
    assert said in refusal(spec(folder, SAM, BEIT3))
    assert "224 px" in refusal(spec(folder, SAM, BEIT3))


def test_parts_that_do_not_fit_name_the_first_five(folder: Path) -> None:
    kept = {key: tensor for key, tensor in beit3_state(parts_model()).items() if "layers.1.self_attn" not in key}
    torch.save({"model": kept}, folder / BEIT3)
    said = refusal(spec(folder, SAM, BEIT3))
    assert "24 missing (mm_extractor.beit3.encoder.layers.1.self_attn.k_proj.A.weight, " in said
    assert "and 19 more)" in said
    assert "config.json" not in said
    save_file(
        {key: tensor[:1].contiguous() for key, tensor in projector_state(parts_model()).items()}, folder / PROJECTOR
    )
    write_parts(folder, parts_model())
    said = refusal(spec(folder, SAM, BEIT3, PROJECTOR))
    assert "4 of another shape (text_hidden_fcs.0.0.weight (1, 128) instead of (128, 128)" in said


def test_a_tokenizer_is_expected_beside_beit3(folder: Path) -> None:
    (folder / "beit3.spm").rename(folder / "sentencepiece.bpe.model")
    assert weights.load(spec(folder, SAM, BEIT3)).tokenizer.model == tokenizer_model()
    (folder / "sentencepiece.bpe.model").unlink()
    assert "beit3.spm or sentencepiece.bpe.model is expected beside" in refusal(spec(folder, SAM, BEIT3))


def test_unpublished_head_sizes_need_a_config(folder: Path) -> None:
    odd = random_model()
    torch.save(sam_state(odd), folder / SAM)
    said = refusal(spec(folder, SAM, BEIT3))
    assert "32 channels, not the published 256" in said
    assert "Put a config.json beside the file" in said
    described = {"sam": odd.config.to_dict()["sam"], "beit3": parts_config().to_dict()["beit3"]}
    (folder / "config.json").write_text(json.dumps(described))
    assert weights.load(spec(folder, SAM, BEIT3)).model.config == VlsmConfig.from_dict(described)
    width = {"beit3.text_embed.weight": torch.zeros(120, 40)}
    with pytest.raises(infer.UndecidedError, match="40 channels, no multiple of the published 64"):
        infer.beit3_config({f"mm_extractor.{k}": v for k, v in (beit3_state(parts_model()) | width).items()}, "x")


def test_the_heads_come_from_a_config_where_there_is_one(folder: Path) -> None:
    """What tensors cannot tell is read from ``config.json``, which wins."""
    whole, data = folder / "whole", parts_config().to_dict()
    data["beit3"]["num_heads"] = 4
    whole.mkdir()
    save_file(parts_model().state_dict(), whole / "model.safetensors")
    (whole / "sentencepiece.bpe.model").write_bytes(tokenizer_model())
    (whole / "config.json").write_text(json.dumps(data))
    loaded = weights.load(whole)
    assert loaded.model.config.beit3.num_heads == 4
    assert not torch.allclose(answer(loaded.model), answer(parts_model()))


def test_a_plus_parts_files_only_behind_a_suffix() -> None:
    assert split_parts("/a+b/sam.pth+~c/d+e.safetensors+f.bin") == [
        Path("/a+b/sam.pth"), Path("~c/d+e.safetensors"), Path("f.bin"),
    ]  # fmt: skip
    assert split_parts("/a+b/model") == [Path("/a+b/model")]
