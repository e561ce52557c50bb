"""Operators on a command line: an option per field, and `name=Operator:field=value,…` in one text.

Everything is read off the operators' own options, without Spark, torch or transformers.
"""

import argparse
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, NoReturn, TypeVar

from spark_vision.errors import InvalidOptionError
from spark_vision.images.urls import HIDDEN, redact_text
from spark_vision.operators import OPERATORS, Operator
from spark_vision.operators.options import Option, options_of

OperatorType = TypeVar("OperatorType", bound=Operator)


class JobParser(argparse.ArgumentParser):
    """A job's command line, whose errors repeat no text that may be a secret.

    An option is written out in full: one that is cut short, or misspelled, is not guessed.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Read a command line, or end as a wrong usage."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            # What follows may be the value of an option that was misspelled.
            names = [re.match(r"--?[A-Za-z][A-Za-z-]{0,40}(?![^=])", each) for each in unknown]
            shown = ", ".join(dict.fromkeys(name[0] if name else HIDDEN for name in names))
            self.error(f"unrecognized arguments: {shown}")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without the user names and passwords of its URLs, and end."""
        super().error(redact_text(message))


def add_operator_arguments(parser: argparse.ArgumentParser, operator: type[Operator]) -> None:
    """Add one `--kebab-case` option per field of an operator, with its help, values and default.

    Args:
        parser: Gets a group of its own for them.
        operator: The operator's class, such as `ImageViTEmbedding`.
    """
    add_option_arguments(parser, operator)


def add_option_arguments(
    parser: argparse.ArgumentParser, owner: type, left_out: Collection[str] = ()
) -> None:
    """Add one `--kebab-case` option per field of a class that declares options.

    A list may be given item by item, each with the option's name, also in the singular.

    Args:
        parser: Gets a group of its own for them.
        owner: The class.
        left_out: Fields that the command line does not have, or has in another way.
    """
    summary = (owner.__doc__ or "").splitlines()[0]
    group = parser.add_argument_group(f"options of {owner.__name__}", summary)
    for each in options_of(owner):
        if each.name in left_out:
            continue
        flag = "--" + each.name.replace("_", "-")
        if each.kind is bool:
            group.add_argument(
                flag,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=_help(each),
            )
        else:
            is_list = each.kind is tuple
            group.add_argument(
                flag,
                *([flag.removesuffix("s")] if is_list and flag.endswith("s") else []),
                action="extend" if is_list else "store",
                type=_parser_of(each, owner.__name__),
                metavar=_metavar(each),
                default=argparse.SUPPRESS,
                help=_help(each),
            )


def options_in(arguments: argparse.Namespace, owner: type) -> dict[str, Any]:
    """Give the options of a class that a command line has."""
    names = [each.name for each in options_of(owner)]
    return {name: value for name, value in vars(arguments).items() if name in names}


def operator_from_arguments(
    operator: type[OperatorType], arguments: argparse.Namespace
) -> OperatorType:
    """Build the operator from what `add_operator_arguments` has parsed.

    Raises:
        InvalidOptionError: Two options do not go together.
    """
    return operator(**options_in(arguments, operator))


def parse_function(text: str) -> tuple[str, Operator]:
    """Read a SQL function's name and its operator.

    Args:
        text: Such as `embed_image=ImageViTEmbedding:model_name=facebook/dinov2-base`.
            A comma separates fields where `name=` follows, so that JSON values can hold commas.

    Returns:
        The function's name and the operator.

    Raises:
        InvalidOptionError: Naming the part that is wrong, and what is allowed.
    """
    shape = re.fullmatch(r"\s*(\w+)\s*=\s*(\w+)\s*(?::(.*))?", text, re.DOTALL)
    if shape is None:
        # A field may be a secret: the text is not repeated.
        raise InvalidOptionError(
            "a function was not understood; allowed: name=Operator or "
            "name=Operator:field=value,field=value"
        )
    name, operator_name, fields = shape.groups()
    if operator_name not in OPERATORS:
        raise InvalidOptionError(
            f"function {name} got the operator {operator_name!r}; allowed: {', '.join(OPERATORS)}"
        )
    operator = OPERATORS[operator_name]
    return name, operator(**_parse_fields(operator, fields or ""))


def parse_functions(texts: Iterable[str]) -> dict[str, Operator]:
    """Read several functions, as `parse_function` reads one.

    Raises:
        InvalidOptionError: One is wrong, or two have one name.
    """
    functions: dict[str, Operator] = {}
    for text in texts:
        name, operator = parse_function(text)
        if name in functions:
            raise InvalidOptionError(f"function {name} is given twice")
        functions[name] = operator
    return functions


def _parse_fields(operator: type[Operator], text: str) -> dict[str, Any]:
    options = {each.name: each for each in options_of(operator)}
    values: dict[str, Any] = {}
    for field in re.split(r",(?=\s*[A-Za-z_]\w*\s*=)", text) if text.strip() else []:
        name, equals, value = field.partition("=")
        name = name.strip()
        if name not in options or not equals:
            # A text that is no name may be a value, whose quotes the shell has taken.
            is_name = name in options or (equals and re.fullmatch(r"[a-z_]{1,40}", name))
            shown = repr(name) if is_name else "of that name"
            raise InvalidOptionError(
                f"{operator.__name__} has no field {shown}; allowed: {', '.join(options)}"
            )
        if name in values:
            raise InvalidOptionError(f"{operator.__name__}.{name} is given twice")
        values[name] = options[name].parse(operator.__name__, value.strip())
    return values


def _parser_of(option: Option, owner: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = option.parse(owner, text)
            # What a list is extended by is a list.
            return () if value is None and option.kind is tuple else value
        except InvalidOptionError as error:
            # argparse would repeat the value of any other ValueError, and it may be a secret.
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def _metavar(option: Option) -> str:
    if option.allowed:
        return "{" + ",".join(map(str, option.allowed)) + "}"
    return {int: "N", float: "X", str: "TEXT", tuple: "TEXT|JSON"}.get(option.kind, "JSON|@FILE")


def _help(option: Option) -> str:
    said = option.help
    if option.allowed or option.nullable or option.kind in (int, float):
        said += f" Allowed: {option.describe_allowed()}."
    if not option.secret:
        said += f" Default: {describe_default(option)}."
    return said.replace("%", "%%")


def describe_default(option: Option) -> str:
    """Write an option's default as a command line takes it; a secret's stays unsaid."""
    value = option.default
    if option.secret:
        return "not shown"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if is_dataclass(value) and not isinstance(value, type):
        return json.dumps(asdict(value))
    if isinstance(value, Mapping | tuple):
        return json.dumps(dict(value) if isinstance(value, Mapping) else value)
    return str(value)
