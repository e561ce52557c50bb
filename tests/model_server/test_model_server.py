"""One process per executor holds a model: what its clients get, and how it starts and ends.

The executor is a process that sleeps; servers, sockets and shared memory are real.
"""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from caption_checkpoints import write_qwen_vl
from checkpoints import write_siglip
from conftest import WORKER_SITE
from oracles import draw_pictures
from served_models import make_config, receive_answer
from spark_vision import ClipTextEmbedding, ImageViTEmbedding, QwenVLImageUnderstanding
from spark_vision.errors import (
    FatalBatchError,
    ModelServerError,
    RowFailure,
    Status,
    UnsupportedCheckpointError,
)
from spark_vision.executor import model_access
from spark_vision.executor.inference import compute_batches, compute_rows
from spark_vision.executor.model_access import reach_model
from spark_vision.executor.task import ExecutorProcess, Task
from spark_vision.model_server import client, start
from spark_vision.model_server.channel import Channel, describe_error, make_error
from spark_vision.model_server.client import ModelProxy, why_not_shared
from spark_vision.model_server.start import ServerConfig, address_of
from spark_vision.models.caption_inputs import load_caption_preprocessor
from spark_vision.models.checkpoints import resolve_checkpoint
from spark_vision.models.families import load_model
from spark_vision.models.preprocessing import load_preprocessor
from spark_vision.models.protocols import GenerationSettings
from spark_vision.models.tokenizer import load_tokenizer

CPU = torch.device("cpu")
# Far more than a busy machine takes, and less than a server waits for calls.
LONG_SECONDS = 60


class Host:
    """A host of its own: a temporary folder, an executor, and what servers there write down."""

    def __init__(self, folder, checkpoints):
        self.folder = folder
        self.checkpoints = checkpoints
        self.executor = subprocess.Popen(["sleep", "600"])
        self.records = folder / "records"
        self.forwards = folder / "forwards"
        self.records.mkdir(parents=True)
        self.forwards.mkdir()

    def reach(self, name="dinov2", **settings):
        """What a Python worker of its own would reach: another connection each time."""
        operator = ImageViTEmbedding(model_name=str(self.checkpoints / name))
        model_access._served.clear()
        return reach_model(resolve_checkpoint(operator), operator, CPU, self.task(**settings))

    def task(self, **settings):
        return Task((), 1, executor=ExecutorProcess.of(self.executor.pid), **settings)

    def log(self):
        (log,) = self.folder.glob("spark-vision-*.log")
        return log

    def log_of(self, pid):
        return Path(psutil.Process(pid).cmdline()[6])

    def connect(self, pid):
        """Another client of a server that has loaded its model."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(address_of(psutil.Process(pid).cmdline()[5]))
        channel = Channel(connection)
        assert channel.peer_pid == pid
        assert channel.receive()[0] == {"hello": 1}
        return channel

    def servers(self):
        """The model servers of this executor that run, as the process table has them."""
        return self._processes("executor")

    def refusals(self):
        """The processes that hold a server's name after its load has failed."""
        return self._processes("refused")

    def _processes(self, role):
        marker = f'{{"{role}": {{"pid": {self.executor.pid},'
        return [
            process.pid
            for process in psutil.process_iter(["cmdline", "status"])
            if marker in " ".join(process.info["cmdline"] or [])
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def load_count(self):
        lines = [file.read_text().splitlines() for file in self.records.iterdir()]
        return sum(map(len, lines))

    def remains(self):
        return sorted(str(path) for path in self.folder.glob("spark-vision-*"))


@pytest.fixture
def host(tmp_path, checkpoints, monkeypatch):
    yield from run_host(tmp_path, checkpoints, monkeypatch)


@pytest.fixture(scope="module")
def lasting_host(tmp_path_factory, checkpoints):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from run_host(tmp_path_factory.mktemp("host"), checkpoints, monkeypatch)


def run_host(folder, checkpoints, monkeypatch):
    host = Host(folder, checkpoints)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.syspath_prepend(str(WORKER_SITE))
    monkeypatch.setenv("RECORDED_LOADS", str(host.records))
    monkeypatch.setenv("COUNTED_FORWARDS", str(host.forwards))
    yield host
    host.executor.kill()
    host.executor.wait()
    assert wait_until(lambda: not host.servers() and not host.refusals())


def wait_until(is_true):
    deadline = time.monotonic() + LONG_SECONDS
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def pixels():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (5, 3, 28, 28), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def scaling(checkpoints):
    operator = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    return load_preprocessor(resolve_checkpoint(operator), None).scaling


@pytest.fixture(scope="module")
def expected(checkpoints, pixels, scaling):
    operator = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    model = load_model(resolve_checkpoint(operator), "float32", CPU)
    return model.embed_images(pixels, scaling, "cls")


def test_a_served_model_gives_what_a_loaded_one_gives(lasting_host, pixels, scaling, expected):
    served = lasting_host.reach().model
    torch.testing.assert_close(served.embed_images(pixels, scaling, "cls"), expected)
    interleaved = pixels.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(served.embed_images(interleaved, scaling, "cls"), expected)
    many = served.embed_images(pixels.repeat(300, 1, 1, 1), scaling, "tokens")
    assert many.shape == (1500, 17, 48)
    torch.testing.assert_close(many[-5:, 0], expected)


def test_texts_are_served_as_well(lasting_host):
    operator = ClipTextEmbedding(model_name=str(lasting_host.checkpoints / "clip"))
    checkpoint = resolve_checkpoint(operator)
    tokens = load_tokenizer(checkpoint)(["a red circle", "a blue square left of it"])
    served = reach_model(checkpoint, operator, CPU, lasting_host.task()).model
    loaded = load_model(checkpoint, "float32", CPU)
    torch.testing.assert_close(served.embed_texts(tokens), loaded.embed_texts(tokens))
    assert served.logit_terms() == loaded.logit_terms()
    assert served.logit_terms().bias is None


@pytest.mark.slow
def test_the_terms_of_siglips_scores_are_served_as_well(lasting_host, tmp_path):
    operator = ClipTextEmbedding(model_name=str(write_siglip(tmp_path / "siglip")))
    checkpoint = resolve_checkpoint(operator)
    served = reach_model(checkpoint, operator, CPU, lasting_host.task()).model
    trained = load_file(tmp_path / "siglip" / "model.safetensors")
    scale, bias = served.logit_terms()
    torch.testing.assert_close(scale, trained["logit_scale"].exp())
    torch.testing.assert_close(bias, trained["logit_bias"])


def test_captions_are_served_as_well(lasting_host, tmp_path):
    folder = write_qwen_vl(tmp_path / "qwen", "qwen2_5_vl")
    operator = QwenVLImageUnderstanding(model_name=str(folder), dtype="float32")
    checkpoint = resolve_checkpoint(operator)
    preprocessor = load_caption_preprocessor(checkpoint, operator)
    rows = [preprocessor.prepare(picture, "What is it?") for picture in draw_pictures(3)]
    batch, scaling = preprocessor.collate(rows), preprocessor.scaling
    served = reach_model(checkpoint, operator, CPU, lasting_host.task()).model
    loaded = load_model(checkpoint, "float32", CPU)
    greedy = GenerationSettings(6, repetition_penalty=1.2)
    sampled = GenerationSettings(6, do_sample=True, temperature=2.0)
    for settings in (greedy, sampled):
        generated = served.generate(batch, scaling, settings)
        expected = loaded.generate(batch, scaling, settings)
        for ours, theirs in zip(generated, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    # Drawn by the rows' seeds, wherever that is done.
    again = served.generate(batch._replace(seeds=batch.seeds + 1), scaling, sampled)
    assert not torch.equal(again.token_ids, generated.token_ids)


def test_a_models_error_comes_back_and_its_server_goes_on(lasting_host, pixels, scaling, expected):
    reached = lasting_host.reach()
    before = reached.placement().server_pid
    with pytest.raises(ValueError, match="no pooling 'median'"):
        reached.model.embed_images(pixels, scaling, "median")
    with pytest.raises(ValueError, match="no method 'load_state_dict'"):
        reached.model._compute("load_state_dict", {}, {})
    torch.testing.assert_close(reached.model.embed_images(pixels, scaling, "cls"), expected)
    assert reached.placement().server_pid == before


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError, MemoryError])
def test_errors_that_inference_tells_apart_stay_what_they_are(kind):
    assert type(make_error(describe_error(kind("why")))) is kind
    assert str(make_error(describe_error(KeyError("x")))) == "KeyError: 'x'"
    assert type(make_error(describe_error(RowFailure(Status.TIMEOUT, "late")))) is ValueError
    with pytest.raises(KeyError):
        make_error({"kind": "SystemExit", "message": "why"})


def test_a_client_cannot_take_memory_away_or_call_twice_at_once(lasting_host, pixels, scaling):
    reached = lasting_host.reach()
    pid = reached.placement().server_pid
    intruder = lasting_host.connect(pid)
    descriptor = os.memfd_create("not-sealed")
    os.ftruncate(descriptor, 2**20)
    packet = b'{"method": "embed_images", "arguments": {}, "tensors": {}}'
    socket.send_fds(intruder._connection, [packet], [descriptor])
    assert intruder.wait(10)
    assert "not sealed" in intruder.receive()[0]["error"]["message"]
    assert intruder.receive() is None
    os.close(descriptor)
    hasty = lasting_host.connect(pid)
    slowness = lasting_host.folder / "forward_seconds"
    slowness.write_text("2")
    arguments = {"scaling": dataclasses.asdict(scaling), "pooling": "cls"}
    hasty.send({"method": "embed_images", "arguments": arguments}, {"pixels": pixels})
    hasty.send({"method": "placement"})
    # The end comes first, in the place of the answer to the first call.
    assert receive_answer(hasty, 20) is None
    assert "a call came before the answer to the last" in lasting_host.log_of(pid).read_text()
    slowness.unlink()
    assert reached.placement().server_pid == pid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_process_is_not_served(lasting_host):
    pid = lasting_host.reach().placement().server_pid
    code = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "os.setuid(65534)\n"
        "s.connect(chr(0) + sys.argv[1])\n"
        "print(s.recv(100))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, psutil.Process(pid).cmdline()[5]],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "b''" in done.stdout or "ConnectionReset" in done.stderr
    assert "user 65534" in lasting_host.log_of(pid).read_text()
    assert lasting_host.log_of(pid).stat().st_mode & 0o777 == 0o600


def test_workers_of_one_executor_share_a_load_and_two_executors_never_meet(
    host, pixels, scaling, expected
):
    other = subprocess.Popen(["sleep", "600"])
    operator = ImageViTEmbedding(model_name=str(host.checkpoints / "dinov2"))
    checkpoint = resolve_checkpoint(operator)

    def work(pid):
        config = make_config(
            executor=ExecutorProcess.of(pid),
            folder=str(checkpoint.folder),
            stamp=model_access.stamp_of(checkpoint),
            load_seconds=120,
            idle_seconds=0,
        )
        served = ModelProxy(config)
        torch.testing.assert_close(served.embed_images(pixels, scaling, "cls"), expected)
        placement = served.placement()
        assert placement.executor.startswith(f"{pid}-")
        return placement.server_pid

    try:
        with ThreadPoolExecutor(6) as pool:
            servers = list(pool.map(work, [host.executor.pid, other.pid] * 3))
    finally:
        other.kill()
        other.wait()
    assert servers == servers[:2] * 3
    assert len(set(servers)) == host.load_count() == 2
    assert wait_until(lambda: not psutil.pid_exists(servers[1]) or zombie(servers[1]))
    assert host.servers() == [servers[0]]
    assert "bytes of weights" in host.log().read_text()


def test_what_cuda_shows_and_the_package_make_another_server(monkeypatch):
    def name(device):
        return make_config(device=device).name

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    first = name("cuda:0"), name("cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert name("cuda:0") != first[0]
    assert name("cpu") == first[1]
    monkeypatch.setattr(start.errors, "__file__", "/elsewhere/package.zip/__init__.py")
    assert name("cpu") != first[1]
    assert len(os.fsencode(address_of(name("cpu")))) <= 107


def zombie(pid):
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_batch_outlives_the_death_and_the_hang_of_its_server(host, pixels, scaling, expected):
    reached = host.reach(batch_seconds=3.0)
    first = reached.placement().server_pid
    (host.folder / "forward_seconds").write_text("1")
    threading.Timer(0.5, os.kill, (first, signal.SIGKILL)).start()
    torch.testing.assert_close(reached.model.embed_images(pixels, scaling, "cls"), expected)
    second = reached.placement().server_pid
    os.kill(second, signal.SIGSTOP)
    torch.testing.assert_close(reached.model.embed_images(pixels, scaling, "cls"), expected)
    third = reached.placement().server_pid
    assert len({first, second, third}) == 3
    assert host.load_count() == 3
    assert host.servers() == [third]
    host.executor.kill()
    host.executor.wait()
    assert wait_until(lambda: not host.servers())
    assert host.remains() == []


@pytest.mark.slow
def test_a_batch_without_memory_is_halved_and_a_broken_device_gets_a_new_server(
    host, pixels, scaling, expected
):
    reached = host.reach()
    first = reached.placement().server_pid
    limit = host.folder / "forward_limit"

    def embed(rows):
        stacked = torch.stack(rows)
        return [vector.tolist() for vector in reached.model.embed_images(stacked, scaling, "cls")]

    limit.write_text("2 OutOfMemoryError")
    halved = compute_rows(list(pixels), embed, kind=lambda _: None)
    torch.testing.assert_close(torch.tensor(halved), expected)
    assert (host.forwards / str(first)).read_text().split() == ["5", "2", "3", "1", "2"]
    assert reached.placement().server_pid == first
    limit.write_text("0 AcceleratorError")
    with pytest.raises(torch.AcceleratorError, match="simulated"):
        compute_rows(list(pixels), embed, kind=lambda _: None)
    limit.unlink()
    torch.testing.assert_close(reached.model.embed_images(pixels, scaling, "cls"), expected)
    assert host.servers() == [reached.placement().server_pid] != [first]


@pytest.mark.slow
def test_a_batch_that_kills_its_server_each_time_fails(host, pixels, scaling, monkeypatch):
    monkeypatch.setattr(client, "MAX_SENDS", 2)
    reached = host.reach()
    (host.folder / "forward_seconds").write_text("nonsense")  # fails: an error, not an end
    with pytest.raises(ValueError, match="nonsense"):
        reached.model.embed_images(pixels, scaling, "cls")
    (host.folder / "forward_seconds").write_text("60")
    stop = threading.Event()

    def kill_each():
        while not stop.wait(0.2):
            for file in host.forwards.iterdir():
                file.unlink()
                os.kill(int(file.name), signal.SIGKILL)

    killer = threading.Thread(target=kill_each)
    killer.start()
    with pytest.raises(ModelServerError, match="2 times in the same batch"):
        reached.model.embed_images(pixels, scaling, "cls")
    stop.set()
    killer.join()


def test_a_killed_server_costs_none_of_four_calls_in_flight(host, pixels, scaling, expected):
    reached = host.reach()
    first = reached.placement().server_pid
    (host.folder / "forward_seconds").write_text("60")

    def embed(rows):
        vectors = reached.model.embed_images(torch.stack(rows), scaling, "cls")
        return [vector.tolist() for vector in vectors]

    def kill_in_its_first_forward():
        assert wait_until(lambda: (host.forwards / str(first)).exists())
        (host.folder / "forward_seconds").unlink()
        os.kill(first, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_in_its_first_forward)
        batches = [list(pixels)] * 8
        in_flight = reached._replace(call_count=4)
        outcomes = [*compute_batches(in_flight, batches, embed, kind=lambda row: row.shape)]
        killed.result()
    for found in outcomes:
        torch.testing.assert_close(torch.tensor(found), expected)
    second = reached.placement().server_pid
    assert host.servers() == [second] != [first]
    # What was not answered is sent again, once.
    assert (host.forwards / str(first)).read_text().split() == ["5"]
    assert (host.forwards / str(second)).read_text().split() == ["5"] * 8


def test_a_row_that_kills_its_server_fails_alone(host, pixels, scaling, expected, monkeypatch):
    monkeypatch.setattr(client, "MAX_SENDS", 2)
    reached, other = host.reach(), host.reach()
    (host.folder / "fatal_mean").write_text("1.5")
    white = torch.full_like(pixels[0], 255)
    leave = threading.Event()

    def embed(rows):
        vectors = reached.model.embed_images(torch.stack(rows), scaling, "cls")
        return [vector.tolist() for vector in vectors]

    def go_on():
        while not leave.is_set():
            vectors = other.model.embed_images(pixels, scaling, "cls")
            torch.testing.assert_close(vectors, expected)

    with ThreadPoolExecutor(1) as pool:
        # Calls of another task are in flight meanwhile, and none of them fails.
        goes_on = pool.submit(go_on)
        batches = [[white, pixels[0]], list(pixels)]
        outcomes = [*compute_batches(reached, batches, embed, kind=lambda row: row.shape)]
        leave.set()
        goes_on.result()
    [[failure, neighbour], others] = outcomes
    assert failure.status == Status.MODEL_ERROR
    assert failure.reason == "the model's process ended on this row alone"
    torch.testing.assert_close(torch.tensor(neighbour), expected[0])
    torch.testing.assert_close(torch.tensor(others), expected)


@pytest.mark.slow
def test_where_every_batch_kills_its_server_the_task_fails_and_not_its_rows(
    host, pixels, scaling, monkeypatch
):
    monkeypatch.setattr(client, "MAX_SENDS", 1)
    monkeypatch.setattr(client, "MAX_FATAL_COUNT", 2)
    reached = host.reach()
    (host.folder / "fatal_mean").write_text("-100")

    def embed(rows):
        return list(reached.model.embed_images(torch.stack(rows), scaling, "cls"))

    with pytest.raises(ModelServerError, match="1 times in the same batch") as raised:
        compute_rows(list(pixels), embed, kind=lambda row: row.shape)
    assert not isinstance(raised.value, FatalBatchError)
    sizes = [file.read_text().split() for file in host.forwards.iterdir()]
    assert sorted(sizes) == [["1"], ["2"], ["5"]]


def test_a_load_that_fails_is_told_to_all_and_not_tried_again_at_once(host):
    broken = host.checkpoints / "broken"
    if not broken.exists():
        broken.mkdir()
        for file in (host.checkpoints / "dinov2").iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])

    def reach(_):
        with pytest.raises(UnsupportedCheckpointError, match=f"cannot load {broken}"):
            host.reach("broken")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(reach, range(4)))
    # The process that loads has given its memory back, and its name still stands for the failure.
    assert wait_until(host.refusals)
    assert host.servers() == []
    reach(None)
    assert host.load_count() == 1
    (refusal,) = host.refusals()
    assert psutil.Process(refusal).memory_info().rss < 100 * 2**20
    assert psutil.Process(refusal).num_threads() == 1


@pytest.mark.slow
def test_a_checkpoint_that_changes_in_a_query_is_not_loaded_in_the_place_of_the_first(
    host, pixels, scaling, tmp_path
):
    copy = tmp_path / "copy"
    shutil.copytree(host.checkpoints / "dinov2", copy)
    reached = host.reach(copy)
    first = reached.placement().server_pid
    shutil.copytree(host.checkpoints / "dinov2-other", copy, dirs_exist_ok=True)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(ModelServerError, match="have changed since the query began"):
        reached.model.embed_images(pixels, scaling, "cls")
    assert host.load_count() == 1
    # The next query knows of the change from its start.
    assert host.reach(copy).placement().server_pid != first


def test_what_the_server_cannot_say_of_itself_is_an_error_of_its_own(host, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(host.checkpoints / "dinov2", copy)
    reached = host.reach(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights"):
        reached.placement()


@pytest.mark.slow
def test_a_cleaned_temporary_folder_costs_no_server(host, pixels, scaling, expected):
    reached = host.reach()
    first = reached.placement().server_pid
    host.log().unlink()
    torch.testing.assert_close(reached.model.embed_images(pixels, scaling, "cls"), expected)
    assert host.reach().placement().server_pid == first
    assert host.load_count() == 1


def test_a_load_that_takes_too_long_fails(host):
    with pytest.raises(ModelServerError, match=r"not loaded within 0\.1 s"):
        host.reach(load_seconds=0.1)
    assert wait_until(lambda: not host.servers())


@pytest.mark.slow
def test_without_calls_the_server_ends_and_comes_back(
    tmp_path, checkpoints, monkeypatch, pixels, scaling, expected
):
    # A folder whose path is longer than a socket's address can hold.
    folder = tmp_path / ("long" * 20) / ("longer" * 10)
    for host in run_host(folder, checkpoints, monkeypatch):
        prefix = start._log_prefix()
        dead = folder / f"{prefix}999999999-1-0123456789abcdef.log"
        foreign = folder / f"{prefix}notes.log"
        for left in (dead, foreign):
            left.write_text("")
        reached = host.reach(idle_seconds=1.0)
        first = reached.placement().server_pid
        assert not dead.exists()
        foreign.unlink()
        assert len(os.fsencode(str(host.log()))) > 107
        assert wait_until(lambda host=host: not host.servers())
        assert host.remains() == []
        torch.testing.assert_close(reached.model.embed_images(pixels, scaling, "cls"), expected)
        assert reached.placement().server_pid != first


TROUBLES = ["no executor", "no process", "nobody listens", "another user listens"]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_where_no_server_can_be_the_worker_loads_and_says_why(
    trouble, tmp_path, checkpoints, monkeypatch, caplog, pixels, scaling, expected
):
    for host in run_host(tmp_path / "host", checkpoints, monkeypatch):
        operator = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
        task = host.task()
        monkeypatch.setattr(ServerConfig, "name", f"spark-vision-{os.getpid()}-{trouble}")
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        squatter = None
        if trouble == "no executor":
            task = Task((), 1)
            reason = "no executor's JVM"
        elif trouble == "no process":
            monkeypatch.setattr(start.subprocess, "Popen", fail_to_start)
            reason = "cannot be started: no process"
        elif trouble == "nobody listens":
            holder.bind(address_of(ServerConfig.name))
            reason = "held by a process that does not listen"
        elif os.geteuid() != 0:
            pytest.skip("only root can become another user")
        else:
            squatter = run_squatter(ServerConfig.name)
            reason = "user 65534"
        model_access._warn_not_shared.cache_clear()
        for _ in range(2):
            reached = reach_model(resolve_checkpoint(operator), operator, CPU, task)
        assert reached.placement().server_pid == os.getpid()
        torch.testing.assert_close(reached.model.embed_images(pixels, scaling, "cls"), expected)
        (message,) = [each for each in caplog.messages if "each Python worker" in each]
        assert reason in message
        assert host.servers() == []
        holder.close()
        if squatter is not None:
            squatter.kill()
            squatter.wait()


def fail_to_start(*_, **__):
    raise OSError("no process")


def run_squatter(name):
    """A process of another user that listens on a server's name."""
    code = (
        "import os, socket, sys, time\n"
        "os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.bind(chr(0) + sys.argv[1])\n"
        "s.listen()\n"
        "print('listens', flush=True)\n"
        "time.sleep(60)"
    )
    squatter = subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE)
    assert squatter.stdout.readline() == b"listens\n"
    return squatter


@pytest.mark.slow
def test_a_link_in_the_logs_place_costs_no_sharing_and_is_neither_written_nor_removed(
    host, monkeypatch
):
    monkeypatch.setattr(ServerConfig, "name", f"spark-vision-{os.getpid()}-link")
    target = host.folder / "target"
    target.write_text("mine")
    log = host.folder / f"{ServerConfig.name}.log"
    log.symlink_to(target)
    first, second = host.reach(), host.reach()
    assert first.placement().server_pid == second.placement().server_pid != os.getpid()
    host.executor.kill()
    host.executor.wait()
    assert wait_until(lambda: not host.servers())
    assert log.is_symlink()
    assert target.read_text() == "mine"


def test_a_limited_address_space_is_seen_first():
    code = "from spark_vision.model_server.client import why_not_shared; print(why_not_shared())"
    limited = subprocess.run(
        f"ulimit -v 8000000; exec {sys.executable} -c '{code}'",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "spark.executor.pyspark.memory" in limited.stdout
    assert why_not_shared() is None


@pytest.mark.slow
def test_on_a_full_disk_a_server_starts_without_a_log(tmp_path, checkpoints):
    code = f"""
import os, subprocess, tempfile, torch
from spark_vision import ImageViTEmbedding
from spark_vision.executor.task import ExecutorProcess
from spark_vision.executor.inference import compute_rows
from spark_vision.executor.model_access import reach_model
from spark_vision.executor.task import Task
from spark_vision.models.checkpoints import resolve_checkpoint
tempfile.tempdir = {str(tmp_path)!r}
for number in range(3):
    open(f"{tmp_path}/filler-{{number}}", "w").close()
operator = ImageViTEmbedding(model_name={str(checkpoints / "dinov2")!r})
task = Task((), 1, executor=ExecutorProcess.of(os.getpid()))
reached = reach_model(resolve_checkpoint(operator), operator, torch.device("cpu"), task)
assert reached.placement().server_pid != os.getpid()
assert sorted(os.listdir({str(tmp_path)!r})) == ["filler-0", "filler-1", "filler-2"]
"""
    mount = f"mount -t tmpfs -o size=16k,nr_inodes=4 tmpfs {tmp_path}"
    script = f'{mount} && exec {sys.executable} -c "$0"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this machine lets nobody mount a small disk")
    assert done.returncode == 0, done.stderr
    assert "without a log: [Errno 28] No space left on device" in done.stderr
