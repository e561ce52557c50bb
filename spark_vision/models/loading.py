"""Loads a checkpoint's weights with its transformers class, and rejects incomplete weights."""

import logging
import pickle
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from spark_vision.errors import InvalidOptionError, UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import Checkpoint, check_headers, weight_files
from spark_vision.models.precision import ATTENTION

logger = logging.getLogger(__name__)

# Parameters for the training loss and for masked images, which do not affect vectors.
_UNUSED = ("logit_scale", "logit_bias", "mask_token")
_SHOWN_NAME_COUNT = 4


def load_pretrained(
    model_class: Any,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    attention: str = ATTENTION,
    **kwargs: Any,
) -> Any:
    """Load a model with all its weights for inference, without gradients, on its device.

    Args:
        model_class: A transformers class without heads that the checkpoint may lack.
        checkpoint: The checkpoint with the weights.
        dtype: The dtype of the weights in memory.
        device: The device of the weights.
        attention: transformers' name of the attention implementation.
        **kwargs: Arguments of the class's constructor.

    Raises:
        UnsupportedCheckpointError: Weights are missing, have another shape, or cannot be read.
    """
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
