"""The errors that the package raises, and the statuses of a row."""

from enum import StrEnum

MAX_ROW_ERROR_CHARACTERS = 200
# A string may be megabytes long; only its start is processed.
_READ_CHARACTERS = 2000


class Status(StrEnum):
    """The outcome of one row, as stored in a `status` column.

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
    """Return a text as one line of at most 200 printable characters.

    Control characters, bidirectional marks and unpaired surrogates become escapes: untrusted text
    cannot control a terminal, and UTF-8 can encode it.
    """
    line = " ".join(text[:_READ_CHARACTERS].split())
    if not line.isprintable():
        line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
    if len(line) > MAX_ROW_ERROR_CHARACTERS or len(text) > _READ_CHARACTERS:
        line = line[: MAX_ROW_ERROR_CHARACTERS - 1] + "…"
    return line


class SparkVisionError(Exception):
    """Base class of all errors of this package."""


class InvalidOptionError(SparkVisionError, ValueError):
    """An operator option has a value that is not allowed."""


class InputTypeError(SparkVisionError, TypeError):
    """A column has a type that the operator cannot read."""


class CheckpointNotFoundError(SparkVisionError, FileNotFoundError):
    """The operator's checkpoint was not found."""


class UnsupportedCheckpointError(SparkVisionError, ValueError):
    """A checkpoint was found, but this package or this operator cannot use it."""


class DeviceError(SparkVisionError, RuntimeError):
    """The device that an operator requests is not available."""


class ModelServerError(SparkVisionError, ConnectionError):
    """The process that holds an executor's model does not respond, or ended repeatedly."""


class FatalBatchError(ModelServerError):
    """A batch ended each process that computed it; one of its rows may be the cause."""


class FailureRateError(SparkVisionError, RuntimeError):
    """More rows failed than `max_failure_rate` allows; probably the whole source is wrong."""


class SessionError(SparkVisionError, RuntimeError):
    """The Spark session lacks something, such as Delta's JARs."""


class TableError(SparkVisionError, ValueError):
    """A table or its source does not fit the write."""


class CommitConflictError(TableError):
    """Other writers changed the table at each attempt to commit to it."""


class VectorIndexError(SparkVisionError, ValueError):
    """A vector index does not suit what it is given, or refuses it."""


class IndexConnectionError(SparkVisionError, ConnectionError):
    """A vector index cannot be reached, or does not answer."""


class MissingExtraError(SparkVisionError, ImportError):
    """A package is missing that one of the extras installs."""


class RowFailure(SparkVisionError, ValueError):  # noqa: N818 - primarily data: a row's outcome
    """One row cannot be computed; other rows can.

    Attributes:
        status: The outcome for the row's `status` column.
        reason: One short sentence for its `error` column, at most 200 printable characters.
        row: A name of the row for the message; None where it is not needed.
    """

    def __init__(self, status: Status, reason: str, row: str | None = None) -> None:
        self.status = status
        self.reason = in_one_line(reason)
        self.row = row
        place = "" if row is None else f"{row}: "
        super().__init__(f"{place}{status.value}: {self.reason}")

    def without_traceback(self) -> "RowFailure":
        """Return the same failure as a new exception, without cause and traceback.

        A traceback's frames keep the row's bytes alive, and it grows each time it is raised.
        """
        kind, arguments = self.__reduce__()
        return kind(*arguments)

    def __reduce__(self) -> tuple[type["RowFailure"], tuple[Status, str, str | None]]:
        return type(self), (self.status, self.reason, self.row)
