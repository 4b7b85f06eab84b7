"""The join token of this node, in the file that its configuration names."""

from __future__ import annotations

from pathlib import Path

from mesh.join_token import JoinToken
from noded.control.failure import Failure

_REMEDY = "make one with `meshctl token create` and put it into controller.tokenFile"


def read(path: Path) -> JoinToken:
    """Read the token in `path`; raise `Failure`, which never quotes the token."""
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(8192).strip()
    except (OSError, ValueError) as error:
        raise Failure(f"join token file {path} cannot be read: {error}", _REMEDY) from error
    try:
        return JoinToken.parse(text)
    except ValueError as error:
        raise Failure(f"{path} holds {error}", _REMEDY) from None
