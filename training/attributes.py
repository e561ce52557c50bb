"""Heads that are thrown away after training: they make vectors and patches tell what is where."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from spark_vision.demo.scenes import COLOURS, RELATIONS, SHAPES, SIZES

# With 0 for nothing there.
_CLASSES = (len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1)
_RELATION_CLASSES = len(RELATIONS) + 1
_MOST_OBJECTS = 3
# Of a patch's area, under an object's box, for the patch to be the object's.
_COVERED = 0.3


class SceneHead(nn.Module):
    """Reads the whole scene off one vector: each object, in the caption's order, and relations.

    Args:
        width: Of the vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self._sizes = [*_CLASSES * _MOST_OBJECTS, *[_RELATION_CLASSES] * (_MOST_OBJECTS - 1)]
        self._head = nn.Linear(width, sum(self._sizes))

    def loss(
        self, vectors: torch.Tensor, objects: torch.Tensor, relations: torch.Tensor
    ) -> torch.Tensor:
        """Mean cross entropy over attributes.

        Args:
            vectors: float `[scenes, width]`.
            objects: int64 `[scenes, 3, 3]` as `Pictures` has them.
            relations: int64 `[scenes, 2]`.

        Returns:
            A scalar.
        """
        truths = [*objects.flatten(1).unbind(1), *relations.unbind(1)]
        parts = self._head(vectors).split(self._sizes, dim=1)
        losses = [cross_entropy(part, truth) for part, truth in zip(parts, truths, strict=True)]
        return torch.stack(losses).mean()


class PatchHead(nn.Module):
    """Reads off each patch token all that the caption says of the object that it lies on.

    That is its colour, shape and size, which object of the caption it is, and where the first one
    is as seen from it. So most of a scene is put together before one vector has to hold it, and
    is learnt several times as fast.

    Args:
        width: Of a token.
        patch_size: Pixels along a patch's edge.
    """

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self._patch_size = patch_size
        self._sizes = (*_CLASSES, _MOST_OBJECTS + 1, _RELATION_CLASSES)
        self._head = nn.Linear(width, sum(self._sizes))

    def loss(
        self,
        tokens: torch.Tensor,
        objects: torch.Tensor,
        relations: torch.Tensor,
        boxes: torch.Tensor,
    ) -> torch.Tensor:
        """Mean cross entropy over what is read, objects' patches counting as much as all others.

        Args:
            tokens: float `[images, patches, width]`, row by row.
            objects: int64 `[images, 3, 3]` as `Pictures` has them.
            relations: int64 `[images, 2]`.
            boxes: float `[images, 3, 4]` in pixels.

        Returns:
            A scalar.
        """
        owners = self._owners(boxes, round(tokens.shape[1] ** 0.5))
        seen = torch.cat([torch.zeros_like(relations[:, :1]), relations], dim=1).unsqueeze(2)
        of_objects = torch.cat([objects, seen], dim=2)
        # A row of zeros in front of the objects is what a patch of background is given.
        choices = torch.cat([torch.zeros_like(of_objects[:, :1]), of_objects], dim=1)
        read = choices.gather(1, owners.unsqueeze(2).expand(-1, -1, choices.shape[2]))
        truths = [*read[..., :3].unbind(2), owners, read[..., 3]]
        parts = self._head(tokens).split(self._sizes, dim=2)
        losses = torch.stack(
            [
                cross_entropy(part.transpose(1, 2), truth, reduction="none")
                for part, truth in zip(parts, truths, strict=True)
            ]
        )
        on_object = owners > 0
        return (losses[:, on_object].mean() + losses[:, ~on_object].mean()) / 2

    def _owners(self, boxes: torch.Tensor, side: int) -> torch.Tensor:
        """int64 `[images, patches]`: which object each patch lies on, from 1, and 0 for none."""
        edges = torch.arange(side + 1) * float(self._patch_size)
        starts, ends = edges[:-1], edges[1:]
        left, top, right, bottom = boxes.unsqueeze(-1).unbind(2)
        across = (right.minimum(ends) - left.maximum(starts)).clamp(min=0)
        down = (bottom.minimum(ends) - top.maximum(starts)).clamp(min=0)
        covered = (down.unsqueeze(3) * across.unsqueeze(2)).flatten(2)
        most, owner = covered.max(dim=1)
        return torch.where(most >= _COVERED * self._patch_size**2, owner + 1, 0)
