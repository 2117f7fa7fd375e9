"""Validate plain values, such as parsed TOML, with pydantic, and raise one InputError for what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.errors import MOST_WHOLE, InputError

Whole = Annotated[int, Field(ge=0, le=MOST_WHOLE)]
Count = Annotated[int, Field(ge=1, le=MOST_WHOLE)]
Positive = Annotated[float, Field(gt=0, le=1e300)]
NotNegative = Annotated[float, Field(ge=0, le=1e300)]
Text = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """A table without conversions: text is not a number, true is not 1, and infinity is not allowed."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Record(Settings):
    """Settings of which only some are checked. Others are kept as they are."""

    model_config = ConfigDict(extra="allow")


Model = TypeVar("Model", bound=BaseModel)


REMEDIES = {
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list in brackets"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a table"),
    **dict.fromkeys(("literal_error", "enum"), "{expected}"),
    "finite_number": "a finite number",
    "string_type": "text in quotes",
    "string_too_short": "text of {min_length} or more characters",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
}
"""What to use instead, by pydantic's name for an error, with its context."""


def checked(model: type[Model], values: Mapping[str, Any], where: str = "", remedy: str = "") -> Model:
    """Return the values as a model.

    Raises InputError for the first invalid field, with `where` and its name, its value, the problem and the remedy.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _as_input_error(error, model, values, where, remedy) from error


def remedy_of(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return what to do about the errors that pydantic found in one value, one for each type that it may have."""
    found = [_remedy(error["type"], error.get("ctx", {})) or error["msg"] for error in errors]
    if "a number" in found:  # which may be whole
        found = [remedy for remedy in found if remedy != "a whole number"]
    return f"use {' or '.join(found)}" if errors[0]["type"] in REMEDIES else found[0]


def _remedy(kind: str, about: Mapping[str, Any]) -> str | None:
    """Return what to use instead, or what an error says that this project raised; None if the error is not known."""
    if kind == "value_error":
        return str(about["error"])
    shown = {name: f"{value:.15g}" if isinstance(value, float) else value for name, value in about.items()}
    return REMEDIES[kind].format(**shown).replace("False", "false") if kind in REMEDIES else None


def _as_input_error(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], where: str, remedy: str
) -> InputError:
    first, *others = error.errors()
    place, value, same = list(first["loc"]), first["input"], [first]
    if first["type"] == "missing":
        value, message = None, "it is missing"
    elif first["type"] == "extra_forbidden":
        message = f"no such setting; use {', '.join(_table_of(model, first['loc']).model_fields)}"
    elif isinstance(inner := first.get("ctx", {}).get("error"), InputError):
        place = [*place, *([inner.field] if place[-1:] != [inner.field] else [])]
        value, message = inner.value, inner.remedy
    else:
        if place and _at(values, place[:-1]) is value:  # it may have several types, and the last part is one of them
            place.pop()
            same += [other for other in others if list(other["loc"][:-1]) == place]
        value, message = value if place else "the whole table", remedy_of(same)
    shown = " ".join(filter(None, (where, ".".join(map(str, place))))) or model.model_config.get("title")
    return InputError(shown or "settings", value, f"{message}; {remedy}" if remedy else message)


def _at(values: Any, place: Sequence[str | int]) -> Any:
    """Return what is at a place within values; None if there is nothing."""
    try:
        return reduce(getitem, place, values)
    except (KeyError, IndexError, TypeError):
        return None


def _table_of(model: type[BaseModel], place: Sequence[str | int]) -> type[BaseModel]:
    """Return the table of the model in which the last part of `place` lies."""
    for part in place[:-1]:
        known = get_type_hints(model)
        model = next(_tables_in(known.get(str(part), known.get("__pydantic_extra__"))), model)
    return model


def _tables_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the tables that a value of this type may be or hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _tables_in(inner)
