"""Whatever bytes a client sends to a model server: an error of that client, and of nobody else."""

import copy
import json
import math
import os
import random
import socket
from pathlib import Path

import pytest
import torch

from served_models import CALL, receive, receive_answer, send, serve
from spark_vision.model_server.channel import (
    MAX_HEADER_BYTES,
    MIN_BYTES,
    Channel,
    TensorReader,
    TensorWriter,
)

CASE_COUNT = 400
NASTY = [
    *(None, True, False, -1, 0, 1, 2, 63, 64, 2**20, 2**31, 2**36, 2**63, 2**64, 10**400),
    *(-(2**63), 0.5, 1e308, math.nan, math.inf, "", "uint8", "complex64", "x" * 5000, "\ud800"),
    *([], {}, [0], [[0]], [2**31] * 8, [1] * 100, {"dtype": "uint8"}, ["uint8", [1], [0]]),
]


class AddingModel:
    """Adds 1; a negative number breaks its device, which ends its server."""

    def embed_texts(self, tokens):
        if tokens["input_ids"].min() < 0:
            raise torch.AcceleratorError("broken")
        return tokens["input_ids"] + 1.0


@pytest.fixture
def reader():
    """A reader of 1 MiB, with nothing in it."""
    reader = TensorReader()
    _, descriptor = TensorWriter().write({"x": torch.zeros(1)})
    reader.replace(descriptor)
    return reader


def place(shape, order=None, dtype="uint8"):
    return [dtype, shape, list(range(len(shape))) if order is None else order]


REFUSED = {
    "an axis that is twice in the order": {"x": place([2**16, 2**16], [0, 0])},
    "an axis that is not in the order": {"x": place([4, 4], [0, 2])},
    "a negative axis": {"x": place([4, 4], [-1, 0])},
    "an axis that is no whole number": {"x": place([4, 4], [0, 1.0])},
    "an axis that is true": {"x": place([4, 4], [0, True])},
    "an order of no axes": {"x": place([4, 4], [None, "x"])},
    "an end beyond the memory": {"x": place([MIN_BYTES + 1])},
    "a begin beyond the memory": {"x": place([MIN_BYTES]), "y": place([1])},
    "an end beyond the memory by the alignment": {"x": place([1]), "y": place([MIN_BYTES - 1])},
    "elements beyond the memory": {"x": place([MIN_BYTES // 4 + 1], dtype="float32")},
    "a count that overflows": {"x": place([2**31, 2**31, 2**31])},
    "nothing of much": {"x": place([0, 2**62])},
    "nothing of a count that overflows": {"x": place([2**31, 2**31, 2**31, 0])},
    "a negative size": {"x": place([-1])},
    "a size that is no whole number": {"x": place([1.0])},
    "a size that is true": {"x": place([True])},
    "a wrong dtype": {"x": place([1], dtype="complex64")},
    "a dtype that is a list": {"x": place([1], dtype=["uint8"])},
    "fewer axes than sizes": {"x": place([2, 2], [0])},
    "a hundred dimensions": {"x": place([1] * 100)},
    "a thousand tensors": {str(number): place([0]) for number in range(1000)},
    "no order": {"x": ["uint8", [1]]},
    "no place": {"x": None},
    "a list": [place([1])],
    "nothing": None,
}


@pytest.mark.parametrize("layout", REFUSED.values(), ids=REFUSED)
def test_a_layout_that_no_writer_makes_is_refused(reader, layout):
    with pytest.raises(ValueError, match=r"."):
        reader.read(layout)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24).reshape(1, 2, 3, 4),
        torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(24, dtype=torch.uint8).reshape(1, 4, 2, 3).permute(0, 3, 1, 2),
        torch.arange(24)[::2],
        torch.arange(4).expand(1000, 4),
        torch.zeros(1, 1000)[:, :10],
        torch.zeros(0, 3),
        torch.tensor(5.0),
    ],
)
def test_every_tensor_that_is_written_is_read(tensor):
    writer, reader = TensorWriter(), TensorReader()
    layout, descriptor = writer.write({"first": tensor, "second": tensor})
    reader.replace(descriptor)
    read = reader.read(json.loads(json.dumps(layout)))
    assert torch.equal(read["first"], tensor)
    assert torch.equal(read["second"], tensor)


def refusal(pair, packet, descriptors=()):
    served, client = pair
    socket.send_fds(client._connection, [packet], descriptors)
    assert served.receive() is None
    error = client.receive()[0]["error"]
    assert client.receive() is None
    pair.clear()
    return error["message"]


def test_a_client_is_told_what_was_wrong_with_its_message(pair):
    assert "nested too deeply" in refusal(pair, b"[" * 60_000)


def test_a_packet_beyond_the_cap_is_refused(pair):
    assert "a packet over 65536 bytes" in refusal(pair, b" " * (MAX_HEADER_BYTES + 1))


def test_more_than_one_descriptor_is_refused_and_none_stays_open(pair):
    memory = [TensorWriter().write({"x": torch.zeros(1)})[1] for _ in range(3)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert "several descriptors" in refusal(pair, b'{"tensors": {}}', memory)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    for descriptor in memory:
        os.close(descriptor)


def test_a_descriptor_of_something_else_is_refused(pair):
    with Path("/dev/zero").open("rb") as file:
        assert "Invalid argument" in refusal(pair, b'{"tensors": {}}', [file.fileno()])


def test_memory_that_says_it_is_huge_is_refused(pair):
    import fcntl

    descriptor = os.memfd_create("huge", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 2**40)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    assert "shared memory of 1099511627776 bytes" in refusal(pair, b'{"tensors": {}}', [descriptor])
    os.close(descriptor)


def mutants(seed, count):
    """Give packets near a true one: other values in it, other bytes, pieces left out."""
    chosen = random.Random(seed)
    true = {**CALL, "tensors": {"input_ids": place([2, 3], dtype="float32"), "y": place([0])}}
    for _ in range(count):
        message = json.loads(json.dumps(true))
        for _ in range(chosen.randrange(1, 4)):
            change(message, chosen)
        packet = bytearray(json.dumps(message).encode())
        if chosen.random() < 0.4:
            for _ in range(chosen.randrange(1, 6)):
                start = chosen.randrange(len(packet) + 1)
                packet[start : start + chosen.choice([0, 1, 1, 30])] = chosen.choice(
                    [b"", b"\x00", b"\xff", b"[", b'"', b"9" * 50, b"[" * 2000, bytes(packet[:40])]
                )
        yield bytes(packet[:MAX_HEADER_BYTES]) or b"{"


def change(value, chosen):
    """Change one part of a JSON value somewhere below."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = chosen.choice(keys)
    if isinstance(value[key], dict | list) and chosen.random() < 0.8:
        change(value[key], chosen)
    elif isinstance(value, dict) and chosen.random() < 0.2:
        del value[key]
    else:
        value[key] = copy.deepcopy(chosen.choice(NASTY))


def test_no_mutant_shows_more_than_its_memory(reader):
    parsed = 0
    for packet in mutants(seed=1, count=10 * CASE_COUNT):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = Channel(ours)
        channel._reader = reader
        theirs.close()
        try:
            _, tensors = channel.parse(packet)
        except ValueError:
            continue
        finally:
            channel.close()
        parsed += 1
        shown = [each.clone() for each in tensors.values()]
        assert sum(each.numel() * each.element_size() for each in shown) <= MIN_BYTES
    assert parsed > 20


def test_a_server_outlives_every_mutant_and_serves_the_others(tmp_path):
    with serve(tmp_path, AddingModel(), idle_seconds=30) as server:
        steady = server.connect()
        for number, packet in enumerate(mutants(seed=2, count=CASE_COUNT)):
            client = server.connect()
            _, descriptor = TensorWriter().write({"x": torch.zeros(64)})
            socket.send_fds(client._connection, [packet], [descriptor])
            os.close(descriptor)
            answer = receive_answer(client, 30)
            assert answer is None or "error" in answer[0] or "vectors" in answer[1]
            client.close()
            if number % 20 == 0:
                send(steady, float(number))
                assert receive(steady) == number + 1.0
        assert not server.reason.done()
        send(steady, -1.0)
        assert server.reason.result(30) == ("a compute thread has ended", 1)
