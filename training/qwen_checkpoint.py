"""Makes an untrained Qwen2.5-VL of two million parameters, with the processor of its family."""

import json
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

PATCH_SIZE, MERGE_SIZE = 10, 2
TOKEN_PIXELS = (PATCH_SIZE * MERGE_SIZE) ** 2
# A photograph's proportions become 24 or 25 tokens of 20 x 20 pixels.
MIN_TOKENS, MAX_TOKENS = 16, 32
HEAD_SIZE = 32
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# What a published processor says of the pixels.
_PIXELS = {
    "min_pixels": MIN_TOKENS * TOKEN_PIXELS,
    "max_pixels": MAX_TOKENS * TOKEN_PIXELS,
    "patch_size": PATCH_SIZE,
    "temporal_patch_size": 2,
    "merge_size": MERGE_SIZE,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# The family's form of a conversation: a system's turn if none is given, and <|im_start|>role,
# the turn's text, <|im_end|>; an image stands where it stands in the turn.
_CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}
{{- message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' or 'video' in part %}
{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part %}
{{- part['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# How Qwen2's tokenizer splits a text before it merges bytes.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_processor(
    folder: Path, texts: Iterable[str], words: Sequence[str]
) -> Qwen2_5_VLProcessor:
    """Write the image processor, the chat template and a tokenizer made for the texts.

    Args:
        folder: The checkpoint.
        texts: What is to be short in tokens; every other text can be encoded too, by its bytes.
        words: Words that no token joins with their neighbours, so that a token never stands for
            a colour and a shape at once.

    Returns:
        The processor as `AutoProcessor` loads it.
    """
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**_PIXELS),
        tokenizer=_train_tokenizer(texts, words),
        video_processor=Qwen2VLVideoProcessor(**_PIXELS),
        chat_template=_CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
    # Published checkpoints have the settings in this file, and not in processor_config.json.
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                **_PIXELS,
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2_5_VLProcessor",
            },
            indent=2,
        )
        + "\n"
    )
    loaded: Qwen2_5_VLProcessor = AutoProcessor.from_pretrained(folder)
    return loaded


def untrained_model(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Make the model, with weights from torch's generator.

    The vision tower attends within windows of 4 x 4 tokens in its first layer, and to the whole
    image in the others.
    """
    token = tokenizer.convert_tokens_to_ids
    width = 4 * HEAD_SIZE
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "initializer_range": 0.06,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_heads": 2,
            "out_hidden_size": width,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "window_size": 8 * PATCH_SIZE,
            "fullatt_block_indexes": [1, 2, 3],
        },
        text_config={
            "vocab_size": len(tokenizer),
            "initializer_range": 0.06,
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            # Shares of time, rows and columns as in the published models. Columns have the slowest
            # turning numbers: with a larger base, six of them would hardly differ.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        tie_word_embeddings=True,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    # The fastest attention to train on a CPU.
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="eager")
    model.generation_config = GenerationConfig(
        bos_token_id=token("<|endoftext|>"),
        pad_token_id=token("<|endoftext|>"),
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")],
        do_sample=False,
    )
    return model


def write_model(folder: Path, model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Write the weights in bfloat16, which transformers loads in whatever type it is asked for."""
    deepcopy(model).to(torch.bfloat16).save_pretrained(folder)


def _train_tokenizer(texts: Iterable[str], words: Sequence[str]) -> Qwen2Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # The trainer counts each piece of this list apart, so no pair crosses a word's border.
    border = re.compile("(" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + ")")
    pieces = [piece for text in texts for piece in border.split(text)]
    tokenizer.train_from_iterator(
        pieces,
        trainers.BpeTrainer(
            vocab_size=1024,
            min_frequency=2,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    state = json.loads(tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],
        eos_token="<|im_end|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=4096,
        padding_side="left",
    )
