"""Columns of every input type, row by row: values and failures."""

import base64
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from encoded_images import encode, photo, photo_with_alpha
from spark_vision.errors import InputTypeError, RowFailure, Status
from spark_vision.images.decoding import decode
from spark_vision.images.fetch import Fetcher
from spark_vision.images.sources import RawImage, check_input_type, open_column
from spark_vision.operators import ImageLimits, ImageViTEmbedding

PNG = encode(photo(12, 8), "PNG")
LIMITS = ImageLimits()
IMAGE_STRUCT = pa.struct(
    [
        ("origin", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("nChannels", pa.int32()),
        ("mode", pa.int32()),
        ("data", pa.binary()),
    ]
)


def open_array(array, image_src_type="image_url", roots=(), **limits):
    operator = ImageViTEmbedding(
        image_src_type=image_src_type, limits=ImageLimits(**limits), allow_paths=roots
    )
    return open_column(array, operator, Fetcher(operator))


def outcome(column, row):
    """The row's bytes, or its status."""
    try:
        return column.read(row).numpy().tobytes()
    except RowFailure as failure:
        return failure.status


def outcomes(column):
    return [outcome(column, row) for row in range(len(column))]


@pytest.mark.parametrize("image_src_type", ["image_url", "image_base64", "image_binary"])
@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.binary(len(PNG)),
        pa.dictionary(pa.int32(), pa.binary()),
    ],
    ids=str,
)
def test_binary_column_is_bytes_for_every_source_type(kind, image_src_type):
    values = pa.array([PNG, None, PNG, None, PNG])
    array = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
    column = open_array(array, image_src_type)
    assert not column.needs_fetch
    assert outcomes(column) == [PNG, Status.NULL_INPUT] * 2 + [PNG]
    assert outcomes(open_array(array.slice(1, 3), image_src_type)) == [
        Status.NULL_INPUT,
        PNG,
        Status.NULL_INPUT,
    ]


def test_column_of_nulls():
    assert outcomes(open_array(pa.nulls(2))) == [Status.NULL_INPUT] * 2


def test_bytes_of_length_zero_are_not_an_image():
    column = open_array(pa.array([b""]))
    with pytest.raises(RowFailure) as caught:
        decode(column.read(0), LIMITS)
    assert caught.value.status == Status.NOT_AN_IMAGE


def test_binary_over_the_byte_limit_is_too_large():
    column = open_array(pa.array([b"12345", b"123456"]), max_bytes=5)
    assert outcomes(column) == [b"12345", Status.TOO_LARGE]


def test_binary_file_rows_are_read_by_their_content():
    rows = [
        {"path": "file:/a.png", "length": 3, "content": PNG},
        None,
        {"path": "file:/b.png", "length": 3, "content": None},
        {"path": "file:/c.png", "length": 3, "content": b"abc"},
    ]
    kind = pa.struct([("path", pa.string()), ("length", pa.int64()), ("content", pa.binary())])
    expected = [PNG, Status.NULL_INPUT, Status.NULL_INPUT, b"abc"]
    assert outcomes(open_array(pa.array(rows, kind))) == expected
    assert outcomes(open_array(pa.array(rows, kind).slice(2))) == expected[2:]


def test_null_struct_hides_the_content_under_it():
    content = pa.array([PNG, PNG])
    array = pa.StructArray.from_arrays([content], ["content"], mask=pa.array([True, False]))
    assert outcomes(open_array(array)) == [Status.NULL_INPUT, PNG]


def image_struct(image, mode):
    """An image as read by Spark's image data source: BGR or BGRA, row by row."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    data = pixels.reshape(height, width, channels)[..., order].tobytes()
    return {
        "origin": "file:/x",
        "height": height,
        "width": width,
        "nChannels": channels,
        "mode": mode,
        "data": data,
    }


def decoded(column, row):
    return decode(column.read(row), LIMITS).permute(1, 2, 0).numpy()


def test_image_structs_are_read_as_bgr():
    rgb, gray, rgba = photo(13, 7), photo(13, 7).convert("L"), photo_with_alpha(13, 7)
    rows = [None, image_struct(rgb, 16), image_struct(gray, 0), image_struct(rgba, 24)]
    for array in (pa.array(rows, IMAGE_STRUCT), pa.array([None, *rows], IMAGE_STRUCT).slice(1)):
        column = open_array(array)
        assert outcome(column, 0) == Status.NULL_INPUT
        assert isinstance(column.read(1), RawImage)
        np.testing.assert_array_equal(decoded(column, 1), np.asarray(rgb))
        np.testing.assert_array_equal(decoded(column, 2)[..., 1], np.asarray(gray))
        alpha = np.asarray(rgba)[..., 3:] / 255
        expected = np.asarray(rgba)[..., :3] * alpha + 255 * (1 - alpha)
        assert np.abs(decoded(column, 3) - expected).max() <= 0.5 + 1e-6


def changed(**fields):
    return image_struct(photo(13, 7), 16) | fields


@pytest.mark.parametrize(
    ("row", "status"),
    [
        (changed(height=-1, width=-1, nChannels=-1, mode=-1, data=b""), Status.NOT_AN_IMAGE),
        (changed(data=None), Status.NULL_INPUT),
        (changed(height=None), Status.NULL_INPUT),
        (changed(height=0), Status.BAD_DIMENSIONS),
        (changed(width=-5), Status.BAD_DIMENSIONS),
        (changed(data=b"\0" * 272), Status.INCOMPLETE),
        (changed(data=b"\0" * 274), Status.DECODE_ERROR),
        (changed(nChannels=4), Status.DECODE_ERROR),
        (changed(mode=21), Status.UNSUPPORTED_FORMAT),
        (changed(height=100_000, width=100_000), Status.TOO_LARGE),
    ],
)
def test_inconsistent_image_struct_fails_on_its_row(row, status):
    column = open_array(pa.array([changed(), row], IMAGE_STRUCT))
    assert decoded(column, 0).shape == (7, 13, 3)
    with pytest.raises(RowFailure) as caught:
        decoded(column, 1)
    assert caught.value.status == status


def test_image_struct_over_the_byte_limit_is_too_large():
    column = open_array(pa.array([changed()], IMAGE_STRUCT), max_bytes=272)
    with pytest.raises(RowFailure) as caught:
        column.read(0)
    assert caught.value.status == Status.TOO_LARGE


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_base64_column(kind):
    text = base64.b64encode(PNG).decode()
    rows = [None, text, "", " \n", "data:image/png;base64," + text, "%%%%", text.rstrip("=")]
    column = open_array(pa.array(rows, kind), "image_base64")
    assert not column.needs_fetch
    assert outcomes(column) == [
        Status.NULL_INPUT,
        PNG,
        Status.NULL_INPUT,
        Status.NULL_INPUT,
        PNG,
        Status.BAD_BASE64,
        PNG,
    ]


def test_base64_over_the_byte_limit_is_too_large():
    text = base64.b64encode(b"123456").decode()
    assert outcomes(open_array(pa.array([text]), "image_base64", max_bytes=5)) == [Status.TOO_LARGE]


def test_url_column_is_fetched(tmp_path):
    path = tmp_path / "a picture #1 100%.png"
    path.write_bytes(PNG)
    missing = str(tmp_path / "missing.png")
    inline = "data:image/png;base64," + base64.b64encode(PNG).decode()
    rows = [str(path), None, "  ", missing, path.as_uri(), inline, f" \n{inline}", "/etc/passwd"]
    array = pa.array(rows)
    null, read_error, blocked = Status.NULL_INPUT, Status.READ_ERROR, Status.BLOCKED
    expected = [PNG, null, null, read_error, PNG, PNG, PNG, blocked]
    column = open_array(array, roots=str(tmp_path))
    assert column.needs_fetch
    assert outcomes(column) == expected
    assert outcomes(open_array(array.dictionary_encode(), roots=str(tmp_path))) == expected
    assert outcomes(open_array(array.slice(3, 2), roots=str(tmp_path))) == expected[3:5]


@pytest.mark.parametrize("start", ["http://host/", "/", "s3://b/", "", "图" * 3000, "::" * 5000])
def test_a_string_too_long_for_an_address_is_not_parsed(start):
    # Not even whether it is a text: the last byte is none of UTF-8.
    text = start.encode() + b"x" * 10_000_000 + b"\xff"
    column = open_array(pa.array([text], pa.binary()).view(pa.string()), roots="/")
    with pytest.raises(RowFailure) as caught:
        column.read(0)
    assert caught.value.status == Status.READ_ERROR
    assert caught.value.reason == "the address has more than 8,192 characters"


def test_on_bytes_is_called_before_bytes_are_kept(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"x" * 3_000_000)
    heard = []
    open_array(pa.array([str(path)]), roots=str(tmp_path)).read(0, heard.append)
    assert sum(heard) == 3_000_000
    assert len(heard) > 1


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.binary(9),
        pa.null(),
        pa.dictionary(pa.int8(), pa.large_binary()),
        IMAGE_STRUCT,
        pa.struct([("content", pa.binary())]),
    ],
    ids=str,
)
@pytest.mark.parametrize("image_src_type", ["image_url", "image_base64", "image_binary"])
def test_bytes_are_an_input_for_every_source_type(kind, image_src_type):
    check_input_type(kind, image_src_type)


def test_strings_are_an_input_unless_the_source_type_is_binary():
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        check_input_type(kind, "image_url")
        check_input_type(kind, "image_base64")
        with pytest.raises(InputTypeError, match=r"image_binary.*image_url.*image_base64"):
            check_input_type(kind, "image_binary")


@pytest.mark.parametrize(
    "kind",
    [
        pa.int32(),
        pa.list_(pa.binary()),
        pa.list_(pa.uint8()),
        pa.timestamp("us"),
        pa.struct([("path", pa.string())]),
        pa.struct([("content", pa.string())]),
        pa.struct([("height", pa.int32()), ("data", pa.binary())]),
    ],
    ids=str,
)
def test_other_types_are_refused_with_what_is_allowed(kind):
    with pytest.raises(InputTypeError, match=r"binary column.*image struct.*image_base64"):
        check_input_type(kind, "image_url")
    with pytest.raises(InputTypeError):
        open_array(pa.nulls(1, kind))


def test_reading_images_imports_neither_spark_nor_models():
    program = """
import sys
import spark_vision.images.sources, spark_vision.images.decoding, spark_vision.images.fetch
print([name for name in ("pyspark", "transformers") if name in sys.modules])
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == "[]"
