"""Forecasts a write with one survey of keys and hashes, without a model or a commit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_vision.operators import Operator
from spark_vision.tables.location import read_detail
from spark_vision.tables.source import refuse_stream
from spark_vision.tables.survey import SOURCE_FILE, Survey, survey_source
from spark_vision.tables.table_layout import check_table, fit_keys, is_blank
from spark_vision.tables.write import warn_of_missing
from spark_vision.tables.write_options import parse_write_options, takes_write_options
from spark_vision.tables.write_plan import plan_write


@dataclass(frozen=True)
class WriteForecast:
    """What a write would do.

    Attributes:
        table: The table's name in Spark SQL.
        is_new: Whether it would be created.
        source_rows: Rows in the source.
        existing_rows: Source rows whose keys the table has.
        reasons: Rows that would be computed, by column and reason: `new`, `changed`, `not filled
            in`, `failed` and `recomputed`.
        pending_rows: Rows that would be written; each counts once, whatever it needs.
        wave_count: Commits, where `rows_per_commit` is given; else None.
        source_bytes: The size of the source's files that would be read; None where the source does
            not know its files.
        missing_rows: Rows of the table that the source does not have.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> forecast: WriteForecast = plan_vision_columns(
        ...     photos, "/data/photo_vectors", keys=["path"], columns={"embedding": dino}
        ... )
        >>> print(forecast.pending_rows, forecast.reasons, forecast.source_bytes)
    """

    table: str
    is_new: bool
    source_rows: int
    existing_rows: int
    reasons: Mapping[str, Mapping[str, int]]
    pending_rows: int
    wave_count: int | None
    source_bytes: int | None
    missing_rows: int


@takes_write_options()
def plan_vision_columns(
    source: DataFrame,
    table: str,
    keys: Sequence[str],
    columns: Mapping[str, Operator],
    **options: Any,
) -> WriteForecast:
    """Report what `write_vision_columns` would do with the same arguments; changes nothing.

    No model is loaded. Without `version_columns`, the images of existing rows are read to be
    hashed, as by the write itself.

    Raises:
        SparkVisionError: As `write_vision_columns`, for what is known before the first row.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base")
        >>> forecast = plan_vision_columns(
        ...     photos, "/data/planned_vectors", keys=["path"], columns={"embedding": dino}
        ... )
        >>> forecast.reasons
        {'embedding': {'new': 4}}
    """
    refuse_stream(source)
    write = plan_write(source, table, keys, columns, parse_write_options(options), progress=None)
    detail = read_detail(source.sparkSession, write.location)
    if detail is not None:
        write, source = fit_keys(write, source, detail)
        check_table(write, detail)
    has_table = detail is not None and not is_blank(detail)
    survey = survey_source(source.sparkSession, write, source, has_table=has_table)
    try:
        warn_of_missing(write, source, survey)
        rows = write.options.rows_per_commit
        return WriteForecast(
            table=write.location.sql,
            is_new=detail is None,
            source_rows=survey.source_rows,
            existing_rows=survey.existing_rows,
            reasons=survey.count_reasons(list(write.columns)),
            pending_rows=survey.pending_rows,
            wave_count=rows and sum(-(-each.count // rows) for each in survey.pending),
            source_bytes=_count_bytes(source, survey),
            missing_rows=survey.missing_rows,
        )
    finally:
        survey.release()


def _count_bytes(source: DataFrame, survey: Survey) -> int | None:
    if not survey.has_source_files:
        return None
    sizes = source.select(
        F.col("_metadata.file_path").alias(SOURCE_FILE), F.col("_metadata.file_size").alias("size")
    ).distinct()
    total = sizes.join(survey.source_files(), SOURCE_FILE).agg(F.sum("size")).head()
    return int(total[0] or 0) if total is not None else 0


def describe_forecast(forecast: WriteForecast) -> str:
    """Describe a forecast in the few lines that a job prints."""
    lines = [
        f"table: {forecast.table}{' (new)' if forecast.is_new else ''}",
        f"rows: {forecast.source_rows:,} in the input, {forecast.existing_rows:,} in the table, "
        f"{forecast.pending_rows:,} to be written"
        + (f" in {forecast.wave_count:,} waves" if forecast.wave_count is not None else ""),
    ]
    for column, reasons in forecast.reasons.items():
        said = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
        lines.append(f"{column}: {said or 'nothing'}")
    if forecast.source_bytes is not None:
        lines.append(f"files to read: {forecast.source_bytes:,} bytes")
    if forecast.missing_rows:
        lines.append(f"missing in the input: {forecast.missing_rows:,} rows of the table")
    return "\n".join(lines)
