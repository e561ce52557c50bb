"""The dtype of a model's computation."""

import logging
import subprocess
import sys

import pytest
import torch

from spark_vision.models.loading import choose_dtype

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
        ("tf32", CPU, torch.float32),
        ("tf32", CUDA, torch.float32),
    ],
)
def test_the_type_follows_the_device(name, device, expected):
    assert choose_dtype(name, device) is expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16")])
def test_auto_is_bfloat16_on_gpus_that_multiply_it(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_dtype("auto", CUDA) is getattr(torch, expected)


@pytest.mark.parametrize("has_amx", [False, True])
def test_auto_is_bfloat16_on_cpus_that_multiply_matrices_of_it(monkeypatch, has_amx):
    capabilities = {**torch.cpu.get_capabilities(), "avx512_bf16": True, "amx_bf16": has_amx}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_dtype("auto", CPU) is (torch.bfloat16 if has_amx else torch.float32)


def test_products_are_rounded_to_tf32_only_on_request():
    assert torch.get_float32_matmul_precision() == "highest"
    program = """
import torch
from spark_vision.models.loading import use_tf32
use_tf32()
assert torch.get_float32_matmul_precision() == "high"
assert torch.backends.cuda.matmul.allow_tf32
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


def test_a_cpu_logs_once_that_float16_is_bfloat16():
    program = """
import logging, torch
logging.basicConfig()
from spark_vision.models.loading import choose_dtype
for name in ("bfloat16", "float16", "float16"):
    choose_dtype(name, torch.device("cpu"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.count("a CPU computes float16 as bfloat16") == 1
    assert logging.getLogger("spark_vision.models.loading").name in done.stderr
