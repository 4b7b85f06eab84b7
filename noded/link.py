"""What the control process and a worker say to each other: msgpack messages and descriptors over a socket pair.

A frame is an 8-byte header (body length, number of descriptors; big-endian uint32 each) followed by one message of the
union `ToWorker` or `ToControl` (see `mesh.codec`). Descriptors ride on the header with SCM_RIGHTS. The peer is our own
process, so a bad frame is a bug: it raises, and the worker ends.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from mesh.codec import decode, encode
from mesh.model import EdgeReport, Workload
from mesh.request_counts import RequestReport
from mesh.sync import LimitGrants, LimitReports, Update

_HEADER = struct.Struct(">II")
_MAX_FDS = 16


@dataclass(frozen=True, slots=True)
class Configure:
    """First message to a worker. Two descriptors, of tables that the node's workers share: its source ports and the
    buckets of its rate limits (see `noded.source_ports`, `noded.buckets`).
    """

    index: int
    access_log: bool
    hold_seconds: float
    """How long a connection waits for what it needs (snapshot, certificate, an unknown address) before it is reset."""
    connect_seconds: float
    drain_seconds: float
    log_level: str
    workers: int = 1
    """How many there are on this node: what is bounded for the node, each bounds to its part."""
    access_log_format: str = "json"
    """Or `text`."""
    trace_sampling: float = -1.0
    """Of traces that begin here, the share that is sampled; negative: spans go nowhere."""
    request_ids: bool = False
    """Whether requests get an `x-request-id`; they do where there are spans."""


@dataclass(frozen=True, slots=True)
class WorkloadUp:
    """A local workload. Descriptors: its network namespace, then listeners on 15001, 15006 and 15008.

    The worker owns the descriptors and answers `WorkloadReady`. Sent again with the same uid and no descriptors when
    labels change. `mark` is what the proxy's own sockets in this namespace carry (SO_MARK).
    """

    workload: Workload
    labels: dict[str, str]
    mark: int


@dataclass(frozen=True, slots=True)
class WorkloadDown:
    """Stop accepting for it; reset what is left after `drain_seconds`; forget its keys; answer `WorkloadGone`."""

    uid: str
    drain_seconds: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """A workload's key and chain, and the roots to check peers against (all PEM). Replaces an earlier one."""

    uid: str
    chain: bytes
    key: bytes
    roots: bytes
    not_after: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class MeshUpdate:
    """Apply to the snapshot; answered by `Applied`. Policy changes re-check live connections."""

    update: Update


@dataclass(frozen=True, slots=True)
class Query:
    """`what` is `connections`, `tunnels`, `requests`, `endpoints`, or `failed` (connections and requests); answered by
    `Answer`.
    """

    request: int
    what: str
    arguments: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SetLogLevel:
    """One of debug, info, warning, error."""

    level: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Stop accepting, send GOAWAY, let connections end until the deadline, then exit 0."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker is configured."""

    pid: int


@dataclass(frozen=True, slots=True)
class WorkloadReady:
    """The worker accepts on this workload's listeners."""

    uid: str


@dataclass(frozen=True, slots=True)
class WorkloadGone:
    """No connection of this workload is left here."""

    uid: str


@dataclass(frozen=True, slots=True)
class Applied:
    """The worker has applied this revision."""

    revision: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of JSON-able values, msgpack-encoded."""

    request: int
    rows: bytes


@dataclass(frozen=True, slots=True)
class Span:
    """A request that was sampled, as one side saw it. Ids in hexadecimal, times in Unix nanoseconds."""

    trace_id: str
    span_id: str
    parent_id: str
    """Of the span that it is within, or `""`."""
    server: bool
    """Whether it was seen at its destination."""
    start: int
    end: int
    workload: str
    """The uid of the local one."""
    app: str
    source: str
    destination: str
    service: str
    method: str
    authority: str
    path: str
    protocol: str
    """`1.1` or `2`."""
    code: int
    grpc: str
    flags: str
    reason: str
    route: str
    client: str
    upstream: str
    request_id: str
    user_agent: str
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class Spans:
    """Of requests that have ended."""

    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """Edges since the last message, and process-wide totals and gauges by metric name."""

    edges: tuple[EdgeReport, ...]
    totals: dict[str, int]
    """E.g. `open_connections`, `tunnels`, `held`, `reset_unknown`, `handshakes`, `handshake_failures`."""
    requests: tuple[RequestReport, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckToken:
    """Is a request's JWT signed with one of these keys? Answered by `TokenChecked`."""

    request: int
    token: bytes
    key_set: str
    """See `mesh.jwks.name`; one that the control process has in its snapshot."""


@dataclass(frozen=True, slots=True)
class TokenChecked:
    """`problem` says why not, or is `""`."""

    request: int
    problem: str


ToWorker = (
    TokenChecked
    | Configure
    | WorkloadUp
    | WorkloadDown
    | Certificate
    | MeshUpdate
    | Query
    | SetLogLevel
    | Drain
    | LimitGrants
)
ToControl = CheckToken | Ready | WorkloadReady | WorkloadGone | Applied | Answer | Counts | Spans | LimitReports


class Link:
    """One end of the pair. `send` may be called from many tasks; `receive` from one. The creator closes it."""

    def __init__(self, sock: socket.socket, *, receives: Any, sends: Any) -> None:
        sock.setblocking(False)
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._receives, self._sends = receives, sends
        self._lock = trio.Lock()
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    async def send(self, message: object, fds: Sequence[int] = ()) -> None:
        """Send one message; the caller keeps its descriptors. Raises `OSError` if the peer is gone."""
        body = encode(message, self._sends)
        header = _HEADER.pack(len(body), len(fds))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        async with self._lock:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):  # half a frame would ruin the link
                await self._sock.sendmsg([header], ancillary)
                view = memoryview(body)
                while view:
                    view = view[await self._sock.send(view) :]

    async def receive(self) -> tuple[object, list[int]] | None:
        """The next message and its descriptors, which the caller now owns; None when the peer is gone."""
        while True:
            if len(self._buffer) >= _HEADER.size:
                length, count = _HEADER.unpack_from(self._buffer)
                if len(self._buffer) - _HEADER.size >= length:
                    body = bytes(self._buffer[_HEADER.size : _HEADER.size + length])
                    del self._buffer[: _HEADER.size + length]
                    return decode(self._receives, body), [self._fds.popleft() for _ in range(count)]
            try:
                data, ancillary, _flags, _address = await self._sock.recvmsg(262144, socket.CMSG_SPACE(4 * _MAX_FDS))
            except ConnectionResetError:
                return None
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    self._fds.extend(struct.unpack(f"{len(payload) // 4}i", payload))
            if not data:
                return None
            self._buffer += data

    def close(self) -> None:
        """Close the socket and any descriptor that was never claimed."""
        self._sock.close()
        while self._fds:
            socket.close(self._fds.popleft())
