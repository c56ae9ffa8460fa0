"""Record what the published code computes at the published size: ``python benchmarks/record_full_size.py > FILE``.

ViT-H of segment-anything and BEiT-3 large of torchscale with drawn weights (``tests/full_size.py``) give what stands in
``tests/data/vlsm_full_size.json``, with which ``make slow`` compares ours. Takes minutes and 12 GB of memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from rsvp_backend.vlsm.config import VlsmConfig
from rsvp_backend.vlsm.tokenizer import Tokenizer
from rsvp_backend.vlsm.weights import Weights

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from full_size import drawn_inputs, drawn_model, statistics
from vlsm_sides import DEMO, Reference


def main() -> None:
    config = VlsmConfig.evf_sam_huge()
    tokenizer = Tokenizer.from_file(DEMO / "sentencepiece.bpe.model")
    side = Reference("demo", "cpu", 2)
    side.build(Weights(drawn_model(config), tokenizer, "drawn", "drawn"))
    sam, square, ids = drawn_inputs(config)
    with torch.inference_mode():
        embedding = side.sam.image_encoder(sam)
        features = side.beit3(visual_tokens=square, textual_tokens=ids, text_padding_position=torch.zeros_like(ids))
        prompt = side.projector(features["encoder_out"][:, :1])
        sparse, dense = side.sam.prompt_encoder(points=None, boxes=None, masks=None)
        logits, iou = side.sam.mask_decoder(
            image_embeddings=embedding, image_pe=side.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=torch.cat([sparse, prompt], dim=1), dense_prompt_embeddings=dense,
            multimask_output=False,
        )  # fmt: skip
    found = {"image_embedding": embedding, "prompt": prompt, "logits": logits, "predicted_iou": iou}
    sys.stdout.write(json.dumps({name: statistics(value) for name, value in found.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
