"""What a command line says when it cannot do what it was asked, and the status it exits with."""

from __future__ import annotations

import enum
import errno
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mesh.present.table import clean
from mesh.present.units import count


class Exit(enum.IntEnum):
    """Exit statuses of `nodectl` and `meshctl` (docs/reference/cli.md)."""

    OK = 0
    FAILED = 1
    """The answer is no (drift, denied, not found), or the operation failed."""
    USAGE = 2
    UNREACHABLE = 3
    """The daemon did not answer, so nothing is known."""


class Failure(Exception):
    """A command failed. `message` says what and where, `remedy` what to do about it."""

    def __init__(self, message: str, remedy: str = "", status: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.message, self.remedy, self.status = message, remedy, status

    def text(self, *, colour: bool = False) -> str:
        """Lines for standard error."""
        label = "\x1b[31merror:\x1b[0m" if colour else "error:"
        lines = [f"{label} {_lines(self.message)}"]
        if self.remedy:
            lines.append(f"hint: {_lines(self.remedy)}")
        return "\n".join(lines) + "\n"


class Rejected(Failure):
    """The controller found faults in resources (status 422) and changed nothing."""

    def __init__(self, errors: Sequence[Mapping[str, Any]], sources: Mapping[str, str] | None = None) -> None:
        """`errors` as the API returns them; `sources` maps each file's name to its text."""
        super().__init__("the resources were rejected")
        self.errors, self._sources = errors, sources or {}

    def text(self, *, colour: bool = False) -> str:
        """Each fault as `file:line:col: path: message`, the offending line with a mark, and a hint."""
        blocks = [self._block(error) for error in self.errors]
        files = len({str(error.get("file", "")) for error in self.errors})
        blocks.append(f"{count(len(self.errors), 'error')} in {count(files, 'file')}; nothing was changed\n")
        return "\n".join(blocks)

    def _block(self, error: Mapping[str, Any]) -> str:
        file, line, column = str(error.get("file", "")), error.get("line") or 0, error.get("column") or 0
        where = ":".join([file, *(str(number) for number in (line, column) if number)])
        parts = [where, str(error.get("path") or ""), str(error.get("message", ""))]
        text = clean(": ".join(part for part in parts if part)) + "\n"
        source = self._sources.get(file, "").splitlines()
        if 0 < line <= len(source):
            text += f"{line:>5} | {clean(source[line - 1].expandtabs(1))}\n"
            if column:
                text += f"      | {' ' * (column - 1)}^\n"
        remedy = str(error.get("remedy") or "")
        return text + (f"hint: {clean(remedy)}\n" if remedy else "")


def unreachable(daemon: str, path: str, variable: str, cause: Exception | None) -> Failure:
    """The daemon's socket at `path` did not answer; `cause` is None for silence. `variable` may name the socket."""
    elsewhere = f"--socket PATH or {variable}=PATH names another socket"
    match _errno(cause) if cause else 0:
        case errno.EACCES | errno.EPERM:
            message, remedy = "permission denied", "only root may talk to it: use sudo"
        case errno.ENOENT:
            message, remedy = "no such socket", f"is {daemon} running on this host? {elsewhere}"
        case errno.ECONNREFUSED:
            message = "connection refused"
            remedy = f"is {daemon} running? The socket is there but nobody listens: {daemon} has ended or is restarting"
        case 0:
            message, remedy = "no answer in time", f"{daemon} is there but hangs or is overloaded: look at its log"
        case _:
            message, remedy = str(cause), elsewhere
    return Failure(f"cannot reach {daemon}: {message}; looked at {path}", remedy, Exit.UNREACHABLE)


def _errno(error: BaseException) -> int | None:
    """The operating system's, which a library's error may have beneath it."""
    under: BaseException | None = error
    while under is not None and not isinstance(under, OSError):
        under = under.__cause__ or under.__context__
    return under.errno if under else None


def _lines(text: str) -> str:
    return "\n".join(clean(line) for line in text.splitlines())


def read_answer(body: bytes, request: str, daemon: str, path: str) -> Any:
    """The JSON of a good answer, `{}` where it is empty. Raises `Failure`."""
    try:
        return json.loads(body) if body else {}
    except ValueError:
        raise Failure(f"{request}: the answer is not JSON", f"is it {daemon} that listens at {path}?") from None


def refused(status: int, answer: object) -> Failure:
    """From an error answer of the API, raw or parsed: its own words if its shape is as documented, else the status."""
    if isinstance(answer, bytes):
        try:
            answer = json.loads(answer)
        except ValueError:
            answer = None
    if status == 422 and isinstance(answer, Mapping) and answer.get("errors"):
        return Rejected(answer["errors"])
    error = answer.get("error") if isinstance(answer, Mapping) else None
    if isinstance(error, Mapping) and error.get("message"):
        return Failure(str(error["message"]), str(error.get("remedy") or ""))
    return Failure(f"the daemon answered with status {status} and no explanation", "look at its log")
