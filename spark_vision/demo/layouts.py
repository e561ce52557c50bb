"""Places the objects of a scene at random, such that its relations are true."""

from dataclasses import dataclass

import numpy as np

from spark_vision.demo.scenes import Scene

# Diameters as shares of the shorter edge of the image. The gap between small and large is wide
# enough to remain clear when an image of up to 3:2 is resized to a square.
DIAMETERS = {"small": (0.14, 0.165), "large": (0.24, 0.34)}

# Maximum extent of a shape from its centre, in radii, for any rotation.
REACH = 1.2

_DIRECTIONS = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
# Minimum ratio of the distance along the axis of a relation to the distance across it.
_DOMINANCE = 1.6
_MARGIN = 0.02
_TRIES = 256


@dataclass(frozen=True)
class Place:
    """The place of one object, in units of the shorter edge of the image.

    Attributes:
        x: Its centre, from the left.
        y: Its centre, from the top.
        diameter: The diameter of a circle of the same size.
    """

    x: float
    y: float
    diameter: float


def place(scene: Scene, random: np.random.Generator, width: float, height: float) -> list[Place]:
    """Find a place for each object, without overlap, such that every relation is clear.

    Args:
        scene: The scene.
        random: The random generator.
        width: The width of the image in shorter edges, at least 1.
        height: The height, likewise.

    Returns:
        One place per object.
    """
    area = np.array([width, height])
    ranges = np.array([DIAMETERS[thing.size] for thing in scene.objects])
    while True:
        # Vary size and density between tries: three large objects in a row hardly fit.
        spread = random.random((_TRIES, 1))
        shares = random.random((_TRIES, len(ranges))) * spread
        diameters = ranges[:, 0] + shares * (ranges[:, 1] - ranges[:, 0])
        reaches = diameters / 2 * REACH
        centres = _around_first(scene, random, reaches, area, spread[:, 0])
        lowest = (centres - reaches[..., None]).min(axis=1)
        highest = (centres + reaches[..., None]).max(axis=1)
        slack = area - 2 * _MARGIN - (highest - lowest)
        fits = (slack >= 0).all(axis=1) & _apart(centres, reaches)
        if fits.any():
            chosen = int(np.argmax(fits))
            shift = _MARGIN + random.random(2) * slack[chosen] - lowest[chosen]
            return [
                Place(float(x), float(y), float(diameter))
                for (x, y), diameter in zip(centres[chosen] + shift, diameters[chosen], strict=True)
            ]


def _around_first(
    scene: Scene,
    random: np.random.Generator,
    reaches: np.ndarray,
    area: np.ndarray,
    spread: np.ndarray,
) -> np.ndarray:
    """Return centres, [tries, objects, 2], relative to the first object."""
    centres = np.zeros((*reaches.shape, 2))
    for index, relation in enumerate(scene.relations, start=1):
        direction = np.array(_DIRECTIONS[relation])
        axis = int(np.argmax(np.abs(direction)))
        nearest = reaches[:, 0] + reaches[:, index] + _MARGIN
        share = random.random(len(reaches)) * spread
        along = nearest + share * np.maximum(area[axis] - 2 * nearest, 0)
        # Holds both for the image and for the image resized to a square.
        dominance = _DOMINANCE * max(1.0, area[axis] / area[1 - axis])
        across = along / dominance * random.uniform(-1, 1, len(reaches))
        centres[:, index, axis] = along * direction[axis]
        centres[:, index, 1 - axis] = across
    return centres


def _apart(centres: np.ndarray, reaches: np.ndarray) -> np.ndarray:
    apart = np.ones(len(centres), dtype=bool)
    for one in range(centres.shape[1]):
        for other in range(one):
            distance = np.linalg.norm(centres[:, one] - centres[:, other], axis=1)
            apart &= distance >= reaches[:, one] + reaches[:, other] + _MARGIN
    return apart
