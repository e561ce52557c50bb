"""Downloads from a hub on 127.0.0.1, in child processes, because settings are read at import."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints
from hub_server import serve_hub
from spark_vision.models import hub

SECRET = "hf_aSecretThatNoMessageMayHold"
PROGRAM = """
import sys, traceback
from spark_vision.models.checkpoints import find_checkpoint, resolve_checkpoint
from spark_vision.operators import ImageViTEmbedding
operator = ImageViTEmbedding(model_path=None, model_name=sys.argv[1], revision=sys.argv[2] or None)
try:
    folder = resolve_checkpoint(operator).folder
except Exception:
    print(traceback.format_exc())
    sys.exit(1)
assert find_checkpoint(operator).folder == folder
print(folder)
"""


def start(home: Path, endpoint: str, name: str, revision: str = "", **variables: str):
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, name, revision],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def resolve(*arguments: object, **variables: str) -> tuple[int, str]:
    process = start(*arguments, **variables)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.strip()


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory) -> Path:
    folder = checkpoints.write_vit(tmp_path_factory.mktemp("hub") / "vit")
    for name in ("pytorch_model.bin", "tf_model.h5", "open_clip_model.safetensors", "README.md"):
        (folder / name).write_bytes(b"not needed")
    return folder


def test_a_download_takes_only_what_a_model_reads(vit_folder, tmp_path):
    with serve_hub({"someone/vit": vit_folder}) as hub:
        code, output = resolve(tmp_path, hub.endpoint, "someone/vit")
    assert code == 0, output
    needed = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in Path(output).iterdir()) == needed
    assert sorted(hub.downloads) == needed
    assert (Path(output) / "model.safetensors").read_bytes() == (
        vit_folder / "model.safetensors"
    ).read_bytes()


def test_pickled_weights_are_taken_only_where_there_are_no_others(tmp_path):
    folder = checkpoints.write_vit(tmp_path / "vit", safetensors=False)
    with serve_hub({"someone/vit": folder}) as hub:
        code, output = resolve(tmp_path / "home", hub.endpoint, "someone/vit")
    assert code == 0, output
    assert "pytorch_model.bin" in hub.downloads


def test_processes_that_start_together_download_once(vit_folder, tmp_path):
    with serve_hub({"someone/vit": vit_folder}, seconds_per_file=0.5) as hub:
        processes = [start(tmp_path, hub.endpoint, "someone/vit") for _ in range(4)]
        outputs = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert len(set(outputs)) == 1
    assert sorted(hub.downloads) == sorted(set(hub.downloads))


def test_where_files_have_no_locks_each_process_downloads(vit_folder, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fcntl, "flock", refuse)
    with hub._one_process_at_a_time("acme/vit"):
        pass


def test_what_was_downloaded_is_used_without_the_hub(vit_folder, tmp_path):
    with serve_hub({"someone/vit": vit_folder}) as hub:
        _, first = resolve(tmp_path, hub.endpoint, "someone/vit")
    code, second = resolve(tmp_path, hub.endpoint, "someone/vit")
    assert code == 0, second
    assert second == first


def test_a_token_opens_a_private_checkpoint_and_is_never_shown(vit_folder, tmp_path):
    with serve_hub({"someone/vit": vit_folder}, token=SECRET) as hub:
        code, output = resolve(tmp_path, hub.endpoint, "someone/vit", HF_TOKEN=SECRET)
    assert code == 0, output
    assert hub.tokens == {SECRET}
    assert SECRET not in output


@pytest.mark.parametrize(
    ("name", "revision", "variables", "expected"),
    [
        ("someone/nothing", "", {}, "access is denied (401) and no token is set"),
        ("someone/nothing", "", {"HF_TOKEN": SECRET}, "no such model or revision (404)"),
        (
            "someone/vit",
            "",
            {"HF_TOKEN": "hf_wrong"},
            "(403) and the token in HF_TOKEN has no access",
        ),
        ("someone/vit", "v9", {"HF_TOKEN": SECRET}, "no such model or revision (404)"),
        ("someone/vit", "", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("not a name", "", {}, "the name is a path, not a hub name"),
        ("./checkpoint", "", {}, "the name is a path, not a hub name"),
    ],
)
def test_each_reason_is_reported(vit_folder, tmp_path, name, revision, variables, expected):
    with serve_hub({"someone/vit": vit_folder}, token=SECRET) as hub:
        code, output = resolve(tmp_path, hub.endpoint, name, revision, **variables)
    assert code == 1
    assert "CheckpointNotFoundError" in output
    assert expected in output
    assert f"{tmp_path}/hub" in output
    assert SECRET not in output


def test_an_unreachable_hub_is_reported_without_its_credentials(tmp_path):
    endpoint = f"http://user:{SECRET}@127.0.0.1:9"
    code, output = resolve(tmp_path, endpoint, "someone/vit")
    assert code == 1
    message = output[output.rindex("CheckpointNotFoundError") :]
    assert "the hub http://127.0.0.1:9: no connection" in message
    assert "HF_ENDPOINT" in message
    assert SECRET not in message


def test_a_cache_that_is_not_writable_is_reported(vit_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with serve_hub({"someone/vit": vit_folder}) as hub:
        code, output = resolve(tmp_path / "file", hub.endpoint, "someone/vit")
    assert code == 1
    assert "set HF_HOME to a writable folder" in output
