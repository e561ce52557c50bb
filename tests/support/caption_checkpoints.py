"""Writes small Qwen-VL checkpoints, laid out as the published ones: random but seeded.

Their weights are drawn so that what they write follows the image, and goes on for a while.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from checkpoints import CHINESE_TEXTS, CLIP, TEXTS, make_sensitive

CONTROL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT_LENGTH = 768
# How much a token that ends a caption weighs beside others.
STOP_WEIGHT = 1.4
MIN_PIXELS, MAX_PIXELS = 56 * 56, 140 * 140


def write_qwen_vl(
    folder: Path,
    model_type: str = "qwen2_5_vl",
    *,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    context_length: int = CONTEXT_LENGTH,
    generation: dict[str, Any] | None = None,
) -> Path:
    """Write a Qwen-VL of a family, with its processor and its generation_config.

    Args:
        folder: Where to.
        model_type: qwen2_vl, qwen2_5_vl or qwen3_vl.
        seed: Of the weights.
        max_pixels: Of the image processor.
        context_length: Most tokens of prompt, image and caption.
        generation: Fields of the generation_config, in place of those written otherwise.
    """
    tokenizer = _tokenizer()
    patch_size = 16 if model_type == "qwen3_vl" else 14
    image_processor = transformers.Qwen2VLImageProcessor(
        patch_size=patch_size,
        size={"shortest_edge": MIN_PIXELS, "longest_edge": max_pixels},
        **CLIP,
    )
    processor_class, video_class, model_class, config_class = _classes(model_type)
    processor_class(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=video_class(patch_size=patch_size),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    model = model_class(_config(config_class, model_type, tokenizer, patch_size, context_length))
    make_sensitive(model, seed)
    _make_talkative(model, tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    settings = {
        "do_sample": True,
        "bos_token_id": end,
        "eos_token_id": [tokenizer.convert_tokens_to_ids("<|im_end|>"), end],
        "pad_token_id": end,
        "temperature": 0.1,
        "top_k": 1,
        "repetition_penalty": 1.05,
        **(generation or {}),
    }
    model.generation_config = transformers.GenerationConfig(**settings)
    model.save_pretrained(folder)
    return folder


def _classes(model_type: str) -> tuple[Any, Any, Any, Any]:
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[model_type]
    video = "Qwen3VLVideoProcessor" if model_type == "qwen3_vl" else "Qwen2VLVideoProcessor"
    return (
        getattr(transformers, f"{name}Processor"),
        getattr(transformers, video),
        getattr(transformers, f"{name}ForConditionalGeneration"),
        getattr(transformers, f"{name}Config"),
    )


def _config(
    config_class: Any, model_type: str, tokenizer: Any, patch_size: int, context_length: int
) -> Any:
    text = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": context_length,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 2, 2],
        },
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    vision = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if model_type == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 48}
    if model_type == "qwen2_5_vl":
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
    if model_type == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in (
            ("image", "<|image_pad|>"),
            ("video", "<|video_pad|>"),
            ("vision_start", "<|vision_start|>"),
            ("vision_end", "<|vision_end|>"),
        )
    }
    return config_class(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


def _make_talkative(model: Any, tokenizer: Any) -> None:
    """Let the caption end now and then, and hold no other control tokens."""
    head = model.lm_head.weight
    ids = tokenizer.convert_tokens_to_ids(CONTROL_TOKENS)
    with torch.no_grad():
        head[ids] *= 0.01
        # Both can end a caption; the latter also pads, which must not make it less probable.
        for token in ("<|im_end|>", "<|endoftext|>"):
            head[tokenizer.convert_tokens_to_ids(token)] *= 100 * STOP_WEIGHT


def _tokenizer() -> Any:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator([*TEXTS, *CHINESE_TEXTS], trainer)
    learned = json.loads(learner.to_str())["model"]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        model_max_length=CONTEXT_LENGTH,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL_TOKENS})
    return tokenizer
