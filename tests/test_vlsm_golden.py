"""The VLSM equals the public reference code at every recorded stage (fp32, 1e-4); see data/vlsm_golden/README.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from vlsm_models import GOLDEN, tiny_config

from rsvp_backend.vlsm.model import Vlsm
from rsvp_backend.vlsm.preprocess import full_size_logits, resized_size

INFO = json.loads((GOLDEN / "tiny_golden.json").read_text())
TENSORS = load_file(GOLDEN / "tiny_golden.safetensors")
IMAGES, IMAGES_EVF, IDS = TENSORS["in.images"], TENSORS["in.images_evf"], TENSORS["in.input_ids"]
PADS = ~TENSORS["in.attention_mask"]
FIRST = IDS[:1, : INFO["text_lens"][0]]
SIDE = INFO["config"]["sam"]["image_size"]


def golden_model() -> Vlsm:
    model = Vlsm(tiny_config())
    model.load_state_dict({k.removeprefix("w."): v for k, v in TENSORS.items() if k.startswith("w.")}, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Vlsm:
    return golden_model()


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def equal(actual: Tensor, name: str) -> None:
    torch.testing.assert_close(actual.float(), TENSORS[name], atol=1e-4, rtol=0, msg=lambda text: f"{name}: {text}")


def outputs_of(modules: dict[str, nn.Module], run: Callable[[], object]) -> dict[str, Any]:
    """What each module gave while ``run`` ran."""
    seen: dict[str, Any] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.__setitem__(name, output))
        for name, module in modules.items()
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def full(low_res: Tensor, image: int) -> Tensor:
    return full_size_logits(low_res, tuple(INFO["orig"][image]), SIDE)


def test_config_survives_a_round_trip() -> None:
    assert tiny_config().to_dict() == INFO["config"]


def test_a_every_stage_of_beit3(model: Vlsm) -> None:
    layers = {f"A.beit_layer.{i}": layer for i, layer in enumerate(model.mm_extractor.beit3.encoder.layers)}
    assert len(layers) == 3
    seen = outputs_of(layers, lambda: model.beit3(IMAGES_EVF[:1], FIRST))
    for name, streams in seen.items():
        equal(streams.joined(), name)
    features = model.beit3(IMAGES_EVF[:1], FIRST)
    equal(features, "A.beit.encoder_out")
    equal(features[:, :1], "A.beit.cls")


def test_a_every_stage_of_the_image_encoder(model: Vlsm) -> None:
    encoder = model.visual_model.image_encoder
    stages = {f"A.sam_block.{i}": block for i, block in enumerate(encoder.blocks)}
    stages["A.sam.patch_embed"] = encoder.patch_embed
    assert len(stages) == 5
    for name, output in outputs_of(stages, lambda: model.embed_image(IMAGES[:1])).items():
        equal(output, name)
    equal(model.embed_image(IMAGES[:1]), "A.sam.image_embedding")


def test_a_prompt_and_decoder(model: Vlsm) -> None:
    embedding, prompt = model.embed_image(IMAGES[:1]), model.encode_prompt(IMAGES_EVF[:1], FIRST)
    equal(prompt, "A.prompt")
    equal(prompt, "A.sparse")
    equal(model.visual_model.dense_pe(), "A.dense_pe")
    single, iou = model.decode(embedding, prompt)
    three, three_iou = model.decode(embedding, prompt, multimask=True)
    equal(torch.cat([single, three], dim=1), "A.low_res_all4")
    equal(torch.cat([iou, three_iou], dim=1), "A.iou_all4")
    equal(full(single[0], 0), "A.pred")


def test_b_best_of_three_masks(model: Vlsm) -> None:
    masks, iou = model.decode(model.embed_image(IMAGES[:1]), model.encode_prompt(IMAGES_EVF[:1], FIRST), multimask=True)
    best = iou[0].argmax()
    equal(full(masks[0, best][None], 0), "B.pred")


def test_c_one_embedding_under_four_texts_with_pads_attended(model: Vlsm) -> None:
    prompts = model.encode_prompt(IMAGES_EVF[:1].expand(4, -1, -1, -1), IDS)
    low_res, iou = model.decode(model.embed_image(IMAGES[:1]), prompts)
    assert low_res.shape[:2] == iou.shape == (4, 1)
    equal(full(low_res[:, 0], 0), "C.pred")


def test_d_own_embedding_for_each_text_with_pads_masked(model: Vlsm) -> None:
    offset = TENSORS["D.offset"].tolist()
    image_of = [image for image, start in enumerate(offset[:-1]) for _ in range(start, offset[image + 1])]
    assert image_of == [0, 0, 0, 1]
    features = model.beit3(IMAGES_EVF[image_of], IDS, PADS)
    equal(features[:, :1], "D.beit.cls")
    prompts = model.encode_prompt(IMAGES_EVF[image_of], IDS, PADS)
    equal(prompts, "D.prompt")
    low_res, _ = model.decode(model.embed_image(IMAGES)[image_of], prompts)
    equal(full(low_res[:3, 0], 0), "D.pred.0")
    equal(full(low_res[3:, 0], 1), "D.pred.1")


def test_t_text_alone(model: Vlsm) -> None:
    equal(model.beit3(None, IDS, PADS), "T.beit.encoder_out")


def test_v_image_alone(model: Vlsm) -> None:
    equal(model.beit3(IMAGES_EVF[:1], None), "V.beit.encoder_out")


def test_e_bfloat16_gives_the_same_mask() -> None:
    model = golden_model().to(torch.bfloat16)
    images, images_evf = IMAGES[:1].bfloat16(), IMAGES_EVF[:1].bfloat16()
    embedding, prompt = model.embed_image(images), model.encode_prompt(images_evf, FIRST)
    low_res, _ = model.decode(embedding, prompt)
    assert (embedding.dtype, prompt.dtype, low_res.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    torch.testing.assert_close(embedding.float(), TENSORS["E.bf16.sam.image_embedding"], atol=0.15, rtol=0)
    torch.testing.assert_close(prompt.float(), TENSORS["E.bf16.prompt"], atol=0.05, rtol=0)
    mask = full(low_res[0], 0) > 0
    for name in ("E.bf16.pred", "A.pred"):
        golden = TENSORS[name] > 0
        assert (mask & golden).sum() / (mask | golden).sum() >= 0.97, name


def test_a_cast_leaves_the_positional_matrix_in_float32() -> None:
    key = "visual_model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    for model in (golden_model().to(torch.bfloat16), golden_model().half()):
        assert next(model.parameters()).dtype != torch.float32
        assert torch.equal(model.state_dict()[key], TENSORS[f"w.{key}"])


def test_every_parameter_on_the_text_path_gets_a_gradient() -> None:
    model = golden_model().train()
    with torch.enable_grad():
        logits, iou = model.decode(model.embed_image(IMAGES), model.encode_prompt(IMAGES_EVF, IDS[:2], PADS[:2]))
        (logits.square().mean() + iou.square().mean()).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    unused = ("point", "mask_downscaling", "output_hypernetworks_mlps.1", "output_hypernetworks_mlps.2",
              "output_hypernetworks_mlps.3", "vision_embed.mask_token")  # fmt: skip
    assert {name for name in without if not any(part in name for part in unused)} == set()


def test_resized_sizes_are_the_recorded_ones() -> None:
    assert [list(resized_size(tuple(size), SIDE)) for size in INFO["orig"]] == INFO["resize"]
