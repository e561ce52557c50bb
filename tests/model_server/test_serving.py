"""Calls of several clients in one model server: how many at a time, which, and for how long."""

import errno
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from served_models import CALL, receive, receive_answer, send, serve
from spark_vision.errors import UnsupportedCheckpointError

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
        # Long enough for one more call to come in, were it let in.
        time.sleep(0.3)
        with self._lock:
            self._inside -= 1
        return tokens["input_ids"] + 1.0


class WaitingModel:
    """Waits with the value 0 until it is released, and knows what it was given."""

    def __init__(self):
        self.given = []
        self.release = threading.Event()

    def embed_texts(self, tokens):
        value = float(tokens["input_ids"])
        self.given.append(value)
        if value == 0:
            self.release.wait(60)
        return tokens["input_ids"] + 1.0


@pytest.mark.parametrize("call_count", [1, CLIENT_COUNT])
def test_as_many_calls_are_computed_at_a_time_as_the_config_allows(tmp_path, call_count):
    model = CountingModel(call_count)
    together = threading.Barrier(CLIENT_COUNT)

    def call(value):
        channel = server.connect()
        together.wait(20)
        send(channel, value)
        return receive(channel)

    with (
        serve(tmp_path, model, call_count=call_count) as server,
        ThreadPoolExecutor(CLIENT_COUNT) as pool,
    ):
        assert list(pool.map(call, [0.0, 1.0, 2.0])) == [1.0, 2.0, 3.0]
        assert server.reason.result(30) == ("no call for 1 s", 0)
    assert model.most == call_count


def test_what_a_client_that_left_had_waiting_is_not_computed(tmp_path):
    model = WaitingModel()
    with serve(tmp_path, model) as server:
        first, left, third = (server.connect() for _ in range(3))
        send(first, 0.0)
        while not model.given:
            time.sleep(0.01)
        send(left, 1.0)
        left.close()
        send(third, 2.0)
        # One turn for the call, one for the end, one in which both have been seen.
        for _ in range(3):
            server.connect()
        model.release.set()
        assert [receive(first), receive(third)] == [1.0, 3.0]
        assert server.reason.result(30) == ("no call for 1 s", 0)
    assert model.given == [0.0, 2.0]


class JoinedModel:
    """Waits in its first call until it is released; adds one to pixels, or fails as it is asked."""

    def __init__(self, poison=None, row_limit=1000):
        self.release = threading.Event()
        self.begun = threading.Event()
        self.sizes = []
        self._poison = poison
        self._row_limit = row_limit

    def embed_images(self, pixels, scaling, pooling):
        self.sizes.append(len(pixels))
        self.begun.set()
        self.release.wait(60)
        if len(pixels) > self._row_limit:
            raise torch.OutOfMemoryError("no memory")
        if self._poison is not None and (pixels == self._poison).any():
            raise ValueError("poison")
        return pixels.float() + 1


class OverlapModel:
    """Stays in each call until it may leave, and knows how many did so at a time."""

    def __init__(self):
        self.leave = threading.Semaphore(0)
        self.most_inside = 0
        self.arrived = threading.Semaphore(0)
        self._inside = 0
        self._lock = threading.Lock()

    def embed_images(self, pixels, scaling, pooling):
        with self._lock:
            self._inside += 1
            self.most_inside = max(self.most_inside, self._inside)
        self.arrived.release()
        assert self.leave.acquire(timeout=60)
        with self._lock:
            self._inside -= 1
        return pixels.float() + 1


def send_pixels(channel, pixels, *, alone=False, pooling="cls"):
    scaling = {"rescale_factor": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3}
    arguments = {"scaling": scaling, "pooling": pooling}
    header = {"method": "embed_images", "arguments": arguments, "alone": alone}
    channel.send(header, {"pixels": pixels})


def draw(seed, count, interleaved=False):
    shape = (count, 4, 5, 3) if interleaved else (count, 3, 4, 5)
    pixels = torch.randint(0, 99, shape, dtype=torch.uint8, generator=torch.manual_seed(seed))
    return pixels.permute(0, 3, 1, 2) if interleaved else pixels


def send_in_turn(server, calls):
    """Send each call from a client of its own, after the server has received the one before."""
    channels = []
    for pixels, options in calls:
        channels.append(server.connect())
        send_pixels(channels[-1], pixels, **options)
        # The second greeting comes from a later turn of the receiving thread than this call.
        server.connect()
        server.connect()
    return channels


def assert_answers(channels, calls):
    for channel, (pixels, _) in zip(channels, calls, strict=True):
        _, result = receive_answer(channel)
        torch.testing.assert_close(result["vectors"], pixels.float() + 1, rtol=0, atol=0)


@contextmanager
def queued(tmp_path, model, calls):
    """A server that joins calls: its model is in a first call while these wait in this order."""
    with serve(tmp_path, model, joined_row_count=10) as server:
        first = server.connect()
        send_pixels(first, draw(0, 1))
        assert model.begun.wait(60)
        channels = send_in_turn(server, calls)
        model.release.set()
        receive_answer(first)
        yield channels, server


@pytest.mark.parametrize("interleaved", [False, True])
def test_waiting_calls_of_one_kind_are_joined_up_to_the_limit(tmp_path, interleaved):
    calls = [(draw(seed, count, interleaved), {}) for seed, count in enumerate([3, 1, 5, 4, 2])]
    model = JoinedModel()
    with queued(tmp_path, model, calls) as (channels, _):
        assert_answers(channels, calls)
    assert model.sizes == [1, 9, 6]


def test_calls_of_another_kind_keep_their_turn(tmp_path):
    wide = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    calls = [
        (draw(1, 2), {}),
        (draw(2, 2), {"pooling": "mean"}),
        (wide, {}),
        (draw(3, 3), {}),
        (wide, {}),
    ]
    model = JoinedModel()
    with queued(tmp_path, model, calls) as (channels, _):
        assert_answers(channels, calls)
    assert model.sizes == [1, 5, 2, 4]


def test_an_error_reaches_only_the_call_at_fault(tmp_path):
    poison = torch.full((1, 3, 4, 5), 200, dtype=torch.uint8)
    calls = [(draw(1, 2), {}), (poison, {}), (draw(2, 3), {})]
    model = JoinedModel(poison=200)
    with queued(tmp_path, model, calls) as (channels, _):
        error, _ = receive_answer(channels.pop(1))
        assert error["error"] == {"kind": "ValueError", "message": "poison"}
        assert_answers(channels, [calls[0], calls[2]])
    assert model.sizes == [1, 6, 2, 1, 3]


def test_how_many_joined_rows_fitted_into_memory_is_remembered(tmp_path):
    calls = [(draw(seed, 2), {}) for seed in range(4)]
    model = JoinedModel(row_limit=5)
    with queued(tmp_path, model, calls) as (channels, server):
        assert_answers(channels, calls)
        assert model.sizes == [1, 8, 2, 2, 2, 2]
        model.begun.clear()
        model.release.clear()
        # The first of these is computed at once, the others are joined to half of the 8 rows.
        channels = send_in_turn(server, calls[:1])
        assert model.begun.wait(60)
        channels += send_in_turn(server, calls[1:])
        model.release.set()
        assert_answers(channels, calls)
    assert model.sizes[6:] == [2, 4, 2]


def test_a_call_of_a_client_that_left_is_not_joined(tmp_path):
    calls = [(draw(1, 2), {}), (draw(2, 3), {}), (draw(3, 4), {})]
    model = JoinedModel()
    with serve(tmp_path, model, joined_row_count=10) as server:
        first = server.connect()
        send_pixels(first, draw(0, 1))
        assert model.begun.wait(60)
        channels = send_in_turn(server, calls)
        channels.pop(1).close()
        for _ in range(3):
            server.connect()
        model.release.set()
        assert_answers(channels, [calls[0], calls[2]])
    assert model.sizes == [1, 6]


def test_a_call_that_may_be_fatal_is_computed_alone_and_its_client_is_told(tmp_path):
    calls = [(draw(1, 1), {}), (draw(2, 1), {"alone": True}), (draw(3, 1), {})]
    model = OverlapModel()
    with serve(tmp_path, model, call_count=3, joined_row_count=10) as server:
        channels = send_in_turn(server, calls)
        for channel, call in zip(channels, calls, strict=True):
            assert model.arrived.acquire(timeout=60)
            if channel is channels[1]:
                assert receive_answer(channel)[0] == {"begun": 1}
            model.leave.release()
            assert_answers([channel], [call])
    assert model.most_inside == 1


def test_a_call_that_hangs_ends_the_server_while_others_are_answered(tmp_path):
    model = WaitingModel()
    answered = 0
    with serve(tmp_path, model, call_count=2, batch_seconds=1) as server:
        hanging, other = server.connect(), server.connect()
        send(hanging, 0.0)
        deadline = time.monotonic() + 20
        while not server.reason.done() and time.monotonic() < deadline:
            send(other, 1.0)
            # Without an answer where nobody takes calls any more.
            with suppress(ConnectionError):
                assert receive(other) == 2.0
                answered += 1
            time.sleep(0.02)
        assert server.reason.result(30) == ("a call took longer than 1 s", 1)
        model.release.set()
    assert answered > 1


def test_a_server_without_descriptors_goes_on_and_accepts_later(tmp_path):
    class Failing:
        def __init__(self, listener):
            self._listener = listener
            self.failures = 2

        def fileno(self):
            return self._listener.fileno()

        def accept(self):
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return self._listener.accept()

    with serve(tmp_path, WaitingModel(), listen=Failing) as server:
        channel = server.connect()
        send(channel, 1.0)
        assert receive(channel) == 2.0


def test_the_socket_of_a_client_that_leaves_in_its_call_stays_open_until_that_is_answered(pair):
    served, client = pair
    pair.clear()
    descriptor = served.fileno()
    client.send(CALL)
    assert served.receive()[0] == CALL
    client.close()
    assert served.receive() is None
    assert served.has_left
    assert is_socket(descriptor)
    served.answer({}, {})
    assert is_socket(descriptor)
    del served, pair
    gc.collect()
    assert not is_socket(descriptor)


def is_socket(descriptor):
    return Path(f"/proc/self/fd/{descriptor}").is_socket()


def test_a_server_keeps_no_descriptor_of_clients_that_have_left(tmp_path):
    with serve(tmp_path, WaitingModel(), idle_seconds=30) as server:
        server.connect()
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(50):
            channel = server.connect()
            send(channel, 1.0)
            assert receive(channel) == 2.0
            channel.close()
        deadline = time.monotonic() + 20
        while len(list(Path("/proc/self/fd").iterdir())) > before + 5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.end()


def test_a_client_that_waits_hears_that_the_server_runs_and_one_that_does_not_hears_nothing(
    tmp_path,
):
    model = WaitingModel()
    with serve(tmp_path, model, batch_seconds=8, idle_seconds=30) as server:
        computed, waiting, idle = (server.connect() for _ in range(3))
        send(computed, 0.0)
        send(waiting, 1.0)
        for channel in (computed, waiting):
            for _ in range(2):
                assert channel.wait(20)
                assert channel.receive()[0] == {"alive": 1}
        assert not idle.wait(0)
        model.release.set()
        assert [receive(computed), receive(waiting)] == [1.0, 2.0]
        server.end()


def test_a_failed_load_with_a_long_message_reaches_all_who_wait(tmp_path):
    begun, fail = threading.Event(), threading.Event()

    def load(config):
        begun.set()
        fail.wait(60)
        raise UnsupportedCheckpointError("\U0001f600" * 100_000)

    with serve(tmp_path, None, load=load) as server:
        assert begun.wait(20)
        waiting = [server.open() for _ in range(2)]
        for channel in waiting:
            # It is accepted, and learns that the server loads.
            assert channel.wait(20)
            assert channel.receive()[0] == {"alive": 1}
        fail.set()
        for channel in waiting:
            error = receive_answer(channel, 20)[0]["error"]
            assert error["kind"] == "UnsupportedCheckpointError"
            assert error["message"] == "\U0001f600" * 4000
        assert server.reason.result(30) == ("loading failed", 1)
