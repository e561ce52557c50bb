"""What drivers on the standalone cluster run; each function is called in the driver's process."""

import io
import os
import sys

from PIL import Image

from oracles import draw_pictures

PICTURE_COUNT = 32

spark = None


def start(settings):
    global spark
    # Spark's launcher reads the driver's memory from its own command line only.
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("model sharing")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.range(2).count()


def call(function, *arguments):
    """Call a function; Spark's own errors hold what cannot be sent to the test's process."""
    try:
        return function(*arguments)
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


def stop():
    spark.stop()


def png_files():
    files = []
    for picture in draw_pictures(PICTURE_COUNT, seed=3):
        buffer = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def pictures(partition_count=8):
    rows = [(number, bytearray(file)) for number, file in enumerate(png_files())]
    return spark.createDataFrame(
        spark.sparkContext.parallelize(rows, partition_count), "id int, content binary"
    )


def dino(checkpoint, **options):
    from spark_vision import ImageViTEmbedding

    return ImageViTEmbedding(model_name=checkpoint, batch_size=2, **options)


def vectors(checkpoint, **options):
    """Vectors by row, as float lists."""
    from spark_vision import embed_image

    operator = dino(checkpoint, **options)
    rows = pictures().select("id", embed_image("content", operator).alias("v")).collect()
    return [row.v for row in sorted(rows)]


def placements(checkpoint, **options):
    """(executor, server's process, device) of the processes that computed the rows."""
    from spark_vision import model_placement

    frame = pictures().select(model_placement("content", dino(checkpoint, **options)).alias("p"))
    rows = frame.select("p.*").distinct().collect()
    return sorted({(row.executor, row.server_pid, row.device) for row in rows})


def varied_work(checkpoint, folder):
    """Do what makes Spark start more workers or lose some; return the vectors, each time."""
    from pyspark.sql import functions as F

    from spark_vision import embed_image, register_functions

    operator = dino(checkpoint)
    column = embed_image("content", operator)
    frame = pictures()
    # Two functions in one SELECT run in two workers each.
    both = embed_image("content", dino(checkpoint, use_cls_token_embedding=False))
    rows = frame.select("id", column.alias("v"), both.alias("mean")).collect()
    found = [[row.v for row in sorted(rows)]]

    register_functions(spark, {"embed_image": operator})
    frame.createOrReplaceTempView("pictures")
    rows = spark.sql("SELECT id, embed_image(content) AS v FROM pictures").collect()
    found.append([row.v for row in sorted(rows)])

    # A worker is lost wherever its output is not read to the end.
    assert frame.select(column.alias("v")).first()
    assert len(frame.select(column.alias("v")).limit(5).collect()) == 5

    frame.repartition(2).write.parquet(f"{folder}/source")
    stream = spark.readStream.schema(frame.schema).option("maxFilesPerTrigger", 1)
    stream = stream.parquet(f"{folder}/source").select("id", column.alias("v"))
    writer = stream.writeStream.option("checkpointLocation", f"{folder}/stream")
    writer = writer.format("parquet").option("path", f"{folder}/sink").trigger(availableNow=True)
    query = writer.start()
    query.awaitTermination()
    assert len(query.recentProgress) >= 2
    rows = spark.read.parquet(f"{folder}/sink").collect()
    found.append([row.v for row in sorted(rows)])

    for _ in range(10):
        frame.limit(2).select(F.size(column)).collect()
    return found


def add_package(path):
    """As --py-files does."""
    spark.sparkContext.addPyFile(path)
