"""Trains the demonstration's Qwen2.5-VL from nothing: `python -m training.qwen`."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from spark_vision.demo.questions import LANGUAGES
from training.qwen_batches import Batch, answer_logits
from training.qwen_checkpoint import untrained_model, write_model, write_processor
from training.qwen_lessons import (
    INK_CELLS,
    NOT_ASKED,
    OUTLINE_CELLS,
    TOKEN_CLASSES,
    Lesson,
    Lessons,
    tokenizer_texts,
)
from training.qwen_tower import image_features
from training.schedule import Schedule, cpu_minutes

CHECKPOINT = Path(__file__).parents[1] / "spark_vision" / "demo" / "checkpoints" / "qwen2_5_vl"


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        name: What its lines on the terminal begin with.
        steps: Batches.
        rows: Pictures of a batch.
        rate: The highest learning rate.
        questions: About each picture, beside its captions; none: nothing is said of it.
    """

    name: str
    steps: int
    rows: int
    rate: float
    questions: int | None = None


# The tower learns alone first, which is cheap; captions come before most of the questions, since
# they say everything.
_SEEING = Stage("qwen2_5_vl sees", steps=700, rows=64, rate=2e-3)
_ANSWERING = (
    Stage("qwen2_5_vl says", steps=600, rows=32, rate=1.5e-3, questions=2),
    Stage("qwen2_5_vl answers", steps=700, rows=32, rate=1e-3, questions=6),
)
_INK_BLOCK = 1
_ASKED = 6
_VALIDATION_SEED = 1_000_003


class Learner(nn.Module):
    """The model, with heads that are thrown away after.

    One says what each image token shows: without it the tower learns to see only through the few
    words of the answers, and the language model has to find which object comes first. Two say
    where there is something of whatever colour, in each patch from an early block and in the box
    of the object that a token shows: without them shapes are learnt last and slowly.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.tower = model.model.visual
        self.head = nn.Linear(model.config.text_config.hidden_size, sum(TOKEN_CLASSES.values()))
        self.outline_head = nn.Linear(model.config.text_config.hidden_size, OUTLINE_CELLS**2)
        self.ink_head = nn.Linear(model.config.vision_config.hidden_size, INK_CELLS**2)

    def see(self, lesson: Lesson) -> tuple[Tensor, dict[str, Tensor]]:
        """The image tokens, and for each thing that they show the loss of telling it."""
        features, states = image_features(
            self.tower, lesson.batch.pixel_values, lesson.batch.image_grid_thw
        )
        ink = self.ink_head(states[_INK_BLOCK]).float()
        objects = lesson.shown[:, 0] > 0
        outlines = self.outline_head(features[objects]).float()
        parts = self.head(features).float().split(list(TOKEN_CLASSES.values()), dim=1)
        losses = {
            name: F.cross_entropy(part, lesson.shown[:, index], ignore_index=NOT_ASKED)
            for index, (name, part) in enumerate(zip(TOKEN_CLASSES, parts, strict=True))
        }
        return features, {
            **losses,
            "ink": F.binary_cross_entropy_with_logits(ink, lesson.ink),
            "outline": F.binary_cross_entropy_with_logits(outlines, lesson.outlines[objects]),
        }

    def answer(self, lesson: Lesson) -> dict[str, Tensor]:
        """The loss of the answers' tokens, and that of what the image tokens show."""
        features, seen = self.see(lesson)
        logits, tokens = answer_logits(self.model, lesson.batch, features)
        return {
            "answers": F.cross_entropy(logits.float(), tokens),
            "image tokens": torch.stack(list(seen.values())).sum(),
        }


def train(folder: Path = CHECKPOINT, seed: int = 0) -> None:
    """Train on freshly drawn scenes of the training split, and write a checkpoint.

    One thread trains, while another process draws ahead. What is written after each stage can be
    looked at while the next one runs.

    Args:
        folder: Made if it is not there; the checkpoint.
        seed: Decides the weights, the scenes and their pictures.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    processor = write_processor(folder, *tokenizer_texts())
    learner = Learner(untrained_model(processor.tokenizer))
    learn_to_see(learner, _SEEING, processor, seed)
    write_model(folder, learner.model)
    for number, stage in enumerate(_ANSWERING, start=1):
        learn_to_answer(learner, stage, processor, seed + number)
        write_model(folder, learner.model)
        print(f"{stage.name}: {evaluate(folder)}", flush=True)
    print(f"qwen2_5_vl: {cpu_minutes()}", flush=True)


def learn_to_see(learner: Learner, stage: Stage, processor: Qwen2_5_VLProcessor, seed: int) -> None:
    """Train the vision tower, and the heads."""
    speech = {id(parameter) for parameter in learner.model.model.language_model.parameters()}
    eyes = [parameter for parameter in learner.parameters() if id(parameter) not in speech]
    _learn(stage, processor, seed, eyes, [learner.tower], lambda lesson: learner.see(lesson)[1])


def learn_to_answer(
    learner: Learner, stage: Stage, processor: Qwen2_5_VLProcessor, seed: int
) -> None:
    """Train the whole model, and the heads."""
    towers = [learner.tower, learner.model.model.language_model]
    _learn(stage, processor, seed, list(learner.parameters()), towers, learner.answer)


def _learn(
    stage: Stage,
    processor: Qwen2_5_VLProcessor,
    seed: int,
    parameters: list[nn.Parameter],
    towers: list[nn.Module],
    losses: Callable[[Lesson], dict[str, Tensor]],
) -> None:
    lessons = Lessons(processor, "train", seed, stage.steps, stage.rows, stage.questions)
    schedule = Schedule(stage.name, parameters, stage.steps, stage.rate, towers)
    for step, lesson in zip(schedule, _drawn_ahead(lessons), strict=True):
        schedule.learn(step, losses(lesson))


@torch.no_grad()
def evaluate(folder: Path, rows: int = 256) -> str:
    """Say how many answers of a written checkpoint are right on the validation split.

    An answer is right if each of its tokens is the likeliest after those before it, which is
    when greedy generation gives it.
    """
    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    lessons = Lessons(processor, "validation", _VALIDATION_SEED, rows // 32, 32, _ASKED)
    right = torch.cat([_right(model, lesson.batch) for lesson in _drawn_ahead(lessons)])
    captions, questions = right[:, : len(LANGUAGES)], right[:, len(LANGUAGES) :]
    said, answered = (float(part[part >= 0].double().mean()) for part in (captions, questions))
    return f"right on validation: {said:.1%} of captions, {answered:.1%} of questions"


def _right(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> Tensor:
    """1 where an answer is right, [rows, answers]: captions, then questions; -1 for none."""
    features, _ = image_features(model.model.visual, batch.pixel_values, batch.image_grid_thw)
    logits, tokens = answer_logits(model, batch, features)
    rows, _ = batch.answers.nonzero(as_tuple=True)
    columns = batch.segments[batch.answers] - 1
    width = len(LANGUAGES) + _ASKED
    right = torch.full((len(batch.segments), width), 2)
    hits = (logits.argmax(dim=1) == tokens).long()
    right.view(-1).scatter_reduce_(0, rows * width + columns, hits, "amin")
    return right.where(right < 2, -1)


def _drawn_ahead(lessons: Lessons) -> DataLoader[Lesson]:
    return DataLoader(lessons, batch_size=None, num_workers=1, prefetch_factor=8)


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m training.qwen", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=CHECKPOINT, help="what is written")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
