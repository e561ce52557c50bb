"""Draws what Qwen2.5-VL is trained on: pictures of scenes, and what is asked and said of them."""

import math
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Qwen2_5_VLProcessor

from spark_vision.demo.captions import COLOURS_ZH, RELATIONS_ZH, SHAPES_ZH, SIZES_ZH
from spark_vision.demo.questions import LANGUAGES, draw_questions
from spark_vision.demo.rendering import COLOUR_VALUES, PICTURE_SIZES, Picture, render
from spark_vision.demo.scene_files import encode
from spark_vision.demo.scenes import COLOURS, RELATIONS, SHAPES, SIZES, Scene, Split, draw_scene
from training.qwen_batches import Batch, Conversation, Packer
from training.wordings import CAPTION_PROMPTS, scene_caption

# Most pictures are drawn hardly larger than the processor makes them, which takes a tenth of the
# time; the others are drawn as the scenes' files are, and go through such a file.
_SMALL_SHARE, _SMALL_PIXELS = 0.97, 20_000
_MOST_OBJECTS = 3
# An object is to be seen in a token if its box covers this much of it, and in any case in the
# token that it covers most. Of other tokens that it touches, nothing is asked.
_COVERED, NOT_ASKED = 0.25, -100
# Where there is ink is told for so many cells along the edge of a patch, and of an object's box.
# A pixel in the box has the object's ink if it is so near to its colour; backgrounds are further
# away.
INK_CELLS, OUTLINE_CELLS = 5, 8
_INK_DISTANCE = 50
# Classes of what a token shows: none, then the words of size, colour and shape, the object's place
# in the caption, and where the caption's first object is as seen from it.
TOKEN_CLASSES = {
    "size": 1 + len(SIZES),
    "colour": 1 + len(COLOURS),
    "shape": 1 + len(SHAPES),
    "place": 1 + _MOST_OBJECTS,
    "relation": 1 + len(RELATIONS),
}


@dataclass(frozen=True)
class Lesson:
    """A batch, and what its images' tokens show."""

    batch: Batch
    shown: Tensor
    """int64, [all images' tokens, 5]: of each of `TOKEN_CLASSES` one, or `NOT_ASKED`."""
    ink: Tensor
    """float32, [all images' patches, `INK_CELLS` ** 2]: how much of each cell an object covers."""
    outlines: Tensor
    """float32, [all images' tokens, `OUTLINE_CELLS` ** 2]: the same of the cells of the whole box
    of the object that a token shows."""


class Lessons(Dataset[Lesson]):
    """Lessons by number, every one drawn afresh from the seed and its number.

    All pictures of a lesson have the same size; each has a caption in each language and up to so
    many questions in either, or with none nothing is said of it.
    """

    def __init__(
        self,
        processor: Qwen2_5_VLProcessor,
        split: Split,
        seed: int,
        count: int,
        rows: int,
        questions: int | None,
    ) -> None:
        self._packer = Packer(processor)
        self._merge = processor.image_processor.merge_size
        self._split, self._seed, self._count, self._rows = split, seed, count, rows
        self._questions = questions

    def __len__(self) -> int:
        """How many lessons there are."""
        return self._count

    def __getitem__(self, index: int) -> Lesson:
        """Draw a lesson."""
        random = np.random.default_rng([self._seed, index])
        scenes = [draw_scene(random, self._split) for _ in range(self._rows)]
        size = PICTURE_SIZES[int(random.integers(len(PICTURE_SIZES)))]
        pictures = [_picture(scene, random, *size) for scene in scenes]
        batch = self._packer.pack(
            [picture.image for picture in pictures],
            [self._conversations(scene, random) for scene in scenes],
        )
        parts = [
            _truth(scene, picture, int(height), int(width), self._merge)
            for scene, picture, (_, height, width) in zip(
                scenes, pictures, batch.image_grid_thw.tolist(), strict=True
            )
        ]
        shown, ink, outlines = (
            torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)
        )
        return Lesson(batch, shown, ink, outlines)

    def _conversations(self, scene: Scene, random: np.random.Generator) -> list[Conversation]:
        if self._questions is None:
            return []
        captions = [
            self._packer.conversation(
                str(random.choice(CAPTION_PROMPTS[language])), scene_caption(scene, language)
            )
            for language in LANGUAGES
        ]
        questions = [
            question
            for language in LANGUAGES
            for question in draw_questions(scene, random, language)
        ]
        chosen = random.choice(len(questions), min(self._questions, len(questions)), replace=False)
        return captions + [
            self._packer.conversation(questions[index].text, questions[index].answer)
            for index in chosen
        ]


def tokenizer_texts(count: int = 2000, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts as they are in training, and the words that say what a scene shows."""
    random = np.random.default_rng(seed)
    texts = ["You are a helpful assistant.", "system\n", "user\n", "assistant\n"] * 10
    texts += [prompt for prompts in CAPTION_PROMPTS.values() for prompt in prompts] * 10
    for _ in range(count):
        scene = draw_scene(random, "train")
        for language in LANGUAGES:
            texts.append(scene_caption(scene, language))
            for question in draw_questions(scene, random, language):
                texts += [question.text, question.answer]
    chinese = (COLOURS_ZH, SHAPES_ZH, SIZES_ZH, RELATIONS_ZH)
    return texts, [word for words in chinese for word in words.values()]


def _picture(scene: Scene, random: np.random.Generator, width: int, height: int) -> Picture:
    if random.random() < _SMALL_SHARE:
        scale = math.sqrt(_SMALL_PIXELS / (width * height))
        return render(scene, random, (round(width * scale), round(height * scale)))
    picture = render(scene, random, (width, height))
    data, _ = encode(picture, random)
    return Picture(Image.open(BytesIO(data)).convert("RGB"), picture.boxes)


def _truth(
    scene: Scene, picture: Picture, height: int, width: int, merge: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a lesson tells of a picture of so many patches: shown, ink and outlines."""
    shown = _shown(scene, picture, height // merge, width // merge)
    ink = _ink(scene, picture)
    grid = (height // merge, merge, INK_CELLS, width // merge, merge, INK_CELLS)
    cells = _shares(ink, width * INK_CELLS, height * INK_CELLS).reshape(grid)
    outlines = np.zeros((1 + len(scene.objects), OUTLINE_CELLS**2), dtype=np.float32)
    for place, (left, top, right, bottom) in enumerate(picture.boxes, start=1):
        box = ink[top:bottom, left:right]
        outlines[place] = _shares(box, OUTLINE_CELLS, OUTLINE_CELLS).reshape(-1)
    places = shown[:, list(TOKEN_CLASSES).index("place")]
    return (
        shown,
        cells.transpose(0, 3, 1, 4, 2, 5).reshape(height * width, -1),
        outlines[places.clip(0)],
    )


def _shown(scene: Scene, picture: Picture, rows: int, columns: int) -> np.ndarray:
    """The classes of each token, [rows * columns, 5], by the object that covers it most."""
    scale = np.array([columns / picture.image.width, rows / picture.image.height])
    boxes = np.array(picture.boxes).reshape(-1, 2, 2) * scale
    covered = [
        np.outer(*(_overlaps(box[:, axis], cells) for axis, cells in ((1, rows), (0, columns))))
        for box in boxes
    ]
    areas = np.stack(covered).reshape(len(boxes), -1)
    classes = np.array([_classes(scene, index) for index in range(len(scene.objects))])
    most = areas.max(axis=0)[:, None]
    shown = np.where(most == 0, 0, NOT_ASKED)
    shown = np.where(most >= _COVERED, classes[areas.argmax(axis=0)], shown)
    shown[areas.argmax(axis=1)] = classes
    return shown


def _ink(scene: Scene, picture: Picture) -> np.ndarray:
    """255 where a pixel has the colour of the object whose box it is in, 0 elsewhere."""
    pixels = np.asarray(picture.image, dtype=np.float32)
    ink = np.zeros(pixels.shape[:2], dtype=np.uint8)
    for thing, (left, top, right, bottom) in zip(scene.objects, picture.boxes, strict=True):
        box = np.s_[top:bottom, left:right]
        distances = np.linalg.norm(pixels[box] - COLOUR_VALUES[thing.colour], axis=2)
        ink[box] |= np.where(distances < _INK_DISTANCE, 255, 0).astype(np.uint8)
    return ink


def _shares(ink: np.ndarray, width: int, height: int) -> np.ndarray:
    cells = Image.fromarray(ink).resize((width, height), Image.Resampling.BOX)
    return np.asarray(cells, dtype=np.float32) / 255


def _overlaps(span: np.ndarray, cells: int) -> np.ndarray:
    """How much of each cell 0..1, 1..2, ... a span covers."""
    edges = np.arange(cells + 1)
    return (np.minimum(span[1], edges[1:]) - np.maximum(span[0], edges[:-1])).clip(0)


def _classes(scene: Scene, index: int) -> list[int]:
    thing = scene.objects[index]
    return [
        1 + SIZES.index(thing.size),
        1 + COLOURS.index(thing.colour),
        1 + SHAPES.index(thing.shape),
        1 + index,
        1 + RELATIONS.index(scene.relations[index - 1]) if index else 0,
    ]
