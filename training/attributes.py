"""Heads that are thrown away after training: they make vectors and patches tell what is where."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from spark_vision.demo.scenes import COLOURS, RELATIONS, SHAPES, SIZES

# With 0 for nothing there.
_CLASSES = (len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1)
_RELATION_CLASSES = len(RELATIONS) + 1
# Of a patch's area, under an object's box, for the patch to be the object's.
_COVERED = 0.3


class SceneHead(nn.Module):
    """Reads the whole scene off one vector: each object, in the caption's order, and relations.

    Args:
        width: Of the vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self._sizes = [*_CLASSES * 3, *[_RELATION_CLASSES] * 2]
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
    """Reads off each patch token the colour, shape and size of the object that it lies on.

    Args:
        width: Of a token.
        patch_size: Pixels along a patch's edge.
    """

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self._patch_size = patch_size
        self._head = nn.Linear(width, sum(_CLASSES))

    def loss(
        self, tokens: torch.Tensor, objects: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor:
        """Mean cross entropy over attributes and patches.

        Args:
            tokens: float `[images, patches, width]`, row by row.
            objects: int64 `[images, 3, 3]` as `Pictures` has them.
            boxes: float `[images, 3, 4]` in pixels.

        Returns:
            A scalar.
        """
        owners = self._owners(boxes, round(tokens.shape[1] ** 0.5))
        # A row of zeros in front of the objects is what a patch of background is given.
        background = torch.zeros_like(objects[:, :1])
        choices = torch.cat([background, objects], dim=1)
        truth = choices.gather(1, owners.unsqueeze(2).expand(-1, -1, 3))
        parts = self._head(tokens).split(_CLASSES, dim=2)
        losses = [
            cross_entropy(part.flatten(0, 1), truth[..., index].flatten())
            for index, part in enumerate(parts)
        ]
        return torch.stack(losses).mean()

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
