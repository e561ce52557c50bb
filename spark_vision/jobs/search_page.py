"""Search pictures on a page in the browser.

python -m spark_vision.jobs.search_page --table PATH --column NAME

Type a text or choose a picture; the page shows the nearest pictures of a table, by exact search in
Spark or by a vector index that was filled from the table (then no Spark is started). Exit code: 0
when it is stopped; 1 for an error, in one line on stderr; 2 for a usage error.
"""

import argparse
from socket import socket
from typing import TYPE_CHECKING, Any

from spark_vision.cli.command_line import JobParser, add_option_arguments, options_in
from spark_vision.cli.index_arguments import add_index_arguments, index_from_arguments
from spark_vision.cli.job import report_errors, run_job
from spark_vision.errors import InvalidOptionError
from spark_vision.operators import ClipImageEmbedding, ImageOperator
from spark_vision.operators.options import options_of

if TYPE_CHECKING:
    from spark_vision.search.vector_index import VectorIndex

# The options of an operator that say how pictures are read, and where models compute.
READING = (
    *("limits", "allow_paths", "allow_hosts", "allow_networks", "allow_schemes"),
    *("storage_options", "device"),
)


def parse_arguments(
    texts: list[str] | None,
) -> "tuple[argparse.Namespace, dict[str, Any], VectorIndex | None]":
    """Parse the command line: the arguments, how pictures are read, and the index."""
    parser = JobParser(description=__doc__)
    parser.add_argument("--table", help="a table that the job embed_images wrote")
    parser.add_argument("--column", help="its column of vectors")
    parser.add_argument(
        "--images-column",
        metavar="COLUMN",
        help="the column of the pictures' paths or URLs (default: the key)",
    )
    parser.add_argument("--caption-column", metavar="COLUMN", help="a text to show with each")
    parser.add_argument(
        "--filter",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN",
        help="columns to filter by; repeatable",
    )
    parser.add_argument(
        "--caption-name", metavar="CHECKPOINT", help="a Qwen-VL checkpoint that answers questions"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="the port (default: %(default)s)")
    add_index_arguments(parser)
    left_out = {each.name for each in options_of(ImageOperator)} - set(READING)
    add_option_arguments(parser, ImageOperator, left_out)
    arguments = parser.parse_args(texts)
    if not (arguments.milvus or arguments.pinecone or (arguments.table and arguments.column)):
        parser.error("pass --table and --column, or an index: --milvus or --pinecone")
    reading = options_in(arguments, ImageOperator)
    try:
        # Only to check the options together.
        ClipImageEmbedding(**reading)
        index = index_from_arguments(parser, arguments)
    except InvalidOptionError as error:
        parser.error(str(error))
    return arguments, reading, index


def main(texts: list[str] | None = None) -> int:
    """Run the job; return its exit code."""
    arguments, reading, index = parse_arguments(texts)

    opened: list[socket] = []

    def open_port() -> None:
        from spark_vision.search.extras import import_extra

        for name in ("starlette", "uvicorn"):
            import_extra(name, "page")
        from spark_vision.search_page.server import listen

        opened.append(listen(arguments.host, arguments.port))

    def serve(spark: Any = None) -> None:
        from spark_vision.search_page.gallery_source import GalleryColumns
        from spark_vision.search_page.index_gallery import IndexGallery
        from spark_vision.search_page.query_model import QueryModel
        from spark_vision.search_page.server import serve_page
        from spark_vision.search_page.spark_gallery import SparkGallery

        table, column = arguments.table, arguments.column
        columns = GalleryColumns(
            arguments.images_column, arguments.caption_column, tuple(arguments.filter)
        )
        source = (
            SparkGallery(spark, table, column, columns)
            if index is None
            else IndexGallery(index, columns, table, column)
        )
        model = QueryModel(source.model, reading, arguments.caption_name)
        serve_page(opened[0], arguments.host, source, model)

    # What is wrong with the port is known before Spark starts.
    if code := report_errors(open_port):
        return code
    return run_job(serve) if index is None else report_errors(serve)


if __name__ == "__main__":
    raise SystemExit(main())
