"""The join token of this node, in the file that its configuration names."""

from __future__ import annotations

from pathlib import Path

from mesh.join_token import JoinToken
from noded.control.failure import Failure

_REMEDY = "make one with `meshctl token create` and put it into controller.tokenFile"


def read(path: Path) -> JoinToken:
    """Read the token in `path`; raise `Failure`, which never quotes the token."""
    try:
        return JoinToken.parse(_text(path, _REMEDY))
    except ValueError as error:
        raise Failure(f"{path} holds {error}", _REMEDY) from None


def read_service_account(path: Path) -> str:
    """The service account's token in `path`, as kubelet keeps it there: it changes every hour or so."""
    return _text(path, "mount a projected service account token of audience nodemesh there")


def _text(path: Path, remedy: str) -> str:
    try:
        with path.open(encoding="ascii") as file:
            return file.read(8192).strip()
    except (OSError, ValueError) as error:
        raise Failure(f"token file {path} cannot be read: {error}", remedy) from error
