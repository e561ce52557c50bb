"""Declares an operator's option in one place: name, type, default, allowed values and help.

The Python API, the command line, SQL registration and the documentation's table are all generated
from `options_of`, so a new option appears in each of them.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spark_vision.errors import InvalidOptionError


class FrozenMapping(Mapping[str, Any]):
    """A read-only, hashable, picklable mapping; nested mappings and lists are frozen with it."""

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = {key: _freeze(value, type(self)) for key, value in items.items()}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self.thaw())

    def thaw(self) -> dict[str, Any]:
        """Return the content as plain dicts and lists."""
        return {key: _thaw(value) for key, value in self._items.items()}


class SecretMapping(FrozenMapping):
    """A frozen mapping whose values appear in no repr, at any depth."""

    def __repr__(self) -> str:
        return f"<{len(self)} values that are not shown>"


def _freeze(value: Any, kind: type[FrozenMapping]) -> Any:
    if isinstance(value, Mapping):
        return kind(value)
    if isinstance(value, list | tuple):
        return tuple(_freeze(item, kind) for item in value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} is not a JSON value")


def _thaw(value: Any) -> Any:
    if isinstance(value, FrozenMapping):
        return value.thaw()
    if isinstance(value, tuple):
        return [_thaw(item) for item in value]
    return value


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of an operator.

    Attributes:
        name: The field's name.
        kind: The Python type of a value that is not None.
        nullable: Whether None is allowed.
        default: The default value.
        help: One sentence for the command line and the documentation.
        allowed: The allowed values; empty where only type and bounds restrict them.
        minimum: The inclusive lower bound.
        exclusive_minimum: The exclusive lower bound.
        secret: Whether the value is kept out of reprs and logs.
    """

    name: str
    kind: type
    nullable: bool
    default: Any
    help: str
    allowed: tuple[Any, ...] = ()
    minimum: float | None = None
    exclusive_minimum: float | None = None
    secret: bool = False

    def describe_allowed(self) -> str:
        """Describe the allowed values, for error messages and help texts."""
        if self.allowed:
            allowed = ", ".join(self.allowed)
        elif self.minimum is not None:
            allowed = f"{_KIND_NAMES[self.kind]}, at least {self.minimum:g}"
        elif self.exclusive_minimum is not None:
            allowed = f"{_KIND_NAMES[self.kind]} above {self.exclusive_minimum:g}"
        else:
            allowed = (
                _KIND_NAMES.get(self.kind)
                or f"{self.kind.__name__}(...), or a mapping of its fields"
            )
        return f"{allowed}, or none" if self.nullable else allowed

    def normalize(self, owner: str, value: Any) -> Any:
        """Validate a value and return its normal form.

        Raises:
            InvalidOptionError: The value has a wrong type, is out of bounds, or is not allowed.
        """
        if value is None and self.nullable:
            return None
        if self.kind is tuple:
            return self._normalize_strings(owner, value)
        if isinstance(value, Mapping) and self.kind is not FrozenMapping:
            value = self._build(owner, value)
        if self.kind is FrozenMapping and isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise self._refuse(owner, value)
            try:
                return SecretMapping(value) if self.secret else FrozenMapping(value)
            except TypeError as error:
                raise self._refuse(owner, value) from error
        if self.kind is float and type(value) is int:
            value = float(value)
        well_typed = isinstance(value, self.kind) and not (
            isinstance(value, bool) and self.kind is not bool
        )
        if not well_typed or (self.allowed and value not in self.allowed):
            raise self._refuse(owner, value)
        if self.kind is str and not self.allowed and not value.strip():
            raise self._refuse(owner, value)
        if isinstance(value, int | float) and not (
            math.isfinite(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.exclusive_minimum is None or value > self.exclusive_minimum)
        ):
            raise self._refuse(owner, value)
        return value

    def parse(self, owner: str, text: str) -> Any:
        """Parse a value from the command line or a `name=value` pair.

        Structured values are JSON, or `@file.json`, which keeps secrets out of the process list. A
        list of strings may also be a single string without quotes.

        Raises:
            InvalidOptionError: The text is not an allowed value.
        """
        if self.nullable and text.lower() in ("none", "null"):
            return None
        try:
            value: Any
            if self.kind is bool:
                value = {"true": True, "false": False}[text.lower()]
            elif self.kind in (int, float):
                value = self.kind(text)
            elif self.kind is str or (self.kind is tuple and not text.startswith(("[", "@"))):
                value = text
            else:
                value = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
        except (KeyError, ValueError, OSError) as error:
            # The message of the JSON or file error may contain the secret.
            raise self._refuse(owner, text) from (None if self.secret else error)
        return self.normalize(owner, value)

    def _normalize_strings(self, owner: str, value: Any) -> tuple[str, ...]:
        strings = (value,) if isinstance(value, str) else value
        if not isinstance(strings, list | tuple) or not all(
            isinstance(each, str) and each.strip() for each in strings
        ):
            raise self._refuse(owner, value)
        return tuple(strings)

    def _build(self, owner: str, fields: Mapping[str, Any]) -> Any:
        if not dataclasses.is_dataclass(self.kind):
            raise self._refuse(owner, fields)
        names = [field.name for field in dataclasses.fields(self.kind)]
        unknown = [name for name in fields if name not in names]
        if unknown:
            raise InvalidOptionError(
                f"{owner}.{self.name} has no field {unknown[0]!r}; allowed: {', '.join(names)}"
            )
        return self.kind(**fields)

    def _refuse(self, owner: str, value: Any) -> InvalidOptionError:
        shown = "a value that is not shown" if self.secret else repr(value)
        return InvalidOptionError(
            f"{owner}.{self.name} got {shown}; allowed: {self.describe_allowed()}"
        )


_KIND_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a non-empty string",
    tuple: "a list of strings (on a command line JSON, @file.json or a single string)",
    FrozenMapping: "a mapping of names to JSON values (on a command line JSON or @file.json)",
}


def option(
    default: Any,
    help: str,
    *,
    allowed: tuple[Any, ...] = (),
    minimum: float | None = None,
    exclusive_minimum: float | None = None,
    secret: bool = False,
) -> Any:
    """Declare one field of an operator; see `Option` for the arguments."""
    details = {
        "help": help,
        "allowed": allowed,
        "minimum": minimum,
        "exclusive_minimum": exclusive_minimum,
        "secret": secret,
    }
    return dataclasses.field(default=default, repr=not secret, metadata=details)


def options_of(operator: Any) -> tuple[Option, ...]:
    """List the options of an operator class or instance, in field order."""
    owner = operator if isinstance(operator, type) else type(operator)
    hints = typing.get_type_hints(owner)
    listed = []
    for field in dataclasses.fields(owner):
        members = typing.get_args(hints[field.name])
        is_union = typing.get_origin(hints[field.name]) in (types.UnionType, typing.Union)
        kinds = [member for member in members if member is not type(None)]
        kind = kinds[0] if is_union else hints[field.name]
        kind = typing.get_origin(kind) or kind
        listed.append(
            Option(
                name=field.name,
                kind=FrozenMapping if kind is Mapping else kind,
                nullable=is_union and type(None) in members,
                default=field.default,
                **field.metadata,
            )
        )
    return tuple(listed)


def normalize_options(operator: Any) -> None:
    """Validate every field of a frozen operator, and replace its values by their normal form.

    Raises:
        InvalidOptionError: A value is not allowed; the message names field, value and what is.
    """
    for each in options_of(operator):
        value = each.normalize(type(operator).__name__, getattr(operator, each.name))
        object.__setattr__(operator, each.name, value)
