"""The demonstration's clip finds unseen scenes by their captions, the same in Spark and Milvus."""

import json

import numpy as np
import pytest
from pyspark.sql import functions as F

from spark_vision import (
    ClipImageEmbedding,
    ClipTextEmbedding,
    MilvusIndex,
    embed_text,
    search_images,
    sync_index,
    write_vision_columns,
)
from spark_vision.demo import write_scenes
from spark_vision.demo.checkpoint_folders import checkpoint_path

COUNT = 1000
MINIMUM_RECALL = 0.95


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_caption_finds_its_scene_among_a_thousand_in_spark_and_in_milvus(spark, tmp_path):
    scenes, table = tmp_path / "scenes", str(tmp_path / "vectors")
    write_scenes(scenes, COUNT, seed=31_007)
    lines = (scenes / "scenes.jsonl").read_text(encoding="utf-8").splitlines()
    captions = {each["file"]: each["caption"] for each in map(json.loads, lines)}
    assert len(captions) == COUNT
    clip = checkpoint_path("clip")
    photos = spark.read.format("binaryFile").option("pathGlobFilter", "*.{jpg,png,webp}")
    named = photos.load(str(scenes)).withColumn("name", F.element_at(F.split("path", "/"), -1))
    image = ClipImageEmbedding(model_name=clip)
    write_vision_columns(named, table, ["path"], {"clip": image}, keep=["name"])

    exact = search_images(table, "clip", [*captions.values()], k=1, keep=["name"])
    in_spark = {row["query"]: row["name"] for row in exact.collect()}

    index = MilvusIndex(str(tmp_path / "index.db"), "scenes", search_params={"nprobe": 1024})
    assert sync_index(table, "clip", index, metadata=["name"]).written_rows == COUNT
    asked = spark.createDataFrame([*enumerate(captions.values())], "place int, caption string")
    embedded = asked.select("place", embed_text("caption", ClipTextEmbedding(model_name=clip)))
    queries = np.float32([row[1] for row in embedded.orderBy("place").collect()])
    hits = index.search(queries, 1, metadata=["name"])
    in_milvus = {place: found[0].metadata["name"] for place, found in enumerate(hits)}
    index.close()

    assert in_milvus == in_spark
    right = [name == in_spark[place] for place, name in enumerate(captions)]
    recall = np.mean(right)
    print(f"text to picture, recall@1 over {COUNT} unseen scenes: {recall:.3f}")
    assert recall >= MINIMUM_RECALL
