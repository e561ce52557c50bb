"""Vectors of full-size ViT-B/16 and DINOv2-base against transformers itself, random weights.

    python benchmarks/oracle_full_size.py [--images 24]

Prints the least cosine, plain and after the mean vector is subtracted, between our vectors and
those of the family's own model and processor used directly. Beside them stands a control, the same
images ten percent darker, which must fail. Ends with status 1 where a check does not hold.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import checkpoints
from oracles import centred_cosine, cosine, draw_pictures, same
from published_processors import PUBLISHED
from transformers import AutoImageProcessor, AutoModel

from spark_vision.models.checkpoints import resolve_checkpoint
from spark_vision.models.families import load_model, load_preprocessor
from spark_vision.models.preprocessing import stack_pixels
from spark_vision.operators import ImageViTEmbedding

BATCH_SIZE = 8
BASE_SIZE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


def write_vit_base(folder: Path) -> Path:
    _, processor = PUBLISHED["google/vit-base-patch16-224"]
    return checkpoints.write_vit(
        folder, image_size=224, patch_size=16, processor=processor, **BASE_SIZE
    )


def write_dinov2_base(folder: Path) -> Path:
    _, processor = PUBLISHED["facebook/dinov2-base"]
    return checkpoints.write_dinov2(
        folder, image_size=518, patch_size=14, processor=processor, **BASE_SIZE
    )


def compute_ours(folder: Path, images: torch.Tensor, poolings: list[str]) -> list[torch.Tensor]:
    checkpoint = resolve_checkpoint(ImageViTEmbedding(model_name=str(folder)))
    model = load_model(checkpoint, "float32", torch.device("cpu"))
    preprocessor = load_preprocessor(checkpoint, None)
    batches = torch.split(stack_pixels([preprocessor(image) for image in images]), BATCH_SIZE)
    tokens = [model.embed_images(batch, preprocessor.scaling, "tokens") for batch in batches]
    del poolings
    return pool(torch.cat(tokens))


def compute_theirs(folder: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
    processor = AutoImageProcessor.from_pretrained(folder, backend="torchvision")
    model = AutoModel.from_pretrained(folder).eval()
    tokens = []
    with torch.inference_mode():
        for batch in torch.split(images, BATCH_SIZE):
            pixels = processor(images=list(batch), return_tensors="pt")["pixel_values"]
            tokens.append(model(pixels).last_hidden_state)
    return pool(torch.cat(tokens))
