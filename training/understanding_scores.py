"""How right captions and answers are, through a Spark column, beside a control."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from pyspark.sql import SparkSession

from spark_vision.demo.gallery import answer_questions
from spark_vision.demo.questions import (
    CAPTION_PROMPTS,
    KINDS,
    LANGUAGES,
    Language,
    Question,
    draw_questions,
)
from spark_vision.demo.truth import Truth, read_truth
from spark_vision.operators import QwenVLImageUnderstanding
from training.caption_scores import caption_scores

_QUESTIONS_PER_LANGUAGE = 2


@dataclass(frozen=True)
class UnderstandingScore:
    """One figure.

    Attributes:
        name: What is to be right: `en caption, shape`, `zh size?`, `all questions`.
        share: Of it that is right.
        control: The same, with each prompt asked of another scene's picture.
        commonest: What the answer that is right most often would get; none for captions.
        count: How many were judged.
    """

    name: str
    share: float
    control: float
    commonest: float | None
    count: int


@dataclass(frozen=True)
class Said:
    """What was said of a picture that was shown.

    Attributes:
        truth: What is asked about.
        language: Of the prompt.
        prompt: What was asked.
        question: None where a caption was asked for.
        text: What was said of the picture.
        control: What was said of another scene's picture.
    """

    truth: Truth
    language: Language
    prompt: str
    question: Question | None
    text: str
    control: str

    def scores(self, text: str) -> dict[str, float]:
        """How right a text is as an answer to the prompt, by what it is right about."""
        if self.question is None:
            parts = caption_scores(self.truth.scene, self.language, text)
            return {f"{self.language} caption, {name}": score for name, score in parts.items()}
        right = float(text == self.question.answer)
        return {f"{self.language} {self.question.kind}?": right, "all questions": right}


def ask(
    session: SparkSession, folder: Path | str, operator: QwenVLImageUnderstanding, seed: int
) -> list[Said]:
    """Ask for captions and answers in both languages, for all pictures in one Spark job.

    Args:
        session: Where the column is computed.
        folder: What `write_scenes` wrote, with one rendering of each scene.
        operator: What answers.
        seed: Decides the questions.

    Returns:
        What was said, scene by scene.

    Raises:
        ValueError: A row has no text.
    """
    truths = read_truth(str(folder))
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
        Said(*one, text=str(text), control=str(other))
        for one, text, other in zip(asked, own, control, strict=True)
    ]


def understanding_scores(said: Sequence[Said]) -> list[UnderstandingScore]:
    """Judge what was said.

    Args:
        said: What `ask` gives.

    Returns:
        Captions by language and what they are right about; answers by kind and language, and all
        together.
    """
    shares: dict[str, list[float]] = defaultdict(list)
    controls: dict[str, list[float]] = defaultdict(list)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for one in said:
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
    truth: Truth, random: np.random.Generator
) -> Iterator[tuple[Truth, Language, str, Question | None]]:
    for language in LANGUAGES:
        yield truth, language, CAPTION_PROMPTS[language][0], None
        questions = draw_questions(truth.scene, random, language)
        for choice in random.permutation(len(questions))[:_QUESTIONS_PER_LANGUAGE]:
            yield truth, language, questions[choice].text, questions[choice]


def _order(name: str) -> list[bool]:
    """Captions first, then kinds of questions in their own order."""
    starts = [f"{language} caption" for language in LANGUAGES]
    starts += [f"{language} {kind}?" for kind in KINDS for language in LANGUAGES]
    return [not name.startswith(start) for start in starts]
