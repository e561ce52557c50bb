"""engine="vllm": the same captions as transformers', errors of one row, and no process left behind.

vLLM itself needs a GPU. `support/vllm_site` stands for it, with its interface and a real child
process; a real Qwen-VL generates there.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import torch

from caption_oracle import inputs_of
from oracles import draw_pictures
from served_models import send, serve
from spark_vision import QwenVLImageUnderstanding
from spark_vision.demo.checkpoint_folders import checkpoint_path
from spark_vision.errors import (
    InvalidOptionError,
    ModelServerError,
    RowFailure,
    UnsupportedCheckpointError,
)
from spark_vision.executor import model_access
from spark_vision.executor.inference import compute_rows
from spark_vision.executor.model_access import reach_model
from spark_vision.executor.task import VLLM_ARGUMENTS, ExecutorProcess, Task, _vllm_arguments
from spark_vision.models import vllm_engine
from spark_vision.models.caption_inputs import load_caption_preprocessor
from spark_vision.models.checkpoint_files import open_folder
from spark_vision.models.families import LoadOptions, load_model
from spark_vision.models.protocols import GenerationSettings

VLLM_SITE = Path(__file__).parent.parent / "support" / "vllm_site"
CPU = torch.device("cpu")
SETTINGS = GenerationSettings(max_new_tokens=9)
SIZES = [(90, 110), (60, 200), (130, 70), (90, 110), (75, 75)]
PROMPTS = ["What is it?", "请描述", "How many? " * 5, "x", "Describe the image."]
LONG_SECONDS = 120


@pytest.fixture(scope="module")
def checkpoint():
    return open_folder(Path(checkpoint_path("qwen2_5_vl")))


@pytest.fixture(scope="module")
def inputs(checkpoint):
    return load_caption_preprocessor(checkpoint, QwenVLImageUnderstanding())


@pytest.fixture(scope="module")
def pictures():
    return [draw_pictures(1, *size, seed=seed)[0] for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def rows(inputs, pictures):
    return [inputs.prepare(*each) for each in zip(pictures, PROMPTS, strict=True)]


@pytest.fixture(scope="module")
def expected(checkpoint, inputs, rows):
    """What engine="transformers" writes about each row, and whether it is truncated."""
    model = load_model(checkpoint, "float32", CPU)
    return captions(model, inputs, rows)


@pytest.fixture(scope="module")
def captioner(checkpoint):
    """An engine of this process."""
    sys.path.insert(0, str(VLLM_SITE))
    captioner = load_model(
        checkpoint, "float32", CPU, LoadOptions(vllm_arguments='{"max_model_len": 4096}')
    )
    yield captioner
    captioner._engine.core.kill()
    sys.path.remove(str(VLLM_SITE))


def captions(model, inputs, rows, settings=SETTINGS):
    generated = model.generate(inputs.collate(rows), inputs.scaling, settings)
    assert generated.finite.all()
    return list(zip(inputs.decode(generated), generated.truncated.tolist(), strict=True))


def plain(inputs, colour):
    """A row whose image has one colour, which makes trouble in the stand-in."""
    image = torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 100, 100)
    return inputs.prepare(image.contiguous(), "x")


def test_captions_are_those_of_transformers_in_the_order_of_the_rows(
    captioner, inputs, rows, expected
):
    assert len(set(expected)) == len(expected)
    assert {truncated for _, truncated in expected} == {True, False}
    assert captions(captioner, inputs, rows) == expected
    with ThreadPoolExecutor(5) as pool:
        alone = list(pool.map(lambda row: captions(captioner, inputs, [row]), rows))
    assert [caption for (caption,) in alone] == expected


def test_vllm_gets_the_resized_image_and_one_placeholder(captioner, checkpoint, inputs, pictures):
    image_token = checkpoint.config["image_token_id"]
    captioner._engine.prompts.clear()
    row = inputs.prepare(pictures[1], "x")
    captions(captioner, inputs, [row, inputs.prepare(pictures[0], "a longer prompt " * 9)])
    (prompt, _), _ = captioner._engine.prompts
    ids = row.token_ids.tolist()
    first, count = ids.index(image_token), ids.count(image_token)
    assert count > 1
    assert prompt["prompt_token_ids"] == [*ids[: first + 1], *ids[first + count :]]
    image = prompt["multi_modal_data"]["image"]
    assert image.size == (row.grid[2] * 10, row.grid[1] * 10)
    true = inputs_of(checkpoint.folder, pictures[1], "x")
    assert ids == true["input_ids"][0].tolist()
    seen = captioner._engine.preprocess(image, prompt["mm_processor_kwargs"])
    torch.testing.assert_close(seen["pixel_values"], true["pixel_values"], rtol=0, atol=0)
    assert torch.equal(seen["image_grid_thw"], true["image_grid_thw"])


def test_bounds_of_the_operator_outside_of_the_checkpoints_resize_nothing(
    captioner, checkpoint, pictures
):
    for bounds in ({"max_pixels": 40_000, "min_pixels": 30_000}, {"min_pixels": 1}):
        operator = QwenVLImageUnderstanding(**bounds)
        inputs = load_caption_preprocessor(checkpoint, operator)
        model = load_model(checkpoint, "float32", CPU)
        row = inputs.prepare(pictures[4], "x")
        assert captions(captioner, inputs, [row]) == captions(model, inputs, [row])


def test_a_generation_is_given_as_vllm_names_it(captioner, inputs, rows):
    sampled = GenerationSettings(7, True, 0.5, 0, 0.9, repetition_penalty=1.2)
    seeds = [2**62, 5]
    batch = inputs.collate(rows[:2])._replace(seeds=torch.tensor(seeds))
    captioner._engine.prompts.clear()
    captioner.generate(batch, inputs.scaling, sampled)
    captioner.generate(batch, inputs.scaling, SETTINGS)
    given = [params for _, params in captioner._engine.prompts]
    named = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
    values = [tuple(getattr(each, name) for name in named) for each in given]
    assert values[:2] == [(7, 0.5, 0, 0.9, 1.2, seed) for seed in seeds]
    assert values[2:] == [(9, 0.0, 50, 1.0, 1.0, None)] * 2
    assert all(each.stop_token_ids == [622, 623] and each.ignore_eos for each in given)


def test_a_row_that_fails_fails_alone_and_the_others_of_its_call_are_aborted(
    captioner, inputs, rows, expected
):
    from vllm import ENDLESS, FAILED, REJECTED

    def write(part):
        return captions(captioner, inputs, part)

    mixed = [rows[0], plain(inputs, FAILED), rows[1], plain(inputs, REJECTED), rows[2]]
    outcomes = compute_rows(mixed, write, kind=lambda _: None)
    assert outcomes[::2] == expected[:3]
    reasons = [row.reason for row in outcomes if isinstance(row, RowFailure)]
    assert "CUDA error of this row" in reasons[0]
    assert "too long" in reasons[1]
    captioner._engine.aborted.clear()
    with pytest.raises(RuntimeError, match="too long"):
        write([plain(inputs, ENDLESS), plain(inputs, REJECTED)])
    wait_until(lambda: captioner._engine.aborted)
    assert captions(captioner, inputs, rows) == expected


def test_rows_of_a_client_that_leaves_are_aborted(captioner, inputs, tmp_path):
    from vllm import ENDLESS

    captioner._engine.aborted.clear()
    arguments = {"scaling": asdict(inputs.scaling), "settings": asdict(SETTINGS)}
    with serve(tmp_path, captioner) as server:
        channel = server.connect()
        batch = inputs.collate([plain(inputs, ENDLESS)])
        channel.send({"method": "generate", "arguments": arguments}, batch._asdict())
        wait_until(lambda: captioner._engine.waiting_count())
        channel.disconnect()
        wait_until(lambda: captioner._engine.aborted)


def test_a_prompt_that_vllm_expands_differently_is_an_error(captioner, inputs, rows, monkeypatch):
    monkeypatch.setattr(
        vllm_engine, "ANY_SIZE", {"size": {"shortest_edge": 400, "longest_edge": 3000}}
    )
    with pytest.raises(RuntimeError, match=r"vLLM made \d+ tokens of a prompt with"):
        captions(captioner, inputs, rows[:1])


def test_the_end_of_the_engine_ends_the_server_without_an_answer(tmp_path):
    class EndedEngine:
        def embed_texts(self, tokens):
            raise ModelServerError("vLLM's engine has ended")

    with serve(tmp_path, EndedEngine()) as server:
        channel = server.connect()
        send(channel, 1.0)
        assert server.reason.result(30) == ("a compute thread has ended", 1)
        while channel.wait(0):
            assert "alive" in channel.receive()[0]


def test_rules_that_vllm_lacks_are_refused_by_name(checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint.folder, folder)
    file = folder / "generation_config.json"
    file.write_text('{"no_repeat_ngram_size": 3, "min_length": 0, "forced_eos_token_id": 1}')
    with pytest.raises(
        UnsupportedCheckpointError, match=r"has forced_eos_token_id, no_repeat_ngram_size, which"
    ):
        load_model(open_folder(folder), "float32", CPU, LoadOptions(vllm_arguments="{}"))


def test_an_interpreter_without_vllm_is_named(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelServerError, match=f"{sys.executable} cannot import vLLM.*vllmPython"):
        load_model(checkpoint, "float32", CPU, LoadOptions(vllm_arguments="{}"))


@pytest.mark.parametrize("text", ["[]", "max_model_len=1", "1"])
def test_arguments_that_are_no_object_are_refused(text):
    with pytest.raises(InvalidOptionError, match=r"vllmArguments got .*a JSON object"):
        _vllm_arguments({VLLM_ARGUMENTS: text})
    assert _vllm_arguments({}) == "{}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_sharing": "worker"}, "allowed: model_sharing='executor'"),
        ({"dtype": "tf32"}, "allowed: float32, float16"),
        ({"do_sample": True, "temperature": 3.0}, "temperature=3.0; allowed: a number from 0.01"),
    ],
)
def test_what_vllm_does_not_have_is_refused_on_the_driver(options, message):
    with pytest.raises(InvalidOptionError, match=message):
        QwenVLImageUnderstanding(engine="vllm", **options)


def test_the_engine_is_part_of_a_columns_identity():
    first, second = (QwenVLImageUnderstanding(engine=each) for each in ("vllm", "transformers"))
    assert first.identity_options != second.identity_options


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of another environment: with vLLM and torch, without this package."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{VLLM_SITE}\n{Path(torch.__file__).parents[1]}\n")
    return folder / "bin" / "python"


@pytest.fixture
def executor(tmp_path, monkeypatch):
    """An executor, whose workers have a folder on their path that no server may see."""
    poison = tmp_path / "poison"
    poison.mkdir()
    (poison / "torch.py").write_text("raise ImportError('torch of the worker')")
    monkeypatch.setenv("PYTHONPATH", str(poison))
    monkeypatch.setattr(sys, "path", [str(poison), *sys.path])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model_access._served.clear()
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def reach(checkpoint, executor, **settings):
    operator = QwenVLImageUnderstanding(
        model_name=str(checkpoint.folder), engine="vllm", dtype="float32"
    )
    task = Task((), 1, executor=ExecutorProcess.of(executor.pid), **settings)
    return reach_model(checkpoint, operator, CPU, task)


def processes(marker):
    """The processes that run and have this in their command line."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if marker in " ".join(process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def wait_until(is_so):
    deadline = time.monotonic() + LONG_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_server_in_another_environment_that_is_killed_leaves_no_engine(
    checkpoint, executor, python, inputs, rows, expected
):
    reached = reach(checkpoint, executor, vllm_python=str(python))
    assert captions(reached.model, inputs, rows) == expected
    server = psutil.Process(reached.placement().server_pid)
    assert server.exe() == str(Path(sys.executable).resolve())
    assert server.cmdline()[0] == str(python)
    assert len(processes(str(python))) > 1
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: processes(str(python)) == [])


@pytest.mark.slow
def test_a_failed_load_leaves_no_engine_and_is_told_again(checkpoint, executor, python):
    settings = {"vllm_python": str(python), "vllm_arguments": '{"max_model_len": 1}'}
    with pytest.raises(ModelServerError, match="max_model_len is too small"):
        reach(checkpoint, executor, **settings)
    wait_until(lambda: len(processes(str(python))) == 1)
    (refusal,) = processes(str(python))
    assert '"refused"' in " ".join(refusal.cmdline())
    with pytest.raises(ModelServerError, match="max_model_len is too small"):
        reach(checkpoint, executor, **settings)
    assert processes(str(python)) == [refusal]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_row_that_ends_the_engine_fails_alone(
    checkpoint, executor, python, inputs, rows, expected
):
    reached = reach(checkpoint, executor, vllm_python=str(python))

    def write(part):
        return captions(reached.model, inputs, part)

    fatal = plain(inputs, (0, 0, 250))
    (outcome,) = compute_rows([fatal], write, kind=lambda _: None)
    assert outcome.reason == "the model's process ended on this row alone"
    assert write(rows) == expected


def test_without_a_server_nothing_else_computes(checkpoint, executor, tmp_path):
    with pytest.raises(ModelServerError, match=r"cannot be started: .*No such file"):
        reach(checkpoint, executor, vllm_python=str(tmp_path / "none"))
    operator = QwenVLImageUnderstanding(engine="vllm")
    with pytest.raises(ModelServerError, match="but no executor's JVM"):
        reach_model(checkpoint, operator, CPU, Task((), 1))
