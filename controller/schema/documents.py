"""YAML text to plain values that remember where they stood.

PyYAML's `compose` gives nodes with marks; they are turned into JSON-like values here, so that an error found later, by
a field's path, can name its line. Stricter than PyYAML's `load`, as kubectl is: a duplicate key is an error. Looser in
one thing, as Kubernetes is: a date is a string.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from controller.schema.problem import Problem

_MAX_DEPTH = 64
_MAX_VALUES = 200_000
"""Over one text, aliases expanded: bounds what a few nested aliases can grow to."""
_TOO_MUCH = ("too deeply nested or too many values", "split it; aliases count as copies")
_COLLECTIONS = ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
_SEPARATOR = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONSTRUCT = yaml.constructor.SafeConstructor()
_SCALARS: dict[str, Callable[[yaml.ScalarNode], Any]] = {
    "tag:yaml.org,2002:int": _CONSTRUCT.construct_yaml_int,
    "tag:yaml.org,2002:float": _CONSTRUCT.construct_yaml_float,
    "tag:yaml.org,2002:bool": _CONSTRUCT.construct_yaml_bool,
    "tag:yaml.org,2002:null": lambda _node: None,
    "tag:yaml.org,2002:str": lambda node: node.value,
    "tag:yaml.org,2002:timestamp": lambda node: node.value,
}

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: its value, and for each path the line and column it starts at (a key's, in a mapping)."""

    file: str
    value: Any
    places: dict[Path, tuple[int, int]]

    def problem(self, path: Path, message: str, remedy: str = "") -> Problem:
        """A problem with the field at `path`, or with the nearest that is there."""
        at = path
        while at not in self.places:
            at = at[:-1]
        line, column = self.places[at]
        return Problem(self.file, line, column, dotted(path), message, remedy)


def dotted(path: Path) -> str:
    """`("spec", "rules", 0)` as `spec.rules[0]`; a key that holds dots is quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]+", part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text


def read(file: str, text: str) -> tuple[list[Document], list[Problem]]:
    """All documents of a file, empty ones left out, and what is wrong with those that cannot be read."""
    documents: list[Document] = []
    problems: list[Problem] = []
    reader = _Reader(file)
    for offset, chunk in _chunks(text):
        try:
            _check_depth(file, offset, chunk)
            for node in yaml.compose_all(chunk, Loader=_Loader):
                reader.offset = offset
                value = reader.value(node, (), 0)
                if value is not None:
                    documents.append(Document(file, value, reader.take()))
        except _Bad as bad:
            reader.take()
            problems.append(bad.problem)
        except yaml.YAMLError as error:
            problems.append(_syntax(file, offset, chunk, error))
        if reader.exhausted:
            break
    return documents, problems


def _chunks(text: str) -> Iterator[tuple[int, str]]:
    """The documents' texts, each with the number of lines before it, so that one that is broken hides no other.

    `---` at the start of a line is a document marker wherever it stands (YAML 1.2, section 9.1.2).
    """
    starts = [0, *(m.start() for m in _SEPARATOR.finditer(text) if m.start())]
    if text.startswith("%"):  # directives belong to the document that follows
        starts = [0, *starts[2:]]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        yield text.count("\n", 0, start), text[start:end]


def _check_depth(file: str, offset: int, chunk: str) -> None:
    """Refuse deep nesting before composing, which recurses in C and takes the process down with it."""
    depth = 0
    for event in yaml.parse(chunk, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                line = event.start_mark.line if event.start_mark else 0
                raise _Bad(Problem(file, offset + line + 1, 1, "", *_TOO_MUCH))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _syntax(file: str, offset: int, chunk: str, error: yaml.YAMLError) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        message = ", ".join(part for part in (error.context, error.problem) if part)
        line, column = (mark.line, mark.column) if mark else (0, 0)
    else:
        line, column, message = 0, 0, str(error).splitlines()[0]
    at_fault = chunk.splitlines()[line : line + 1]
    tab = at_fault and at_fault[0][column : column + 1] == "\t"
    remedy = "indent with spaces: YAML has no tabs" if tab else "check indentation and quotes"
    return Problem(file, offset + line + 1, column + 1, "", f"not valid YAML: {message}", remedy)


class _Bad(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class _Reader:
    """Turns nodes into values, noting their places."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.offset = 0
        self._places: dict[Path, tuple[int, int]] = {}
        self._left = _MAX_VALUES

    @property
    def exhausted(self) -> bool:
        return self._left <= 0

    def take(self) -> dict[Path, tuple[int, int]]:
        places, self._places = self._places, {}
        return places

    def _bad(self, node: yaml.Node, path: Path, message: str, remedy: str = "") -> _Bad:
        line, column = self._at(node)
        return _Bad(Problem(self.file, line, column, dotted(path), message, remedy))

    def _at(self, node: yaml.Node) -> tuple[int, int]:
        return self.offset + node.start_mark.line + 1, node.start_mark.column + 1

    def value(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self._left -= 1
        if depth > _MAX_DEPTH or self._left <= 0:
            raise self._bad(node, path, *_TOO_MUCH)
        self._places.setdefault(path, self._at(node))
        if node.tag not in _SCALARS and node.tag not in _COLLECTIONS:
            raise self._bad(node, path, f"the tag {node.tag!r} is not supported", "write a plain value")
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        assert isinstance(node, yaml.ScalarNode)
        if node.tag not in _SCALARS:
            raise self._bad(node, path, f"{node.value!r} is not a collection", "remove the tag")
        try:
            return _SCALARS[node.tag](node)
        except ValueError as error:
            raise self._bad(node, path, f"not a number: {error}", "put it in quotes if it is a text") from error

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise self._bad(key, path, "a key must be a plain text", "merge keys (<<) are not supported")
            name = key.value
            if name in value:
                raise self._bad(key, (*path, name), f"duplicate key {name!r}", "keep one of the two")
            self._places[(*path, name)] = self._at(key)
            value[name] = self.value(item, (*path, name), depth + 1)
        return value
