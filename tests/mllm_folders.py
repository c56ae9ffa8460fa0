"""Model folders for reasoner tests: tiny MLLMs of six families with random weights, each with a real processor.

``save_random_mllm`` writes what a downloaded model folder holds, so that it loads through ``AutoProcessor`` and
``AutoModelForImageTextToText`` like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

IMAGE_PX = 56
PAD, END, START_TURN, IMAGE, VIDEO, OPEN, CLOSE = (
    "<|pad|>", "<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
)  # fmt: skip
SPECIAL = [PAD, END, START_TURN, IMAGE, VIDEO, OPEN, CLOSE, "[IMG]"]
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "llava_onevision")
CORPUS = ['{"proposals": [{"object": "red key", "present": true, "rows": [3], "columns": [6]}]} the image has rows']
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}


def demo_reasoner_folder() -> Path:
    """The MLLM that the package's demo preset ships."""
    import rsvp_backend.demo

    return Path(rsvp_backend.demo.__file__).parent / "assets" / "reasoner"


def save_random_mllm(family: str, folder: Path) -> Path:
    """Write a random MLLM of ``family`` (one of `FAMILIES`) and its processor to ``folder``."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    image = f"{OPEN}{IMAGE}{CLOSE}" if family.startswith("qwen") else IMAGE
    processor, model = (_qwen if family.startswith("qwen") else _llava)(family, tokenizer)
    processor.chat_template = _chat_template(image)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, show_progress=False, initial_alphabet=alphabet, special_tokens=SPECIAL
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, additional_special_tokens=SPECIAL[2:],
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _chat_template(image: str) -> str:
    return (
        "{% for message in messages %}" + START_TURN + "{{ message.role }}\n"
        "{% for part in message.content %}{% if part.type == 'image' %}" + image + "{% else %}{{ part.text }}"
        "{% endif %}{% endfor %}" + END + "\n{% endfor %}" + START_TURN + "assistant\n"
    )


def _ids(tokenizer: Any) -> dict[str, int]:
    names = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": OPEN,
        "vision_end_token_id": CLOSE,
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def _qwen(family: str, tokenizer: Any) -> tuple[Any, Any]:
    patch = 16 if family == "qwen3_vl" else 14
    text = TEXT | MROPE | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    limits = {"patch_size": patch, "min_pixels": (2 * patch) ** 2, "max_pixels": (4 * patch) ** 2}
    parts = (t.Qwen2VLImageProcessor(**limits), tokenizer)
    vision = {"depth": 2, "num_heads": 2, "patch_size": patch}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        config = t.Qwen2VLConfig(text_config=text, vision_config=vision, **_ids(tokenizer))
        return t.Qwen2VLProcessor(*parts, t.Qwen2VLVideoProcessor()), t.Qwen2VLForConditionalGeneration(config)
    vision |= {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48}
    if family == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [1], "window_size": 56}
        config = t.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_ids(tokenizer))
        return t.Qwen2_5_VLProcessor(*parts, t.Qwen2VLVideoProcessor()), t.Qwen2_5_VLForConditionalGeneration(config)
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    text |= {"head_dim": 8}
    config = t.Qwen3VLConfig(text_config=text, vision_config=vision, **_ids(tokenizer))
    return t.Qwen3VLProcessor(*parts, t.Qwen3VLVideoProcessor()), t.Qwen3VLForConditionalGeneration(config)


def _llava(family: str, tokenizer: Any) -> tuple[Any, Any]:
    size = {"height": IMAGE_PX, "width": IMAGE_PX}
    vision_sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "patch_size": 14, "image_size": IMAGE_PX, "projection_dim": 32,
    }  # fmt: skip
    text = TEXT | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    pinpoints = [[IMAGE_PX, 2 * IMAGE_PX], [2 * IMAGE_PX, IMAGE_PX], [2 * IMAGE_PX, 2 * IMAGE_PX]]
    crop = {"size": {"shortest_edge": IMAGE_PX}, "crop_size": size}
    asking = {"image_token": IMAGE, "vision_feature_select_strategy": "default"}
    clip = t.CLIPVisionConfig(**vision_sizes)
    if family == "llava":
        config = t.LlavaConfig(vision_config=clip, text_config=t.LlamaConfig(**text), image_token_id=image_id)
        asking |= {"patch_size": 14, "num_additional_image_tokens": 1}
        return t.LlavaProcessor(t.CLIPImageProcessor(**crop), tokenizer, **asking), t.LlavaForConditionalGeneration(
            config
        )
    if family == "llava_next":
        config = t.LlavaNextConfig(
            vision_config=clip, text_config=t.LlamaConfig(**text), image_token_id=image_id,
            image_grid_pinpoints=pinpoints,
        )  # fmt: skip
        images = t.LlavaNextImageProcessor(**crop, image_grid_pinpoints=pinpoints)
        asking |= {"patch_size": 14, "num_additional_image_tokens": 1}
        return t.LlavaNextProcessor(images, tokenizer, **asking), t.LlavaNextForConditionalGeneration(config)
    vision = t.SiglipVisionConfig(
        **{k: v for k, v in vision_sizes.items() if k != "projection_dim"}, vision_use_head=False
    )
    config = t.LlavaOnevisionConfig(
        vision_config=vision, text_config=t.Qwen2Config(**text), image_token_id=image_id,
        image_grid_pinpoints=pinpoints, vision_feature_select_strategy="full",
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO),
    )  # fmt: skip
    images = t.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints)
    processor = t.LlavaOnevisionProcessor(
        images, tokenizer, t.LlavaOnevisionVideoProcessor(size=size), num_image_tokens=16, image_token=IMAGE,
        video_token=VIDEO, vision_feature_select_strategy="full",
    )  # fmt: skip
    return processor, t.LlavaOnevisionForConditionalGeneration(config)
