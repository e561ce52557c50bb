"""Loads a checkpoint's weights with its transformers class, in a dtype that suits the device.

Incomplete weights are rejected.
"""

import logging
import pickle
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from spark_vision.errors import InvalidOptionError, UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import Checkpoint, check_headers, weight_files
from spark_vision.models.families import FAMILIES

logger = logging.getLogger(__name__)

# torch's own scaled dot product attention: fast on every device, without an extra package.
ATTENTION = "sdpa"

_DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# Parameters for the training loss and for masked images, which do not affect vectors.
_UNUSED = ("logit_scale", "logit_bias", "mask_token")
_SHOWN_NAME_COUNT = 4


def load_pretrained(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    attention: str = ATTENTION,
    **kwargs: Any,
) -> Any:
    """Load a model with all its weights for inference, without gradients, on its device.

    Args:
        checkpoint: The checkpoint with the weights.
        dtype: The dtype of the weights in memory.
        device: The device of the weights.
        attention: transformers' name of the attention implementation.
        **kwargs: Arguments of the class's constructor.

    Raises:
        UnsupportedCheckpointError: Weights are missing, have another shape, or cannot be read.
    """
    import transformers

    model_class: Any = getattr(transformers, FAMILIES[checkpoint.model_type][1])
    check_headers(checkpoint)
    if any(path.suffix != ".safetensors" for path in weight_files(checkpoint)):
        logger.warning(
            "%s has only pickled weights; they are loaded as plain tensors "
            "(torch.load with weights_only=True)",
            checkpoint.folder,
        )
    try:
        with _quiet_transformers():
            model, report = model_class.from_pretrained(
                str(checkpoint.folder),
                dtype=dtype,
                attn_implementation=attention,
                local_files_only=True,
                weights_only=True,
                output_loading_info=True,
                **kwargs,
            )
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own message suggests executing the file's content.
        raise UnsupportedCheckpointError(
            f"the pickled weights in {checkpoint.folder} contain more than tensors, or are "
            "corrupt, and are not loaded; save them as safetensors"
        ) from error
    except Exception as error:
        # Each format's reader has its own errors; all of them mean that these files are not
        # weights of this family.
        raise UnsupportedCheckpointError(
            f"cannot load {checkpoint.folder} as {model_class.__name__}: {error}"
        ) from error
    missing = sorted(name for name in report["missing_keys"] if not name.endswith(_UNUSED))
    if missing:
        shown = ", ".join(missing[:_SHOWN_NAME_COUNT])
        raise UnsupportedCheckpointError(
            f"{checkpoint.folder} lacks {len(missing)} weights of {model_class.__name__}, such as "
            f"{shown}; the file is incomplete, or belongs to another model"
        )
    return model.to(device).eval().requires_grad_(False)


def compile_modules(modules: Sequence[torch.nn.Module]) -> None:
    """Compile modules at their first call, for batches and images of any size.

    Raises:
        InvalidOptionError: torch.compile does not work here, such as without a compiler.
    """
    ones = torch.ones(4, device=next(modules[0].parameters()).device)
    try:
        torch.compile(_double)(ones)
    except Exception as error:
        cause = str(error).partition("\n")[0]
        raise InvalidOptionError(
            f"torch_compile got True, but torch.compile fails on {socket.gethostname()}: {cause}; "
            "install what it needs on the executors, or leave it out"
        ) from error
    for module in modules:
        module.compile(dynamic=True)


def _double(ones: torch.Tensor) -> torch.Tensor:
    return ones * 2


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' report on unused heads and its progress bar out of the executor log."""
    from transformers.utils import logging

    their_logging: Any = logging
    verbosity, bar = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
    try:
        yield
    finally:
        their_logging.set_verbosity(verbosity)
        if bar:
            their_logging.enable_progress_bar()


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a model's computation.

    A CPU computes float16 as bfloat16, which is logged once: CPUs lack float16 multiplication, and
    emulating it takes hundreds of times longer.

    Args:
        name: An operator's `dtype`.
        device: The model's device.
    """
    if name == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    if device.type == "cpu" and name == "float16":
        _warn_float16_is_bfloat16()
        return torch.bfloat16
    return _DTYPES[name]


def use_tf32() -> None:
    """Round float32 products to TF32 on GPUs, in this process: 10 bits of mantissa instead of 23.

    It is a setting of the whole process, so only a process with one model may use it.
    """
    torch.set_float32_matmul_precision("high")


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        # Since Ampere; before, torch emulates it.
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Without AMX, also CPUs with AVX512_BF16 computed it at 0.57 times the rate of float32.
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def choose_attention(flash_attention: bool, dtype: torch.dtype, device: torch.device) -> str:
    """Return transformers' name of the attention implementation.

    Args:
        flash_attention: Whether to use the flash-attn package. If it is not installed, without a
            GPU, or in float32, torch's own attention is used, which is logged once.
        dtype: The dtype of the model's computation.
        device: The model's device.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not flash_attention:
        return ATTENTION
    if device.type != "cuda" or dtype == torch.float32 or not is_flash_attn_2_available():
        _warn_attention_is_torchs()
        return ATTENTION
    return "flash_attention_2"


@cache
def _warn_attention_is_torchs() -> None:
    logger.warning(
        "use_flash_attention_2 needs the flash-attn package, a GPU and half precision; torch's own "
        "attention (SDPA) is used"
    )


@cache
def _warn_float16_is_bfloat16() -> None:
    logger.warning("a CPU computes float16 as bfloat16, for which it has fast multiplication")
