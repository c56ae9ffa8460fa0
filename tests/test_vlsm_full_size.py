"""The published size: shapes on the meta device always; numbers against the published code's, where asked (slow)."""

from __future__ import annotations

import json

import pytest
import torch
from full_size import IDS, drawn_inputs, drawn_model, statistics
from vlsm_models import DATA

from rsvp_backend.vlsm.config import VlsmConfig
from rsvp_backend.vlsm.model import Vlsm


def test_a_whole_pass_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Vlsm(VlsmConfig.evf_sam_huge())
        sam, square, ids = torch.empty(2, 3, 1024, 1024), torch.empty(2, 3, 224, 224), torch.tensor([IDS, IDS])
    with torch.inference_mode():
        embedding = model.embed_image(sam)
        prompt = model.encode_prompt(square, ids)
        logits, iou = model.decode(embedding, prompt)
    assert embedding.shape == (2, 256, 64, 64)
    assert prompt.shape == (2, 1, 256)
    assert (logits.shape, iou.shape) == ((2, 1, 256, 256), (2, 1))


@pytest.mark.slow
def test_numbers_equal_the_published_codes() -> None:
    """See benchmarks/record_full_size.py for how they were recorded."""
    recorded = json.loads((DATA / "vlsm_full_size.json").read_text())
    config = VlsmConfig.evf_sam_huge()
    model = drawn_model(config)
    sam, square, ids = drawn_inputs(config)
    with torch.inference_mode():
        embedding, prompt = model.embed_image(sam), model.encode_prompt(square, ids)
        logits, iou = model.decode(embedding, prompt)
    found = {"image_embedding": embedding, "prompt": prompt, "logits": logits, "predicted_iou": iou}
    for name, value in found.items():
        ours = statistics(value)
        for key, expected in recorded[name].items():
            scale = max(1.0, recorded[name]["std"])
            assert ours[key] == pytest.approx(expected, abs=1e-3 * scale, nan_ok=True), f"{name} {key}"
