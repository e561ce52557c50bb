"""Calls of several clients in one model server: how many are computed at a time."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from spark_vision.executor.channel import Channel
from spark_vision.executor.executor_process import ExecutorProcess
from spark_vision.executor.server_start import ServerOrder
from spark_vision.executor.serving import serve_clients

CLIENT_COUNT = 3


class CountingModel:
    """Computes slowly enough that calls meet, and knows how many did."""

    def __init__(self, meeting_count):
        self.most = 0
        self._inside = 0
        self._lock = threading.Lock()
        self._barrier = threading.Barrier(meeting_count)

    def embed_texts(self, tokens):
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        self._barrier.wait(20)
        with self._lock:
            self._inside -= 1
        return tokens["input_ids"] + 1.0


@pytest.mark.parametrize("call_count", [1, CLIENT_COUNT])
def test_as_many_calls_are_computed_at_a_time_as_the_order_says(tmp_path, call_count):
    model = CountingModel(call_count)
    order = ServerOrder(ExecutorProcess.of(1), "", "float32", "cpu", False, call_count, 1, 60, 1)
    lock = SimpleNamespace(beat=lambda: None)
    address = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        with ThreadPoolExecutor(1 + CLIENT_COUNT) as pool:
            reason = pool.submit(serve_clients, SimpleNamespace(model=model), listener, lock, order)
            values = [pool.submit(call, address, float(each)) for each in range(CLIENT_COUNT)]
            assert [value.result(30) for value in values] == [1.0, 2.0, 3.0]
            assert reason.result(30) == ("no call for 1 s", 0)
    assert model.most == call_count


def call(address, value):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    channel = Channel(connection)
    assert channel.wait(20)
    assert channel.receive() is not None
    header = {"method": "embed_texts", "arguments": {}}
    channel.send(header, {"input_ids": torch.tensor([[value]])})
    assert channel.wait(30)
    _, result = channel.receive()
    answer = float(next(iter(result.values()))[0, 0])
    channel.close()
    return answer
