"""Judges the demonstration's dinov2 and clip on scenes of any seed, through Spark columns.

Beside each figure stands the same with pictures given to other scenes, which should be near chance.

    python benchmarks/judge_search.py --seed 7 --count 1000 [--split held_out_pairs]
"""

import argparse
import sys
import tempfile
from pathlib import Path

from pyspark.sql import SparkSession

from spark_vision import configure
from spark_vision.demo import write_scenes
from spark_vision.demo.scenes import SPLITS

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.retrieval_scores import retrieval_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True, help="decides the scenes")
    parser.add_argument("--count", type=int, default=1000, help="scenes, no two equal")
    parser.add_argument("--split", choices=SPLITS, action="append", help="test and both held out")
    arguments = parser.parse_args()
    session = configure(
        SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    ).getOrCreate()
    for split in arguments.split or ["test", "held_out_pairs", "held_out_relations"]:
        with tempfile.TemporaryDirectory() as folder:
            write_scenes(Path(folder), arguments.count, arguments.seed, split, renderings=2)
            print(f"{split}, {arguments.count} scenes, seed {arguments.seed}")
            for score in retrieval_scores(session, folder):
                print(f"  {score.name:42} {score.share:7.1%}   shuffled {score.control:6.1%}")
    session.stop()


if __name__ == "__main__":
    main()
