"""The public full-size checkpoint (SAM ViT-H + BEiT-3 large) fits: same names, same shapes, nothing more."""

from __future__ import annotations

import json

import pytest
import torch
from vlsm_models import DATA, tiny_config

from rsvp_backend.errors import WeightsError
from rsvp_backend.vlsm.model import Vlsm, VlsmConfig

PUBLIC = {key: tuple(shape) for key, shape in json.loads((DATA / "evf_sam_keys.json").read_text()).items()}


def test_full_public_size_has_the_public_keys_and_shapes() -> None:
    with torch.device("meta"):
        model = Vlsm(VlsmConfig.evf_sam_huge())
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == PUBLIC


def test_public_keys_load_strictly() -> None:
    state = {key: torch.empty(shape, device="meta", dtype=torch.float16) for key, shape in PUBLIC.items()}
    with torch.device("meta"):
        model = Vlsm(VlsmConfig.evf_sam_huge())
    model.load_state_dict(state, strict=True, assign=True)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 1_315_105_328


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sam": None}, "'sam' is NoneType"),
        ({"decoder": {}}, "unknown ['decoder']"),
        ({"beit3": {"layers": 3}}, "lacks ['embed_dim'"),
        ({"beit3.layers": 0}, "beit3.layers is 0"),
        ({"beit3.layers": 2.5}, "beit3.layers is 2.5"),
        ({"beit3.num_heads": 7}, "beit3.embed_dim is 40: a multiple of beit3.num_heads (7)"),
        ({"sam.image_size": 100}, "sam.image_size is 100: a multiple of sam.patch_size (16)"),
        ({"sam.window": 3}, "unknown ['window']"),
        ({"sam.global_attn_indexes": 3}, "sam.global_attn_indexes is 3"),
    ],
)
def test_a_bad_config_is_refused_with_its_field(change: dict[str, object], said: str) -> None:
    data = tiny_config().to_dict()
    for path, value in change.items():
        *parents, field = path.split(".")
        (data[parents[0]] if parents else data)[field] = value
    with pytest.raises(WeightsError) as caught:
        VlsmConfig.from_dict(data)
    assert said in str(caught.value)
