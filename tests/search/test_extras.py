"""The databases' clients are imported when an index is used, and one that is missing is named."""

import subprocess
import sys

import pytest

# Finds no module of these names, as where the extra is not installed.
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_search_loads_no_client_and_no_spark():
    code = (
        "import sys, spark_vision.search; from spark_vision import MilvusIndex, PineconeIndex;"
        "MilvusIndex('photos.db', 'photos'); PineconeIndex('photos');"
        "print([m for m in ('pymilvus', 'milvus_lite', 'pinecone', 'grpc', 'tenacity', 'pyspark',"
        " 'torch') if m in sys.modules])"
    )
    assert run(code) == "[]"


@pytest.mark.parametrize(
    ("hidden", "make", "extra"),
    [
        ("pymilvus", "MilvusIndex('http://127.0.0.1:9', 'photos')", "milvus"),
        ("milvus_lite", "MilvusIndex('photos.db', 'photos')", "milvus"),
        ("pinecone", "PineconeIndex('photos', api_key='x')", "pinecone"),
    ],
)
def test_a_missing_extra_says_what_to_install(hidden, make, extra):
    code = HIDE.format(hidden={hidden}) + (
        "from spark_vision import MilvusIndex, MissingExtraError, PineconeIndex\n"
        f"try: {make}.describe()\n"
        "except MissingExtraError as error: print(error)\n"
    )
    assert run(code) == f'{hidden} is not installed; run pip install "spark-vision[{extra}]"'


def test_a_package_that_lacks_something_of_its_own_is_not_called_missing():
    code = HIDE.format(hidden={"orjson"}) + (
        "from spark_vision import PineconeIndex\n"
        "try: PineconeIndex('photos', api_key='x').describe()\n"
        "except ModuleNotFoundError as error: print(type(error).__name__, error.name)\n"
    )
    assert run(code) == "ModuleNotFoundError orjson"
