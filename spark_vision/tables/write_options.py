"""The options of a table write, in addition to its source, keys and columns.

Each option is defined only here. The signatures of `write_vision_columns` and
`stream_vision_columns`, the jobs' command lines and the table in the documentation are generated
from these fields.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from spark_vision.errors import InvalidOptionError, Status
from spark_vision.operators.options import normalize_options, option, options_of

FAILED = tuple(status.value for status in Status if status is not Status.OK)
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class WriteOptions:
    """Options of a write to a table."""

    image_column: str = option("content", "The column that image operators read.")
    text_column: str = option("text", "The column that text operators read.")
    prompt_column: str | None = option(
        None,
        "The column with a prompt per image; where it is null or blank, the operator's prompt is "
        "used.",
    )
    keep: tuple[str, ...] = option(
        (), "Columns of the source that are copied to the table when a row is computed."
    )
    version_columns: tuple[str, ...] | None = option(
        None,
        "Columns that change whenever the image does, such as an ETag, so that no image is read to "
        "detect a change. None: `modificationTime` and `length` if the source has both; otherwise "
        "the image's bytes or URL are compared, as with an empty list.",
    )
    rows_per_commit: int | None = option(
        None,
        "Number of rows computed and committed together; a kill loses at most this many. None: as "
        "many as take a minute and a half at the current rate.",
        minimum=1,
    )
    max_rows: int | None = option(
        None,
        "Stop after about this many rows; the result reports the number of remaining rows.",
        minimum=1,
    )
    max_seconds: float | None = option(
        None,
        "Stop after the wave that is running at this time; the result reports the number of "
        "remaining rows. A run has at least one wave.",
        exclusive_minimum=0,
    )
    retry: tuple[str, ...] = option(
        (), "Statuses of rows that are computed again; `failed` means all except `ok`."
    )
    recompute: bool = option(
        False,
        "Empty the columns and compute them for all rows, if needed with another model.",
    )
    refresh_kept: bool = option(
        False,
        "Copy kept columns again if they have changed, without computing the row. A kept column "
        "that the table does not have is always copied for all rows.",
    )
    partition_by: tuple[str, ...] = option(
        (), "Keys or kept columns by which a new table is partitioned."
    )
    cluster_by: tuple[str, ...] = option(
        (), "Keys or kept columns by which a new table is clustered (liquid clustering)."
    )
    table_properties: Mapping[str, str] | None = option(
        None,
        "Properties of a new table, such as `delta.enableChangeDataFeed`; they override the "
        "defaults.",
    )
    optimize: bool = option(
        False, "Compact the table's small files after all waves are written (Delta's OPTIMIZE)."
    )
    report_table: str | None = option(
        None,
        "A Delta table to which each run that ends well appends a row, and each batch of a stream: "
        "its counts, statuses, rate and the seconds of each step. None: no report.",
    )
    on_duplicate_keys: str = option(
        "error",
        "In a stream, the action for duplicate keys in a batch: fail the stream, or keep the last "
        "row by `latest_by`.",
        allowed=("error", "latest"),
    )
    latest_by: tuple[str, ...] = option(
        (), "Columns that order the rows of a key, such as a time; the last row is kept."
    )
    delete_missing: bool = option(
        False, "Delete rows of the table whose keys are no longer in the source."
    )

    def __post_init__(self) -> None:
        """Check the values, and keep their normal form."""
        normalize_options(self)
        if self.partition_by and self.cluster_by:
            raise InvalidOptionError(
                "WriteOptions got partition_by and cluster_by; allowed: one of them, or none"
            )
        if (self.on_duplicate_keys == "latest") != bool(self.latest_by):
            raise InvalidOptionError(
                f"WriteOptions.on_duplicate_keys got {self.on_duplicate_keys!r}, and latest_by "
                f"{list(self.latest_by)}; allowed: 'latest' with the columns that order the rows "
                "of a key, or 'error' without any"
            )
        if self.retry == ("failed",):
            object.__setattr__(self, "retry", FAILED)
        for status in self.retry:
            if status not in FAILED:
                raise InvalidOptionError(
                    f"WriteOptions.retry got {status!r}; allowed: 'failed', or a list of "
                    f"{', '.join(FAILED)}"
                )


# Options that do not apply to a stream, and options that apply only to one.
NOT_STREAMED = ("max_rows", "max_seconds", "retry", "recompute", "delete_missing", "optimize")
STREAMED = ("on_duplicate_keys", "latest_by")


def parse_write_options(given: Mapping[str, Any], *, is_stream: bool = False) -> WriteOptions:
    """Parse the options of a call from its keyword arguments.

    Raises:
        InvalidOptionError: There is no such option, or a value is not allowed.
    """
    allowed = _names(is_stream=is_stream)
    for name in given:
        if name not in allowed:
            raise InvalidOptionError(
                f"a {'stream' if is_stream else 'write'} has no option {name!r}; allowed: "
                + ", ".join(allowed)
            )
    return WriteOptions(**given)


def takes_write_options(*, is_stream: bool = False) -> Callable[[_Function], _Function]:
    """Return a decorator that lists all options in the signature of a function with `**options`."""

    def sign(function: _Function) -> _Function:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        annotations = WriteOptions.__annotations__
        names = _names(is_stream=is_stream)
        more = [
            inspect.Parameter(
                each.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=each.default,
                annotation=annotations[each.name],
            )
            for each in options_of(WriteOptions)
            if each.name in names
        ]
        signed: Any = function
        signed.__signature__ = signature.replace(parameters=[*own, *more])
        return function

    return sign


def _names(*, is_stream: bool) -> list[str]:
    return [
        each.name
        for each in options_of(WriteOptions)
        if each.name not in (NOT_STREAMED if is_stream else STREAMED)
    ]
