"""Which beds there are, which of them is meant, and who may make or remove one: of testbeds, and of clusters."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass


def is_name(text: str) -> bool:
    """Whether a bed can be called so. A name becomes part of paths that are removed.

    Without '-' in it, `nm-<name>-` can't be the beginning of another bed's namespaces.
    """
    return re.fullmatch(r"[a-z][a-z0-9]{0,19}", text) is not None


NAME_RULE = "a letter and up to 19 more letters or digits, lower case"


@dataclass(frozen=True)
class Beds:
    """All beds of one kind."""

    kind: str
    tool: str
    """What the user types."""
    error: type[Exception]
    names: Callable[[], list[str]]

    def choose(self, name: str = "") -> str:
        """The bed of this name, or the only one. Raises `error`."""
        there = self.names()
        if not name and len(there) > 1:
            raise self.error(f"several {self.kind}s are up ({', '.join(there)}): choose with -n NAME")
        if not there or (name and name not in there):
            wanted = f"{self.kind} '{name}' is not up" if name else f"no {self.kind} is up"
            raise self.error(f"{wanted}; tools/{self.tool} --help says how to make one")
        return name or there[0]

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Be the only one who makes or removes this bed. Raises `error` while somebody else is, and for no name.

        The lock is an abstract socket: it ends with its process and leaves no file.
        """
        if not is_name(name):
            raise self.error(f"'{name}' can't be a {self.kind}'s name: it is {NAME_RULE}")
        with socket.socket(socket.AF_UNIX) as lock:
            try:
                lock.bind(f"\0nodemesh-{self.tool}/{name}")
            except OSError:
                raise self.error(f"another command is making or removing {self.kind} '{name}' right now") from None
            yield
