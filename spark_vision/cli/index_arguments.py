"""The options of a job that name a vector index, and the index that they name."""

import argparse
from typing import TYPE_CHECKING

from spark_vision.errors import InvalidOptionError

if TYPE_CHECKING:
    from spark_vision.search.vector_index import VectorIndex


def add_index_arguments(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add the options of an index; keys come from the environment only.

    Args:
        parser: The job's parser.
        required: Whether an index must be given.
    """
    group = parser.add_argument_group(
        "index", "keys are read from the variables MILVUS_TOKEN and PINECONE_API_KEY"
    )
    which = group.add_mutually_exclusive_group(required=required)
    which.add_argument(
        "--milvus",
        metavar="FILE|URL",
        help="a file of Milvus Lite that ends with .db, or a service such as http://host:19530",
    )
    which.add_argument("--pinecone", metavar="INDEX", help="the name of a Pinecone index")
    group.add_argument("--collection", metavar="NAME", help="with --milvus: the collection")
    group.add_argument(
        "--database", metavar="NAME", help="with --milvus: the database (default: the service's)"
    )
    group.add_argument(
        "--namespace", metavar="NAME", help="with --pinecone: the namespace (default: Pinecone's)"
    )


def index_from_arguments(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> "VectorIndex | None":
    """Return the index of a command line; None where it names none.

    Options that do not belong together are a usage error.
    """
    for index, names in (("milvus", ("collection", "database")), ("pinecone", ("namespace",))):
        for name in names:
            if getattr(arguments, name) and not getattr(arguments, index):
                parser.error(f"--{name} needs --{index}")
    if arguments.milvus and not arguments.collection:
        parser.error("--milvus needs --collection")
    try:
        if arguments.milvus:
            from spark_vision.search.milvus import MilvusIndex

            return MilvusIndex(
                arguments.milvus, arguments.collection, database=arguments.database or ""
            )
        if arguments.pinecone:
            from spark_vision.search.pinecone_index import PineconeIndex

            return PineconeIndex(arguments.pinecone, namespace=arguments.namespace or "")
    except InvalidOptionError as error:
        parser.error(str(error))
    return None
