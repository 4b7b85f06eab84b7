"""Join tokens as a node reads them: `nm1.<base64url(JSON {"id", "controller_root_sha256"})>.<secret>`."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from noded.control.failure import Failure

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_REMEDY = "make one with `meshctl token create` and put it into controller.tokenFile"


@dataclass(frozen=True, slots=True)
class Token:
    """A join token: who it is, which controller it is for, and the secret, which `repr` leaves out."""

    id: str
    root_sha256: str
    """Of the controller's root certificate (DER), 64 hex digits."""
    secret: str = field(repr=False)
    """What `Join.token` carries."""


def read(path: Path) -> Token:
    """Read the token in `path`; raise `Failure`, which never quotes the token."""
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(8192).strip()
    except (OSError, ValueError) as error:
        raise Failure(f"join token file {path} cannot be read: {error}", _REMEDY) from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Token:
    """Take `text` apart; raise `Failure`."""
    try:
        kind, public, secret = text.split(".")
        claims = json.loads(base64.urlsafe_b64decode(public + "=" * (-len(public) % 4)))
        token = Token(str(claims["id"]), str(claims["controller_root_sha256"]).lower(), secret)
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise Failure(f"{where} does not hold a join token", _REMEDY) from None
    if kind != "nm1" or not secret or not _SHA256.match(token.root_sha256):
        raise Failure(f"{where} does not hold a join token of a kind that this version knows (nm1)", _REMEDY)
    return token
