"""Trains and evaluates the demonstration's DINOv2 and CLIP: `python -m training.embedders`."""

import argparse
from copy import deepcopy
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPTokenizer, Dinov2Model

from spark_vision.demo.captions import caption, caption_zh
from training import clip, dinov2
from training.clip_tokenizer import make_tokenizer
from training.contrast import unit
from training.pictures import Pictures, draw_pictures
from training.pixels import scaled, write_processor
from training.schedule import cpu_minutes

CHECKPOINTS = Path(__file__).parents[1] / "spark_vision" / "demo" / "checkpoints"
_SEED = 1
_PAIRS = 16_000
_RENDERINGS = 2
_DINOV2_STEPS = 1600
_CLIP_TEXT_STEPS = 250
_CLIP_STEPS = 350
_VALIDATION_PAIRS = 600


def main() -> None:
    """Train both and print how well they find scenes of the validation split."""
    parser = argparse.ArgumentParser(prog="python -m training.embedders", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=CHECKPOINTS, help="where to write")
    parser.add_argument("--effort", type=float, default=1.0, help="share of all steps and scenes")
    arguments = parser.parse_args()

    def share(count: int) -> int:
        return max(1, round(count * arguments.effort))

    # Models this small lose more by threads that wait for each other than they gain.
    torch.set_num_threads(1)
    print("drawing scenes", flush=True)
    pictures = draw_pictures(share(_PAIRS), _RENDERINGS, _SEED, "train")
    unseen = draw_pictures(share(_VALIDATION_PAIRS), 2, _SEED, "validation")
    seeing = dinov2.train(pictures, share(_DINOV2_STEPS), _SEED)
    write_dinov2(seeing, arguments.folder / "dinov2")
    _show(
        "dinov2, picture to another of its scene",
        *dinov2.cls_vectors(seeing, unseen.pixels).unbind(1),
        unseen,
    )
    tokenizer = make_tokenizer()
    model = clip.train(
        pictures, seeing, tokenizer, share(_CLIP_TEXT_STEPS), share(_CLIP_STEPS), _SEED
    )
    write_clip(model, tokenizer, arguments.folder / "clip")
    _evaluate_clip(model, tokenizer, unseen)
    print(f"dinov2 and clip: {cpu_minutes()}", flush=True)


def write_dinov2(model: Dinov2Model, folder: Path) -> None:
    """Write weights in bfloat16, configuration and processor settings."""
    deepcopy(model).bfloat16().save_pretrained(folder)
    write_processor(folder, "BitImageProcessor")


def write_clip(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write weights in bfloat16, configuration, processor settings and tokenizer."""
    deepcopy(model).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_processor(folder, "CLIPImageProcessor")


@torch.no_grad()
def _evaluate_clip(model: CLIPModel, tokenizer: CLIPTokenizer, unseen: Pictures) -> None:
    one, other = (
        torch.cat(
            [model.get_image_features(scaled(part)).pooler_output for part in pixels.split(256)]
        )
        for pixels in unseen.pixels.unbind(1)
    )
    _show("clip, picture to another of its scene", one, other, unseen)
    for name, say in (("caption", caption), ("Chinese caption", caption_zh)):
        tokens = tokenizer([say(scene) for scene in unseen.scenes], padding=True)
        texts = model.get_text_features(torch.tensor(tokens["input_ids"])).pooler_output
        _show(f"clip, {name} to picture", texts, one, unseen)
        _show(f"clip, picture to {name}", one, texts, unseen)


def _show(name: str, queries: torch.Tensor, found: torch.Tensor, unseen: Pictures) -> None:
    """Print the share of queries whose nearest vector is of an equal scene."""
    nearest = (unit(queries) @ unit(found).T).argmax(dim=1)
    recall = (unseen.ids[nearest] == unseen.ids).float().mean().item()
    print(f"{name}: {recall:.1%} of {len(queries)} validation scenes", flush=True)


if __name__ == "__main__":
    main()
