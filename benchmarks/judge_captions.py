"""Judges a captioner on scenes of any seed, by plain transformers: captions and answers.

    python benchmarks/judge_captions.py [FOLDER] --seed 7 --count 500 [--split held_out_pairs]

Every figure stands beside a control, the same texts asked of another scene's picture, and answers
also beside the share that the commonest answer would get.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from spark_vision.demo import checkpoint_path
from spark_vision.demo.caption_scores import caption_scores
from spark_vision.demo.questions import (
    CAPTION_PROMPTS,
    KINDS,
    LANGUAGES,
    Language,
    Question,
    draw_questions,
)
from spark_vision.demo.rendering import render
from spark_vision.demo.scene_files import encode
from spark_vision.demo.scenes import SPLITS, Scene, Split, draw_scenes

_QUESTIONS_PER_SCENE = 4
_MOST_TOKENS = 64


@dataclass(frozen=True)
class Asked:
    """A prompt about a scene: for a caption, or with a question."""

    scene: int
    language: Language
    prompt: str
    question: Question | None


def draw(count: int, seed: int, split: Split) -> tuple[list[Scene], list[Image.Image], list[Asked]]:
    """Draw scenes, their pictures as read from files, and what to ask about them."""
    random = np.random.default_rng([seed, 1])
    scenes = draw_scenes(count, seed, split)
    images, asked = [], []
    for index, scene in enumerate(scenes):
        data, _ = encode(render(scene, random), random)
        images.append(Image.open(BytesIO(data)).convert("RGB"))
        for language in LANGUAGES:
            asked.append(Asked(index, language, CAPTION_PROMPTS[language][0], None))
            questions = draw_questions(scene, random, language)
            for choice in random.permutation(len(questions))[: _QUESTIONS_PER_SCENE // 2]:
                question = questions[choice]
                asked.append(Asked(index, language, question.text, question))
    return scenes, images, asked


class Captioner:
    """A checkpoint, loaded and asked as transformers' documentation does."""

    def __init__(self, folder: str, dtype: torch.dtype, batch_size: int) -> None:
        self._processor = AutoProcessor.from_pretrained(folder)
        self._model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
        self._batch_size = batch_size

    def texts(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Iterator[str]:
        """Greedy generation for an image and a prompt each."""
        for start in range(0, len(images), self._batch_size):
            part = slice(start, start + self._batch_size)
            yield from self._batch(images[part], prompts[part])

    @torch.inference_mode()
    def _batch(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        turns = [
            self._processor.apply_chat_template(
                [
                    {
                        "role": "user",
                        "content": [{"type": "image"}, {"type": "text", "text": prompt}],
                    }
                ],
                tokenize=False,
                add_generation_prompt=True,
            )
            for prompt in prompts
        ]
        inputs = self._processor(text=turns, images=list(images), padding=True, return_tensors="pt")
        tokens = self._model.generate(**inputs, max_new_tokens=_MOST_TOKENS, do_sample=False)
        texts: list[str] = self._processor.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return texts


def scores(scene: Scene, asked: Asked, text: str) -> dict[str, float]:
    """How right a text is, by what it is right about."""
    if asked.question is None:
        parts = caption_scores(scene, asked.language, text)
        return {f"{asked.language} caption, {name}": score for name, score in parts.items()}
    right = float(text == asked.question.answer)
    return {f"{asked.language} {asked.question.kind}?": right, "all questions": right}


def report(scenes: Sequence[Scene], asked: Sequence[Asked], texts: Sequence[Sequence[str]]) -> None:
    """Print a line for each thing judged: right answers, control and commonest answer."""
    totals: dict[str, list[list[float]]] = defaultdict(lambda: [[], []])
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for column, column_texts in enumerate(texts):
        for one, text in zip(asked, column_texts, strict=True):
            for name, score in scores(scenes[one.scene], one, text).items():
                totals[name][column].append(score)
            if column == 0 and one.question is not None:
                answers[f"{one.language} {one.question.kind}?"][one.question.answer] += 1
    order = [f"{language} caption" for language in LANGUAGES]
    order += [f"{language} {kind}?" for kind in KINDS for language in LANGUAGES]
    print(f"{'':24}{'right':>8}{'control':>9}{'commonest':>11}{'judged':>8}")
    for name in sorted(totals, key=lambda name: [not name.startswith(part) for part in order]):
        right, control = (float(np.mean(part)) for part in totals[name])
        counted = answers.get(name)
        commonest = f"{max(counted.values()) / counted.total():.1%}" if counted else ""
        count = len(totals[name][0])
        print(f"{name:24}{right:8.1%}{control:9.1%}{commonest:>11}{count:8}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="the checkpoint; the demonstration's if none")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--count", type=int, default=500, help="scenes")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--show", type=int, default=3, help="wrong captions to print")
    arguments = parser.parse_args()
    folder = arguments.folder or checkpoint_path("qwen2_5_vl")
    captioner = Captioner(folder, getattr(torch, arguments.dtype), arguments.batch_size)
    scenes, images, asked = draw(arguments.count, arguments.seed, arguments.split)
    prompts = [one.prompt for one in asked]
    texts = []
    for shift in (0, 1):
        seen = [images[(one.scene + shift) % len(images)] for one in asked]
        texts.append(list(captioner.texts(seen, prompts)))
    print(f"{folder}: {len(scenes)} scenes of split {arguments.split}, seed {arguments.seed}")
    report(scenes, asked, texts)
    wrong = [
        (one, text)
        for one, text in zip(asked, texts[0], strict=True)
        if not all(scores(scenes[one.scene], one, text).values())
    ]
    for one, text in wrong[: arguments.show]:
        print(f"wrong: {one.prompt} -> {text} | {scenes[one.scene]}")


if __name__ == "__main__":
    main()
