"""What several tests share: one real Spark session, and checkpoints written once."""

import os
from pathlib import Path

import pytest

from quick_spark import JVM_OPTIONS, quickly

os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("SPARK_SUBMIT_OPTS", "SPARK_DAEMON_JAVA_OPTS"):
    os.environ.setdefault(name, JVM_OPTIONS)

TESTS = Path(__file__).parent
WORKER_SITE = TESTS / "support" / "worker_site"

# Files that take long come first, so that no process of the suite is left alone with one.
LONGEST = (
    "tables/test_kills.py",
    "model_server/test_sharing_on_cluster.py",
    "test_both_sessions.py",
    "tables",
    "test_examples.py",
    "model_server",
    "jobs",
    "search",
    "test_sql.py",
    "test_docs.py",
    "test_functions.py",
    "test_caption_image.py",
)


def pytest_collection_modifyitems(items):
    """Order the files by their length."""

    def place(item):
        name = item.path.relative_to(TESTS).as_posix()
        return next((at for at, start in enumerate(LONGEST) if name.startswith(start)), 99)

    items.sort(key=place)


@pytest.fixture(scope="session")
def forwards_folder(tmp_path_factory):
    """Where Spark's Python workers, and theirs only, write down the images of each forward pass."""
    return tmp_path_factory.mktemp("forwards")


@pytest.fixture(scope="session")
def decodes_folder(tmp_path_factory):
    """Where Spark's Python workers, and theirs only, write down each JPEG that they decode."""
    return tmp_path_factory.mktemp("decodes")


@pytest.fixture(scope="session")
def spark(tmp_path_factory, forwards_folder, decodes_folder):
    """A classic session on two local cores, as `configure` makes it."""
    from pyspark.sql import SparkSession

    from spark_vision.session import configure

    builder = (
        SparkSession.builder.master("local[2]")
        .appName("spark_vision tests")
        .config("spark.driver.memory", "2g")
        # Expressions are interpreted as well: a sixth of the time went into compiling them. The
        # sessions of jobs, of clusters and of Connect compile theirs.
        .config("spark.testing", "true")
        .config("spark.sql.codegen.factoryMode", "NO_CODEGEN")
        .config("spark.sql.planChangeValidation", "false")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .config("spark.executorEnv.PYTHONPATH", str(WORKER_SITE))
        .config("spark.python.daemon.module", "warm_daemon")
        .config("spark.vision.model.idleSeconds", "600")
        .config("spark.executorEnv.COUNTED_FORWARDS", str(forwards_folder))
        .config("spark.executorEnv.COUNTED_DECODES", str(decodes_folder))
    )
    session = configure(quickly(builder)).getOrCreate()
    yield session
    session.stop()


@pytest.fixture
def photos(tmp_path):
    """Six photographs and a text that claims to be one."""
    from encoded_images import encode, photo

    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.jpg").write_bytes(encode(photo(48 + index, 40, seed=index), "JPEG"))
    (folder / "text.jpg").write_bytes(b"not an image")
    return folder


@pytest.fixture
def count_forwards(forwards_folder):
    """A function that says how many images a DINOv2 has seen in this test."""
    return _count_in(forwards_folder)


@pytest.fixture
def count_decodes(decodes_folder):
    """A function that says how many JPEG files have been decoded in this test."""
    return _count_in(decodes_folder)


def _count_in(folder):
    def total():
        return sum(int(line) for file in folder.iterdir() for line in file.read_text().split())

    before = total()
    return lambda: total() - before


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A folder with the small checkpoints `dinov2`, `dinov2-other`, `clip` and `qwen`."""
    import caption_checkpoints
    import checkpoints as write

    folder = tmp_path_factory.mktemp("checkpoints")
    write.write_dinov2(folder / "dinov2")
    write.write_dinov2(folder / "dinov2-other", seed=1)
    write.write_clip(folder / "clip")
    caption_checkpoints.write_qwen_vl(folder / "qwen")
    return folder


@pytest.fixture
def read_photos(spark, photos):
    """Reads the folder as it is now."""
    return lambda: spark.read.format("binaryFile").load(str(photos))


@pytest.fixture
def dino(checkpoints):
    """A small DINOv2."""
    from spark_vision import ImageViTEmbedding

    return ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
