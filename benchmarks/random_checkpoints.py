"""Random-weight checkpoints for the benchmarks, made locally."""

from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

VIT_PROCESSOR = {
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def write_feather_clip(folder: Path, image_size: int) -> Path:
    """Write a CLIP whose vectors have 768 numbers, and which is little but a patch convolution.

    Its one narrow layer takes the patches into the vector.
    """
    torch.manual_seed(0)
    small = {"num_hidden_layers": 1, "num_attention_heads": 1}
    narrow = {**small, "hidden_size": 16, "intermediate_size": 16}
    config = CLIPConfig(
        vision_config={**narrow, "patch_size": 28, "image_size": image_size},
        text_config={**narrow, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1},
        projection_dim=768,
    )
    CLIPModel(config).save_pretrained(folder)
    size = {"height": image_size, "width": image_size}
    ViTImageProcessor(**{**VIT_PROCESSOR, "size": size}).save_pretrained(folder)
    return folder


def write_vit_base(folder: Path) -> Path:
    """Write a ViT-B/16 of full size: 86 million parameters, 224 × 224 pixels."""
    torch.manual_seed(0)
    ViTModel(ViTConfig(), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(**VIT_PROCESSOR).save_pretrained(folder)
    return folder


CONTROL_TOKENS = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|endoftext|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image_pad|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def write_qwen_vl(folder: Path, max_pixels: int, *, hidden_size: int = 384, stops: bool) -> Path:
    """Write a small Qwen2.5-VL whose tokens are bytes.

    Args:
        folder: Where to.
        max_pixels: Of its image processor.
        hidden_size: Of its text model; the vision tower has half of it.
        stops: Whether its captions end at some lengths, or go on to the greatest one.
    """
    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={letter: index for index, letter in enumerate(letters)},
        merges=[],
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL_TOKENS})
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in CONTROL_TOKENS}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": 56 * 56, "longest_edge": max_pixels}
        ),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    head_size = hidden_size // 6
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": hidden_size,
            "intermediate_size": 4 * hidden_size,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [head_size // 2 - 2 * (head_size // 6), *[head_size // 6] * 2],
            },
        },
        vision_config={
            "depth": 4,
            "hidden_size": hidden_size // 2,
            "intermediate_size": hidden_size,
            "num_heads": 4,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": [3],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
        model.lm_head.weight[list(ids.values())] *= 0
        if stops:
            model.lm_head.weight[ids["<|im_end|>"]] = model.lm_head.weight[ids["<|im_end|>"] - 9]
            model.lm_head.weight[ids["<|im_end|>"]] *= 1.2
    model.generation_config = GenerationConfig(
        eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"]
    )
    model.save_pretrained(folder)
    return folder
