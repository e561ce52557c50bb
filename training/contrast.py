"""The contrastive loss: vectors of the same scene together, those of any other scene apart."""

import torch


def contrastive_loss(
    one: torch.Tensor, other: torch.Tensor, same: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Symmetric cross entropy of CLIP (arXiv:2103.00020), with several right answers per row.

    A row's target is spread evenly over all columns of its scene (arXiv:2004.11362).

    Args:
        one: float `[rows, width]`, of any length.
        other: float `[columns, width]`, likewise; `one` itself where pictures are compared with
            each other, each with all but itself.
        same: bool `[rows, columns]`: whether both show, or tell of, the same scene.
        scale: Scalar by which cosines are multiplied.

    Returns:
        A scalar.
    """
    logits = (unit(one) @ unit(other).T) * scale
    if one is other:
        itself = torch.eye(len(one), dtype=torch.bool)
        same = same & ~itself
        logits = logits.masked_fill(itself, -torch.inf)
    return (_cross_entropy(logits, same) + _cross_entropy(logits.T, same.T)) / 2


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Scale each vector, along the last dimension, to length 1."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def _cross_entropy(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    # Without the zeros first, 0 times the -inf of a left-out comparison would be nan.
    surprise = logits.log_softmax(dim=1).masked_fill(~same, 0)
    return -(surprise.sum(dim=1) / same.sum(dim=1)).mean()
