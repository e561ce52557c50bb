"""What `write_scenes` noted beside its pictures, and what the demonstration asks because of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spark_vision.demo.captions import caption, caption_zh
from spark_vision.demo.questions import LANGUAGES, Question, draw_questions
from spark_vision.demo.scenes import Scene, SceneObject

TRUTH_FILE = "scenes.jsonl"


@dataclass(frozen=True)
class Truth:
    """What a picture shows.

    Attributes:
        file: The picture's name.
        scene: What was drawn.
    """

    file: str
    scene: Scene


def read_truth(images: str) -> list[Truth]:
    """Read what `write_scenes` noted.

    Args:
        images: The pictures' folder, or a glob of files in it.

    Returns:
        The truths in the order of the files; none where nobody noted any.
    """
    folder = Path(images)
    path = (folder if folder.is_dir() else folder.parent) / TRUTH_FILE
    if not path.is_file():
        return []
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return [Truth(line["file"], _scene(line)) for line in lines]


def example_texts(truths: Sequence[Truth]) -> list[str]:
    """Choose texts to look for: a scene of each count of objects, and one of them in Chinese."""
    by_count = {len(truth.scene.objects): truth.scene for truth in reversed(truths)}
    examples = [scene for _, scene in sorted(by_count.items())]
    return [caption(scene) for scene in examples] + [caption_zh(scene) for scene in examples[1:2]]


def example_questions(truth: Truth, seed: int = 0) -> list[Question]:
    """Ask what can be asked of a picture, in English and in Chinese."""
    random = np.random.default_rng(seed)
    return [
        question
        for language in LANGUAGES
        for question in draw_questions(truth.scene, random, language)
    ]


def _scene(line: dict[str, list[dict[str, str]]]) -> Scene:
    objects = (
        SceneObject(thing["size"], thing["colour"], thing["shape"]) for thing in line["objects"]
    )
    return Scene(tuple(objects), tuple(related["relation"] for related in line["relations"]))
