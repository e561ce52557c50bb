"""Thumbnails in a notebook: captions stay text, and a bad image costs its own cell only."""

import base64
import io
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image, ImageOps
from pyspark.sql import functions as F

from encoded_images import encode, photo
from hostile_images import jpeg_with_size
from spark_vision import ImageViTEmbedding, InputTypeError, InvalidOptionError, show_images
from spark_vision.operators import ClipTextEmbedding

TESTS = Path(__file__).parent
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</td></tr></table><h1>mine</h1>",
    "safe\u202egpj.exe\x1b[31m",
    "&lt;b&gt; & <b>",
]


class Cells(HTMLParser):
    """The cells of a gallery, as a browser reads them: the source of each image, and the texts."""

    def __init__(self, html):
        super().__init__()
        self.cells, self.tags = [], set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add((tag, *(name for name, _ in attrs)))
        if tag == "td":
            self.cells.append({"image": None, "texts": []})
        if tag == "img":
            self.cells[-1].update(image=dict(attrs)["src"], alt=dict(attrs)["alt"])

    def handle_data(self, data):
        if data.strip():
            self.cells[-1]["texts"].append(data)


def picture_of(cell):
    kind, _, data = cell["image"].partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def difference(one, other):
    return np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean()


@pytest.fixture
def images(spark):
    """Makes a DataFrame of contents with a number each, in their order."""

    def make(contents):
        rows = [(number, bytearray(each)) for number, each in enumerate(contents)]
        return spark.createDataFrame(rows, "number int, content binary").orderBy("number")

    return make


def test_thumbnails_are_those_of_pillow_in_the_order_of_the_rows(images):
    drawn = [photo(300, 200, seed=1), photo(90, 400, seed=2), photo(40, 30, seed=3)]
    kinds = ["JPEG", "PNG", "WEBP"]
    contents = [encode(each, kind) for each, kind in zip(drawn, kinds, strict=True)]
    gallery = show_images(images(contents), caption="number", max_side=100)
    assert repr(gallery) == "ImageGallery(image_count=3, failed_count=0)"
    cells = Cells(gallery.html).cells
    assert [cell["texts"] for cell in cells] == [["0"], ["1"], ["2"]]
    assert [picture_of(cell).size for cell in cells] == [(100, 67), (22, 100), (40, 30)]
    for cell, content in zip(cells, contents, strict=True):
        theirs = Image.open(io.BytesIO(content)).convert("RGB")
        theirs.thumbnail((100, 100))
        assert difference(picture_of(cell), theirs) < 6
        assert difference(picture_of(cell), ImageOps.mirror(theirs)) > 12


def test_captions_are_text_whatever_they_contain(images):
    content = encode(photo(40, 30), "JPEG")
    rows = images([content] * len(HOSTILE)).withColumn(
        "said", F.array(*map(F.lit, HOSTILE))[F.col("number")]
    )
    parsed = Cells(show_images(rows, caption=["said", F.lit(None), F.lit("<i>")]).html)
    assert {tag for tag, *_ in parsed.tags} == {"table", "tr", "td", "img", "br"}
    assert {each for each in parsed.tags if each[0] == "img"} == {("img", "src", "alt")}
    shown = ["".join(cell["texts"]) for cell in parsed.cells]
    assert shown[:3] == [f"{text}<i>" for text in HOSTILE[:3]]
    assert shown[3] == "safe\\u202egpj.exe\\x1b[31m<i>"
    assert [cell["alt"] for cell in parsed.cells[:3]] == HOSTILE[:3]


def test_a_bad_image_fails_only_its_cell_and_no_image_is_decoded_in_the_worker(
    images, count_decodes
):
    good = encode(photo(64, 48), "JPEG")
    bomb = jpeg_with_size(60_000, 60_000)
    gallery = show_images(images([good, b"no image", b"", good[: len(good) // 2], bomb, good]))
    assert (gallery.image_count, gallery.failed_count) == (2, 4)
    cells = Cells(gallery.html).cells
    assert [cell["texts"][0] if cell["texts"] else "ok" for cell in cells] == [
        "ok", "not_an_image", "not_an_image", "incomplete", "too_large", "ok"
    ]  # fmt: skip
    assert "60000 × 60000" in cells[4]["texts"][1]
    assert count_decodes() == 0


def test_what_reaches_the_driver_is_bounded(images):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    rows = images([encode(Image.fromarray(noise), "PNG")] + [b"no image"] * 40)
    gallery = show_images(rows, caption=F.repeat(F.lit("long "), 200_000), max_rows=4, max_side=64)
    assert (gallery.image_count, gallery.failed_count) == (1, 3)
    assert len(gallery.html) < 64 * 64 * 4 + 4 * 1000
    assert Cells(gallery.html).cells[0]["texts"][0].endswith("…")


def test_strings_are_read_as_the_operator_says(spark, photos, checkpoints):
    paths = spark.createDataFrame([(str(photos / "0.jpg"),), ("/etc/passwd",)], "path string")
    assert show_images(paths, "path").failed_count == 2
    dino = ImageViTEmbedding(
        model_name=str(checkpoints / "dinov2"),
        allow_paths=str(photos),
        on_error="raise",
        max_failure_rate=0.1,
    )
    gallery = show_images(paths, F.col("path"), "path", operator=dino)
    first, second = Cells(gallery.html).cells
    assert picture_of(first).size == (48, 40)
    assert second["texts"][0] == "blocked"


def test_jupyter_shows_html_and_databricks_is_given_it(images):
    rows = images([encode(photo(40, 30), "JPEG")])
    gallery = show_images(rows)
    shown, _ = DisplayFormatter().format(gallery)
    assert shown["text/html"] == gallery.html
    assert shown["text/plain"] == "ImageGallery(image_count=1, failed_count=0)"
    shell = InteractiveShell.instance()
    try:
        assert show_images(rows) == gallery
        displayed = []
        shell.user_ns["displayHTML"] = displayed.append
        assert show_images(rows) is None
        assert displayed == [gallery.html]
    finally:
        InteractiveShell.clear_instance()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_rows": 0}, InvalidOptionError, "max_rows got 0; allowed: 1 to 100"),
        ({"max_rows": 101}, InvalidOptionError, "max_rows got 101"),
        ({"max_side": 513}, InvalidOptionError, "max_side got 513; allowed: 1 to 512"),
        ({"max_side": True}, InvalidOptionError, "max_side got True"),
        ({"operator": ClipTextEmbedding()}, InputTypeError, "got ClipTextEmbedding; allowed"),
        ({"operator": ImageViTEmbedding}, InputTypeError, "write ImageViTEmbedding(...)"),
    ],
)
def test_what_is_not_allowed_is_refused_before_any_task(images, options, error, said):
    with pytest.raises(error) as raised:
        show_images(images([b""]), **options)
    assert said in str(raised.value)


PROGRAM = """
import json, sys
from pyspark.sql import SparkSession
from encoded_images import encode, photo
from spark_vision import ImageLimits, ImageViTEmbedding, configure, show_images

ABORTS, SLEEPS = 261, 265
# Local mode does not try a task again.
builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
builder = builder.config("spark.log.level", "OFF").config("spark.driver.memory", "1g")
builder = builder.config("spark.executorEnv.PYTHONPATH", sys.argv[1])
spark = configure(builder).getOrCreate()
contents = [(bytearray(encode(photo(width, 40), "PNG")),) for width in (40, ABORTS, SLEEPS, 50)]
reading = ImageViTEmbedding(limits=ImageLimits(decode_seconds=4))
gallery = show_images(spark.createDataFrame(contents, "content binary"), operator=reading)
print(json.dumps(gallery.html))
spark.stop()
"""


@pytest.mark.slow
def test_an_image_that_ends_or_hangs_its_decoder_fails_only_its_cell():
    path = os.pathsep.join([str(TESTS.parent), str(TESTS / "support")])
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, TESTS / "support" / "poisoned_site"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": path, "PYSPARK_PYTHON": sys.executable},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    cells = Cells(json.loads(run.stdout.splitlines()[-1])).cells
    assert [cell["texts"] for cell in cells] == [
        [],
        ["decode_error", "the decoder ended with signal 6 on this PNG"],
        ["timeout", "the PNG was not decoded within 4 s"],
        [],
    ]
