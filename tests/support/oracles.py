"""Pictures to compare on, and how close two sets of vectors are."""

import torch


def draw_pictures(count: int, height: int = 75, width: int = 100, seed: int = 0) -> torch.Tensor:
    """Draw pictures that differ in colours, edges and grain, and have no symmetry.

    Returns:
        uint8 `[count, 3, height, width]` RGB, planar.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=generator)

    rows = torch.linspace(0, 1, height)[:, None]
    columns = torch.linspace(0, 1, width)[None, :]
    sky, ground = draw(3, 1, 1), draw(3, 1, 1)
    pictures = sky + (ground - sky) * rows
    for _ in range(4):
        centre_row, centre_column, radius = (draw(1, 1, 1) for _ in range(3))
        distance = ((rows - centre_row) ** 2 + (columns - centre_column) ** 2).sqrt()
        inside = (distance < 0.1 + 0.3 * radius).float()
        pictures = pictures + inside * (draw(3, 1, 1) - pictures)
    grain = draw(3, height, width) - 0.5
    return ((pictures + 0.3 * grain).clamp(0, 1) * 255).to(torch.uint8)


def cosine(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the least cosine between rows that should be the same."""
    return (
        torch.nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=-1).min().item()
    )


def centred_cosine(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the least cosine after the mean of the true vectors is subtracted from both.

    What all vectors share says nothing of an input, and hides differences that matter.
    """
    mean = theirs.mean(dim=0, keepdim=True)
    return cosine(ours - mean, theirs - mean)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two sets of vectors count as the same in float32."""
    return (
        ours.shape == theirs.shape
        and cosine(ours, theirs) >= 0.9999
        and centred_cosine(ours, theirs) >= 0.999
    )
