"""What can become of one row: the status names, and their order of appearance in a report."""

from enum import StrEnum


class Status(StrEnum):
    """The outcome of one row; the value is what a `status` column holds."""

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
