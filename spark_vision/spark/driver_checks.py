"""Checks an operator's checkpoint and device on the driver, before any task.

A folder that exists on the driver is checked at once. A hub name, or a folder that only executors
have, is checked there: the driver downloads nothing and chooses no device.
"""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from spark_vision import errors
from spark_vision.errors import (
    CheckpointNotFoundError,
    DeviceError,
    InputTypeError,
    SessionError,
    SparkVisionError,
)
from spark_vision.executor.task import HubEnvironment
from spark_vision.models.checkpoints import (
    Checkpoint,
    find_checkpoint,
    fingerprint,
    resolve_checkpoint,
)
from spark_vision.models.families import check_operator
from spark_vision.operators import OPERATORS, Operator
from spark_vision.spark.sessions import is_local

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class ModelIdentity:
    """Which model an operator computes with.

    Attributes:
        model_type: The checkpoint's own, such as `dinov2`.
        dimension: The length of every vector; None for an operator that returns text.
        fingerprint: A hash of the checkpoint's weights, processor and tokenizer.

    Example:
        >>> clip = ClipTextEmbedding(model_name="openai/clip-vit-base-patch32")
        >>> model: ModelIdentity = describe_model(clip)
        >>> print(model.model_type, model.dimension)
    """

    model_type: str
    dimension: int | None
    fingerprint: str


def check_operator_on_driver(operator: Operator) -> None:
    """Check the operator's device, and its checkpoint if the driver has it.

    Raises:
        CheckpointNotFoundError: The operator names a folder that does not exist, in a local
            session.
        UnsupportedCheckpointError: The checkpoint does not fit the operator.
        DeviceError: The operator requests a GPU that no task will have.
    """
    _check_device(operator)
    checkpoint = find_checkpoint(operator)
    if checkpoint is not None:
        check_operator(checkpoint, operator)
    elif _is_path(operator.checkpoint_name) and is_local():
        raise CheckpointNotFoundError(
            f"{type(operator).__name__}.model_name got {operator.checkpoint_name!r}, which is not "
            "a folder; allowed: a checkpoint's folder, or a name on the Hugging Face hub"
        )


def check_is_operator(operator: object) -> None:
    """Refuse what is not an instance of an operator class.

    Raises:
        InputTypeError: It is not one; the message shows how to make one.
    """
    if not isinstance(operator, Operator):
        shown = operator.__name__ if isinstance(operator, type) else type(operator).__name__
        hint = f"write {shown}(...)" if shown in OPERATORS else "make one and pass it"
        raise InputTypeError(f"got {shown}; allowed: an instance of {', '.join(OPERATORS)}: {hint}")


def describe_model(operator: Operator, spark: "SparkSession | None" = None) -> ModelIdentity:
    """Describe the model that an operator computes with, before any row is computed.

    The weights are hashed and not loaded. A checkpoint that is not on the driver is described by a
    small task on an executor, which downloads it where it is a name on the Hugging Face hub.

    Args:
        operator: What would be computed.
        spark: The session for that task; None means the active one.

    Returns:
        The model's type, the length of its vectors and the checkpoint's fingerprint.

    Raises:
        InputTypeError: The operator is not an operator.
        SessionError: The checkpoint is not on the driver, and there is no Spark session.
        SparkVisionError: The checkpoint is missing, or does not suit the operator.

    Example:
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> model = describe_model(dino)
        >>> model.model_type
        'dinov2'
        >>> print(f"a vector has {model.dimension} numbers")  # 768 for the base model
    """
    check_is_operator(operator)
    checkpoint = find_checkpoint(operator)
    if checkpoint is not None:
        return _identify(checkpoint, operator)
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as F

    session = spark or SparkSession.getActiveSession()
    if session is None:
        raise SessionError(
            f"the checkpoint {operator.checkpoint_name!r} is not on the driver, and there is no "
            "active Spark session to look for it on an executor; start one, or pass it as spark"
        )
    environment = HubEnvironment.capture()

    # Explicit: pyspark warns where it cannot infer the evaluation type.
    @F.udf("string", useArrow=False)
    def identify(_: int) -> str:
        try:
            with environment.applied():
                return json.dumps(asdict(_identify(resolve_checkpoint(operator), operator)))
        except SparkVisionError as error:
            return json.dumps({"error": type(error).__name__, "message": str(error)})

    (row,) = session.range(1).select(identify("id")).collect()
    answer = json.loads(row[0])
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    return ModelIdentity(**answer)


def _identify(checkpoint: Checkpoint, operator: Operator) -> ModelIdentity:
    dimension = check_operator(checkpoint, operator)
    return ModelIdentity(checkpoint.model_type, dimension, fingerprint(checkpoint))


def _check_device(operator: Operator) -> None:
    from pyspark import SparkContext

    context = SparkContext._active_spark_context
    if context is None or operator.device == "cpu":
        return
    if is_local():
        if operator.device == "cuda":
            # Only in a local session do tasks run on the driver's machine.
            import torch

            if not torch.cuda.is_available():
                raise DeviceError(
                    f"{type(operator).__name__}.device got 'cuda', but torch finds no GPU on this "
                    "machine, on which this local session runs; use 'auto' or 'cpu'"
                )
        return
    gpus = context.getConf().get("spark.task.resource.gpu.amount")
    if gpus is not None and (operator.rank or 0) >= max(1.0, float(gpus)):
        raise DeviceError(
            f"{type(operator).__name__}.rank got {operator.rank}, but each task gets {gpus} GPU(s) "
            "from spark.task.resource.gpu.amount; lower rank, or raise the amount"
        )


def _is_path(name: str) -> bool:
    """Return whether a name must be a folder: hub names are `name` or `owner/name`."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1
