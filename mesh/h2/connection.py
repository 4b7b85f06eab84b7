"""One HTTP/2 connection without I/O: bytes in, calls on stream owners; frames out in a list that the owner writes.

`Connection.receive` is the hot path: a DATA frame that lies whole in the buffer costs a few dictionary look-ups and one
call of the stream's `on_data`, with a view into the buffer and no copy. DATA is handed on as it arrives, so a frame of
1 MiB needs no buffer of its own.

Flow control: the connection's window is credited on receipt and a stream's on delivery, so a stalled stream holds at
most its own window and never stops the others. A stream starts at 65,535 bytes and doubles, as long as the shared
`Budget` lasts, each time it drains half a window.
"""

from __future__ import annotations

from typing import Protocol

from mesh.h2 import frames as f
from mesh.h2.frames import ErrorCode, Setting
from mesh.h2.headers import MAX_LIST, Decoder, Fields, HeaderError

MAX_FRAME = 1_048_576
"""Largest DATA payload we accept and announce."""
MAX_CONTROL_FRAME = MAX_LIST + 256
"""Largest payload of any frame that must be seen whole; the buffer given to `receive` must have room for it."""
CONNECTION_WINDOW = 16 * 1_048_576
MAX_STREAM_WINDOW = 8 * 1_048_576
MAX_STREAMS = 100
"""Of a tunnel, either way."""
NUISANCE_LIMIT = 2_000
"""Frames per tick that cost us and carry nothing (PING, SETTINGS, resets before a response, empty DATA, …)."""
MAX_QUEUED = 10_000
"""Pieces in `out`, several times what relays and an honest peer's requests can put there: over it, the peer asks for
answers that it does not read."""

LOCAL_ENDED, REMOTE_ENDED, ENDED = 1, 2, 3


class ConnectionFailed(Exception):
    """The peer broke the protocol; a GOAWAY with `code` is queued in `out`. Write it, then close the connection."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code


class Budget:
    """Bytes of receive window that all streams of a process may be given beyond their first 65,535."""

    __slots__ = ("left",)

    def __init__(self, size: int = 256 * 1_048_576) -> None:
        self.left = size


class Stream:
    """One stream; subclass it and override the `on_` methods. They must not raise."""

    __slots__ = (
        "answered",
        "connection",
        "ended",
        "granted",
        "receive_size",
        "receive_window",
        "send_window",
        "stream_id",
        "undelivered",
    )

    def __init__(self) -> None:
        self.connection: Connection
        self.stream_id = 0
        self.ended = 0
        self.send_window = 0
        """Bytes that may be sent; the connection's `send_window` bounds it too."""
        self.receive_size = f.DEFAULT_WINDOW
        self.receive_window = f.DEFAULT_WINDOW
        self.undelivered = 0
        """Bytes delivered since the peer was last credited."""
        self.granted = 0
        self.answered = 0
        """The `Connection.receive` before or in which a response head was sent, counted from 1; 0 for none yet."""

    def take_over(self, other: Stream) -> None:
        """Be the owner of a live stream from now on, in the place of `other`."""
        for name in Stream.__slots__:
            setattr(self, name, getattr(other, name))
        connection = self.connection
        connection.streams[self.stream_id] = self
        if connection._data_stream is other:
            connection._data_stream = self

    def on_headers(self, fields: Fields, end: bool) -> None:
        """A request or response head; `end` if nothing follows (`on_end` is not called then)."""

    def on_data(self, data: memoryview) -> int:
        """Take payload, return how many bytes were delivered; report the rest with `Connection.delivered` later.

        The view is valid during the call only.
        """
        raise NotImplementedError

    def on_end(self) -> None:
        """The peer has sent all it will."""

    def on_reset(self, code: int) -> None:
        """The stream is gone, by RST_STREAM, GOAWAY or `Connection.fail`."""

    def on_window(self) -> None:
        """`send_window` was used up and is positive again."""


class Owner(Protocol):
    """Whoever holds the connection."""

    def on_ready(self) -> None:
        """The peer's first SETTINGS arrived."""

    def on_request(self) -> Stream:
        """The peer opened a stream: return its owner. Servers only."""

    def on_goaway(self, code: int) -> None:
        """The peer accepts no more streams. Those it will not serve have had their `on_reset`."""

    def on_window(self) -> None:
        """The connection's `send_window` was used up and is positive again."""


class Connection:
    """One side of an HTTP/2 connection. `out` gathers what is to be written; join, write and clear it once a turn."""

    def __init__(self, owner: Owner, *, client: bool, budget: Budget, max_streams: int = MAX_STREAMS) -> None:
        self._owner, self._client, self._budget, self._max_streams = owner, client, budget, max_streams
        self.streams: dict[int, Stream] = {}
        self.out: list[bytes | memoryview] = []
        self.send_window = f.DEFAULT_WINDOW
        self.peer_frame_size = f.DEFAULT_FRAME_SIZE
        self.peer_max_streams = MAX_STREAMS
        self.ready = False
        self.closing = False
        """A GOAWAY was sent or received: no new streams."""
        self.ping_outstanding = False
        self._peer_initial_window = f.DEFAULT_WINDOW
        self._receive_window = CONNECTION_WINDOW
        self._uncredited = 0
        self._last_peer_stream = 0
        """Of those taken up: what a GOAWAY names, so it never grows after one was sent."""
        self._highest_peer_stream = 0
        """Of those opened, refused ones included: above it, streams are idle."""
        self._next_stream = 1
        self._receives = self._opened = 0
        self._decoder = Decoder()
        self._block: bytearray | None = None
        self._block_stream = self._block_parts = 0
        self._block_end = False
        self._preface_left = b"" if client else f.PREFACE
        self._data_stream: Stream | None = None
        self._data_left = self._skip = 0
        self._data_end = False
        self._nuisance = 0
        announced = {
            Setting.MAX_FRAME_SIZE: MAX_FRAME,
            Setting.MAX_HEADER_LIST_SIZE: MAX_LIST,
            Setting.MAX_CONCURRENT_STREAMS: max_streams,
        }
        if client:
            self.out.append(f.PREFACE)
            announced[Setting.ENABLE_PUSH] = 0
        self.out.append(f.settings(announced))
        self.out.append(f.window_update(0, CONNECTION_WINDOW - f.DEFAULT_WINDOW))

    # -- sending ------------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more streams may be opened here now."""
        if self.closing or not self.ready or self._next_stream > f.MAX_WINDOW - 2:
            return 0
        return min(self.peer_max_streams, self._max_streams) - len(self.streams)

    def open(self, stream: Stream, block: bytes, end: bool = False) -> None:
        """Start `stream` with a request head (an encoded block); with `end`, that is all there is of the request.

        The caller has checked `room`.
        """
        stream.connection, stream.stream_id = self, self._next_stream
        stream.send_window = self._peer_initial_window
        self.streams[self._next_stream] = stream
        self._next_stream += 2
        self.out.append(f.headers(stream.stream_id, block, end, self.peer_frame_size))
        if end:
            stream.ended = LOCAL_ENDED

    def send_headers(self, stream: Stream, block: bytes, end: bool = False) -> None:
        """Send a response head, or trailers; with `end`, that is all there is."""
        stream.answered = self._receives
        self.out.append(f.headers(stream.stream_id, block, end, self.peer_frame_size))
        if end:
            self._ended(stream, LOCAL_ENDED)

    def send_data(self, stream: Stream, data: bytes | memoryview, end: bool = False) -> None:
        """Send `data`, which must fit both `stream.send_window` and `self.send_window`. `data` is kept, not copied.

        With `end`, that is all there is.
        """
        size = len(data)
        stream.send_window -= size
        self.send_window -= size
        limit = self.peer_frame_size
        if size <= limit:
            self.out += (f.head(size << 8, end, stream.stream_id), data)
        else:
            view = memoryview(data)
            for at in range(0, size, limit):
                part = view[at : at + limit]
                self.out += (f.head(len(part) << 8, end and at + limit >= size, stream.stream_id), part)
        if end:
            self._ended(stream, LOCAL_ENDED)

    def end(self, stream: Stream) -> None:
        """Send END_STREAM: nothing more will be sent on `stream`."""
        self.out.append(f.head(f.DATA, f.END_STREAM, stream.stream_id))
        self._ended(stream, LOCAL_ENDED)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Drop the stream both ways; its `on_reset` is not called."""
        if self._forget(stream):
            self.out.append(f.rst_stream(stream.stream_id, code))

    def delivered(self, stream: Stream, size: int) -> None:
        """`size` bytes that `on_data` had left over have been delivered now."""
        undelivered = stream.undelivered = stream.undelivered + size
        if undelivered * 2 < stream.receive_size or stream.ended & REMOTE_ENDED:
            return
        stream.undelivered = 0
        grow = stream.receive_size
        # what is announced by the head of a frame and has not arrived yet is not waiting for its reader
        underway = self._data_left if self._data_stream is stream else 0
        if (
            stream.receive_window + undelivered + underway == grow
            and grow * 2 <= MAX_STREAM_WINDOW
            and self._budget.left >= grow
        ):
            self._budget.left -= grow
            stream.granted += grow
            stream.receive_size += grow
            undelivered += grow
        stream.receive_window += undelivered
        self.out.append(f.window_update(stream.stream_id, undelivered))

    def ping(self) -> None:
        """Ask for a sign of life; `ping_outstanding` until it comes."""
        self.ping_outstanding = True
        self.out.append(f.ping(b"nodemesh"))

    def tick(self) -> None:
        """Call every 10 s or so: forgives the nuisances counted so far."""
        self._nuisance = 0

    def goaway(self, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Announce that no new stream will be served. Live ones go on."""
        if not self.closing:
            self.closing = True
            self.out.append(f.goaway(self._last_peer_stream, code))

    def fail(self, code: int) -> None:
        """The transport is gone: `on_reset` for every stream."""
        self.closing = True
        for stream in list(self.streams.values()):
            if self._forget(stream):
                stream.on_reset(code)

    # -- receiving ----------------------------------------------------------------------------------------------------

    def receive(self, buffer: bytes | bytearray, view: memoryview, end: int) -> int:
        """Act on the bytes `buffer[:end]` (`view` is a view of `buffer`); return how many were used up.

        Give the rest again, with more behind it. Raises `ConnectionFailed`.
        """
        at = 0
        streams = self.streams
        self._receives += 1
        self._opened = 0
        if len(self.out) > MAX_QUEUED:
            raise self._failed(ErrorCode.ENHANCE_YOUR_CALM, "the peer does not read its answers")
        if self._preface_left:
            at = self._preface(bytes(view[: min(end, len(f.PREFACE))]))
            if not at:
                return 0
        while True:
            if self._data_left or self._skip:
                if at == end:
                    break
                at += self._payload(view[at:end])
                continue
            if end - at < 9:
                break
            length = buffer[at] << 16 | buffer[at + 1] << 8 | buffer[at + 2]
            kind = buffer[at + 3]
            flags = buffer[at + 4]
            stream_id = (buffer[at + 5] & 127) << 24 | buffer[at + 6] << 16 | buffer[at + 7] << 8 | buffer[at + 8]
            if kind == 0 and self._block is None:
                stream = streams.get(stream_id)
                if not length or flags & f.PADDED or stream is None or stream.ended & REMOTE_ENDED or not self.ready:
                    used = self._unusual_data(buffer, at, end, length, flags, stream_id)
                    if not used:
                        break
                    at += used
                    continue
                # the common case
                stream.receive_window -= length
                self._receive_window -= length
                if stream.receive_window < 0 or self._receive_window < 0 or length > MAX_FRAME:
                    code = ErrorCode.FRAME_SIZE_ERROR if length > MAX_FRAME else ErrorCode.FLOW_CONTROL_ERROR
                    raise self._failed(code, f"DATA of {length} bytes overruns stream {stream_id}, or is too large")
                self._uncredited += length
                if self._uncredited > CONNECTION_WINDOW // 4:
                    self._credit()
                at += 9
                if end - at < length:
                    self._data_stream, self._data_left, self._data_end = stream, length, bool(flags & f.END_STREAM)
                    continue
                taken = stream.on_data(view[at : at + length])
                at += length
                if flags & f.END_STREAM:
                    if (live := streams.get(stream_id)) is not None:  # `on_data` may have reset it
                        self._remote_end(live)
                elif taken:
                    # `delivered`, in line for what fits a small window's first half
                    stream.undelivered += taken
                    if stream.undelivered * 2 >= stream.receive_size:
                        self.delivered(stream, 0)
                continue
            if kind == 1 and flags & 0x2C == 4 and self._block is None and end - at - 9 >= length and self.ready:
                # the next most common case: a whole header block, no padding, no priority
                self._on_block(stream_id, bool(flags & f.END_STREAM), bytes(view[at + 9 : at + 9 + length]))
                at += 9 + length
                continue
            if length > MAX_CONTROL_FRAME and kind <= f.CONTINUATION:
                raise self._failed(ErrorCode.FRAME_SIZE_ERROR, f"frame of type {kind} holds {length} bytes")
            if kind > f.CONTINUATION:
                self.nuisance()
                if self._block is not None:
                    raise self._failed(ErrorCode.PROTOCOL_ERROR, "frame inside a header block")
                at += 9
                self._skip = length
                continue
            if end - at - 9 < length:
                break
            self._control(kind, flags, stream_id, bytes(view[at + 9 : at + 9 + length]))
            at += 9 + length
        return at

    def _preface(self, start: bytes) -> int:
        if not f.PREFACE.startswith(start):
            raise self._failed(ErrorCode.PROTOCOL_ERROR, "the client did not send the HTTP/2 preface")
        if len(start) < len(f.PREFACE):
            return 0
        self._preface_left = b""
        return len(f.PREFACE)

    def _payload(self, data: memoryview) -> int:
        """Go on with a DATA frame whose head was seen, or with bytes to be skipped."""
        if not self._data_left:
            used = min(self._skip, len(data))
            self._skip -= used
            return used
        used = min(self._data_left, len(data))
        self._data_left -= used
        stream = self._data_stream
        assert stream is not None
        live = self.streams.get(stream.stream_id) is stream
        taken = stream.on_data(data[:used]) if live else 0
        last = not self._data_left and self._data_end
        if live and not last and taken:
            self.delivered(stream, taken)
        if not self._data_left:
            self._data_stream = None
            if last and (current := self.streams.get(stream.stream_id)) is not None:
                self._remote_end(current)
        return used

    def _unusual_data(
        self, buffer: bytes | bytearray, at: int, end: int, length: int, flags: int, stream_id: int
    ) -> int:
        """DATA that is empty, padded, or for no live stream: return the bytes used, 0 to wait for more."""
        if not self.ready:
            raise self._failed(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
        if length > MAX_FRAME:
            raise self._failed(ErrorCode.FRAME_SIZE_ERROR, f"DATA of {length} bytes")
        used, pad = 9, 0
        if flags & f.PADDED:
            if end - at < 10:
                return 0
            pad = buffer[at + 9]
            used = 10
            if pad >= length:
                raise self._failed(ErrorCode.PROTOCOL_ERROR, "padding exceeds the frame")
        self._receive_window -= length
        if self._receive_window < 0:
            raise self._failed(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window was overrun")
        self._uncredited += length
        self._credit()
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id)
            self._skip = length - (used - 9)
            return used
        if stream.ended & REMOTE_ENDED:
            raise self._failed(ErrorCode.STREAM_CLOSED, f"DATA on stream {stream_id} after its end")
        stream.receive_window -= length
        if stream.receive_window < 0:
            raise self._failed(ErrorCode.FLOW_CONTROL_ERROR, f"stream {stream_id} overran its window")
        data = length - (used - 9) - pad
        if not data and not flags & f.END_STREAM:
            self.nuisance()
        self._skip = pad
        if data:
            self._data_stream, self._data_left, self._data_end = stream, data, bool(flags & f.END_STREAM)
        elif flags & f.END_STREAM:
            self._remote_end(stream)
            return used
        self.delivered(stream, length - data)
        return used

    def _control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and (kind != f.CONTINUATION or stream_id != self._block_stream):
            raise self._failed(ErrorCode.PROTOCOL_ERROR, "frame inside a header block")
        if not self.ready and (kind != f.SETTINGS or flags & f.ACK):
            raise self._failed(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise self._failed(ErrorCode.PROTOCOL_ERROR, f"unexpected frame of type {kind}")
        handler(self, flags, stream_id, payload)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        at, end = 0, len(payload)
        if flags & f.PADDED:
            at, end = 1, end - (payload[0] if payload else 1)
        if flags & f.WITH_PRIORITY:
            at += 5
        if at > end or not stream_id:
            raise self._failed(ErrorCode.PROTOCOL_ERROR, "malformed HEADERS")
        self._block, self._block_parts = bytearray(payload[at:end]), 0
        self._block_stream, self._block_end = stream_id, bool(flags & f.END_STREAM)
        if flags & f.END_HEADERS:
            self._end_block()

    def _on_continuation(self, flags: int, _stream_id: int, payload: bytes) -> None:
        if self._block is None:
            raise self._failed(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        self._block_parts += 1
        if len(self._block) > MAX_LIST or self._block_parts > 32:
            raise self._failed(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        if flags & f.END_HEADERS:
            self._end_block()

    def _end_block(self) -> None:
        assert self._block is not None
        block, self._block = bytes(self._block), None
        self._on_block(self._block_stream, self._block_end, block)

    def _on_block(self, stream_id: int, end: bool, block: bytes) -> None:
        if not stream_id:
            raise self._failed(ErrorCode.PROTOCOL_ERROR, "malformed HEADERS")
        if len(block) > MAX_CONTROL_FRAME:
            raise self._failed(ErrorCode.FRAME_SIZE_ERROR, f"a header block of {len(block)} bytes")
        try:
            fields = self._decoder.decode(block)
        except HeaderError as error:
            raise self._failed(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._client or stream_id <= self._highest_peer_stream:
                self._check_not_idle(stream_id)
                return
            stream = self._new_stream(stream_id)
            if stream is None:
                return
        elif stream.ended & REMOTE_ENDED:
            raise self._failed(ErrorCode.STREAM_CLOSED, f"HEADERS on stream {stream_id} after its end")
        if end:
            stream.ended |= REMOTE_ENDED
        stream.on_headers(fields, end)
        if stream.ended == ENDED:
            self._forget(stream)

    def _new_stream(self, stream_id: int) -> Stream | None:
        if not stream_id & 1:
            raise self._failed(ErrorCode.PROTOCOL_ERROR, f"a client cannot open stream {stream_id}")
        self._highest_peer_stream = stream_id
        self._opened += 1
        if self._opened > self._max_streams:
            self.nuisance()  # it cannot have seen that the streams before these have ended
        if self.closing or len(self.streams) >= self._max_streams:
            self.nuisance()
            self.out.append(f.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            return None
        self._last_peer_stream = stream_id
        stream = self._owner.on_request()
        stream.connection, stream.stream_id = self, stream_id
        stream.send_window = self._peer_initial_window
        self.streams[stream_id] = stream
        return stream

    def _on_rst_stream(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise self._failed(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id)
            return
        if not self._client and stream.answered in (0, self._receives):
            # Rapid reset (CVE-2023-44487): it cannot have seen our answer, so it never wanted one. Who waits for the
            # answer has to do with `max_streams` at a time, however short its connections are.
            self.nuisance()
        self._forget(stream)
        stream.on_reset(int.from_bytes(payload, "big"))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise self._failed(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        self.nuisance(1 + len(payload) // 6)
        if flags & f.ACK:
            if payload:
                raise self._failed(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            return
        if len(payload) % 6:
            raise self._failed(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS")
        window = self._peer_initial_window
        for at in range(0, len(payload), 6):
            setting = int.from_bytes(payload[at : at + 2], "big")
            value = int.from_bytes(payload[at + 2 : at + 6], "big")
            if setting == Setting.INITIAL_WINDOW_SIZE:
                if value > f.MAX_WINDOW:
                    raise self._failed(ErrorCode.FLOW_CONTROL_ERROR, f"initial window of {value}")
                window = value
            else:
                self._apply(setting, value)
        if window != self._peer_initial_window:
            self._change_windows(window)
        self.out.append(f.SETTINGS_ACK)
        if not self.ready:
            self.ready = True
            self._owner.on_ready()

    def _change_windows(self, initial: int) -> None:
        """Of all streams: of several changes in one frame the last, since each may have every stream send a byte."""
        self.nuisance(len(self.streams) // 8)
        change, self._peer_initial_window = initial - self._peer_initial_window, initial
        for stream in list(self.streams.values()):
            self._widen(stream, change)

    def _apply(self, setting: int, value: int) -> None:
        if setting == Setting.MAX_FRAME_SIZE:
            if not f.DEFAULT_FRAME_SIZE <= value < 2**24:
                raise self._failed(ErrorCode.PROTOCOL_ERROR, f"maximum frame size of {value}")
            self.peer_frame_size = min(value, MAX_FRAME)
        elif setting == Setting.MAX_CONCURRENT_STREAMS:
            self.peer_max_streams = value
        elif setting == Setting.ENABLE_PUSH and value > 1:
            raise self._failed(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH of {value}")

    def _widen(self, stream: Stream, change: int) -> None:
        before = stream.send_window
        stream.send_window += change
        if stream.send_window > f.MAX_WINDOW:
            raise self._failed(ErrorCode.FLOW_CONTROL_ERROR, f"window of stream {stream.stream_id}")
        if before <= 0 < stream.send_window:
            stream.on_window()

    def _on_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise self._failed(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE")
        increment = int.from_bytes(payload, "big") & f.MAX_WINDOW
        if not increment:
            raise self._failed(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        if stream_id:
            stream = self.streams.get(stream_id)
            if stream is None:
                self._check_not_idle(stream_id)
            else:
                self._widen(stream, increment)
            return
        before = self.send_window
        self.send_window += increment
        if self.send_window > f.MAX_WINDOW:
            raise self._failed(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window")
        if before <= 0:
            self._owner.on_window()

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise self._failed(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise self._failed(ErrorCode.FRAME_SIZE_ERROR, "PING")
        self.nuisance()
        if flags & f.ACK:
            self.ping_outstanding = False
            return
        self.out.append(f.ping(payload, f.ACK))

    def _on_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) < 8:
            raise self._failed(ErrorCode.PROTOCOL_ERROR, "malformed GOAWAY")
        self.nuisance()
        last = int.from_bytes(payload[:4], "big") & f.MAX_WINDOW
        self.closing = True
        if self._client:
            for stream in [s for s in self.streams.values() if s.stream_id > last]:
                if self._forget(stream):
                    stream.on_reset(ErrorCode.REFUSED_STREAM)
        self._owner.on_goaway(int.from_bytes(payload[4:8], "big"))

    def _on_priority(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise self._failed(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            raise self._failed(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY")
        self.nuisance()

    # -- bookkeeping --------------------------------------------------------------------------------------------------

    def _remote_end(self, stream: Stream) -> None:
        self._ended(stream, REMOTE_ENDED)
        stream.on_end()

    def _ended(self, stream: Stream, side: int) -> None:
        stream.ended |= side
        if stream.ended == ENDED:
            self._forget(stream)

    def _forget(self, stream: Stream) -> bool:
        if self.streams.pop(stream.stream_id, None) is None:
            return False
        stream.ended = ENDED
        self._budget.left += stream.granted
        stream.granted = 0
        return True

    def _credit(self) -> None:
        if self._uncredited > CONNECTION_WINDOW // 4:
            self.out.append(f.window_update(0, self._uncredited))
            self._receive_window += self._uncredited
            self._uncredited = 0

    def _check_not_idle(self, stream_id: int) -> None:
        """A frame for a stream that is gone is ignored; one for a stream that never was breaks the protocol."""
        idle = stream_id >= self._next_stream if self._client else stream_id > self._highest_peer_stream
        if not stream_id or idle or (stream_id & 1) == 0:
            raise self._failed(ErrorCode.PROTOCOL_ERROR, f"frame for idle stream {stream_id}")

    def nuisance(self, count: int = 1) -> None:
        """Count something that costs us and serves nobody; raises `ConnectionFailed` if there is too much of it."""
        self._nuisance += count
        if self._nuisance > NUISANCE_LIMIT:
            raise self._failed(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _failed(self, code: ErrorCode, message: str) -> ConnectionFailed:
        self.closing = True
        self.out.append(f.goaway(self._last_peer_stream, code, message.encode()[:128]))
        return ConnectionFailed(code, message)


_HANDLERS = {
    f.HEADERS: Connection._on_headers,
    f.PRIORITY: Connection._on_priority,
    f.RST_STREAM: Connection._on_rst_stream,
    f.SETTINGS: Connection._on_settings,
    f.PING: Connection._on_ping,
    f.GOAWAY: Connection._on_goaway,
    f.WINDOW_UPDATE: Connection._on_window_update,
    f.CONTINUATION: Connection._on_continuation,
}
