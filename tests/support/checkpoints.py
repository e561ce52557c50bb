"""Writes small checkpoints of every family: ordinary Hugging Face folders, random but seeded.

Their weights are drawn so that the output follows the input closely, which the small initial
weights of transformers do not: with those, an image and its mirror have nearly the same vector.
"""

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

transformers.utils.logging.disable_progress_bar()

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
BILINEAR, BICUBIC = 2, 3
CONTEXT_LENGTH = 32

TEXTS = [
    f"{start} {colour} {shape} {place}"
    for start, colour, shape, place in itertools.product(
        ("a", "one", "The"),
        ("red", "green", "blue", "yellow"),
        ("circle", "square", "triangle"),
        ("left of a tree", "above the house", "in 3 boxes, near it!"),
    )
]
CHINESE_TEXTS = ["一个红色的圆形", "蓝色的正方形在左边", "图里有几个人?", "绿色三角形和黄色的房子"]


def write_vit(
    folder: Path,
    *,
    image_size: int = 32,
    processor: dict[str, Any] | None = None,
    pooler: bool = True,
    classifier: bool = False,
    safetensors: bool = True,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a ViT: with a trained pooler, without, or as a classifier (which has none)."""
    settings = {**_transformer_sizes(), "image_size": image_size, "patch_size": 8, **config}
    vit_config = transformers.ViTConfig(**settings)
    if classifier:
        model = transformers.ViTForImageClassification(vit_config)
    else:
        model = transformers.ViTModel(vit_config, add_pooling_layer=pooler)
    _write_processor(
        folder, processor or _fixed_size("ViTImageProcessor", image_size, BILINEAR, HALF)
    )
    return _write_model(folder, model, seed, safetensors)


def write_dinov2(
    folder: Path,
    *,
    image_size: int = 56,
    crop_size: int = 28,
    processor: dict[str, Any] | None = None,
    safetensors: bool = True,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a DINOv2, trained on larger images than its processor makes, as the published are."""
    settings = {**_transformer_sizes(), "image_size": image_size, "patch_size": 7, **config}
    settings.pop("intermediate_size")
    model = transformers.Dinov2Model(transformers.Dinov2Config(**settings))
    default = _shortest_edge("BitImageProcessor", crop_size, IMAGENET, edge=crop_size * 8 // 7)
    _write_processor(folder, processor or default)
    return _write_model(folder, model, seed, safetensors)


def write_dinov2_with_registers(
    folder: Path,
    *,
    image_size: int = 56,
    crop_size: int = 28,
    processor: dict[str, Any] | None = None,
    safetensors: bool = True,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a DINOv2 with four register tokens."""
    settings = {**_transformer_sizes(), "image_size": image_size, "patch_size": 7, **config}
    settings.pop("intermediate_size")
    model_config = transformers.Dinov2WithRegistersConfig(**settings)
    model = transformers.Dinov2WithRegistersModel(model_config)
    default = _shortest_edge("BitImageProcessor", crop_size, IMAGENET, edge=crop_size * 8 // 7)
    _write_processor(folder, processor or default)
    return _write_model(folder, model, seed, safetensors)


def write_dinov3(folder: Path, *, image_size: int = 32, seed: int = 0, **config: Any) -> Path:
    """Write a DINOv3 with four register tokens."""
    settings = {**_transformer_sizes(), "image_size": image_size, "patch_size": 8, **config}
    model_config = transformers.DINOv3ViTConfig(**{"num_register_tokens": 4, **settings})
    default = _fixed_size("DINOv3ViTImageProcessor", image_size, BILINEAR, IMAGENET)
    _write_processor(folder, default)
    return _write_model(folder, transformers.DINOv3ViTModel(model_config), seed, safetensors=True)


def write_clip(
    folder: Path,
    *,
    image_size: int = 32,
    processor: dict[str, Any] | None = None,
    safetensors: bool = True,
    seed: int = 0,
    projection_size: int = 24,
) -> Path:
    """Write a CLIP with its byte-level BPE tokenizer."""
    tokenizer = _clip_tokenizer()
    tokenizer.save_pretrained(folder)
    config = transformers.CLIPConfig(
        projection_dim=projection_size,
        vision_config={
            **_transformer_sizes(),
            "image_size": image_size,
            "patch_size": 8,
            "projection_dim": projection_size,
        },
        text_config={
            **_transformer_sizes(),
            "projection_dim": projection_size,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    _write_processor(folder, processor or _shortest_edge("CLIPImageProcessor", image_size, CLIP))
    return _write_model(folder, transformers.CLIPModel(config), seed, safetensors)


def write_chinese_clip(
    folder: Path,
    *,
    image_size: int = 32,
    processor: dict[str, Any] | None = None,
    safetensors: bool = True,
    seed: int = 0,
    projection_size: int = 24,
) -> Path:
    """Write a Chinese-CLIP with its BERT tokenizer."""
    tokenizer = _bert_tokenizer()
    tokenizer.save_pretrained(folder)
    config = transformers.ChineseCLIPConfig(
        projection_dim=projection_size,
        vision_config={
            **_transformer_sizes(),
            "image_size": image_size,
            "patch_size": 8,
            "projection_dim": projection_size,
        },
        text_config={
            **_transformer_sizes(),
            "vocab_size": len(tokenizer),
            "max_position_embeddings": CONTEXT_LENGTH,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    default = _fixed_size("ChineseCLIPImageProcessor", image_size, BICUBIC, CLIP)
    _write_processor(folder, processor or {**default, "do_center_crop": False})
    return _write_model(folder, transformers.ChineseCLIPModel(config), seed, safetensors)


def write_siglip(
    folder: Path,
    *,
    image_size: int = 32,
    processor: dict[str, Any] | None = None,
    second: bool = False,
    safetensors: bool = True,
    seed: int = 0,
) -> Path:
    """Write a SigLIP with its SentencePiece tokenizer, or a `second` one with one like Gemma's."""
    tokenizer = _gemma_tokenizer() if second else _siglip_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    config = transformers.SiglipConfig(
        vision_config={**_transformer_sizes(), "image_size": image_size, "patch_size": 8},
        text_config=_text_sizes(tokenizer),
    )
    resample = BILINEAR if second else BICUBIC
    default = _fixed_size("SiglipImageProcessor", image_size, resample, HALF)
    _write_processor(folder, processor or default)
    return _write_model(folder, transformers.SiglipModel(config), seed, safetensors)


def _text_sizes(tokenizer: Any) -> dict[str, Any]:
    return {
        **_transformer_sizes(),
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def write_siglip2(folder: Path, *, max_num_patches: int = 16, seed: int = 0) -> Path:
    """Write a SigLIP 2 with variable resolution (NaFlex), trained on 16 patches."""
    tokenizer = _gemma_tokenizer(transformers.Siglip2Tokenizer)
    tokenizer.save_pretrained(folder)
    config = transformers.Siglip2Config(
        vision_config={**_transformer_sizes(), "num_patches": 16, "patch_size": 8},
        text_config=_text_sizes(tokenizer),
    )
    settings = {"patch_size": 8, "max_num_patches": max_num_patches, "resample": BILINEAR, **HALF}
    _write_processor(folder, {"image_processor_type": "Siglip2ImageProcessor", **settings})
    return _write_model(folder, transformers.Siglip2Model(config), seed, safetensors=True)


def make_sensitive(model: torch.nn.Module, seed: int) -> None:
    """Draw weights under which neighbouring inputs have well separated outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name or "layrnorm" in name:
                noise = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("lambda1"):
                noise = 1.0 + 0.1 * noise
            elif ("embedding" in name and "patch" not in name) or name.endswith("_token"):
                noise = 0.5 * noise
            elif parameter.ndim > 1:
                noise = 1.5 * noise / math.sqrt(parameter[0].numel())
            else:
                noise = 0.1 * noise
            parameter.copy_(noise)


def _transformer_sizes() -> dict[str, int]:
    return {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }


def _write_model(folder: Path, model: Any, seed: int, safetensors: bool) -> Path:
    make_sensitive(model, seed)
    model.save_pretrained(folder)
    if not safetensors:
        weights = folder / "model.safetensors"
        from safetensors.torch import load_file

        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    return folder


def _write_processor(folder: Path, settings: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))


def _fixed_size(kind: str, size: int, resample: int, scaling: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        **scaling,
    }


def _shortest_edge(
    kind: str, crop: int, scaling: dict[str, Any], edge: int | None = None
) -> dict[str, Any]:
    return {
        **_fixed_size(kind, crop, BICUBIC, scaling),
        "size": {"shortest_edge": edge or crop},
        "do_center_crop": True,
        "crop_size": {"height": crop, "width": crop},
        "do_convert_rgb": True,
    }


def _clip_tokenizer() -> Any:
    special = ["<|startoftext|>", "<|endoftext|>"]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=special[1]))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(TEXTS, trainer)
    learned = json.loads(learner.to_str())["model"]
    # Every byte must also be able to end a word, and the end token must be the last, as in CLIP.
    tokens = dict.fromkeys([*learned["vocab"], *(f"{letter}</w>" for letter in sorted(alphabet))])
    vocabulary = {token: index for index, token in enumerate([*tokens, *special])}
    merges = [tuple(pair) for pair in learned["merges"]]
    return transformers.CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH
    )


def _bert_tokenizer() -> Any:
    letters = sorted({*"".join(TEXTS).lower().replace(" ", ""), *"".join(CHINESE_TEXTS)})
    words = sorted({word.strip("!,") for text in TEXTS for word in text.lower().split()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    tokens += [f"##{letter}" for letter in letters] + words
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=CONTEXT_LENGTH)


def _siglip_tokenizer(folder: Path) -> Any:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in TEXTS]),
        model_writer=model,
        vocab_size=80,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spiece.model"
    path.write_bytes(model.getvalue())
    return transformers.SiglipTokenizer(
        vocab_file=str(path), model_max_length=CONTEXT_LENGTH, model_input_names=["input_ids"]
    )


def _gemma_tokenizer(kind: Any = transformers.GemmaTokenizer) -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted({*"".join(TEXTS), *"".join(TEXTS).lower(), "▁"} - {" "})
    vocabulary = {token: index for index, token in enumerate([*special, *byte_tokens, *letters])}
    tokenizer = kind(
        vocab=vocabulary, merges=[], model_input_names=["input_ids"], padding_side="right"
    )
    # The published ones end a text with <eos> and start it with nothing.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", vocabulary["<eos>"])]
    )
    return tokenizer
