"""Rows of every binary and string layout of Arrow, against `to_pylist`."""

import warnings

import numpy as np
import pyarrow as pa
import pytest

from spark_vision.images.byte_rows import ByteRows, tensor_view

VALUES = [b"one", None, b"", b"a value longer than twelve bytes", b"\xff\x00", None, b"x" * 300]


def rows_of(array):
    rows = ByteRows(array)
    return [None if rows[at] is None else rows[at].numpy().tobytes() for at in range(len(rows))]


def as_bytes(array):
    values = array.to_pylist()
    return [each.encode() if isinstance(each, str) else each for each in values]


def binary_arrays():
    texts = [None if value is None else value.decode("latin1") for value in VALUES]
    sixes = [b"sixsix", None, b"\0\0\0\0\0\0", b"banana", b"orange", None, b"cherry"]
    yield "binary", pa.array(VALUES, pa.binary())
    yield "large_binary", pa.array(VALUES, pa.large_binary())
    yield "binary_view", pa.array(VALUES, pa.binary_view())
    yield "string", pa.array(texts, pa.string())
    yield "large_string", pa.array(texts, pa.large_string())
    yield "string_view", pa.array(texts, pa.string_view())
    yield "fixed_size_binary", pa.array(sixes, pa.binary(6))
    yield "dictionary", pa.array([*VALUES, *VALUES], pa.binary()).dictionary_encode()
    yield (
        "dictionary of 8-bit indices with a null value",
        pa.DictionaryArray.from_arrays(
            pa.array([2, 0, None, 1, 2, 2, 0], pa.int8()), pa.array([b"a", None, b"c"])
        ),
    )
    yield "null", pa.nulls(7)
    yield "only nulls", pa.nulls(7, pa.binary())
    yield "only null views", pa.nulls(7, pa.binary_view())
    yield "only null fixed size", pa.nulls(7, pa.binary(4))
    yield "only null dictionary", pa.nulls(7, pa.dictionary(pa.int32(), pa.binary()))
    yield "only empty", pa.array([b""] * 7)


ARRAYS = dict(binary_arrays())


@pytest.mark.parametrize("name", ARRAYS)
def test_rows_are_those_of_the_array(name):
    array = ARRAYS[name]
    array.validate(full=True)
    assert rows_of(array) == as_bytes(array)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(("start", "length"), [(1, 4), (3, 4), (6, 1), (2, 0), (7, 0)])
def test_slice_has_the_rows_of_the_slice(name, start, length):
    sliced = ARRAYS[name].slice(start, length)
    assert rows_of(sliced) == as_bytes(sliced)
    assert len(ByteRows(sliced)) == length


@pytest.mark.parametrize("name", ARRAYS)
def test_rows_survive_a_round_trip_over_ipc(name):
    array = ARRAYS[name].slice(1, 5)
    batch = pa.record_batch([array], ["image"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    read = pa.ipc.open_stream(sink.getvalue()).read_next_batch().column(0)
    assert rows_of(read) == as_bytes(array)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes_are_not_copied(kind):
    array = pa.array(VALUES, kind)
    data = array.buffers()[2]
    row = ByteRows(array)[6]
    assert data.address <= row.data_ptr() < data.address + data.size


def test_tensor_keeps_its_bytes_alive():
    row = ByteRows(pa.array([b"abc" * 100_000]))[0]
    np.random.default_rng(0).bytes(300_000)
    assert row.numpy().tobytes() == b"abc" * 100_000


def test_viewing_read_only_bytes_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tensor_view(b"abc").tolist() == [97, 98, 99]
        assert tensor_view(b"").tolist() == []


@pytest.mark.parametrize("array", [pa.array([1]), pa.array([[b"a"]]), pa.array([{"a": b"b"}])])
def test_array_without_bytes_is_refused(array):
    with pytest.raises(TypeError, match="neither binary nor strings"):
        ByteRows(array)
