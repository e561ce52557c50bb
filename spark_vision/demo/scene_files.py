"""Writes scenes as image files of several formats, with their ground truth."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np

from spark_vision.demo.captions import caption, caption_zh
from spark_vision.demo.ground_truth import TRUTH_FILE
from spark_vision.demo.rendering import Picture, render
from spark_vision.demo.scenes import Scene, Split, draw_scenes

_FORMATS = ("JPEG", "PNG", "WEBP")
_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def write_scenes(
    folder: Path | str,
    count: int,
    seed: int,
    split: Split = "test",
    renderings: int = 1,
    broken: bool = False,
) -> list[Path]:
    """Draw distinct scenes and write them as JPEG, PNG and WebP files.

    `scenes.jsonl` in the same folder has a line for each file: `file` (its name), `scene` (an
    integer, the same for all renderings of a scene), `caption`, `caption_zh`, `objects` (each with
    `size`, `colour`, `shape` and `box`: left, top, right, bottom in pixels) and `relations` (each
    with `subject` and `object`, indices into `objects`, and `relation`).

    Args:
        folder: Created if missing; existing files are overwritten.
        count: Number of scenes.
        seed: Determines every byte of the output; a larger count only adds files.
        split: One of `SPLITS`.
        renderings: Number of images per scene; they differ in places, background, size and noise.
        broken: Also write three files that are not valid images: `empty.jpg`, `text.jpg` and
            `truncated.jpg`. They are not in `scenes.jsonl`.

    Returns:
        The paths of the images, scene by scene, then those of the broken files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths, lines = [], []
    for index, scene in enumerate(draw_scenes(count, seed, split)):
        for rendering in range(renderings):
            random = np.random.default_rng([seed, index, rendering])
            picture = render(scene, random)
            data, suffix = encode(picture, random)
            path = folder / f"scene-{index:05}-{rendering}.{suffix}"
            path.write_bytes(data)
            paths.append(path)
            lines.append(json.dumps(_truth(path, index, scene, picture), ensure_ascii=False))
    if broken:
        paths += _write_broken(folder, seed)
    # Written last: if it exists, all other files do.
    (folder / TRUTH_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def encode(picture: Picture, random: np.random.Generator) -> tuple[bytes, str]:
    """Encode an image.

    Args:
        picture: The image.
        random: Chooses the format and its quality.

    Returns:
        The encoded bytes and the file suffix.
    """
    kind = _FORMATS[int(random.integers(len(_FORMATS)))]
    buffer = BytesIO()
    quality = int(random.integers(60, 96))
    # PNG is lossless, so fast compression only makes the file larger.
    options = {"compress_level": 1} if kind == "PNG" else {"quality": quality}
    picture.image.save(buffer, kind, **options)
    return buffer.getvalue(), _SUFFIXES[kind]


def _truth(path: Path, index: int, scene: Scene, picture: Picture) -> dict[str, object]:
    return {
        "file": path.name,
        "scene": index,
        "caption": caption(scene),
        "caption_zh": caption_zh(scene),
        "objects": [
            {"size": thing.size, "colour": thing.colour, "shape": thing.shape, "box": box}
            for thing, box in zip(scene.objects, picture.boxes, strict=True)
        ],
        "relations": [
            {"subject": 0, "relation": relation, "object": other}
            for other, relation in enumerate(scene.relations, start=1)
        ],
    }


def _write_broken(folder: Path, seed: int) -> list[Path]:
    random = np.random.default_rng(seed)
    buffer = BytesIO()
    render(draw_scenes(1, seed)[0], random).image.save(buffer, "JPEG")
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"This is not an image.\n",
        "truncated.jpg": buffer.getvalue()[: buffer.tell() // 2],
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in contents]
