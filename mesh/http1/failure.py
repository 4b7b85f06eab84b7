"""How a message is refused, and how large one may be."""

from __future__ import annotations

from dataclasses import dataclass


class BadMessage(Exception):
    """The peer's message is not understood, or only ambiguously: nothing of it may be forwarded; close the connection.

    `status` is the answer for a client (its owner writes it, if no answer has begun); to what a server sent the answer
    is 502 whatever `status` says. `reason` quotes nothing of the message.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that is accepted, bytes but where it says otherwise."""

    head: int = 60 * 1024
    """Of a head, start line included; also of a trailer section."""
    headers: int = 100
    """Fields of a head or a trailer section."""
    target: int = 16 * 1024
    """Of a request's target: 414 above."""
    chunk_line: int = 1024
    """Of a chunk's size and extensions."""
    chunk_overhead: int = 16 * 1024
    """Of a body's chunk lines in excess of 16 and twice the data that they brought."""
    held: int = 64 * 1024
    """Sent after a request for an upgrade before it was answered."""
    informational: int = 32
    """Responses 1xx before the one that counts."""
