"""Join tokens: what a node shows once to come into the mesh, and by which it knows the controller before that.

The text is `nm1.<base64url(JSON {"id", "controller_root_sha256"})>.<secret>`. The node checks the controller's root
against the hash, and only then sends the secret, nothing else of the token.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, field

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """Who it is, which controller it is for, and the secret, which `repr` leaves out."""

    id: str
    root_sha256: str
    """Of the controller's root certificate (DER), 64 hex digits."""
    secret: str = field(repr=False)
    """What `sync.Join.token` carries."""

    @property
    def text(self) -> str:
        """What the operator is given."""
        public = json.dumps({"id": self.id, "controller_root_sha256": self.root_sha256}, separators=(",", ":"))
        return f"nm1.{base64.urlsafe_b64encode(public.encode()).decode().rstrip('=')}.{self.secret}"

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Read `text`. Raises `ValueError`, which never quotes it."""
        try:
            kind, public, secret = text.split(".")
            claims = json.loads(base64.urlsafe_b64decode(public + "=" * (-len(public) % 4)))
            token = cls(str(claims["id"]), str(claims["controller_root_sha256"]).lower(), secret)
        except (ValueError, KeyError, TypeError, binascii.Error):
            raise ValueError("no join token") from None
        if kind != "nm1" or not secret or not _SHA256.match(token.root_sha256):
            raise ValueError("a join token of a kind that this version does not know (it knows nm1)")
        return token
