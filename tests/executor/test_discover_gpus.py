"""The discovery script, run as Spark runs it, against what nvidia-smi prints."""

import json
import os
import subprocess
from pathlib import Path

import pytest

import spark_vision

SCRIPT = Path(spark_vision.__file__).parent / "executor" / "discover_gpus.py"

ONE = "GPU 0: NVIDIA H200 (UUID: GPU-0f1e2d3c-0000-1111-2222-333344445555)\n"
MANY = "".join(ONE.replace("GPU 0", f"GPU {number}") for number in range(12))
CUT_UP = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 3g.20gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-15f07020-7c32-11cd-b1e5-9eeb4ad0e1a0)
"""


@pytest.mark.parametrize(
    ("listing", "code", "addresses"),
    [
        (ONE, 0, ["0"]),
        (MANY, 0, [str(number) for number in range(12)]),
        (
            CUT_UP,
            0,
            [
                "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
                "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb",
                "1",
            ],
        ),
        ("", 0, []),
        ("NVIDIA-SMI has failed because it couldn't communicate with the driver\n", 9, []),
        (None, 0, []),
    ],
)
def test_spark_gets_the_addresses_of_this_host(tmp_path, listing, code, addresses):
    if listing is not None:
        (tmp_path / "listing").write_text(listing)
        tool = tmp_path / "nvidia-smi"
        tool.write_text(
            f'#!/bin/sh\n[ "$*" = -L ] || exit 2\ncat {tmp_path}/listing\nexit {code}\n'
        )
        tool.chmod(0o755)
    path = [str(tmp_path), *(each for each in os.environ["PATH"].split(":") if has_no_gpu(each))]
    done = subprocess.run(
        [str(SCRIPT)],
        env={**os.environ, "PATH": ":".join(path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == {"name": "gpu", "addresses": addresses}
    assert done.stdout.count("\n") == 1


def has_no_gpu(folder):
    return not (Path(folder) / "nvidia-smi").exists()
