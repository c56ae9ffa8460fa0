"""The MLLMs of ``benchmarks/reasoner.py``: the demo preset's, and one of Qwen2-VL-2B's size with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import rsvp_backend

DEMO = Path(rsvp_backend.__file__).parent / "demo" / "assets" / "reasoner"
VOCABULARY = 151_936
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>")  # fmt: skip
# The sizes that Qwen2-VL-2B-Instruct's config.json gives.
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6,
                                                     "mrope_section": [16, 24, 24]},
}  # fmt: skip
VISION = {
    "depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "hidden_size": 1536,
}  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def load(size: str, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and processor as transformers gives them; ``2b`` has the same random weights every time."""
    if size == "demo":
        model = t.AutoModelForImageTextToText.from_pretrained(DEMO, dtype=dtype)
        return model.to(device).eval(), t.AutoProcessor.from_pretrained(DEMO)
    tokenizer = _tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    special = {"bos_token_id": ids(SPECIAL[0]), "eos_token_id": ids(SPECIAL[2]), "pad_token_id": ids(SPECIAL[0])}
    config = t.Qwen2VLConfig(
        text_config=TEXT | special, vision_config=VISION, image_token_id=ids(SPECIAL[5]),
        video_token_id=ids(SPECIAL[6]), vision_start_token_id=ids(SPECIAL[3]), vision_end_token_id=ids(SPECIAL[4]),
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = t.Qwen2VLForConditionalGeneration(config)
    images = t.Qwen2VLImageProcessor(patch_size=14, temporal_patch_size=2, merge_size=2)
    processor = t.Qwen2VLProcessor(images, tokenizer, t.Qwen2VLVideoProcessor(), chat_template=CHAT_TEMPLATE)
    return model.to(dtype).eval(), processor


def _tokenizer() -> Any:
    """Bytes and words that no text holds, as many as the published vocabulary has tokens: every answer has a text."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"Ġw{i}" for i in range(VOCABULARY - len(words) - len(SPECIAL))]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[2], clean_up_tokenization_spaces=False,
        padding_side="left",
    )  # fmt: skip
