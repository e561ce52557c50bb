"""What the tests of the model server share: a server's and a client's end of one connection."""

import socket

import pytest

from spark_vision.model_server.channel import Channel
from spark_vision.model_server.server import ClientConnection


@pytest.fixture
def pair():
    """A connection that the server has greeted, and the client's channel to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    served, client = ClientConnection(ours), Channel(theirs)
    served.answer({"hello": 1}, {})
    assert client.receive()[0] == {"hello": 1}
    return [served, client]
