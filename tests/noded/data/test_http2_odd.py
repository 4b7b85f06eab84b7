"""Peers that speak HTTP/2 oddly, through a real pair of workers: backends that say no, clients that make no sense."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
import trio

from mesh.model import Action, Policy, Rule
from tests.noded.data.lab import Lab, Pod, lab, server
from tests.noded.data.test_http import BY_METHOD, VIP, logged, service
from tests.noded.data.test_http2 import command, run, running

pytestmark = pytest.mark.root


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Lab, Pod, Pod]]:
    async with lab(tmp_path) as made:
        client, web = made.pod("client"), made.pod("web")
        await made.enrol(client)
        await made.enrol(web)
        made.services = (service(web),)
        await made.publish()
        yield made, client, web


PERMITTED = Policy("all", "shop", Action.ALLOW, (Rule(),)), replace(BY_METHOD, dry_run=True)
"""Policies that have requests read at the destination."""
Act = Callable[[h2.connection.H2Connection, h2.events.Event], None]


class Odd:
    """A backend on the `h2` library that does what it is told to with each event."""

    def __init__(self, act: Act, *, settings: dict[h2.settings.SettingCodes, int] | None = None) -> None:
        self.act, self.settings = act, settings
        self.requests: list[dict[str, str]] = []
        self.resets: list[int] = []

    def __call__(self, sock: socket.socket) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="ascii"))
        if self.settings:
            connection.local_settings = h2.settings.Settings(client=False, initial_values=self.settings)
        connection.initiate_connection()
        sock.sendall(connection.data_to_send())
        while data := sock.recv(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self.requests.append({str(name): str(value) for name, value, *_ in event.headers or ()})
                elif isinstance(event, h2.events.StreamReset):
                    self.resets.append(event.stream_id or 0)
                self.act(connection, event)
            sock.sendall(connection.data_to_send())


def answers(connection: h2.connection.H2Connection, stream: int) -> None:
    connection.send_headers(stream, [(":status", "200"), ("content-length", "2")])
    connection.send_data(stream, b"ok", end_stream=True)


def get(path: str = "/") -> tuple[str, ...]:
    return (
        "curl",
        "-sS",
        "-m",
        "20",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--http2-prior-knowledge",
        f"http://{VIP}{path}",
    )


def post(path: str = "/") -> tuple[str, ...]:
    return *get(path), "-d", "body"


@pytest.mark.parametrize("read_there", [False, True], ids=["", "read at the destination"])
async def test_what_the_backend_has_not_looked_at_is_sent_again_whatever_its_method(
    pair: tuple[Lab, Pod, Pod], read_there: bool
) -> None:
    made, client, pod = pair
    if read_there:
        made.policies = PERMITTED
        await made.publish()
    refused: list[int] = []

    def act(connection: h2.connection.H2Connection, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.StreamEnded):
            stream = event.stream_id or 0
            if len(backend.requests) == 2:
                refused.append(stream)
                connection.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
            else:
                answers(connection, stream)

    backend = Odd(act)
    with server(pod, 8080, backend):
        assert await run(client, *post()) == "200"
        assert await run(client, *post()) == "200"
    assert len(refused) == 1
    assert len(backend.requests) == 3


@pytest.mark.parametrize("read_there", [False, True], ids=["", "read at the destination"])
async def test_what_crosses_a_backends_goaway_is_sent_again(pair: tuple[Lab, Pod, Pod], read_there: bool) -> None:
    made, client, pod = pair
    if read_there:
        made.policies = PERMITTED
        await made.publish()

    def act(connection: h2.connection.H2Connection, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.StreamEnded):
            if len(backend.requests) == 2:
                connection.close_connection(last_stream_id=1)
            else:
                answers(connection, event.stream_id or 0)

    backend = Odd(act)
    with server(pod, 8080, backend) as connections:
        assert await run(client, *post()) == "200"
        assert await run(client, *post()) == "200"
    assert len(backend.requests) == 3
    assert len(connections) == 2


async def test_a_backend_of_few_streams_gets_more_connections(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair

    def act(connection: h2.connection.H2Connection, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.StreamEnded):
            answers(connection, event.stream_id or 0)

    backend = Odd(act, settings={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 2})
    with server(pod, 8080, backend) as connections:
        assert await run(client, *get()) == "200"
        out = await run(client, "h2load", "-n", "200", "-c", "1", "-m", "20", f"http://{VIP}/")
        assert "status codes: 200 2xx" in out
    assert len(connections) > 1


async def test_what_is_reset_before_its_answer_is_503_and_says_by_whom(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair

    def act(connection: h2.connection.H2Connection, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.StreamEnded):
            connection.reset_stream(event.stream_id or 0, h2.errors.ErrorCodes.INTERNAL_ERROR)

    with server(pod, 8080, Odd(act)):
        assert await run(client, *post()) == "503"
    (line,) = await logged(client)
    assert line["response_flags"] == "UR"


async def test_an_answer_that_breaks_off_is_reset_for_the_client_too(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair

    def act(connection: h2.connection.H2Connection, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.StreamEnded):
            connection.send_headers(event.stream_id or 0, [(":status", "200")])
            connection.send_data(event.stream_id or 0, b"some")
            connection.reset_stream(event.stream_id or 0, h2.errors.ErrorCodes.INTERNAL_ERROR)

    with server(pod, 8080, Odd(act)):
        done = await trio.run_process(command(client, *get()), capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 92, done.stderr  # "Stream error in HTTP/2 framing layer"


async def test_a_client_that_leaves_has_its_request_cancelled_at_the_backend(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair

    def act(connection: h2.connection.H2Connection, event: h2.events.Event) -> None:
        """Never answers."""

    backend = Odd(act)
    with server(pod, 8080, backend):
        with running(client, *get()):
            with trio.fail_after(60):
                while not backend.requests:
                    await trio.sleep(0.02)
        with trio.fail_after(60):
            while not backend.resets:
                await trio.sleep(0.02)
    (line,) = await logged(client)
    assert line["response_flags"] == "DC"


# -- clients that make no sense ---------------------------------------------------------------------------------------


class Client:
    """The `h2` library without its own checks, in a pod."""

    def __init__(self, pod: Pod) -> None:
        self.sock = pod.connect(VIP, 80)
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False,
                validate_inbound_headers=True, header_encoding="ascii",
            )
        )  # fmt: skip
        self.connection.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.connection.data_to_send())

    def until(self, *kinds: type[h2.events.Event]) -> h2.events.Event:
        """The next event of one of these kinds; a connection that ends is `ConnectionTerminated`."""
        while True:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return h2.events.ConnectionTerminated()
            for event in self.connection.receive_data(data):
                if isinstance(event, kinds):
                    return event

    def send(self, *headers: tuple[str, str], end: bool = True) -> int:
        stream: int = self.connection.get_next_available_stream_id()
        self.connection.send_headers(stream, list(headers), end_stream=end)
        self.flush()
        return stream


START = ((":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/"))


@contextmanager
def speaking(pod: Pod) -> Iterator[Client]:
    client = Client(pod)
    with client.sock:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param((*START, ("Upper", "x")), id="an upper-case name"),
        pytest.param((*START, ("x", "y\r\nhost: evil")), id="a line end in a value"),
        pytest.param((*START, ("transfer-encoding", "chunked")), id="chunked"),
        pytest.param((*START[:3], (":path", "/ HTTP/1.1\r\nx: y\r\n\r\nGET /evil")), id="a request in the path"),
        pytest.param((*START, ("content-length", "5")), id="a length without a body"),
    ],
)
async def test_a_malformed_request_ends_its_stream_only(
    pair: tuple[Lab, Pod, Pod], headers: tuple[tuple[str, str], ...]
) -> None:
    _, client, pod = pair

    def act(connection: h2.connection.H2Connection, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.StreamEnded):
            answers(connection, event.stream_id or 0)

    web = Odd(act)

    def ask() -> None:
        with speaking(client) as peer:
            bad = peer.send(*headers)
            event = peer.until(h2.events.StreamReset, h2.events.ConnectionTerminated, h2.events.ResponseReceived)
            assert isinstance(event, h2.events.StreamReset)
            assert (event.stream_id, event.error_code) == (bad, h2.errors.ErrorCodes.PROTOCOL_ERROR)
            peer.send(*START)
            assert isinstance(peer.until(h2.events.ResponseReceived, h2.events.StreamReset), h2.events.ResponseReceived)

    with server(pod, 8080, web):
        await trio.to_thread.run_sync(ask)
    assert [request[":path"] for request in web.requests] == ["/"]


async def test_a_body_that_is_not_as_long_as_it_says_is_refused(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair

    def ask() -> None:
        for body in (b"1234", b"123456"):
            with speaking(client) as peer:
                stream = peer.send(*START, ("content-length", "5"), end=False)
                peer.connection.send_data(stream, body, end_stream=True)
                peer.flush()
                event = peer.until(h2.events.StreamReset, h2.events.ConnectionTerminated)
                assert isinstance(event, h2.events.StreamReset)
                assert event.error_code == h2.errors.ErrorCodes.PROTOCOL_ERROR

    with server(pod, 8080, Odd(lambda connection, event: None)):
        await trio.to_thread.run_sync(ask)
    assert {line["response_flags"] for line in await logged(client, 2)} == {"DPE"}


async def test_rapid_resets_end_the_connection_and_are_counted(pair: tuple[Lab, Pod, Pod]) -> None:
    _, client, pod = pair

    def flood() -> None:
        with speaking(client) as peer:
            try:
                for _ in range(200):
                    for _ in range(50):
                        stream = peer.connection.get_next_available_stream_id()
                        peer.connection.send_headers(stream, list(START))
                        peer.connection.reset_stream(stream)
                    peer.flush()
            except (BrokenPipeError, ConnectionResetError):
                return
            event = peer.until(h2.events.ConnectionTerminated)
            assert isinstance(event, h2.events.ConnectionTerminated)

    with server(pod, 8080, Odd(lambda connection, event: None)):
        await trio.to_thread.run_sync(flood)
    with trio.fail_after(60):
        while not any("ENHANCE_YOUR_CALM" in line["reason"] for line in client.request_log()):
            await trio.sleep(0.1)
