"""Trains a CLIP: a text tower onto the pictures' vectors of a trained DINOv2, then both together.

The first part is locked-image tuning (arXiv:2111.07991): the vision tower starts from DINOv2's
weights, which mean something already, and texts learn to say what its vectors say.
"""

import math

import numpy as np
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Model

from spark_vision.demo.captions import caption
from training.attributes import PatchHead, SceneHead
from training.chunks import in_chunks
from training.clip_tokenizer import CONTEXT_LENGTH
from training.contrast import contrastive_loss
from training.dinov2 import cls_vectors
from training.pictures import Pictures, pair_rows
from training.pixels import scaled
from training.schedule import Schedule
from training.wordings import wording

_PAIRS = 96
_TEXT_LAYERS = 3
_TEXT_RATE = 2e-3
_RATE = 1.5e-3
_IMAGES_TO_START = 500
_HOTTEST = math.log(100)


def train(
    pictures: Pictures,
    start: Dinov2Model,
    tokenizer: CLIPTokenizer,
    text_steps: int,
    steps: int,
    seed: int,
) -> CLIPModel:
    """Train the text tower, then all of it.

    Args:
        pictures: Of scenes, with any number of renderings.
        start: A trained model whose weights the vision tower begins with.
        tokenizer: Of the text tower.
        text_steps: Of 192 scenes each, in which only texts learn.
        steps: Of 192 scenes each, in which everything learns.
        seed: Decides the weights, the texts and the order of the pictures.

    Returns:
        The model, float32.
    """
    torch.manual_seed(seed)
    model = CLIPModel(_config(start, tokenizer))
    _take_over(model.vision_model, start, scaled(pictures.pixels[:_IMAGES_TO_START, 0]))
    # Vectors of pictures are DINOv2's at first.
    nn.init.eye_(model.visual_projection.weight)
    lesson = _Lesson(model, pictures, tokenizer, np.random.default_rng(seed))
    texts = [*model.text_model.parameters(), *model.text_projection.parameters()]
    heads = [*lesson.scene_head.parameters(), *lesson.patch_head.parameters()]
    # One rendering is enough for texts, and takes half the time.
    known = cls_vectors(start, pictures.pixels[:, :1])[:, 0]
    schedule = Schedule(
        "clip, texts",
        [*texts, *heads, model.logit_scale],
        text_steps,
        _TEXT_RATE,
        [model.text_model],
    )
    for step in schedule:
        rows = pair_rows(len(pictures.scenes), _PAIRS)
        schedule.learn(step, lesson.losses(rows, known[rows]))
    schedule = Schedule(
        "clip", [*model.parameters(), *heads], steps, _RATE, [model.text_model, model.vision_model]
    )
    for step in schedule:
        rows = pair_rows(len(pictures.scenes), _PAIRS)
        rendering = int(torch.randint(pictures.pixels.shape[1], ()))
        pixels = scaled(pictures.pixels[rows, rendering], jitter=True)
        hidden = in_chunks(model.vision_model, "last_hidden_state", pixels)
        tokens = model.vision_model.post_layernorm(hidden)
        losses = lesson.losses(rows, model.visual_projection(tokens[:, 0]))
        losses["patches"] = lesson.patch_head.loss(
            tokens[:, 1:],
            pictures.objects[rows],
            pictures.relations[rows],
            pictures.boxes[rows, rendering],
        )
        schedule.learn(step, losses)
    return model.eval()


class _Lesson:
    """What texts and vectors of pictures are asked to do together."""

    def __init__(
        self,
        model: CLIPModel,
        pictures: Pictures,
        tokenizer: CLIPTokenizer,
        random: np.random.Generator,
    ) -> None:
        width = model.config.projection_dim
        self.scene_head = SceneHead(width)
        self.patch_head = PatchHead(
            model.config.vision_config.hidden_size, model.config.vision_config.patch_size
        )
        self._model = model
        self._pictures = pictures
        self._tokenizer = tokenizer
        self._random = random

    def losses(self, rows: torch.Tensor, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compare vectors of pictures, `[rows, width]`, with captions and with other wordings."""
        scenes = [self._pictures.scenes[row] for row in rows.tolist()]
        worded = [wording(scene, self._random) for scene in scenes]
        texts = self._text_vectors([*map(caption, scenes), *(text for text, _ in worded)])
        captions, others = texts.chunk(2)
        same, alike = self._same(rows, torch.tensor([sized for _, sized in worded]))
        scale = self._model.logit_scale.clamp(max=_HOTTEST).exp()
        objects, relations = self._pictures.objects[rows], self._pictures.relations[rows]
        return {
            "captions": contrastive_loss(vectors, captions, same, scale),
            "wordings": contrastive_loss(vectors, others, alike, scale),
            # By one head: a picture and its caption say it in the same way.
            "scene": self.scene_head.loss(vectors, objects, relations)
            + self.scene_head.loss(captions, objects, relations),
        }

    def _same(self, rows: torch.Tensor, sized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bool `[rows, rows]`: which captions, and which wordings, fit which picture."""
        ids = self._pictures.ids[rows]
        same = ids.unsqueeze(1) == ids
        # A text that says nothing of size fits scenes that differ in nothing else.
        sizeless = torch.cat(
            [self._pictures.objects[rows, :, :2].flatten(1), self._pictures.relations[rows]], dim=1
        )
        fits = (sizeless.unsqueeze(1) == sizeless).all(dim=2)
        return same, torch.where(sized, same, fits)

    def _text_vectors(self, texts: list[str]) -> torch.Tensor:
        tokens = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=CONTEXT_LENGTH,
            return_tensors="pt",
            return_attention_mask=False,
        )["input_ids"]
        # Attention is causal and padding comes last: no mask is needed.
        pooled = in_chunks(self._model.text_model, "pooler_output", tokens)
        vectors: torch.Tensor = self._model.text_projection(pooled)
        return vectors


def _config(start: Dinov2Model, tokenizer: CLIPTokenizer) -> CLIPConfig:
    vision = start.config
    width = vision.hidden_size
    return CLIPConfig(
        projection_dim=width,
        vision_config={
            "hidden_size": width,
            "intermediate_size": width * vision.mlp_ratio,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": vision.hidden_act,
            "layer_norm_eps": vision.layer_norm_eps,
            "projection_dim": width,
        },
        text_config={
            "hidden_size": width,
            "intermediate_size": width * 4,
            "num_hidden_layers": _TEXT_LAYERS,
            "num_attention_heads": 4,
            "hidden_act": "gelu",
            "vocab_size": len(tokenizer),
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "projection_dim": width,
        },
    )


@torch.no_grad()
def _take_over(tower: nn.Module, start: Dinov2Model, images: torch.Tensor) -> None:
    """Give CLIP's vision tower the weights of a DINOv2; what one lacks is folded into others.

    Args:
        tower: What is overwritten.
        start: Of the same sizes.
        images: float `[images, 3, size, size]` as the model sees them; some hundreds do.
    """
    given = start.embeddings
    projection = given.patch_embeddings.projection
    positions = given.position_embeddings[0].clone()
    # CLIP's patch projection has no bias; its positions can carry it.
    positions[1:] += projection.bias
    embeddings = tower.embeddings
    embeddings.class_embedding.copy_(given.cls_token[0, 0])
    embeddings.patch_embedding.weight.copy_(projection.weight)
    embeddings.position_embedding.weight.copy_(positions)
    # CLIP norms tokens before its first layer; scaled back, they are about what they were.
    tower.pre_layrnorm.weight.fill_(given(images).std(dim=2).mean())
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp": "mlp"}
    for layer, old in zip(tower.encoder.layers, start.encoder.layer, strict=True):
        for old_name, name in names.items():
            getattr(layer, name).load_state_dict(getattr(old, old_name).state_dict())
        for name in ("q_proj", "k_proj", "v_proj"):
            taken = getattr(old.attention, name).state_dict()
            getattr(layer.self_attn, name).load_state_dict(taken)
        # DINOv2 scales what a layer adds; CLIP does not.
        _scale_into(layer.self_attn.out_proj, old.attention.o_proj, old.layer_scale1.lambda1)
        _scale_into(layer.mlp.fc2, old.mlp.fc2, old.layer_scale2.lambda1)
    tower.post_layernorm.load_state_dict(start.layernorm.state_dict())


def _scale_into(linear: nn.Linear, old: nn.Linear, scale: torch.Tensor) -> None:
    linear.weight.copy_(old.weight * scale.unsqueeze(1))
    linear.bias.copy_(old.bias * scale)
