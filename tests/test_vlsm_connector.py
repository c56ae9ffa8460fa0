"""Connectors: the prompt tokens of each kind, that they hear the text and not the pads, train, save and load."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from vlsm_models import GOLDEN, random_folder, tiny_config, tokenizer_model

from rsvp_backend.errors import WeightsError
from rsvp_backend.training.losses import segmentation_loss
from rsvp_backend.types import Box, Prompt
from rsvp_backend.vlsm import weights
from rsvp_backend.vlsm.config import ConnectorConfig, VlsmConfig
from rsvp_backend.vlsm.connector import make_connector, make_projector
from rsvp_backend.vlsm.model import Vlsm
from rsvp_backend.vlsm.segmenter import VlsmSegmenter
from rsvp_backend.vlsm.tokenizer import Tokenizer

KINDS = {
    "cls": ConnectorConfig(),
    "cls, deep and narrow": ConnectorConfig(depth=4, width=24),
    "cls, linear": ConnectorConfig(depth=1),
    "cross_attention": ConnectorConfig("cross_attention", queries=3),
    "cross_attention, deep and narrow": ConnectorConfig("cross_attention", depth=3, width=16, queries=5),
    "concat": ConnectorConfig("concat", text_tokens=28),
    "concat, text longer than its slots": ConnectorConfig("concat", depth=3, width=56, text_tokens=10),
}
TOKENS = dict(zip(KINDS, (1, 1, 1, 3, 5, 29, 11), strict=True))
TEXTS = ["the red ball left of the cup", "the lamp", "a small blue mug"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def model_of(kind: str, seed: int = 0) -> Vlsm:
    """Random weights, the fresh connector's included, so large that the crop and the text show in the prompt."""
    torch.manual_seed(seed)
    model = Vlsm(replace(tiny_config(), connector=KINDS[kind]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_model(), tiny_config().beit3.max_text_tokens)


def crops(count: int) -> Tensor:
    return torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(7))


def batch(texts: list[str]) -> tuple[Tensor, Tensor]:
    ids, pads = tokenizer().batch(texts)
    assert pads is not None, "the texts differ in length"
    return ids, pads


@every_kind
def test_the_number_of_prompt_tokens_and_the_masks_they_give(kind: str) -> None:
    model, (ids, pads) = model_of(kind), batch(TEXTS)
    with torch.no_grad():
        features = model.beit3(crops(3), ids, pads)
        tokens = model.prompt_tokens(features, pads)
        logits, iou = model.decode(torch.randn(3, 32, 8, 8), tokens)
        assert torch.equal(tokens, model.encode_prompt(crops(3), ids, pads))
        assert model.project(features[:, :1]).shape == (3, 1, 32)
    assert tokens.shape == (3, TOKENS[kind], 32)
    assert (logits.shape, iou.shape) == ((3, 1, 32, 32), (3, 1))


def test_cls_is_the_projected_cls_feature_and_adds_no_weight() -> None:
    model, (ids, pads) = model_of("cls"), batch(TEXTS)
    features = model.beit3(crops(3), ids, pads)
    assert torch.equal(model.prompt_tokens(features, pads), model.text_hidden_fcs[0](features[:, :1]))
    assert [name for name in model.state_dict() if "connector" in name] == []
    assert {name for name in model.state_dict() if "text_hidden" in name} == {
        f"text_hidden_fcs.0.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")
    }


@every_kind
def test_gradients_reach_every_parameter(kind: str) -> None:
    model, (ids, pads) = model_of(kind), batch(TEXTS)
    model.encode_prompt(crops(3), ids, pads).square().sum().backward()
    own = [(n, p) for n, p in model.named_parameters() if n.startswith(("connector.", "text_hidden_fcs."))]
    assert [name for name, parameter in own if parameter.grad is None or not parameter.grad.abs().sum() > 0] == []
    assert model.mm_extractor.beit3.text_embed.weight.grad is not None


@every_kind
def test_another_text_gives_other_tokens_and_another_mask(kind: str) -> None:
    model, (ids, pads) = model_of(kind), batch(TEXTS[:2])
    with torch.no_grad():
        tokens = model.encode_prompt(crops(1).expand(2, -1, -1, -1), ids, pads)
        logits, _ = model.decode(torch.randn(1, 32, 8, 8), tokens)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3
    assert (logits[0] - logits[1]).abs().max() > 1e-4


@every_kind
def test_a_text_gives_the_same_alone_and_padded_beside_longer_ones(kind: str) -> None:
    model, (ids, pads) = model_of(kind), batch(TEXTS)
    short = TEXTS.index("the lamp")
    alone, none = tokenizer().batch(["the lamp"])
    assert none is None
    assert pads[short].sum() == ids.shape[1] - alone.shape[1] > 0
    embedding = torch.randn(3, 32, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = model.encode_prompt(crops(3), ids, pads)
        by_itself = model.encode_prompt(crops(3)[[short]], alone)
        torch.testing.assert_close(together[[short]], by_itself, atol=1e-5, rtol=0)
        masks, mask = model.decode(embedding, together)[0], model.decode(embedding[[short]], by_itself)[0]
    torch.testing.assert_close(masks[[short]], mask, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["cross_attention", "concat"])
def test_what_a_pad_position_holds_is_never_read(kind: str) -> None:
    model, (ids, pads) = model_of(kind), batch(TEXTS)
    with torch.no_grad():
        features = model.beit3(crops(3), ids, pads)
        spoiled = features.clone()
        spoiled[:, -ids.shape[1] :][pads] = 1e3
        assert torch.equal(model.prompt_tokens(features, pads), model.prompt_tokens(spoiled, pads))
        assert not torch.equal(model.prompt_tokens(features), model.prompt_tokens(spoiled))


def test_concat_puts_one_learned_vector_into_empty_slots() -> None:
    model, (ids, pads) = model_of("concat"), batch(TEXTS)
    with torch.no_grad():
        tokens, empty = model.encode_prompt(crops(3), ids, pads), model.project(model.connector.no_token)[0, 0]
    used = (~pads).sum(1)
    assert used.max() > used.min()
    for row, count in zip(tokens, used.tolist(), strict=True):
        torch.testing.assert_close(row[1 + count :], empty.expand(28 - count, -1), atol=1e-6, rtol=0)
        assert ((row[: 1 + count] - empty).abs().amax(1) > 1e-3).all()


@every_kind
def test_forty_steps_on_one_batch_lower_the_loss(kind: str) -> None:
    model, (ids, pads) = model_of(kind).train(), batch(TEXTS)
    with torch.no_grad():
        embedding = model.embed_image(torch.randn(1, 3, 128, 128))
        features = model.beit3(crops(1).expand(3, -1, -1, -1), ids, pads)
    targets = torch.zeros(3, 32, 32)
    targets[0, :16], targets[1, :, 16:], targets[2, 8:24, 8:24] = 1, 1, 1
    trained = [*model.connector.parameters(), *model.text_hidden_fcs.parameters()]
    trained += model.visual_model.mask_decoder.parameters()
    optimizer = torch.optim.AdamW(trained, lr=4e-3)
    seen = []
    for _ in range(40):
        logits, iou = model.decode(embedding, model.prompt_tokens(features, pads))
        loss = segmentation_loss(logits[:, 0], iou[:, 0], targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert max(seen[-5:]) < 0.8 * seen[0]


@every_kind
def test_saved_and_loaded_it_gives_the_same_tokens(kind: str, tmp_path: Path) -> None:
    model, (ids, pads) = model_of(kind), batch(TEXTS)
    weights.save(tmp_path / "saved", model, tokenizer(), "saved")
    loaded = weights.load(tmp_path / "saved").model
    assert loaded.config == model.config
    with torch.no_grad():
        # Saving rounds to fp16, so the same is done to what is compared.
        model.load_state_dict({key: value.half().float() for key, value in model.state_dict().items()})
        expected = model.encode_prompt(crops(3), ids, pads)
        torch.testing.assert_close(loaded.float().encode_prompt(crops(3), ids, pads), expected, atol=1e-5, rtol=0)


def test_weights_of_another_connector_are_refused(tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text()) | {"connector": {"kind": "cross_attention"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"missing \(connector\.queries"):
        weights.load(folder)


@every_kind
def test_the_config_survives_json(kind: str) -> None:
    config = replace(tiny_config(), connector=KINDS[kind])
    assert VlsmConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_default_leaves_config_files_as_they_were() -> None:
    golden = json.loads((GOLDEN / "tiny_golden.json").read_text())["config"]
    for section in ({}, {"connector": {"kind": "cls"}}, {"connector": {"kind": "cls", "depth": 2, "width": None}}):
        assert VlsmConfig.from_dict(golden | section).to_dict() == golden


def test_a_count_left_out_is_the_kinds_default() -> None:
    data = tiny_config().to_dict() | {"connector": {"kind": "cross_attention", "width": None}}
    assert VlsmConfig.from_dict(data).connector == ConnectorConfig("cross_attention", depth=2, width=0, queries=8)
    assert ConnectorConfig("concat").text_tokens == 32


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (None, "'connector' is NoneType: an object is expected"),
        ({}, "'connector' lacks ['kind']"),
        ({"kind": "cls", "heads": 2}, "unknown ['heads']"),
        ({"kind": "mlp"}, "connector.kind is 'mlp': one of cls, cross_attention, concat expected"),
        ({"kind": "cls", "depth": 0}, "connector.depth is 0: a whole number of 1 or more"),
        ({"kind": "cls", "depth": True}, "connector.depth is True"),
        ({"kind": "cls", "width": -8}, "connector.width is -8"),
        ({"kind": "cls", "width": ""}, "connector.width is ''"),
        ({"kind": "concat", "text_tokens": 2.5}, "connector.text_tokens is 2.5"),
        ({"kind": "cls", "depth": 1, "width": 8}, "connector.width is 8, but depth 1 has no hidden layer"),
        ({"kind": "cls", "queries": 4}, "connector.queries is 4: expected with kind 'cross_attention' only, not 'cls'"),
        ({"kind": "cross_attention", "text_tokens": 4}, "connector.text_tokens is 4: expected with kind 'concat' only"),
        ({"kind": "cross_attention", "width": 18}, "connector.width is 18: a multiple of beit3.num_heads (4)"),
        ({"kind": "concat", "text_tokens": 2000}, "connector.text_tokens is 2000: at most 1022"),
    ],
)
def test_a_bad_section_is_refused_with_its_field(section: object, said: str) -> None:
    with pytest.raises(WeightsError) as caught:
        VlsmConfig.from_dict(tiny_config().to_dict() | {"connector": section})
    assert said in str(caught.value)


@every_kind
def test_the_segmenter_answers_with_every_kind(kind: str, tmp_path: Path) -> None:
    weights.save(tmp_path / "saved", model_of(kind), tokenizer(), "saved")
    segmenter = VlsmSegmenter.load(tmp_path / "saved", "cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    prompts = [Prompt(Box(5, 5, 75, 55), text) for text in TEXTS]
    together = segmenter.segment([image] * 3, prompts)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = segmenter.segment([image], [prompt])
        np.testing.assert_allclose(alone.logits, found.logits, atol=1e-4)
    assert np.abs(together[0].logits - together[1].logits).max() > 1e-4


@pytest.mark.parametrize(
    ("connector", "own", "total"),
    [
        (ConnectorConfig(), 0, 1_312_000),
        (ConnectorConfig("cross_attention"), 12_613_632, 13_925_632),
        (ConnectorConfig("cross_attention", width=256), 3_170_304, 4_482_304),
        (ConnectorConfig("concat"), 1_024, 1_313_024),
    ],
)
def test_parameters_at_the_published_size_are_the_documented_ones(
    connector: ConnectorConfig, own: int, total: int
) -> None:
    config = replace(VlsmConfig.evf_sam_huge(), connector=connector)
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in part.parameters()) for part in (make_connector(config), make_projector(config))
        ]
    assert (counts[0], sum(counts)) == (own, total)
    page = (Path(__file__).parents[1] / "docs" / "vlsm.md").read_text(encoding="utf-8")
    assert f"{total:,}" in page
