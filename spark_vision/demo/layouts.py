"""Where the objects of a scene stand in a picture: random places that keep its relations true."""

from dataclasses import dataclass

import numpy as np

from spark_vision.demo.scenes import Scene

# Diameters as shares of the picture's shorter edge. The gap between them is wide enough that a
# picture squashed to a square, up to 3:2, still tells them apart.
DIAMETERS = {"small": (0.14, 0.165), "large": (0.24, 0.34)}

# How far a shape may reach from its centre, in radii, whatever its rotation.
REACH = 1.2

_DIRECTIONS = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
# Along the relation's axis the distance is at least this many times that across it.
_DOMINANCE = 1.6
_MARGIN = 0.02
_TRIES = 256


@dataclass(frozen=True)
class Place:
    """Where one object stands.

    Attributes:
        x: Its centre, in shorter edges from the left.
        y: Its centre, in shorter edges from the top.
        diameter: Of the circle that it would be, in shorter edges.
    """

    x: float
    y: float
    diameter: float


def place(scene: Scene, random: np.random.Generator, width: float, height: float) -> list[Place]:
    """Find a place for each object, none touching another, so that every relation is clear.

    Args:
        scene: What is shown.
        random: Decides the places.
        width: Of the picture in shorter edges, at least 1.
        height: Likewise.

    Returns:
        A place for each object.
    """
    area = np.array([width, height])
    ranges = np.array([DIAMETERS[thing.size] for thing in scene.objects])
    while True:
        # Some tries are smaller and denser than others: three large ones in a row hardly fit.
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
    """Centres, [tries, objects, 2], as seen from the first object's."""
    centres = np.zeros((*reaches.shape, 2))
    for index, relation in enumerate(scene.relations, start=1):
        direction = np.array(_DIRECTIONS[relation])
        axis = int(np.argmax(np.abs(direction)))
        nearest = reaches[:, 0] + reaches[:, index] + _MARGIN
        share = random.random(len(reaches)) * spread
        along = nearest + share * np.maximum(area[axis] - 2 * nearest, 0)
        # In the picture and in its square version alike.
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
