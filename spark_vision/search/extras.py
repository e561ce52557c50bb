"""Packages of the extras, imported when an index is first used."""

from importlib import import_module
from typing import Any

from spark_vision.errors import MissingExtraError


def import_extra(module: str, extra: str) -> Any:
    """Import a module that an extra of this package installs.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            # The package is here, and lacks something of its own.
            raise
        message = f'{error.name} is not installed; run pip install "spark-vision[{extra}]"'
        raise MissingExtraError(message, name=error.name) from None
