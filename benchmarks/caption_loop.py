"""Tokens per second of the caption loop, beside transformers' `generate` in static batches of 4.

In turn, in one process with one thread, whose CPU time counts, over the same rows: static batches,
sorted by their number of tokens, and the loop with 1, 8 and 64 rows in a step. All of them generate
the same tokens:

- `random`: a small Qwen2.5-VL with random weights, whose texts have 1 to 256 tokens: tokens are
  sampled nearly evenly, and two of 261 end a text. The static batches are told the tokens.
- `demo`: the demo's trained Qwen2.5-VL describes scenes and answers a question, greedily.

    .venv/bin/python benchmarks/caption_loop.py [--checkpoint random|demo] [--rows 64] [--rounds 3]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, LogitsProcessor

from photographs import photograph
from random_checkpoints import write_qwen_vl
from spark_vision import QwenVLImageUnderstanding
from spark_vision.demo import checkpoint_path
from spark_vision.demo.rendering import render
from spark_vision.demo.scenes import draw_scenes
from spark_vision.models.caption_inputs import load_caption_preprocessor
from spark_vision.models.caption_loop import CaptionLoop, join_rows
from spark_vision.models.checkpoint_files import open_folder
from spark_vision.models.families import load_model
from spark_vision.models.protocols import GenerationSettings

STATIC_BATCH_SIZE = 4
ROW_COUNTS = (1, 8, 64)
MAX_NEW_TOKENS = 256
MAX_PIXELS = 224 * 168
SIZES = [(500, 375), (200, 150), (640, 160), (375, 500), (90, 90)]
PROMPTS = {
    "random": ["What is it?", "Describe it in all of its details, please. " * 2, "Where?"],
    "demo": ["Describe this image in detail.", "请描述这张图片。", "How many objects are there?"],
}


class Replay(LogitsProcessor):
    """Lets greedy `generate` take known tokens: int64 `[rows, tokens]`."""

    def __init__(self, tokens, prompt_length):
        self.tokens, self.prompt_length = tokens, prompt_length

    def __call__(self, input_ids, scores):
        """Rule out all other tokens."""
        token = self.tokens[:, input_ids.shape[1] - self.prompt_length, None]
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def draw_pictures(kind, count):
    """Draw photographs of several sizes, or scenes as those of the demo's training."""
    if kind == "random":
        return [photograph(row, *SIZES[row % len(SIZES)]) for row in range(count)]
    generator = np.random.default_rng(0)
    return [render(scene, generator).image for scene in draw_scenes(count, seed=77, split="test")]


class Loop:
    """Generates all rows by the caption loop."""

    def __init__(self, model, preprocessor, inputs, settings, row_count):
        self.model, self.settings, self.row_count = model, settings, row_count
        self.batch, self.scaling = preprocessor.collate(inputs), preprocessor.scaling

    def __call__(self):
        """Return the tokens `[rows, tokens]`."""
        loop = CaptionLoop(
            self.model._model,
            self.settings,
            lambda patches: self.model._pixel_values(patches, self.scaling),
            max_row_count=self.row_count,
        )
        loop.add(self.batch)
        ended = []
        while len(loop):
            ended += loop.step()
        return join_rows(sorted(ended)).token_ids


class StaticBatches:
    """Generates ready-made batches of similar length by transformers' own model."""

    def __init__(self, theirs, model, preprocessor, inputs, replayed):
        self.theirs, self.replayed = theirs, replayed
        by_length = sorted(range(len(inputs)), key=lambda row: len(inputs[row].token_ids))
        self.batches = []
        for start in range(0, len(inputs), STATIC_BATCH_SIZE):
            places = by_length[start : start + STATIC_BATCH_SIZE]
            batch = preprocessor.collate([inputs[place] for place in places])
            given = {
                "input_ids": batch.token_ids,
                "attention_mask": batch.attention_mask,
                "mm_token_type_ids": (batch.token_ids == theirs.config.image_token_id).int(),
                "pixel_values": model._pixel_values(batch.patches, preprocessor.scaling),
                "image_grid_thw": batch.grids,
            }
            self.batches.append((places, given))

    @torch.inference_mode()
    def __call__(self):
        """Return the tokens of each row."""
        rows = {}
        for places, given in self.batches:
            width = given["input_ids"].shape[1]
            limits = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
            if self.replayed is not None:
                limits["max_new_tokens"] = self.replayed.shape[1]
                limits["logits_processor"] = [Replay(self.replayed[places], width)]
            output = self.theirs.generate(**given, **limits)[:, width:]
            rows |= dict(zip(places, output, strict=True))
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", choices=list(PROMPTS), default="random")
    parser.add_argument("--rows", type=int, default=64, help="images per round")
    parser.add_argument("--rounds", type=int, default=3, help="alternated rounds")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    is_random = arguments.checkpoint == "random"
    folder = Path(checkpoint_path("qwen2_5_vl"))
    if is_random:
        parent = Path(tempfile.mkdtemp(prefix="caption-loop-"))
        folder = write_qwen_vl(parent / "qwen", MAX_PIXELS, stops=False)
    checkpoint = open_folder(folder)
    operator = QwenVLImageUnderstanding(model_name=str(folder), do_sample=is_random)
    preprocessor = load_caption_preprocessor(checkpoint, operator)
    model = load_model(checkpoint, "float32", torch.device("cpu"))
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    settings = GenerationSettings(MAX_NEW_TOKENS)
    if is_random:
        settings = GenerationSettings(MAX_NEW_TOKENS, do_sample=True, temperature=1e4, top_k=0)
        for config in (model._model.generation_config, theirs.generation_config):
            config.eos_token_id = [65, 66]
    prompts = PROMPTS[arguments.checkpoint]
    inputs = [
        preprocessor.prepare(
            torch.from_numpy(np.array(picture)).permute(2, 0, 1), prompts[row % len(prompts)]
        )
        for row, picture in enumerate(draw_pictures(arguments.checkpoint, arguments.rows))
    ]
    variants = {
        f"loop, {count} rows": Loop(model, preprocessor, inputs, settings, count)
        for count in ROW_COUNTS
    }
    # Warms up, too.
    true = variants[f"loop, {ROW_COUNTS[-1]} rows"]()
    static = StaticBatches(theirs, model, preprocessor, inputs, true if is_random else None)
    variants = {"static batches": static, **variants}

    stops = torch.tensor(model._model.generation_config.eos_token_id).flatten()
    is_stop = torch.isin(true, stops)
    counts = torch.where(is_stop.any(1), is_stop.int().argmax(1) + 1, true.shape[1])
    print(
        f"{arguments.rows} rows, prompts of {min(len(each.token_ids) for each in inputs)} to "
        f"{max(len(each.token_ids) for each in inputs)} tokens, texts of {counts.min()} to "
        f"{counts.max()}, mean {counts.float().mean():.0f}"
    )
    for name, generate in variants.items():
        tokens = generate()
        for row, count in enumerate(counts.tolist()):
            assert tokens[row][:count].tolist() == true[row][:count].tolist(), (name, row)
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name, generate in variants.items():
            started = time.process_time()
            generate()
            rates[name].append(int(counts.sum()) / (time.process_time() - started))
            print(f"{name}: {rates[name][-1]:.0f} tokens/s", flush=True)
    for name in variants:
        ratios = [
            ours / static for ours, static in zip(rates[name], rates["static batches"], strict=True)
        ]
        print(
            f"{name}: median {statistics.median(rates[name]):.0f} tokens/s, ratio to static "
            f"batches {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
