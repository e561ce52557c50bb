"""The dtype of a model's computation."""

import logging
import subprocess
import sys

import pytest
import torch

from spark_vision.models.precision import choose_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("float32", CPU, torch.float32),
        ("bfloat16", CPU, torch.bfloat16),
        ("float16", CPU, torch.bfloat16),
        ("float32", CUDA, torch.float32),
        ("bfloat16", CUDA, torch.bfloat16),
        ("float16", CUDA, torch.float16),
    ],
)
def test_the_type_follows_the_device(name, device, expected):
    assert choose_dtype(name, device) is expected


def test_a_cpu_logs_once_that_float16_is_bfloat16():
    program = """
import logging, torch
logging.basicConfig()
from spark_vision.models.precision import choose_dtype
for name in ("bfloat16", "float16", "float16"):
    choose_dtype(name, torch.device("cpu"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.count("a CPU computes float16 as bfloat16") == 1
    assert logging.getLogger("spark_vision.models.precision").name in done.stderr
