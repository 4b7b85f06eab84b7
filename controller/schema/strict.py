"""The pydantic base of everything a user writes, and its errors turned into problems that teach."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, PydanticCustomError

from controller.schema.documents import Document, Path
from controller.schema.problem import Problem

_M = TypeVar("_M", bound=BaseModel)

_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "float_type": "a number",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_KINDS = {
    str: "text",
    bool: "boolean",
    int: "number",
    float: "number",
    list: "list",
    dict: "mapping",
    type(None): "null",
}


class Strict(BaseModel):
    """camelCase keys, exact types, no unknown field."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=False,
        use_attribute_docstrings=True,  # they become `kubectl explain`
    )


def wrong(message: str, remedy: str = "") -> PydanticCustomError:
    """What a validator raises: the message, and what to do."""
    escaped = {"m": message, "remedy": remedy}
    return PydanticCustomError("wrong", "{m}", escaped)


def check(model: type[_M], document: Document, value: Any, at: Path = ()) -> tuple[_M | None, list[Problem]]:
    """Validate the part of the document at `at`: the model, or all that is wrong with it."""
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        return None, [_problem(model, document, at, details) for details in error.errors(include_url=False)]


def _problem(model: type[BaseModel], document: Document, at: Path, details: ErrorDetails) -> Problem:
    kind, given, context = details["type"], details["input"], details.get("ctx", {})
    path = (*at, *(part for part in details["loc"] if part != "[key]"))
    if kind == "extra_forbidden":
        names = _fields_at(model, details["loc"][:-1])
        return document.problem(path, f"unknown field {details['loc'][-1]!r}", _did_you_mean(details["loc"][-1], names))
    if kind == "missing":
        return document.problem(path, "required field is missing", f"add '{details['loc'][-1]}'")
    if kind == "wrong":
        return document.problem(path, context["m"], context["remedy"])
    if kind in ("literal_error", "enum"):
        return document.problem(path, f"{given!r} is not supported", f"use {context['expected']}")
    if kind == "too_short":
        return document.problem(path, "must not be empty", "add something, or remove the field")
    if kind == "too_long":
        return document.problem(path, f"has {context['actual_length']} items", f"at most {context['max_length']}")
    if kind in _EXPECTED:
        message = f"expected {_EXPECTED[kind]}, got the {_KINDS.get(type(given), type(given).__name__)} {_short(given)}"
        remedy = ""
        if kind == "string_type" and isinstance(given, bool | int | float):
            remedy = "put it in quotes"
        elif kind == "int_type" and isinstance(given, str):
            remedy = "write it without quotes" if given.strip().lstrip("+-").isdigit() else "write a number"
        elif kind in ("list_type", "tuple_type"):
            remedy = "write one item a line, each after '- '"
        elif _EXPECTED[kind] == "a mapping":
            remedy = "write one 'key: value' a line"
        return document.problem(path, message.replace("the null None", "nothing"), remedy)
    return document.problem(path, details["msg"][0].lower() + details["msg"][1:])


def _short(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"of {len(value)}"
    return repr(value)[:60]


def _did_you_mean(name: Any, names: list[str]) -> str:
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    # A different capital only ("podselector") is the likeliest slip of all.
    near = [n for n in names if n.lower() == str(name).lower()] or near
    return f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(names)}" if names else "remove it"


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The field names that the mapping at `loc` may have."""
    for part in loc:
        if isinstance(part, int) or part == "[key]":
            continue
        field = next((f for n, f in model.model_fields.items() if (f.alias or n) == part), None)
        if field is None:
            continue  # a key of a mapping of models
        model = _model_in(field.annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if (found := _model_in(part)) is not None:
            return found
    return None
