"""A gRPC server with all four kinds of call, and a client of them: `grpc_peer.py serve PORT`, `call TARGET CHECKS`.

Messages are plain bytes, so no code is generated. The client prints one JSON object a check.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any

import grpc

cancelled = threading.Event()


def unary(request: bytes, context: Any) -> bytes:
    """Echo; `fail` fails, `slow` takes until it is cancelled, `was cancelled?` tells whether that has happened."""
    metadata = dict(context.invocation_metadata())
    if request == b"fail":
        context.set_trailing_metadata((("reason-bin", b"\x00\xff"), ("x-request-id", "r1")))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no, ünder no circumstances: 100 %")
    if request == b"slow":
        context.add_callback(cancelled.set)
        cancelled.wait(60)
        return b""
    if request == b"was cancelled?":
        return b"yes" if cancelled.wait(20) else b"no"
    context.send_initial_metadata((("seen", metadata.get("who", "nobody")),))
    context.set_trailing_metadata((("last", "word"),))
    return request


def to_client(request: bytes, context: Any) -> Iterator[bytes]:
    """As many messages of as many bytes as it says: `count size`."""
    count, size = map(int, request.split())
    for number in range(count):
        yield number.to_bytes(4, "big") + bytes(size - 4)


def to_server(requests: Iterable[bytes], context: Any) -> bytes:
    """Count the messages and their bytes."""
    sizes = [len(request) for request in requests]
    return b"%d %d" % (len(sizes), sum(sizes))


def both(requests: Iterable[bytes], context: Any) -> Iterator[bytes]:
    """Answer each message before the next."""
    yield from requests


def serve(port: int) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(160), options=[("grpc.max_receive_message_length", -1)])
    handlers = {
        "unary": grpc.unary_unary_rpc_method_handler(unary),
        "to_client": grpc.unary_stream_rpc_method_handler(to_client),
        "to_server": grpc.stream_unary_rpc_method_handler(to_server),
        "both": grpc.stream_stream_rpc_method_handler(both),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Peer", handlers),))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


class Caller:
    """Each method is a check; it returns what the test is to see."""

    def __init__(self, target: str) -> None:
        self.channel = grpc.insecure_channel(target, options=[("grpc.max_receive_message_length", -1)])
        self.one = self.channel.unary_unary("/test.Peer/unary")

    def unary(self) -> Any:
        answer, call = self.one.with_call(b"hello", metadata=(("who", "me"),), timeout=20)
        return [answer.decode(), dict(call.initial_metadata())["seen"], dict(call.trailing_metadata())["last"]]

    def large(self) -> Any:
        message = bytes(range(256)) * 40_000
        return self.one(message, timeout=40) == message

    def many(self) -> Any:
        calls = [self.one.future(b"%d" % number, timeout=40) for number in range(500)]
        return [call.result() for call in calls] == [b"%d" % number for number in range(500)]

    def failure(self) -> Any:
        try:
            self.one(b"fail", timeout=20)
        except grpc.RpcError as error:
            trailers = dict(error.trailing_metadata())
            return [error.code().name, error.details(), list(trailers["reason-bin"]), trailers["x-request-id"]]

    def unknown(self) -> Any:
        return self.code(self.channel.unary_unary("/test.Peer/none"), b"")

    def deadline(self) -> Any:
        return [self.code(self.one, b"slow", timeout=0.5), self.one(b"was cancelled?", timeout=40).decode()]

    def to_client(self) -> Any:
        call = self.channel.unary_stream("/test.Peer/to_client")(b"200 65536", timeout=60)
        numbers = []
        for answer in call:
            numbers.append(int.from_bytes(answer[:4], "big"))
            if len(numbers) in (20, 40):
                time.sleep(0.3)  # so that what is sent meanwhile fills every window on the way
        return numbers == list(range(200))

    def to_server(self) -> Any:
        return self.channel.stream_unary("/test.Peer/to_server")(iter([bytes(50_000)] * 200), timeout=60).decode()

    def both(self) -> Any:
        answered = threading.Semaphore(0)

        def requests() -> Iterator[bytes]:
            for number in range(50):
                yield b"%d" % number
                answered.acquire(timeout=20)

        got = []
        for answer in self.channel.stream_stream("/test.Peer/both")(requests(), timeout=60):
            got.append(answer)
            answered.release()
        return got == [b"%d" % number for number in range(50)]

    def watchers(self) -> Any:
        """More calls that go on at the same time than many servers take on one connection."""
        enough = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"x"
            enough.wait(60)

        method = self.channel.stream_stream("/test.Peer/both")
        calls = [method(requests(), timeout=60) for _ in range(150)]
        firsts = [next(call) for call in calls]
        enough.set()
        return firsts == [b"x"] * 150 and [list(call) for call in calls] == [[]] * 150

    def denied(self) -> Any:
        try:
            self.one(b"hello", timeout=20)
        except grpc.RpcError as error:
            return [error.code().name, error.details()]

    def code(self, method: Any, request: bytes, timeout: float = 20) -> Any:
        try:
            method(request, timeout=timeout)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"


def main() -> None:
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
        return
    caller = Caller(sys.argv[2])
    for name in sys.argv[3].split(","):
        print(json.dumps({name: getattr(caller, name)()}), flush=True)


if __name__ == "__main__":
    main()
