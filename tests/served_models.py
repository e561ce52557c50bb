"""A model server's threads in the test's own process, with a model that the test writes."""

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from spark_vision.executor.channel import Channel
from spark_vision.executor.executor_process import ExecutorProcess
from spark_vision.executor.server_start import ServerOrder
from spark_vision.executor.serving import serve_clients

CALL = {"method": "embed_texts", "arguments": {}}


class Server:
    """A server's threads in this process, and clients of it."""

    def __init__(self, address, reason):
        self.address = address
        self.reason = reason

    def connect(self):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.address)
        channel = Channel(connection)
        assert channel.wait(20)
        assert channel.receive()[0] == {"hello": 1}
        return channel


@contextmanager
def serve(tmp_path, model, listen=lambda listener: listener, **settings):
    order = ServerOrder(
        **{
            "executor": ExecutorProcess.of(1),
            "folder": "",
            "stamp": "",
            "dtype": "float32",
            "device": "cpu",
            "flash_attention": False,
            "call_count": 1,
            "thread_count": 1,
            "load_seconds": 60,
            "batch_seconds": 60,
            "idle_seconds": 1,
            **settings,
        }
    )
    lock = SimpleNamespace(beat=lambda: None)
    address = str(tmp_path / "socket")
    placed = SimpleNamespace(model=model)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        ThreadPoolExecutor(1) as pool,
    ):
        listener.bind(address)
        listener.listen()
        yield Server(address, pool.submit(serve_clients, placed, listen(listener), lock, order))


def send(channel, value):
    channel.send(CALL, {"input_ids": torch.tensor([[value]])})


def receive(channel):
    assert channel.wait(30)
    _, result = channel.receive()
    return float(result["vectors"])
