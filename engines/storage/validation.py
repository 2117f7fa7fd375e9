"""Validate plain values, such as parsed TOML, with pydantic, and raise one InputError for what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

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


def checked(model: type[Model], values: Mapping[str, Any], where: str = "", remedy: str = "") -> Model:
    """Return the values as a model.

    Raises InputError for the first invalid field, with `where` and its name, its value, the problem and the remedy.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _as_input_error(error, model, where, remedy) from error


def _as_input_error(error: ValidationError, model: type[BaseModel], where: str, remedy: str) -> InputError:
    first = error.errors()[0]
    place = [part for part in first["loc"] if part not in ("str", "dict[str,any]")]
    value, message = first["input"], first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if first["type"] == "missing":
        value, message = None, "it is missing"
    elif first["type"] == "extra_forbidden":
        message = f"no such setting; use {', '.join(_table_of(model, first['loc']).model_fields)}"
    elif isinstance(inner := first.get("ctx", {}).get("error"), InputError):
        place, value, message = [*place, inner.field], inner.value, inner.remedy
    elif not place:
        value = "the whole table"
    shown = " ".join(filter(None, (where, ".".join(map(str, place))))) or model.model_config.get("title")
    return InputError(shown or "settings", value, f"{message}; {remedy}" if remedy else message)


def _table_of(model: type[BaseModel], place: Sequence[str | int]) -> type[BaseModel]:
    """Return the table of the model in which the last part of `place` lies."""
    for part in place[:-1]:
        inner = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return model
