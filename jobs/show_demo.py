"""Show what embeddings are good for: python jobs/show_demo.py --images FOLDER --table PATH.

Embeds the folder's pictures with a CLIP checkpoint into a table, looks for texts in it and for
pictures like a picture in a table that jobs/embed_images.py wrote, and writes one HTML page.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spark_vision.job import run_job

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

OWN_TEXTS = ("a person", "an animal", "a building", "a landscape")


def parse_arguments(texts: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", required=True, help="a folder of image files")
    parser.add_argument("--table", required=True, help="the Delta table to write and search")
    parser.add_argument("--similar", required=True, help="a table that jobs/embed_images.py wrote")
    parser.add_argument("--clip-name", required=True, help="a CLIP or SigLIP checkpoint")
    parser.add_argument("--query", action="append", help="a text to look for; repeat it")
    parser.add_argument("--count", type=int, default=5, help="pictures per search")
    parser.add_argument("--page", type=Path, required=True, help="the HTML page to write")
    return parser.parse_args(texts)


def show(spark: "SparkSession", arguments: argparse.Namespace) -> None:
    """Fill the table, search it, and tell what came on the terminal and on the page."""
    from spark_vision import ClipImageEmbedding, ClipTextEmbedding
    from spark_vision.demo.gallery import (
        example_texts,
        read_truth,
        search_by_picture,
        search_by_text,
    )
    from spark_vision.demo.page import write_page
    from spark_vision.demo.report import load_pictures, paths_of, show_searches, tell_searches
    from spark_vision.tables import write_vision_columns
    from spark_vision.tables.inputs import read_images
    from spark_vision.tables.location import locate_table
    from spark_vision.tables.progress_line import ProgressLine
    from spark_vision.tables.summary import describe_result

    images = read_images(spark, arguments.images)
    clip = ClipImageEmbedding(model_name=arguments.clip_name)
    with ProgressLine() as progress:
        result = write_vision_columns(
            images, arguments.table, keys=["path"], columns={"clip": clip}, progress=progress
        )
    print(describe_result(result))

    truths = read_truth(arguments.images)
    captions = {truth.file: truth.caption for truth in truths}
    texts = arguments.query or example_texts(truths) or OWN_TEXTS
    # A table may hold pictures of an earlier run on another folder.
    paths = images.select("path")
    table = spark.table(result.table).join(paths, "path", "left_semi")
    by_text = search_by_text(
        table, "clip", ClipTextEmbedding(model_name=clip.model_name), texts, arguments.count
    )
    similar = spark.table(locate_table(spark, arguments.similar).sql)
    similar = similar.join(paths, "path", "left_semi")
    chosen = [row.path for row in similar.where("embedding_status = 'ok'").sort("path").take(3)]
    by_picture = search_by_picture(similar, "embedding", chosen, arguments.count)

    sections = [
        show_searches("Pictures for a text", "By the CLIP vectors.", by_text, captions),
        show_searches("Pictures like a picture", "By the other table.", by_picture, captions),
    ]
    print(tell_searches("\nPictures for a text:", by_text, captions))
    print(tell_searches("\nPictures like a picture:", by_picture, captions))
    pictures = load_pictures(images, paths_of(sections))
    notes = [f"{result.source_rows:,} pictures of {arguments.images}, in the table {result.table}."]
    write_page(arguments.page, "spark_vision: what the vectors find", notes, sections, pictures)
    print(f"\npage: {arguments.page.resolve()}")


def main(texts: list[str]) -> int:
    """Run the job; return its exit code."""
    arguments = parse_arguments(texts)
    return run_job(lambda spark: show(spark, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
