"""Trains a DINOv2 whose CLS token is nearest to that of another picture of the same scene."""

import math

import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from training.attributes import PatchHead, SceneHead
from training.chunks import in_chunks
from training.contrast import contrastive_loss
from training.pictures import IMAGE_SIZE, Pictures, pair_rows
from training.pixels import scaled
from training.schedule import Schedule
from training.starting_weights import set_starting_weights

PATCH_SIZE = 8
_PAIRS = 32
_RATE = 3e-3
_IMAGES_TO_START = 1500
_HOTTEST = math.log(50)


def train(pictures: Pictures, steps: int, seed: int) -> Dinov2Model:
    """Train from random weights.

    Args:
        pictures: Two renderings of each scene.
        steps: of 32 pairs of scenes, 128 pictures, each.
        seed: Decides the weights and the order of the pictures.

    Returns:
        The model, float32.
    """
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    model = Dinov2Model(config)
    set_starting_weights(model, scaled(pictures.pixels[:_IMAGES_TO_START, 0]))
    width = config.hidden_size
    heads = nn.ModuleList([SceneHead(width), PatchHead(width, PATCH_SIZE)])
    scene_head, patch_head = heads
    scale = nn.Parameter(torch.tensor(math.log(10.0)))
    schedule = Schedule(
        "dinov2", [*model.parameters(), *heads.parameters(), scale], steps, _RATE, [model]
    )
    for step in schedule:
        rows = pair_rows(len(pictures.scenes), _PAIRS)
        ids = pictures.ids[rows].repeat_interleave(2)
        objects = pictures.objects[rows].repeat_interleave(2, dim=0)
        relations = pictures.relations[rows].repeat_interleave(2, dim=0)
        pixels = scaled(pictures.pixels[rows].flatten(0, 1), jitter=True)
        tokens = in_chunks(model, "last_hidden_state", pixels)
        vectors = tokens[:, 0]
        boxes = pictures.boxes[rows].flatten(0, 1)
        schedule.learn(
            step,
            {
                "contrast": contrastive_loss(
                    vectors, vectors, ids.unsqueeze(1) == ids, scale.clamp(max=_HOTTEST).exp()
                ),
                "scene": scene_head.loss(vectors, objects, relations),
                "patches": patch_head.loss(tokens[:, 1:], objects, relations, boxes),
            },
        )
    return model.eval()


@torch.no_grad()
def cls_vectors(model: Dinov2Model, pixels: torch.Tensor) -> torch.Tensor:
    """Compute CLS tokens: float32 `[scenes, renderings, width]` of uint8 pixels as drawn."""
    parts = [
        in_chunks(model, "last_hidden_state", scaled(part))[:, 0]
        for part in pixels.flatten(0, 1).split(256)
    ]
    return torch.cat(parts).unflatten(0, pixels.shape[:2])
