"""Vectors of full-size ViT-B/16 and DINOv2-base against transformers itself, random weights.

Prints the least cosine, plain and after the mean vector is subtracted, between our vectors and
those of the family's own model and processor used directly. Beside them stands a control, the same
images ten percent darker, which must fail. Ends with status 1 where either is not so.

    .venv/bin/python benchmarks/oracle_full_size.py [--images 24]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModel

from spark_vision import ImageViTEmbedding
from spark_vision.models.checkpoints import resolve_checkpoint
from spark_vision.models.families import load_model
from spark_vision.models.pixel_batches import stack_pixels
from spark_vision.models.preprocessing import load_preprocessor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import checkpoints
from oracles import centred_cosine, cosine, draw_pictures, same
from published_processors import PUBLISHED

BATCH_SIZE = 8
BASE_SIZE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}

Compute = Callable[[torch.Tensor, str], torch.Tensor]


def write_vit_base(folder: Path) -> Path:
    _, processor = PUBLISHED["google/vit-base-patch16-224"]
    sizes = {**BASE_SIZE, "image_size": 224, "patch_size": 16}
    return checkpoints.write_vit(folder, processor=processor, **sizes)


def write_dinov2_base(folder: Path) -> Path:
    _, processor = PUBLISHED["facebook/dinov2-base"]
    sizes = {**BASE_SIZE, "image_size": 518, "patch_size": 14}
    return checkpoints.write_dinov2(folder, processor=processor, **sizes)


def our_way(folder: Path) -> Compute:
    checkpoint = resolve_checkpoint(ImageViTEmbedding(model_name=str(folder)))
    model = load_model(checkpoint, "float32", torch.device("cpu"))
    preprocessor = load_preprocessor(checkpoint, None)

    def compute(images: torch.Tensor, pooling: str) -> torch.Tensor:
        pixels = stack_pixels([preprocessor(image) for image in images])
        return torch.cat(
            [
                model.embed_images(batch, preprocessor.scaling, pooling)
                for batch in torch.split(pixels, BATCH_SIZE)
            ]
        )

    return compute


def their_vectors(folder: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
    processor = AutoImageProcessor.from_pretrained(folder, backend="torchvision")
    model = AutoModel.from_pretrained(folder).eval()
    pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        batches = torch.split(pixels, BATCH_SIZE)
        tokens = torch.cat([model(batch).last_hidden_state for batch in batches])
    return {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(dim=1)}


def compare(name: str, folder: Path, images: torch.Tensor) -> bool:
    started = time.monotonic()
    expected = their_vectors(folder, images)
    ours = our_way(folder)
    darker = (images * 0.9).to(torch.uint8)
    holds = True
    for label, shown, pooling, should_agree in (
        ("cls", images, "cls", True),
        ("mean", images, "mean", True),
        ("cls, images 10% darker (control)", darker, "cls", False),
    ):
        vectors = ours(shown, pooling)
        agrees = same(vectors, expected[pooling])
        holds = holds and agrees == should_agree
        print(
            f"{name:12} {label:34} cosine {cosine(vectors, expected[pooling]):.7f}  "
            f"centred {centred_cosine(vectors, expected[pooling]):.7f}  "
            f"{'same' if agrees else 'not the same'}"
        )
    print(f"{name:12} {time.monotonic() - started:.0f} s")
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24, help="how many images to compare on")
    arguments = parser.parse_args()
    images = draw_pictures(arguments.images, 375, 500)
    results = []
    for name, write in (("ViT-B/16", write_vit_base), ("DINOv2-base", write_dinov2_base)):
        with tempfile.TemporaryDirectory() as folder:
            results.append(compare(name, write(Path(folder) / "checkpoint"), images))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
