"""A tunnel in the engine: TLS over one socket, HTTP/2 inside it, many relays on top.

Frames of all streams gather during a turn of the engine and leave in one `SSL_write`; what arrives is decrypted into
one buffer that all tunnels share and parsed in place. This batching is where the speed comes from.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Protocol

from mesh.h2.connection import MAX_CONTROL_FRAME, Budget, Connection, ConnectionFailed, Stream
from mesh.h2.frames import ErrorCode
from mesh.identity import Identity
from noded.data.engine import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, Engine
from noded.data.sockets import orderly
from noded.data.tls import Session

_READ = 262_144
_RECORD = 16_384
_WRITE = 1_048_576
_SLICE = 65_536
"""Ciphertext that is looked at before asking whether it carries anything."""
_RATIO, _SLACK = 8, 131_072
"""How often its plaintext the ciphertext of a tick may be, beside so many bytes. A record with but the smallest frame
is 3.4 times; key updates, each of which costs 12 µs and an answer, are nothing else."""

TICK_SECONDS = 5
_PING_AFTER, _DEAD_AFTER = 2, 4
_IDLE_CLIENT = 300 // TICK_SECONDS
_IDLE_SERVER = 900 // TICK_SECONDS


class Buffers:
    """What every tunnel of a worker reads through: ciphertext, then plaintext. In use only within one callback."""

    def __init__(self) -> None:
        self.cipher = bytearray(_READ)
        self.cipher_view = memoryview(self.cipher)
        self.plain = bytearray(_READ + _RECORD + MAX_CONTROL_FRAME)
        self.plain_view = memoryview(self.plain)


class Keeper(Protocol):
    """Who a tunnel belongs to: the pool, or the inbound side of a workload."""

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        """The peer's SETTINGS arrived."""

    def tunnel_request(self, tunnel: Tunnel) -> Stream:
        """The peer opens a stream."""

    def tunnel_closed(self, tunnel: Tunnel) -> None:
        """It is gone, or takes no more streams. May be called twice."""


class Waiting(Protocol):
    """What wants to write, and may not."""

    def resume(self) -> None:
        """There may be room again."""


class Tunnel:
    """One HBONE connection after its handshake. Owns the socket and the TLS session."""

    def __init__(
        self,
        engine: Engine,
        buffers: Buffers,
        budget: Budget,
        keeper: Keeper,
        sock: socket.socket,
        session: Session,
        *,
        client: bool,
        local: Identity,
        peer: Identity,
        peer_address: str,
        uid: str,
        expires: float,
    ) -> None:
        self._engine, self._buffers, self._keeper = engine, buffers, keeper
        self._sock, self._fd = sock, sock.fileno()
        self._tls, self._incoming, self._outgoing = session.tls, session.incoming, session.outgoing
        self.client, self.local, self.peer = client, local, peer
        self.peer_address, self.uid = peer_address, uid
        self._expires = expires
        self.opened_at = time.time()
        self.connection = Connection(self, client=client, budget=budget)
        self.waiting: set[Waiting] = set()
        """Those that stopped reading because the tunnel, or its window, was full."""
        self.blocked = False
        """The socket takes no more: nothing should be read for this tunnel."""
        self.closed = False
        self.reason = ""
        self._unsent: memoryview = memoryview(b"")
        self._rest = b""
        self._heard = True
        self._silent = self._idle = 0
        self.received = self.sent = 0
        self._cipher = self._plain = 0
        """Bytes received since the last tick."""
        engine.add(self._fd, self.on_socket)
        engine.mark(self)

    # -- writing ------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Encrypt and send what has gathered."""
        out = self.connection.out
        while out and not self.blocked and not self.closed:
            if len(out) < 64:
                gathered = b"".join(out) if len(out) > 1 else out[0]
                out.clear()
            else:
                gathered = self._some(out)
            try:
                self._tls.write(gathered)
            except ssl.SSLError as error:
                self.close(f"TLS: {error}")
                return
            self._write(memoryview(self._outgoing.read()))

    def _some(self, out: list[bytes | memoryview]) -> bytes:
        """Take about a megabyte off the front."""
        size = count = 0
        for part in out:
            size += len(part)
            count += 1
            if size >= _WRITE:
                break
        gathered = b"".join(out[:count])
        del out[:count]
        return gathered

    def _write(self, data: memoryview) -> None:
        while data:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                self._unsent = data
                if not self.blocked:
                    self.blocked = True
                    self._engine.modify(self._fd, EPOLLIN | EPOLLOUT)
                return
            except OSError as error:
                self.close(f"the connection to the peer broke: {error.strerror}")
                return
            self.sent += sent
            data = data[sent:]
        if self.blocked:
            self.blocked = False
            self._unsent = data
            self._engine.modify(self._fd, EPOLLIN)
            self.on_window()

    # -- reading ------------------------------------------------------------------------------------------------------

    def on_socket(self, mask: int) -> None:
        """Ciphertext to read, or room to write."""
        if self.closed:
            return
        if mask & EPOLLOUT and self.blocked:
            self._write(self._unsent)
            self._engine.mark(self)
        if mask & (EPOLLIN | EPOLLERR | EPOLLHUP) and not self.closed:
            self._read()

    def _read(self) -> None:
        buffers = self._buffers
        try:
            size = self._sock.recv_into(buffers.cipher)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"the connection to the peer broke: {error.strerror}")
            return
        if not size:
            self.close("the peer closed the connection")
            return
        self.received += size
        self._heard = True
        try:
            for at in range(0, size, _SLICE):
                self._feed(buffers.cipher_view[at : min(at + _SLICE, size)])
                if self.closed:
                    return
        except ConnectionFailed as error:
            self._last_words()
            self.close(str(error))
        except ssl.SSLError as error:
            self.close(f"TLS: {error}")
        if self.connection.out and not self.closed:
            self._engine.mark(self)

    def _feed(self, cipher: memoryview) -> None:
        self._incoming.write(cipher)
        self._cipher += len(cipher)
        self._decrypt()
        if self._cipher > self._plain * _RATIO + _SLACK:
            self.close("the peer sends TLS records that carry next to nothing")

    def _decrypt(self) -> None:
        plain, view, incoming = self._buffers.plain, self._buffers.plain_view, self._incoming
        read: Callable[..., Any] = self._tls.read
        have = before = len(self._rest)
        if have:
            plain[:have] = self._rest
        more = True
        while more and not self.closed:
            try:
                while have < _READ:
                    got = read(_RECORD, view[have:])
                    if not got:
                        self.close("the peer closed the connection")
                        return
                    have += got
                    if not incoming.pending:
                        more = False
                        break
            except ssl.SSLWantReadError:
                more = False
            self._plain += have - before
            used = self.connection.receive(plain, view, have)
            have = before = have - used
            if have and used:
                plain[:have] = plain[used : used + have]
        self._rest = bytes(view[:have]) if have else b""

    def _last_words(self) -> None:
        """Send the GOAWAY that says what the peer did wrong, if it goes out at once."""
        self.flush()

    # -- as the HTTP/2 connection's owner -----------------------------------------------------------------------------

    def on_ready(self) -> None:
        """See `mesh.h2.connection.Owner`."""
        self._keeper.tunnel_ready(self)

    def on_request(self) -> Stream:
        """See `mesh.h2.connection.Owner`."""
        return self._keeper.tunnel_request(self)

    def on_goaway(self, code: int) -> None:
        """See `mesh.h2.connection.Owner`."""
        self.reason = f"the peer sent GOAWAY ({code})"
        self._keeper.tunnel_closed(self)

    def on_window(self) -> None:
        """There is room again: let the relays that wait for it read on."""
        waiting, self.waiting = self.waiting, set()
        for relay in waiting:
            relay.resume()

    # -- its end ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Call every `TICK_SECONDS`: notices a dead peer, an idle tunnel, a certificate about to expire."""
        connection = self.connection
        connection.tick()
        self._cipher = self._plain = 0
        self._answer()
        if self.closed:
            return
        self._silent = 0 if self._heard else self._silent + 1
        self._heard = False
        if self._silent >= _DEAD_AFTER:
            self.close("the peer does not answer")
            return
        if self._silent >= _PING_AFTER and not connection.ping_outstanding:
            connection.ping()
        self._idle = 0 if connection.streams else self._idle + 1
        if self._idle >= (_IDLE_CLIENT if self.client else _IDLE_SERVER):
            self.retire("idle")
        elif now > self._expires - 60:
            self.retire("its certificate expires")
        if connection.out:
            self.flush()
        if connection.closing and not connection.streams:
            self.close(self.reason or "retired")

    def _answer(self) -> None:
        """Send what TLS itself has to say, if nothing that we wrote has taken it along."""
        if not self.blocked:
            self._write(memoryview(self._outgoing.read()))
        elif self._outgoing.pending > _WRITE:
            self.close("the peer asks TLS for answers that it does not read")

    def retire(self, reason: str) -> None:
        """Take no more streams; close when the last has ended (noticed at the next tick)."""
        self.reason = self.reason or reason
        self.connection.goaway()
        self._engine.mark(self)
        self._keeper.tunnel_closed(self)

    def close(self, reason: str) -> None:
        """Close now. Streams that are left are reset."""
        if self.closed:
            return
        idle = not self.connection.streams and not self._unsent
        self.closed = True
        self.reason = self.reason or reason
        self.connection.fail(ErrorCode.CONNECT_ERROR)
        self._engine.forget(self._fd)
        if idle:
            orderly(self._sock)
        self._sock.close()
        self._keeper.tunnel_closed(self)

    def abort(self, reason: str) -> None:
        """As `Handler` has it."""
        self.close(reason)

    def row(self, index: int) -> dict[str, Any]:
        """As `GET /tunnels` shows it."""
        return {
            "worker": index,
            "direction": "client" if self.client else "server",
            "workload": self.uid,
            "peer": self.peer_address,
            "local_identity": self.local.uri,
            "peer_identity": self.peer.uri,
            "streams": len(self.connection.streams),
            "opened_at": self.opened_at,
            "received": self.received,
            "sent": self.sent,
            "state": "draining" if self.connection.closing else "open" if self.connection.ready else "starting",
        }
