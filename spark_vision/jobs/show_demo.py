"""Demonstrate search and captions.

Writes CLIP vectors and captions of the images in a folder into a table, searches it by text,
searches a table of the job embed_images by image, asks questions about some of the images, and
shows the results on the terminal and on an HTML page.
"""

import argparse
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from spark_vision.cli.command_line import JobParser
from spark_vision.cli.job import run_job
from spark_vision.operators import (
    ClipImageEmbedding,
    ClipTextEmbedding,
    QwenVLImageUnderstanding,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# For images without ground truth.
OWN_QUESTIONS = ("How many people are there?", "图里有什么?")
OWN_TEXTS = ("a person", "an animal", "a building", "a landscape")


def parse_arguments(texts: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = JobParser(description=__doc__)
    parser.add_argument("--images", required=True, help="a folder of image files")
    parser.add_argument("--table", required=True, help="the Delta table to write and search")
    parser.add_argument("--similar", required=True, help="a table that the job embed_images wrote")
    parser.add_argument("--clip-name", required=True, help="a CLIP or SigLIP checkpoint")
    parser.add_argument("--caption-name", required=True, help="a Qwen-VL checkpoint")
    parser.add_argument("--query", action="append", help="a text to search for; repeatable")
    parser.add_argument("--count", type=int, default=5, help="images per search")
    parser.add_argument("--page", type=Path, required=True, help="the HTML page to write")
    return parser.parse_args(texts)


def show(spark: "SparkSession", arguments: argparse.Namespace) -> None:
    """Fill the table, search it, and show the results on the terminal and on the page."""
    from spark_vision.cli.inputs import read_images
    from spark_vision.cli.table_job import describe_result
    from spark_vision.demo.captions import caption
    from spark_vision.demo.gallery import answer_questions, search_by_picture, search_by_text
    from spark_vision.demo.ground_truth import example_questions, example_texts, read_ground_truth
    from spark_vision.demo.page import write_page
    from spark_vision.demo.report import (
        Answer,
        Words,
        answers_section,
        format_answers,
        format_searches,
        load_pictures,
        paths_of,
        searches_section,
    )
    from spark_vision.tables.location import locate_table
    from spark_vision.tables.progress_bar import ProgressBar
    from spark_vision.tables.write import write_vision_columns

    images = read_images(spark, arguments.images)
    clip = ClipImageEmbedding(model_name=arguments.clip_name)
    qwen = QwenVLImageUnderstanding(model_name=arguments.caption_name, batch_size=16)
    english = replace(qwen, prompt="Describe this image.")
    with ProgressBar() as progress:
        result = write_vision_columns(
            images,
            arguments.table,
            keys=["path"],
            columns={"clip": clip, "caption": english, "caption_zh": qwen},
            progress=progress,
        )
    print(describe_result(result))

    # The table may contain images of an earlier run on another folder.
    paths = images.select("path")
    table = spark.table(result.table).join(paths, "path", "left_semi")
    similar = spark.table(locate_table(spark, arguments.similar).sql)
    similar = similar.join(paths, "path", "left_semi")
    chosen = [row.path for row in similar.where("embedding_status = 'ok'").sort("path").take(6)]

    truths = {truth.file: truth for truth in read_ground_truth(arguments.images)}
    written = table.select("path", "caption").where("caption_status = 'ok'").collect()
    words = Words({file: caption(truth.scene) for file, truth in truths.items()}, dict(written))
    texts = arguments.query or example_texts(list(truths.values())) or OWN_TEXTS
    text_model = ClipTextEmbedding(model_name=clip.model_name)
    by_text = search_by_text(table, "clip", text_model, texts, arguments.count)
    # Every other image, since each demo scene is drawn twice.
    by_picture = search_by_picture(similar, "embedding", chosen[::2], arguments.count)

    asked = []
    for path in chosen[::2]:
        truth = truths.get(PurePosixPath(path).name)
        known = [(q.text, q.answer) for q in example_questions(truth)] if truth else []
        asked += [(path, *pair) for pair in known or ((text, None) for text in OWN_QUESTIONS)]
    responses = answer_questions(images, qwen, [(path, text) for path, text, _ in asked])
    answers = [
        Answer(path, text, answer, right)
        for (path, text, right), answer in zip(asked, responses, strict=True)
    ]

    sections = [
        searches_section("Search by text", "With the CLIP vectors.", by_text, words),
        searches_section(
            "Search by image", "With the vectors of the other table.", by_picture, words
        ),
        answers_section("Questions about images", "With the caption model.", answers, words),
    ]
    print(format_searches("\nSearch by text:", by_text, words))
    print(format_searches("\nSearch by image:", by_picture, words))
    print(format_answers("\nQuestions about images:", answers, words))
    print("\nCaptions of the images:\n")
    shown = table.select("path", "caption", "caption_zh").where("caption_status = 'ok'")
    for row in shown.sort("path").limit(arguments.count).collect():
        print(f"  {words.title(row.path)}\n    {row.caption}\n    {row.caption_zh}")
    pictures = load_pictures(images, paths_of(sections))
    notes = [f"{result.source_rows:,} images of {arguments.images}, in the table {result.table}."]
    write_page(arguments.page, "spark_vision: search and captions", notes, sections, pictures)
    print(f"\npage: {arguments.page.resolve()}")


def main(texts: list[str] | None = None) -> int:
    """Run the job; return its exit code."""
    arguments = parse_arguments(texts)
    return run_job(lambda spark: show(spark, arguments))


if __name__ == "__main__":
    raise SystemExit(main())
