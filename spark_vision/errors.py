"""Every error that the package raises, and every status that a row can have."""

from enum import StrEnum

MAX_ROW_ERROR_CHARACTERS = 200
# An address may be megabytes long: no more of a text is looked at than can be shown.
_READ_CHARACTERS = 2000


class Status(StrEnum):
    """The outcome of one row; the value is what a `status` column holds.

    Example:
        >>> vectors = spark.read.format("delta").load("/data/photo_vectors")
        >>> vectors.filter(F.col("embedding_status") == Status.TIMEOUT).count()
        0
    """

    OK = "ok"
    NULL_INPUT = "null_input"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    DECODE_ERROR = "decode_error"
    TOO_LARGE = "too_large"
    BAD_BASE64 = "bad_base64"
    READ_ERROR = "read_error"
    HTTP_ERROR = "http_error"
    TIMEOUT = "timeout"
    BLOCKED = "blocked"
    INCOMPLETE = "incomplete"
    BAD_DIMENSIONS = "bad_dimensions"
    BAD_PROMPT = "bad_prompt"
    NONFINITE = "nonfinite"
    OUT_OF_MEMORY = "out_of_memory"
    MODEL_ERROR = "model_error"


def in_one_line(text: str) -> str:
    """Say a text in one line of at most 200 printable characters.

    Control characters, marks that turn the direction of writing, and halves of surrogate pairs are
    written as escapes: a text from a stranger says nothing to a terminal, and UTF-8 can encode it.
    """
    line = " ".join(text[:_READ_CHARACTERS].split())
    if not line.isprintable():
        line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
    if len(line) > MAX_ROW_ERROR_CHARACTERS or len(text) > _READ_CHARACTERS:
        line = line[: MAX_ROW_ERROR_CHARACTERS - 1] + "…"
    return line


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


class FailureRateError(SparkVisionError, RuntimeError):
    """More rows failed than `max_failure_rate` allows: most likely the whole source is wrong."""


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
        reason: One short sentence for its `error` column, in at most 200 printable characters.
        row: What the row is called; None where nobody asks.
    """

    def __init__(self, status: Status, reason: str, row: str | None = None) -> None:
        self.status = status
        self.reason = in_one_line(reason)
        self.row = row
        place = "" if row is None else f"{row}: "
        super().__init__(f"{place}{status.value}: {self.reason}")

    def afresh(self) -> "RowFailure":
        """Return the same failure as a new exception, without its cause and traceback.

        Frames in a traceback keep a row's bytes alive, and each thread that raises one adds to it.
        """
        kind, arguments = self.__reduce__()
        return kind(*arguments)

    def __reduce__(self) -> tuple[type["RowFailure"], tuple[Status, str, str | None]]:
        return type(self), (self.status, self.reason, self.row)
