"""A model server's threads in the test's own process, with a model that the test writes."""

import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from spark_vision.executor.task import ExecutorProcess
from spark_vision.model_server.channel import Channel
from spark_vision.model_server.model_calls import ModelCalls
from spark_vision.model_server.server import ModelServer
from spark_vision.model_server.start import ServerConfig
from spark_vision.models.families import LoadOptions

# Far more than a busy machine takes.
LONG_SECONDS = 120
CALL = {"method": "embed_texts", "arguments": {}}


def make_config(**settings):
    """The settings of a server of this process, with what a test needs otherwise."""
    return ServerConfig(
        **{
            "executor": ExecutorProcess.of(os.getpid()),
            "folder": "/nowhere",
            "stamp": "",
            "dtype": "float32",
            "device": "cpu",
            "options": LoadOptions(),
            "call_count": 1,
            "thread_count": 1,
            "joined_row_count": 0,
            "load_seconds": 60,
            "batch_seconds": 60,
            "idle_seconds": 1,
            "python": sys.executable,
            **settings,
        }
    )


class Server:
    """A server's threads in this process, and clients of it."""

    def __init__(self, address, reason, end):
        self.address = address
        self.reason = reason
        self.end = end

    def open(self):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.address)
        return Channel(connection)

    def connect(self):
        channel = self.open()
        assert receive_answer(channel)[0] == {"hello": 1}
        return channel


@contextmanager
def serve(tmp_path, model, listen=lambda listener: listener, load=None, **settings):
    config = make_config(executor=ExecutorProcess.of(1), **settings)
    address = str(tmp_path / "socket")
    device, joined = torch.device("cpu"), config.joined_row_count
    calls = ModelCalls(SimpleNamespace(model=model), device, 1, joined)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        ThreadPoolExecutor(1) as pool,
    ):
        listener.bind(address)
        listener.listen()
        server = ModelServer(config, listen(listener), load or (lambda _: calls))
        reason = pool.submit(lambda: server.run()[:2])
        yield Server(address, reason, lambda: server._end("the test has ended"))


def send(channel, value):
    channel.send(CALL, {"input_ids": torch.tensor([[value]])})


def receive(channel):
    _, result = receive_answer(channel)
    return float(result["vectors"])


def receive_answer(channel, seconds=LONG_SECONDS):
    """The next message that is no keep-alive; None at the end of the connection."""
    deadline = time.monotonic() + seconds
    while channel.wait(deadline - time.monotonic()):
        message = channel.receive()
        if message is None or "alive" not in message[0]:
            return message
    raise AssertionError("nothing came")
