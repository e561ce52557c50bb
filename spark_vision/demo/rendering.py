"""Renders a scene as an image: its objects on a random background, with noise."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from spark_vision.demo.layouts import place
from spark_vision.demo.scenes import Scene

# Width and height in pixels, typical of small photographs and thumbnails.
PICTURE_SIZES = ((320, 240), (240, 320), (500, 375), (375, 500), (256, 256), (640, 427))

COLOUR_VALUES = {
    "red": (215, 40, 40),
    "orange": (245, 135, 25),
    "yellow": (250, 220, 45),
    "green": (40, 160, 65),
    "blue": (45, 85, 215),
    "purple": (145, 55, 185),
    "black": (18, 18, 18),
    "white": (246, 246, 246),
}
_COLOUR_JITTER = 12
# Minimum Euclidean distance in RGB between the background and the colour of every object.
_CONTRAST = 75
_STRONGEST_NOISE = 8.0
# Masks are drawn larger and then reduced, for smooth edges.
_OVERSAMPLING = 4
# Lookup table from 8-bit coverage: a pixel at least half covered belongs to the object.
_HALF_COVERED = [0] * 128 + [255] * 128


@dataclass(frozen=True)
class Picture:
    """A rendered scene.

    Attributes:
        image: RGB pixels.
        boxes: For each object, left, top, right and bottom in pixels; right and bottom are
            exclusive.
    """

    image: Image.Image
    boxes: tuple[tuple[int, int, int, int], ...]


def render(
    scene: Scene, random: np.random.Generator, size: tuple[int, int] | None = None
) -> Picture:
    """Render a scene.

    Args:
        scene: The scene.
        random: Chooses places, background, noise and exact colours. The result depends only on the
            scene, the size and the state of this generator.
        size: Width and height in pixels; by default one of `PICTURE_SIZES`.

    Returns:
        The image and the boxes of its objects.
    """
    width, height = size or PICTURE_SIZES[int(random.integers(len(PICTURE_SIZES)))]
    edge = min(width, height)
    colours = [_jittered(COLOUR_VALUES[thing.colour], random) for thing in scene.objects]
    image = Image.fromarray(_background(random, width, height, colours).astype(np.uint8))
    boxes = []
    for thing, spot, colour in zip(
        scene.objects, place(scene, random, width / edge, height / edge), colours, strict=True
    ):
        mask, left, top = _mask(
            thing.shape, random, spot.x * edge, spot.y * edge, spot.diameter * edge / 2
        )
        image.paste(colour, (left, top), mask)
        inside = mask.point(_HALF_COVERED).getbbox()
        assert inside is not None, f"a {thing.shape} without a pixel in {width}x{height}"
        boxes.append((left + inside[0], top + inside[1], left + inside[2], top + inside[3]))
    noise = random.standard_normal((height, width, 1), dtype=np.float32)
    noisy = np.asarray(image) + noise * np.float32(random.uniform(0, _STRONGEST_NOISE))
    return Picture(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), tuple(boxes))


def _jittered(colour: tuple[int, ...], random: np.random.Generator) -> tuple[int, ...]:
    jitter = random.integers(-_COLOUR_JITTER, _COLOUR_JITTER + 1, 3)
    return tuple(int(value) for value in np.clip(np.array(colour) + jitter, 0, 255))


def _background(
    random: np.random.Generator, width: int, height: int, colours: list[tuple[int, ...]]
) -> np.ndarray:
    """Return float32 pixels, [height, width, 3]: plain, a gradient or a soft texture."""
    taken = np.array(colours, dtype=np.float32)
    kind = int(random.integers(3))
    if kind == 0:
        return np.full((height, width, 3), _free_colour(random, taken), dtype=np.float32)
    corners = np.empty((2, 2, 3), dtype=np.float32)
    base = _free_colour(random, taken)
    if kind == 1:
        for row in range(2):
            for column in range(2):
                corners[row, column] = _free_colour(random, taken, near=base)
    else:
        shape = (int(random.integers(4, 12)), int(random.integers(4, 12)), 1)
        corners = base + random.uniform(-14, 14, shape).astype(np.float32)
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(corners[..., channel])).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for channel in range(3)
    ]
    return np.stack(channels, axis=2).clip(0, 255)


def _free_colour(
    random: np.random.Generator, taken: np.ndarray, near: np.ndarray | None = None
) -> np.ndarray:
    """Return a muted colour, [3], that differs from the objects' colours."""
    while True:
        if near is None:
            colour = random.uniform(35, 230) + random.uniform(-25, 25, 3)
        else:
            colour = near + random.uniform(-35, 35) + random.uniform(-10, 10, 3)
        if (np.linalg.norm(taken - colour, axis=1) >= _CONTRAST).all():
            return colour.clip(0, 255).astype(np.float32)


def _mask(
    shape: str, random: np.random.Generator, x: float, y: float, radius: float
) -> tuple[Image.Image, int, int]:
    """Return the shape's 8-bit coverage mask, and its left and top in the image."""
    reach = math.ceil(radius * 1.25) + 1
    left, top = round(x) - reach, round(y) - reach
    side = 2 * reach * _OVERSAMPLING
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    centre = np.array([x - left, y - top]) * _OVERSAMPLING
    scaled = radius * _OVERSAMPLING
    if shape in ("circle", "ring"):
        pen.ellipse([*(centre - scaled), *(centre + scaled)], fill=255)
        if shape == "ring":
            hole = scaled * random.uniform(0.5, 0.6)
            pen.ellipse([*(centre - hole), *(centre + hole)], fill=0)
    else:
        # Small enough that a square is not a diamond and a cross not an x.
        angle = math.radians(random.uniform(-12, 12))
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        corners = centre + np.array(_CORNERS[shape]) @ turn * scaled
        pen.polygon([(float(x), float(y)) for x, y in corners], fill=255)
    return mask.reduce(_OVERSAMPLING), left, top


def _on_circle(angle: float, radius: float) -> tuple[float, float]:
    return radius * math.sin(math.radians(angle)), -radius * math.cos(math.radians(angle))


# In radii from the centre, y downwards; at most `layouts.REACH` from it.
_CORNERS = {
    "square": ((-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)),
    "triangle": tuple(_on_circle(angle, 1.2) for angle in (0, 120, 240)),
    "star": tuple(_on_circle(36 * point, 1.2 if point % 2 == 0 else 0.48) for point in range(10)),
    "cross": (
        *((-0.34, -1.05), (0.34, -1.05), (0.34, -0.34), (1.05, -0.34)),
        *((1.05, 0.34), (0.34, 0.34), (0.34, 1.05), (-0.34, 1.05)),
        *((-0.34, 0.34), (-1.05, 0.34), (-1.05, -0.34), (-0.34, -0.34)),
    ),
}
