"""Every error the package raises, each also the builtin that it refines."""

from spark_vision.status import Status

MAX_ROW_ERROR_CHARACTERS = 200


class SparkVisionError(Exception):
    """The base of all errors of this package."""


class InvalidOptionError(SparkVisionError, ValueError):
    """An operator option has a value that is not allowed."""


class InputTypeError(SparkVisionError, TypeError):
    """A column has a type that the operator cannot read."""


class CheckpointNotFoundError(SparkVisionError, FileNotFoundError):
    """No checkpoint is where the operator says."""


class UnsupportedCheckpointError(SparkVisionError, ValueError):
    """A checkpoint was found, but this package or this operator cannot use it."""


class DeviceError(SparkVisionError, RuntimeError):
    """The device that an operator asks for is not there."""


class ModelServerError(SparkVisionError, ConnectionError):
    """The process that holds an executor's model does not answer, or ended again and again."""


class SessionError(SparkVisionError, RuntimeError):
    """The Spark session lacks something, such as Delta's JARs."""


class TableError(SparkVisionError, ValueError):
    """A table or its source is not what the write needs."""


class CommitConflictError(TableError):
    """Other writers changed the table at each attempt to commit to it."""


class RowFailure(SparkVisionError, ValueError):  # noqa: N818 - it is data first: a row's outcome
    """One row cannot be computed; its neighbours can.

    Attributes:
        status: The outcome for the row's `status` column.
        reason: One short sentence for its `error` column, at most 200 characters.
    """

    def __init__(self, status: Status, reason: str) -> None:
        one_line = " ".join(reason.split())
        if len(one_line) > MAX_ROW_ERROR_CHARACTERS:
            one_line = one_line[: MAX_ROW_ERROR_CHARACTERS - 1] + "…"
        super().__init__(f"{status.value}: {one_line}")
        self.status = status
        self.reason = one_line

    def __reduce__(self) -> tuple[type["RowFailure"], tuple[Status, str]]:
        return type(self), (self.status, self.reason)
