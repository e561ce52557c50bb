"""Operators on a command line: one option per field, or all in `name=Operator:field=value,…`.

Everything is derived from the options of the operators, without Spark, torch or transformers.
"""

import argparse
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, NoReturn

from spark_vision.errors import InvalidOptionError
from spark_vision.images.urls import HIDDEN, redact_text
from spark_vision.operators import OPERATORS, Operator
from spark_vision.operators.options import Option, options_of


class JobParser(argparse.ArgumentParser):
    """A job's argument parser, whose errors do not repeat text that may be a secret.

    Abbreviated options are rejected.
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
        """Parse a command line, or exit with a usage error."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            # The text after it may be the value of a misspelled option.
            names = [re.match(r"--?[A-Za-z][A-Za-z-]{0,40}(?![^=])", each) for each in unknown]
            shown = ", ".join(dict.fromkeys(name[0] if name else HIDDEN for name in names))
            self.error(f"unrecognized arguments: {shown}")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Print an error without the user names and passwords of URLs, and exit."""
        super().error(redact_text(message))


def add_option_arguments(
    parser: argparse.ArgumentParser, owner: type, left_out: Collection[str] = ()
) -> None:
    """Add one `--kebab-case` option per field of a class that declares options.

    A list option can be repeated for each item, also with its name in the singular.

    Args:
        parser: The options are added as a new group.
        owner: The class.
        left_out: Fields without an option here.
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
    """Return the options of a class that are set on a command line."""
    names = [each.name for each in options_of(owner)]
    return {name: value for name, value in vars(arguments).items() if name in names}


def parse_function(text: str) -> tuple[str, Operator]:
    """Parse the name of a SQL function and its operator.

    Args:
        text: Such as `embed_image=ImageViTEmbedding:model_name=facebook/dinov2-base`.
            A comma separates fields only before `name=`, so that JSON values can contain commas.

    Returns:
        The function's name and the operator.

    Raises:
        InvalidOptionError: Reports the invalid part, and what is allowed.
    """
    shape = re.fullmatch(r"\s*(\w+)\s*=\s*(\w+)\s*(?::(.*))?", text, re.DOTALL)
    if shape is None:
        # The text is not repeated, because a field may be a secret.
        raise InvalidOptionError(
            "a function has an invalid form; allowed: name=Operator or "
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
    """Parse several functions; see `parse_function`.

    Raises:
        InvalidOptionError: One is invalid, or two have the same name.
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
            # Text that is not a name may be a value whose quotes were removed by the shell.
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
            # The action `extend` needs a sequence.
            return () if value is None and option.kind is tuple else value
        except InvalidOptionError as error:
            # For any other ValueError argparse would print the value, which may be a secret.
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def _metavar(option: Option) -> str:
    if option.allowed:
        return "{" + ",".join(map(str, option.allowed)) + "}"
    return {int: "N", float: "X", str: "TEXT", tuple: "TEXT|JSON"}.get(option.kind, "JSON|@FILE")


def _help(option: Option) -> str:
    text = option.help
    if option.allowed or option.nullable or option.kind in (int, float):
        text += f" Allowed: {option.describe_allowed()}."
    if not option.secret:
        text += f" Default: {describe_default(option)}."
    return text.replace("%", "%%")


def describe_default(option: Option) -> str:
    """Format an option's default as on a command line; a secret's is not shown."""
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
