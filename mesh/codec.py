"""Frozen dataclasses to msgpack and back, checked field by field: everything from a peer is hostile.

A dataclass travels as an array of its fields in order; a newer peer may append fields, an older one may leave off
those that have defaults. A union of dataclasses travels as `[class name, fields]`. Decoding checks every type against
the annotation and raises `DecodeError` with the path of the first field that is wrong.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Callable
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgpack

_SCALARS = frozenset((str, int, float, bool, bytes, type(None)))
_Decoder = Callable[[Any, str], Any]


class DecodeError(ValueError):
    """The bytes are not what the type says; the message holds the path of the offending field."""


def encode(value: object, of: Any = None) -> bytes:
    """Serialise a dataclass instance; `of` names the union it is to be decoded as, if any."""
    if of is not None:
        return bytes(msgpack.packb([type(value).__name__, _plain(value)]))
    return bytes(msgpack.packb(_plain(value)))


def decode(of: Any, data: bytes | memoryview) -> Any:
    """Read one `of` (a dataclass or a union of dataclasses); raise `DecodeError`."""
    try:
        raw = msgpack.unpackb(data, strict_map_key=False)
    except (
        ValueError,
        TypeError,
        msgpack.exceptions.UnpackException,
        RecursionError,
    ) as error:  # TypeError: list as key
        raise DecodeError(f"not a msgpack message: {error}") from error
    return _decoder(of)(raw, "")


def _plain(value: Any) -> Any:
    kind = value.__class__
    if kind in _SCALARS:
        return value
    if kind is tuple or isinstance(value, tuple | list):
        return [item if item.__class__ in _SCALARS else _plain(item) for item in value]
    if (names := _names(kind)) is not None:
        return [_plain(getattr(value, name)) for name in names]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value


@cache
def _names(cls: Any) -> tuple[str, ...] | None:
    """Of a dataclass' fields."""
    return tuple(f.name for f in dataclasses.fields(cls)) if dataclasses.is_dataclass(cls) else None


@cache
def _decoder(of: Any) -> _Decoder:
    origin, args = get_origin(of), get_args(of)
    if origin in (Union, types.UnionType):
        return _union(args)
    if origin is tuple:
        return _tuple(args[0]) if args[-1] is Ellipsis else _row(args)
    if origin is dict:
        return _dict(*args)
    if dataclasses.is_dataclass(of):
        return _dataclass(of)
    if isinstance(of, type) and issubclass(of, enum.Enum):
        return _enum(of)
    if of in (str, int, float, bool, bytes):
        return _scalar(of)
    raise TypeError(f"codec cannot carry {of!r}")


def _fail(path: str, expected: str, got: object) -> DecodeError:
    return DecodeError(f"{path or 'message'}: expected {expected}, got {type(got).__name__}")


def _scalar(of: type) -> _Decoder:
    def read(raw: Any, path: str) -> Any:
        if of is float and type(raw) is int:
            return float(raw)
        if type(raw) is not of:
            raise _fail(path, of.__name__, raw)
        return raw

    return read


def _enum(of: type[enum.Enum]) -> _Decoder:
    members = {member.value: member for member in of}

    def read(raw: Any, path: str) -> Any:
        try:
            return members[raw]
        except (KeyError, TypeError):
            raise DecodeError(f"{path}: {raw!r:.60} is not one of {', '.join(map(str, members))}") from None

    return read


def _tuple(of: Any) -> _Decoder:
    item = _decoder(of)
    scalar = {of} if of in _SCALARS else None
    """The only type of an array that need not be looked at one by one."""

    def read(raw: Any, path: str) -> Any:
        if type(raw) is not list:
            raise _fail(path, "array", raw)
        if set(map(type, raw)) == scalar:
            return tuple(raw)
        return tuple([item(value, f"{path}[{index}]") for index, value in enumerate(raw)])

    return read


def _row(kinds: tuple[Any, ...]) -> _Decoder:
    """A tuple that has so many items and no other number."""
    items = [_decoder(kind) for kind in kinds]

    def read(raw: Any, path: str) -> Any:
        if type(raw) is not list:
            raise _fail(path, "array", raw)
        if len(raw) != len(items):
            raise DecodeError(f"{path}: expected {len(items)} items, got {len(raw)}")
        return tuple([item(value, f"{path}[{n}]") for n, (item, value) in enumerate(zip(items, raw, strict=True))])

    return read


def _dict(key_of: Any, value_of: Any) -> _Decoder:
    read_key, read_value = _decoder(key_of), _decoder(value_of)

    def read(raw: Any, path: str) -> Any:
        if type(raw) is not dict:
            raise _fail(path, "map", raw)
        return {read_key(key, f"{path} key"): read_value(value, f"{path}[{key!r:.60}]") for key, value in raw.items()}

    return read


def _union(args: tuple[Any, ...]) -> _Decoder:
    if type(None) in args:
        inner = _decoder(Union[tuple(a for a in args if a is not type(None))])  # noqa: UP007 (built at run time)
        return lambda raw, path: None if raw is None else inner(raw, path)
    decoders = {a.__name__: _decoder(a) for a in args}

    def read(raw: Any, path: str) -> Any:
        if type(raw) is not list or len(raw) != 2 or type(raw[0]) is not str:
            raise _fail(path, "[type, fields]", raw)
        if (found := decoders.get(raw[0])) is None:
            raise DecodeError(f"{path or 'message'}: unknown type {raw[0][:40]!r}")
        return found(raw[1], raw[0])

    return read


def _dataclass(of: Any) -> _Decoder:
    hints = get_type_hints(of)
    fields = dataclasses.fields(of)
    readers = [(f.name, _decoder(hints[f.name])) for f in fields]
    needed = sum(1 for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)

    def read(raw: Any, path: str) -> Any:
        if type(raw) is not list:
            raise _fail(path, of.__name__, raw)
        if len(raw) < needed:
            raise DecodeError(f"{path or of.__name__}: {len(raw)} fields, {of.__name__} has {needed}")
        try:
            return of(*[reader(value, f"{path}.{name}") for (name, reader), value in zip(readers, raw, strict=False)])
        except DecodeError:
            raise
        except ValueError as error:  # a dataclass's own check
            raise DecodeError(f"{path or of.__name__}: {error}") from error

    return read
