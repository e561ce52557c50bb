"""How a worker reaches, starts and kills a server, where the server is slow, dead or not there."""

import os
import socket
import subprocess
import sys
import threading

import psutil
import pytest

from served_models import make_config
from spark_vision.errors import ModelServerError, UnsupportedCheckpointError
from spark_vision.model_server import client
from spark_vision.model_server.channel import Channel
from spark_vision.model_server.client import SharingUnavailableError, connect
from spark_vision.model_server.start import NAME_TAKEN, ServerConfig, address_of

CONFIG = make_config(load_seconds=0.5, idle_seconds=0)

# Another process that holds the name and accepts, and does with each client what it is asked to.
SERVER = """
import sys, time
from spark_vision.model_server.channel import Channel
from spark_vision.model_server.start import listen
listener = listen(sys.argv[1])
print(flush=True)
while True:
    channel = Channel(listener.accept()[0])
    {}
"""
KEEPS_ALIVE = """
    try:
        while True:
            channel.send({"alive": 1})
            time.sleep(0.05)
    except OSError:
        pass
"""


@pytest.fixture(autouse=True)
def name(monkeypatch):
    name = f"spark-vision-test-{os.getpid()}"
    monkeypatch.setattr(ServerConfig, "name", name)
    return name


@pytest.fixture
def run_server(name):
    servers = []

    def run(act):
        code = SERVER.format(act)
        server = subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE)
        servers.append(server)
        server.stdout.readline()
        return server

    yield run
    for server in servers:
        server.kill()
        server.wait()


@pytest.mark.parametrize("goes_on", [True, False])
def test_only_a_silent_server_is_killed_at_the_deadline(run_server, monkeypatch, goes_on):
    monkeypatch.setattr(client, "GRACE_SECONDS", 1.0)
    server = run_server(KEEPS_ALIVE if goes_on else "time.sleep(60)")
    with pytest.raises(ModelServerError, match=r"did not answer within 0\.5 s"):
        connect(CONFIG)
    if goes_on:
        assert server.poll() is None
    else:
        assert server.wait(10) == -9


def test_the_error_of_a_failed_load_is_raised_as_what_it_is(run_server):
    failure = {"kind": "UnsupportedCheckpointError", "message": "no weights"}
    run_server(f"channel.send({{'error': {failure}}})")
    for _ in range(2):
        with pytest.raises(UnsupportedCheckpointError, match="no weights"):
            connect(CONFIG)


def test_a_server_that_has_just_ended_is_killed_without_an_error():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(ours)
    assert channel.peer_pid == os.getpid()
    theirs.close()
    # The connection has ended, so the id may be another process's by now: here this test's.
    client._kill(channel)
    ended = subprocess.Popen(["true"])
    ended.wait()
    channel.peer_pid = ended.pid
    client._kill(channel)


def test_a_worker_whose_output_nobody_reads_starts_its_server(monkeypatch):
    class BrokenPipe:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", BrokenPipe())
    client._announce(CONFIG, 1)


def test_a_server_that_cannot_be_started_is_unavailable(monkeypatch):
    def fail(config):
        raise OSError("no process")

    monkeypatch.setattr(client, "start_server", fail)
    with pytest.raises(SharingUnavailableError, match="no process"):
        connect(CONFIG)


class Ended:
    def __init__(self, returncode):
        self.returncode = returncode

    def poll(self):
        return self.returncode


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (-9, ModelServerError, "ended 3 times while loading"),
        (NAME_TAKEN, SharingUnavailableError, "held by a process that does not listen"),
    ],
)
def test_a_client_starts_a_bounded_number_of_servers(monkeypatch, status, error, message):
    starts = []

    def start(config):
        starts.append(config)
        return Ended(status)

    monkeypatch.setattr(client, "start_server", start)
    with pytest.raises(error, match=message):
        connect(CONFIG)
    assert len(starts) == client.MAX_STARTS


def test_a_server_that_is_killed_in_each_load_is_given_up(run_server, name, monkeypatch):
    """Killed after it has been found, as the kernel does where memory is short."""
    starts = []

    def start(config):
        server = run_server("sys.exit(9)")
        starts.append(server)
        return server

    monkeypatch.setattr(client, "start_server", start)
    with pytest.raises(ModelServerError, match="while loading"):
        connect(CONFIG)
    assert 0 < len(starts) <= client.MAX_STARTS + 1


@pytest.mark.timeout(60)
def test_a_full_queue_keeps_nobody_waiting(name):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address_of(name))
        listener.listen(0)
        waiting = client._dial(name)
        with pytest.raises(BlockingIOError):
            [client._dial(name) for _ in range(3)]
        # Once the queue moves on, the next is found, and no server was started.
        threading.Timer(0.1, lambda: listener.accept()[0].close()).start()
        config = make_config(load_seconds=20, idle_seconds=0)
        before = psutil.Process().children()
        assert client._find(config).peer_pid == os.getpid()
        assert psutil.Process().children() == before
        waiting.close()


def test_a_process_of_another_container_with_the_same_network_is_none_of_this_user(
    run_server, name
):
    run_server('channel.send({"hello": 1})')
    code = "import sys; from spark_vision.model_server import client\nclient._dial(sys.argv[1])"
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    done = subprocess.run(
        [*command, sys.executable, "-c", code, name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare:" in done.stderr:
        pytest.skip("this machine gives nobody a namespace of process ids")
    assert "a process of another container at the other end" in done.stderr
