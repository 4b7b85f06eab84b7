"""Reading a YAML file so that every complaint names its line.

A `Fault` collects; reading goes on after a bad value, so that one run shows all that is wrong with a file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


class SpecError(Exception):
    """The file can't be used. The text has one line a fault, each `FILE:LINE: what`."""


@dataclass
class Faults:
    """What was wrong with one file."""

    file: str
    lines: list[tuple[int, str]] = field(default_factory=list)

    def add(self, node: yaml.Node | None, what: str) -> None:
        """Note a fault at a node."""
        self.lines.append((node.start_mark.line + 1 if node else 1, what))

    def finish(self) -> None:
        """Raise `SpecError` if there was any."""
        if self.lines:
            raise SpecError("\n".join(f"{self.file}:{line}: {what}" for line, what in sorted(self.lines)))


def load(text: str, file: str) -> tuple[Map, Faults]:
    """The top-level mapping of a document. Raises `SpecError` on bad YAML or anything else than a mapping."""
    faults = Faults(file)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(f"{file}:{line}: not YAML: {error.problem}") from None
    if not isinstance(node, yaml.MappingNode):
        raise SpecError(f"{file}:1: a testbed file is a mapping with the keys name, nodes and pods")
    return Map(node, "", faults), faults


class Map:
    """A mapping node. Getters note a fault and return an empty value where something is wrong."""

    def __init__(self, node: yaml.MappingNode, where: str, faults: Faults) -> None:
        self.node, self.where, self.faults = node, where, faults
        self._values: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.value in self._values:
                faults.add(key, f"{self._path(key.value)}: given twice")
            self._values[key.value] = value

    def _path(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def only(self, *known: str) -> None:
        """Any other key is a fault."""
        for key, _ in self.node.value:
            if key.value not in known:
                close = difflib.get_close_matches(str(key.value), known, 1)
                hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
                self.faults.add(key, f"{self._path(key.value)}: unknown key; {hint}")

    def at(self, key: str) -> yaml.Node:
        """The node that a complaint about this key should point at."""
        return self._values.get(key, self.node)

    def _take(self, key: str, required: bool) -> yaml.Node | None:
        value = self._values.get(key)
        if value is None and required:
            self.faults.add(self.node, f"{self._path(key)}: missing")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string; required where there is no default."""
        node = self._take(key, default is None)
        if node is None:
            return default or ""
        if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
            self.faults.add(node, f"{self._path(key)}: must be a string")
            return default or ""
        return str(node.value)

    def label(self, key: str, default: str | None = None) -> str:
        """A DNS label (RFC 1123)."""
        value = self.text(key, default)
        if value and (len(value) > 63 or not _LABEL.fullmatch(value)):
            self.faults.add(self.at(key), f"{self._path(key)}: '{value}' is not a DNS label (a-z, 0-9, '-')")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        node = self._values.get(key)
        if node is None:
            return default
        if node.tag != "tag:yaml.org,2002:bool":
            self.faults.add(node, f"{self._path(key)}: must be true or false")
            return default
        return str(node.value).lower() in ("true", "yes", "on")

    def port(self, key: str, default: int | None = None) -> int:
        """A number from 1 to 65535."""
        node = self._take(key, default is None)
        if node is None:
            return default or 0
        if node.tag != "tag:yaml.org,2002:int" or not str(node.value).isdigit() or not 0 < int(node.value) < 65536:
            self.faults.add(node, f"{self._path(key)}: must be a port, 1 to 65535")
            return default or 0
        return int(node.value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, empty where absent. Numbers in it are taken as written."""
        node = self._values.get(key)
        if node is None:
            return ()
        if not isinstance(node, yaml.SequenceNode) or not all(isinstance(n, yaml.ScalarNode) for n in node.value):
            self.faults.add(node, f"{self._path(key)}: must be a list of strings")
            return ()
        return tuple(str(item.value) for item in node.value)

    def strings(self, key: str) -> dict[str, str]:
        """A mapping of strings to strings, empty where absent."""
        node = self._values.get(key)
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode) or not all(isinstance(v, yaml.ScalarNode) for _, v in node.value):
            self.faults.add(node, f"{self._path(key)}: must be a mapping of strings to strings")
            return {}
        return {str(k.value): str(v.value) for k, v in node.value}

    def anything(self, key: str) -> dict[str, Any]:
        """A mapping passed on as it is, empty where absent."""
        node = self._values.get(key)
        if node is None:
            return {}
        value = yaml.SafeLoader("").construct_document(node)
        if not isinstance(value, dict):
            self.faults.add(node, f"{self._path(key)}: must be a mapping")
            return {}
        return value

    def maps(self, key: str, required: bool = False) -> Iterator[Map]:
        """The mappings of a list."""
        node = self._take(key, required)
        if node is None:
            return
        if not isinstance(node, yaml.SequenceNode):
            self.faults.add(node, f"{self._path(key)}: must be a list")
            return
        for index, item in enumerate(node.value):
            where = f"{self._path(key)}[{index}]"
            if isinstance(item, yaml.MappingNode):
                yield Map(item, where, self.faults)
            else:
                self.faults.add(item, f"{where}: must be a mapping")
