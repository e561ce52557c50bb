"""Calls for captions share one loop in the model server; each gets the texts it gets alone."""

import gc
import threading
import weakref
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch

from caption_checkpoints import write_qwen_vl
from oracles import draw_pictures
from served_models import receive_answer, serve
from spark_vision.model_server.call_queue import Call
from spark_vision.model_server.model_calls import CaptionCalls
from spark_vision.models.caption_inputs import load_caption_preprocessor
from spark_vision.models.checkpoint_files import open_folder
from spark_vision.models.families import load_model
from spark_vision.models.protocols import CaptionBatch, GeneratedTokens, GenerationSettings
from spark_vision.operators import QwenVLImageUnderstanding

NEW_TOKENS = 12
SIZES = [(75, 100), (300, 200), (40, 40), (29, 200)]


class HeldModel:
    """A model whose loops wait before a step, until they may go on; knows what each step had."""

    def __init__(self, model):
        self._model = model
        self.arrived = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.row_counts = []
        self.failing_step = None

    def start_loop(self, scaling, settings):
        loop = self._model.start_loop(scaling, settings)
        step = loop.step

        def held():
            self.arrived.release()
            assert self.may_go_on.wait(60)
            self.row_counts.append(len(loop))
            if len(self.row_counts) == self.failing_step:
                raise torch.AcceleratorError("CUDA error: simulated", 710)
            return step()

        loop.step = held
        return loop


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    folder = write_qwen_vl(tmp_path_factory.mktemp("qwen"))
    operator = QwenVLImageUnderstanding(model_name=str(folder))
    checkpoint = open_folder(folder)
    return load_caption_preprocessor(checkpoint, operator), load_model(
        checkpoint, "float32", torch.device("cpu")
    )


@pytest.fixture
def batches(captioner):
    preprocessor, _ = captioner
    rows = [
        preprocessor.prepare(draw_pictures(1, *size, seed=seed)[0], f"What is it? {'x' * seed}")
        for seed, size in enumerate(SIZES)
    ]
    return [
        preprocessor.collate(rows[:1]),
        preprocessor.collate(rows[1:3]),
        preprocessor.collate(rows[3:]),
    ]


def send(channel, captioner, batch, new_tokens=NEW_TOKENS, **header):
    settings = asdict(GenerationSettings(new_tokens))
    arguments = {"scaling": asdict(captioner[0].scaling), "settings": settings}
    channel.send({"method": "generate", "arguments": arguments, **header}, batch._asdict())


def assert_alone(captioner, channel, batch, new_tokens=NEW_TOKENS):
    preprocessor, model = captioner
    _, result = receive_answer(channel)
    expected = model.generate(batch, preprocessor.scaling, GenerationSettings(new_tokens))
    found = GeneratedTokens(**result)
    assert preprocessor.decode(found) == preprocessor.decode(expected)
    torch.testing.assert_close(found.lengths, expected.lengths)
    assert torch.equal(found.truncated, expected.truncated)


@contextmanager
def held_server(tmp_path, captioner, first, *, alone=False, **settings):
    """A server that has the first call in its loop, and waits."""
    model = HeldModel(captioner[1])
    with serve(tmp_path, model, **{"joined_row_count": 16, "call_count": 2, **settings}) as server:
        channel = server.connect()
        send(channel, captioner, first, alone=alone)
        assert model.arrived.acquire(timeout=60)
        yield server, model, channel


def send_in_turn(server, captioner, calls):
    channels = []
    for batch, options in calls:
        channels.append(server.connect())
        send(channels[-1], captioner, batch, **options)
        server.connect()
        server.connect()
    return channels


def test_calls_enter_a_loop_that_runs(tmp_path, captioner, batches):
    first, *others = batches
    with held_server(tmp_path, captioner, first) as (server, model, channel):
        channels = send_in_turn(server, captioner, [(batch, {}) for batch in others])
        model.may_go_on.set()
        for each, batch in zip([channel, *channels], batches, strict=True):
            assert_alone(captioner, each, batch)
    # No other loop was begun, and the loop had the rows of all calls from its second step on.
    assert model.row_counts[:2] == [1, 4]
    assert len(model.row_counts) <= NEW_TOKENS + 2


def test_other_settings_are_computed_at_the_same_time_by_another_loop(tmp_path, captioner, batches):
    first, second, _ = batches
    with held_server(tmp_path, captioner, first) as (server, model, channel):
        [other] = send_in_turn(server, captioner, [(second, {"new_tokens": 5})])
        assert model.arrived.acquire(timeout=60)
        model.may_go_on.set()
        assert_alone(captioner, channel, first)
        assert_alone(captioner, other, second, 5)
    assert sorted(model.row_counts[:2]) == [1, 2]


def test_an_older_call_of_another_kind_is_not_overtaken_for_ever(tmp_path, captioner, batches):
    first, second, third = batches
    with held_server(tmp_path, captioner, first, call_count=1) as (server, model, channel):
        calls = [(second, {"new_tokens": 5}), (third, {})]
        channels = send_in_turn(server, captioner, calls)
        model.may_go_on.set()
        assert_alone(captioner, channel, first)
        assert_alone(captioner, channels[0], second, 5)
        assert_alone(captioner, channels[1], third)
    # One loop after the other: none had the rows of two calls.
    assert set(model.row_counts) <= {1, 2}


def test_a_client_that_leaves_does_not_disturb_the_others_in_the_loop(tmp_path, captioner, batches):
    first, second, third = batches
    with held_server(tmp_path, captioner, first) as (server, model, channel):
        leaving, staying = send_in_turn(server, captioner, [(second, {}), (third, {})])
        channel.close()
        leaving.close()
        model.may_go_on.set()
        assert_alone(captioner, staying, third)


class WaitingLoop:
    """A loop whose rows never enter."""

    def __init__(self):
        self.dropped = []
        self.add = lambda batch: [1, 2]
        self.step = list
        self.drop = self.dropped.extend

    def __len__(self):
        return 0


def test_a_client_that_leaves_before_its_rows_enter_keeps_no_memory():
    class Leaving:
        has_left = True

        def begin(self):
            pass

    loop, client = WaitingLoop(), Leaving()
    # Other calls keep the loop, and so its calls, for hours.
    call = Call(client, {"method": "generate"}, dict.fromkeys(CaptionBatch._fields, torch.zeros(2)))
    calls = CaptionCalls(loop, [call], lambda count: [], 16)
    [(left, error)] = calls.run()
    assert left is call
    assert isinstance(error, ConnectionError)
    assert loop.dropped == [1, 2]
    gone = weakref.ref(client)
    del call, left, client
    gc.collect()
    assert gone() is None


def test_a_call_that_makes_no_sense_fails_alone(tmp_path, captioner, batches):
    first, second, _ = batches
    broken = second._replace(grids=second.grids[:1])
    with held_server(tmp_path, captioner, first) as (server, model, channel):
        [other] = send_in_turn(server, captioner, [(broken, {})])
        model.may_go_on.set()
        assert "error" in receive_answer(other)[0]
        assert_alone(captioner, channel, first)


def test_a_device_that_breaks_with_several_calls_ends_the_server_without_an_answer(
    tmp_path, captioner, batches
):
    first, second, _ = batches
    with held_server(tmp_path, captioner, first) as (server, model, _):
        model.failing_step = 2
        send_in_turn(server, captioner, [(second, {})])
        model.may_go_on.set()
        assert server.reason.result(60) == ("a compute thread has ended", 1)


def test_a_device_that_breaks_in_a_call_beside_others_ends_the_server_without_an_answer(
    tmp_path, captioner, batches
):
    with held_server(tmp_path, captioner, batches[0]) as (server, model, _):
        model.failing_step = 2
        model.may_go_on.set()
        # Another thread may be the cause: the client sends its call again, alone.
        assert server.reason.result(60) == ("a compute thread has ended", 1)


def test_a_device_that_breaks_with_one_call_alone_is_an_error_of_that_call(
    tmp_path, captioner, batches
):
    with held_server(tmp_path, captioner, batches[0], alone=True) as (server, model, channel):
        model.failing_step = 2
        model.may_go_on.set()
        assert receive_answer(channel)[0] == {"begun": 1}
        assert receive_answer(channel)[0]["error"]["kind"] == "AcceleratorError"
        assert server.reason.result(60) == ("a compute thread has ended", 1)


def test_a_call_of_many_rows_is_not_overtaken_for_ever(tmp_path, captioner, batches):
    first, second, third = batches
    with held_server(tmp_path, captioner, first, joined_row_count=2) as (server, model, channel):
        calls = [(second, {}), (third, {})]
        channels = send_in_turn(server, captioner, calls)
        model.may_go_on.set()
        for each, batch in zip([channel, *channels], batches, strict=True):
            assert_alone(captioner, each, batch)
    # The second call does not fit beside the first one, and the third one waits behind it.
    assert model.row_counts[:2] == [1, 1]
    assert max(model.row_counts) == 2
