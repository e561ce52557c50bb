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


def write_feather_clip(folder: Path) -> Path:
    """Write a CLIP whose vectors have 768 numbers and whose own cost is next to nothing."""
    torch.manual_seed(0)
    small = {"num_hidden_layers": 0, "num_attention_heads": 1}
    config = CLIPConfig(
        vision_config={**small, "hidden_size": 16, "intermediate_size": 16, "patch_size": 32},
        text_config={**small, "hidden_size": 16, "intermediate_size": 16, "vocab_size": 64},
        projection_dim=768,
    )
    CLIPModel(config).save_pretrained(folder)
    ViTImageProcessor(**VIT_PROCESSOR).save_pretrained(folder)
    return folder


def write_vit_base(folder: Path) -> Path:
    """Write a ViT-B/16 of full size: 86 million parameters, 224 × 224 pixels."""
    torch.manual_seed(0)
    ViTModel(ViTConfig(), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(**VIT_PROCESSOR).save_pretrained(folder)
    return folder
