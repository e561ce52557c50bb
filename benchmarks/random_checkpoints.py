"""Random-weight checkpoints for the benchmarks, made locally."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTImageProcessor, ViTModel

VIT_PROCESSOR = {
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def write_feather_clip(folder: Path, image_size: int) -> Path:
    """Write a CLIP whose vectors have 768 numbers, and which is little but a patch convolution."""
    torch.manual_seed(0)
    small = {"num_hidden_layers": 0, "num_attention_heads": 1}
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
