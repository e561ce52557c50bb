"""Scores captions and answers of a Spark column, and compares them with a control."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from pyspark.sql import SparkSession

from spark_vision.demo.gallery import answer_questions
from spark_vision.demo.ground_truth import GroundTruth, read_ground_truth
from spark_vision.demo.questions import (
    KINDS,
    LANGUAGES,
    Language,
    Question,
    draw_questions,
)
from spark_vision.operators import QwenVLImageUnderstanding
from training.caption_scores import caption_scores
from training.wordings import CAPTION_PROMPTS

_QUESTIONS_PER_LANGUAGE = 2


@dataclass(frozen=True)
class UnderstandingScore:
    """One score.

    Attributes:
        name: What is scored: `en caption, shape`, `zh size?`, `all questions`.
        share: The share that is correct.
        control: The same share with each prompt asked about the image of another scene.
        commonest: The share that the most common answer would get; None for captions.
        count: Number of scored responses.
    """

    name: str
    share: float
    control: float
    commonest: float | None
    count: int


@dataclass(frozen=True)
class Response:
    """The model's responses to one prompt.

    Attributes:
        truth: The image and its scene.
        language: The language of the prompt.
        prompt: The prompt.
        question: The question; None if the prompt asks for a caption.
        text: The response for the image.
        control: The response for the image of another scene.
    """

    truth: GroundTruth
    language: Language
    prompt: str
    question: Question | None
    text: str
    control: str

    def scores(self, text: str) -> dict[str, float]:
        """Score a text as a response to the prompt, by name of the score."""
        if self.question is None:
            parts = caption_scores(self.truth.scene, self.language, text)
            return {f"{self.language} caption, {name}": score for name, score in parts.items()}
        right = float(text == self.question.answer)
        return {f"{self.language} {self.question.kind}?": right, "all questions": right}


def ask(
    session: SparkSession, folder: Path | str, operator: QwenVLImageUnderstanding, seed: int
) -> list[Response]:
    """Ask for captions and answers in both languages, for all images in one Spark job.

    Args:
        session: The Spark session.
        folder: A folder of `write_scenes`, with one rendering of each scene.
        operator: Generates the responses.
        seed: Determines the questions.

    Returns:
        The responses, scene by scene.

    Raises:
        ValueError: A row has no text.
    """
    truths = read_ground_truth(str(folder))
    random = np.random.default_rng([seed, 1])
    asked = [prompt for truth in truths for prompt in _prompts(truth, random)]
    files = session.read.format("binaryFile").load(
        [str(Path(folder) / truth.file) for truth in truths]
    )
    paths = {PurePosixPath(row.path).name: row.path for row in files.select("path").collect()}
    shown = [paths[truth.file] for truth in truths]
    others = dict(zip(shown, np.roll(shown, 1).tolist(), strict=True))
    pairs = [(paths[truth.file], prompt) for truth, _, prompt, _ in asked]
    pairs += [(others[path], prompt) for path, prompt in pairs]
    distinct = list(dict.fromkeys(pairs))
    texts = dict(zip(distinct, answer_questions(files, operator, distinct), strict=True))
    silent = [pair for pair in distinct if texts[pair] is None]
    if silent:
        raise ValueError(f"{len(silent)} of {len(distinct)} rows have no text: {silent[0]}")
    own, control = np.split(np.array([texts[pair] for pair in pairs]), 2)
    return [
        Response(*one, text=str(text), control=str(other))
        for one, text, other in zip(asked, own, control, strict=True)
    ]


def understanding_scores(responses: Sequence[Response]) -> list[UnderstandingScore]:
    """Score responses.

    Args:
        responses: The result of `ask`.

    Returns:
        Scores of captions by language and attribute, and of answers by kind and language and in
        total.
    """
    shares: dict[str, list[float]] = defaultdict(list)
    controls: dict[str, list[float]] = defaultdict(list)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for one in responses:
        for name, score in one.scores(one.text).items():
            shares[name].append(score)
            if one.question is not None:
                answers[name][one.question.answer] += 1
        for name, score in one.scores(one.control).items():
            controls[name].append(score)
    return [
        UnderstandingScore(
            name,
            float(np.mean(shares[name])),
            float(np.mean(controls[name])),
            max(answers[name].values()) / answers[name].total() if name in answers else None,
            len(shares[name]),
        )
        for name in sorted(shares, key=_order)
    ]


def _prompts(
    truth: GroundTruth, random: np.random.Generator
) -> Iterator[tuple[GroundTruth, Language, str, Question | None]]:
    for language in LANGUAGES:
        yield truth, language, CAPTION_PROMPTS[language][0], None
        questions = draw_questions(truth.scene, random, language)
        for choice in random.permutation(len(questions))[:_QUESTIONS_PER_LANGUAGE]:
            yield truth, language, questions[choice].text, questions[choice]


def _order(name: str) -> list[bool]:
    """Sort key: captions first, then questions in the order of their kinds."""
    starts = [f"{language} caption" for language in LANGUAGES]
    starts += [f"{language} {kind}?" for kind in KINDS for language in LANGUAGES]
    return [not name.startswith(start) for start in starts]
