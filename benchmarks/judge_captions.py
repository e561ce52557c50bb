"""Judges a captioner on scenes of any seed, through a Spark column: captions and answers.

    python benchmarks/judge_captions.py [FOLDER] --seed 7 --count 500 [--split held_out_pairs]

Every figure stands beside a control, the same texts asked of another scene's picture, and answers
also beside the share that the commonest answer would get.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pyspark.sql import SparkSession

from spark_vision import QwenVLImageUnderstanding, configure
from spark_vision.demo import checkpoint_path, write_scenes
from spark_vision.demo.scenes import SPLITS

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.understanding_scores import (
    Response,
    ask,
    understanding_scores,
)

_MOST_TOKENS = 64


def report(responses: Sequence[Response], wrong_count: int) -> None:
    """Print a line for each thing judged, and some of what is wrong."""
    print(f"  {'':24}{'right':>8}{'control':>9}{'commonest':>11}{'judged':>8}")
    for score in understanding_scores(responses):
        commonest = "" if score.commonest is None else f"{score.commonest:.1%}"
        print(
            f"  {score.name:24}{score.share:8.1%}{score.control:9.1%}{commonest:>11}{score.count:8}"
        )
    wrong = [one for one in responses if not all(one.scores(one.text).values())]
    for one in wrong[:wrong_count]:
        print(f"  wrong: {one.prompt} -> {one.text} | {one.truth.scene}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="the checkpoint; the demonstration's if none")
    parser.add_argument("--seed", type=int, required=True, help="decides scenes and questions")
    parser.add_argument("--count", type=int, default=500, help="scenes, no two equal")
    parser.add_argument("--split", choices=SPLITS, action="append", help="test and both held out")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--show", type=int, default=3, help="wrong texts to print")
    arguments = parser.parse_args()
    operator = QwenVLImageUnderstanding(
        model_name=arguments.folder or checkpoint_path("qwen2_5_vl"),
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        max_caption_length=_MOST_TOKENS,
    )
    session = configure(
        SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    ).getOrCreate()
    for split in arguments.split or ["test", "held_out_pairs", "held_out_relations"]:
        with tempfile.TemporaryDirectory() as folder:
            write_scenes(Path(folder), arguments.count, arguments.seed, split)
            print(f"{split}, {arguments.count} scenes, seed {arguments.seed}, {arguments.dtype}")
            report(ask(session, folder, operator, arguments.seed), arguments.show)
    session.stop()


if __name__ == "__main__":
    main()
