"""The rules of every configuration: frozen, complete, and strict about types. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import numbers
import reprlib
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, dataclass_transform

import pydantic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic_core import core_schema

from loopprobe.errors import LoopprobeError

LARGEST = 2**31 - 1  # of whole numbers: seeds above it are of held-out prompts, and sizes above it fit no memory
_RULES = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
_T = TypeVar("_T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def configuration(cls: type[_T]) -> type[_T]:
    """Make a class a frozen dataclass that takes keyword arguments only, each of exactly its type.

    ``True`` and ``"1"`` are no whole numbers, nor is 1.0; a list is welcome where a tuple is meant, and a whole number
    where a real one is. No number is infinite, and no whole number above ``LARGEST``.

    Raises:
        LoopprobeError: when an object is made of values that do not fit, in one line.
    """

    def schema_of(_: type, source: Any, handler: pydantic.GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return _strict(handler(source))

    cls.__get_pydantic_core_schema__ = classmethod(schema_of)  # type: ignore[attr-defined]
    made: Any = dataclass(config=_RULES, kw_only=True)(cls)
    validate = made.__init__

    @functools.wraps(validate)
    def init(self: Any, **fields: Any) -> None:
        try:
            validate(self, **fields)
        except pydantic.ValidationError as error:
            raise LoopprobeError(_one_line(made, error)) from None

    made.__init__ = init
    return made


def _strict(schema: Any) -> Any:
    """The same schema, in which numbers, strings and booleans are taken as they are or not at all."""
    if isinstance(schema, list | tuple):
        return type(schema)(_strict(part) for part in schema)
    if not isinstance(schema, dict):
        return schema
    schema = {key: value if key == "default" else _strict(value) for key, value in schema.items()}
    kind = schema.get("type")
    if kind in ("int", "float", "bool", "str"):
        schema["strict"] = True
    if kind == "int":
        if "lt" not in schema:
            schema.setdefault("le", LARGEST)
        return core_schema.no_info_before_validator_function(_plain, typing.cast(core_schema.CoreSchema, schema))
    return schema


def _plain(value: Any) -> Any:
    """numpy's whole numbers as Python's."""
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value


def build(cls: type, tree: Mapping[str, Any]) -> Any:
    """Make a configuration from nested plain data.

    Raises:
        LoopprobeError: one line that names the key, the value and what is allowed.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_python(tree)
    except pydantic.ValidationError as error:
        raise LoopprobeError(_one_line(cls, error)) from None


def _one_line(cls: type, error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    # Of a choice between types the place ends with the name of the first type, such as constrained-int.
    known = first["type"] == "unexpected_keyword_argument"
    key = ".".join(str(part) for part in first["loc"] if known or isinstance(part, int) or part.isidentifier())
    if first["type"] == "unexpected_keyword_argument":
        valid = list(_keys(cls))
        same_leaf = [name for name in valid if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
        if near := same_leaf or difflib.get_close_matches(key, valid, n=1, cutoff=0.75):
            return f"unknown config key {key!r}: did you mean {' or '.join(near)}?"
        beside = [name for name in valid if name.rpartition(".")[0] == key.rpartition(".")[0]]
        return f"unknown config key {key!r}: choose from {', '.join(beside) or 'none: drop it'}"
    if first["type"].startswith("missing"):
        return f"{key} is missing: give it a value"
    value = _shown(first["input"])
    if first["type"] in ("dataclass_type", "dataclass_exact_type", "dict_type"):
        return f"{key or 'the configuration'} ({value}) must be a table of keys and values: write them out"
    return f"{key} ({value}) is not valid: {first['msg'][0].lower() + first['msg'][1:]}"


def _shown(value: Any) -> str:
    try:
        return _short.repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        return f"a number of {value.bit_length()} bits"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def _keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, down to those that hold no configuration."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        parts = [hints[field.name], *typing.get_args(hints[field.name])]
        nested = next((part for part in parts if dataclasses.is_dataclass(part)), None)
        yield prefix + field.name
        if nested is not None:
            yield from _keys(typing.cast(type, nested), f"{prefix}{field.name}.")
