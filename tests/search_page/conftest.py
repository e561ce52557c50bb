"""Demo scenes in an index, as a sync of a table would fill it, and a page that searches it."""

import http.client
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from memory_index import MemoryIndex
from scene_gallery import MARKUP, fill, serve
from spark_vision import ClipImageEmbedding, describe_model
from spark_vision.demo import checkpoint_path
from spark_vision.demo.ground_truth import read_ground_truth
from spark_vision.demo.scene_files import write_scenes
from spark_vision.executor.columns import compute_columns
from spark_vision.executor.task import Task
from spark_vision.tables.identity import KEYS_PROPERTY, column_properties

SCENE_COUNT = 12


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Two renderings of each scene; records and properties for an index of them."""
    folder = tmp_path_factory.mktemp("page") / "scenes"
    write_scenes(folder, SCENE_COUNT, seed=3, renderings=2, broken=True)
    truths = read_ground_truth(str(folder))
    clip = ClipImageEmbedding(model_name=checkpoint_path("clip"), model_sharing="worker")
    contents = pa.array([(folder / truth.file).read_bytes() for truth in truths])
    ((vectors,),) = compute_columns([contents], [clip], Task(gpu_addresses=(), cpus=1))
    lines = map(json.loads, (folder / "scenes.jsonl").read_text("utf-8").splitlines())
    captions = [line["caption"] for line in lines]
    counts = [len(truth.scene.objects) for truth in truths]
    paths = [f"file:{folder / truth.file}" for truth in truths]
    # Rows that somebody else wrote: a file outside of the folder, a broken one, and markup.
    dimension = len(vectors[0])
    others = np.random.default_rng(5).standard_normal((3, dimension)).astype(np.float32)
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    outside = folder.parent / "outside.jpg"
    outside.write_bytes((folder / truths[0].file).read_bytes())
    paths += [f"file:{outside}", f"file:{folder}/text.jpg", "/etc/passwd"]
    captions += ["outside", "broken", MARKUP]
    records = pa.table(
        {
            "id": paths,
            "vector": pa.array([*vectors.to_pylist(), *others.tolist()], vectors.type),
            "caption": captions,
            "objects": pa.array([*counts, 9, 9, 9], pa.int64()),
        }
    )
    properties = {
        KEYS_PROPERTY: '["path"]',
        "table": "delta.`/data/scenes_table`",
        "column": "clip",
        "version": "3",
        **column_properties("clip", clip, describe_model(clip), ["clip"], None),
    }
    return SimpleNamespace(
        folder=folder, records=records, properties=properties, truths=truths, outside=outside
    )


@pytest.fixture(scope="session")
def index(scenes):
    """An index in memory."""
    return fill(MemoryIndex(), scenes)


@pytest.fixture(scope="session")
def source(index):
    """Searches the index."""
    from spark_vision.search_page.gallery_source import GalleryColumns
    from spark_vision.search_page.index_gallery import IndexGallery

    return IndexGallery(index, GalleryColumns(caption="caption", filters=("objects",)))


@pytest.fixture(scope="session")
def model(source, scenes):
    """The demo's CLIP and Qwen-VL, which read files in the folder of the scenes only."""
    from spark_vision.operators import ImageLimits
    from spark_vision.search_page.query_model import QueryModel

    reading = {"allow_paths": str(scenes.folder), "limits": ImageLimits(max_pixels=1_000_000)}
    return QueryModel(source.model, reading, checkpoint_path("qwen2_5_vl"))


@pytest.fixture(scope="session")
def port(source, model, tmp_path_factory):
    """The port of a page over the index in memory."""
    with serve(source, model, tmp_path_factory.mktemp("thumbnails")) as port:
        yield port


@pytest.fixture
def request_page(port):
    """Sends a request whose path nothing normalises; returns status, headers and body."""

    def request(path, body=None, *, kind=None, host=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"host": host} if host else {}
        if isinstance(body, dict):
            body, kind = json.dumps(body), kind or "application/json"
        if kind:
            headers["content-type"] = kind
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if answer.headers.get("content-type") == "application/json":
            data = json.loads(data)
        return SimpleNamespace(status=answer.status, headers=answer.headers, body=data)

    return request
