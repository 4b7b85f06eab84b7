"""Asking a service whether a request may pass: CUSTOM policies, as Envoy's `ext_authz` filter does over HTTP.

https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/ext_authz_filter. The service is asked
through the mesh, in the name of the workload that the request is for. It permits with 200; 5xx, or no answer, is a
failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from mesh.message import Headers, Request, Response
from mesh.model import ExtAuthz
from mesh.request_auth import same
from noded.data.http.exchange import Exchange

if TYPE_CHECKING:
    from mesh.authz import Ask
    from mesh.balance import Host
    from noded.data.http.client import Call
    from noded.data.http.destinations import Destination
    from noded.data.http.inbound import InboundExchange, InboundSession

_MAX_BODY = 65_536
"""Most of an answer's body that is passed on, bytes; a longer one is a failure."""
_ALWAYS_SHOWN = (b"location", b"www-authenticate")
_OURS = frozenset({b"content-length", b"transfer-encoding", b"connection", b"host", b"trailer", b"upgrade"})
_OK = 200


class Answer:
    """What was said."""

    __slots__ = ("body", "headers", "problem", "status")

    def __init__(self, status: int, headers: Headers, body: bytes, problem: str = "") -> None:
        self.status, self.headers, self.body = status, headers, body
        self.problem = problem
        """Why there is no answer that counts, or `""`."""


class _Gathering:
    """The responder of a question: keeps what is answered."""

    full = False

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def informational(self, response: Response) -> None:
        """As `Responder` has it."""

    def head(self, response: Response) -> None:
        """As `Responder` has it."""

    def data(self, data: bytes) -> None:
        """As `Responder` has it."""
        self.size += len(data)
        if self.size <= _MAX_BODY:
            self.parts.append(data)

    def end(self, trailers: Headers) -> None:
        """As `Responder` has it."""

    def abort(self) -> None:
        """As `Responder` has it."""

    def hold(self) -> None:
        """As `Responder` has it."""

    def release(self) -> None:
        """As `Responder` has it."""


class Question(Exchange):
    """One request to a provider. `done` is called once, unless it is finished before."""

    __slots__ = ("_destination", "_gathering", "_heard", "host")

    def __init__(
        self, session: InboundSession, destination: Destination, request: Request, heard: Callable[[Answer], None]
    ) -> None:
        self._gathering = _Gathering()
        super().__init__(session, self._gathering, request)
        self._destination, self._heard = destination, heard
        self.host: Host | None = None

    def ask(self, timeout: float) -> None:
        """Send it to an endpoint."""
        destination, session = self._destination, self.session
        host = self.host = destination.pick(self.started, None, ())
        if host is None:
            self._failed("it has no endpoint")
            return
        self.timer = self.proxy.timers.after(timeout, lambda: self._failed("it took too long"))
        host.started()
        upstream = self.proxy.upstreams.to(session.local, destination.service, host.address, host.port, host.uid)
        call = upstream.call(self, destination.protocol in ("http2", "grpc"))
        if isinstance(call, str):
            self._failed(call)
        else:
            self.request_ended = True
            self.send(call)

    def on_failed(self, reason: str, flags: str, call: Call) -> None:
        """See `Exchange`."""
        if not self.done and call is self.call:
            self.call = None
            self._failed(reason)

    def on_response_end(self, trailers: Headers) -> None:
        """See `Exchange`."""
        response, gathered = self.response, self._gathering
        if self.done or response is None:
            return
        self.call = None
        self.finish()
        problem = ""
        if response.status >= 500:
            problem = f"it answered {response.status}"
        elif gathered.size > _MAX_BODY:
            problem = f"its answer is longer than {_MAX_BODY} bytes"
        self._heard(Answer(response.status, response.headers, b"".join(gathered.parts), problem))

    def _failed(self, why: str) -> None:
        if not self.done:
            self.finish()
            self._heard(Answer(0, [], b"", why))

    def finish(self) -> None:
        """See `Exchange`."""
        if not self.done and self.host is not None:
            now = time.monotonic()
            self.host.finished(now - self.started, self.response is not None, now)
        super().finish()

    def seen(self) -> None:
        """See `Exchange`: a question is no request of the workload's."""


class Asking:
    """The questions about one request, one after the other, until one is answered with no."""

    def __init__(self, exchange: InboundExchange, asks: Iterable[Ask], permitted: Callable[[], None]) -> None:
        self._exchange, self._permitted = exchange, permitted
        self._asks = list(asks)
        self._asks.reverse()
        self._question: Question | None = None
        self.add_to_answer: Headers = []
        """Headers for the workload's answer."""

    def next(self) -> None:
        """Ask the next, or go on with the request."""
        exchange = self._exchange
        if exchange.done:
            return
        if not self._asks:
            self._permitted()
            return
        ask = self._asks.pop()
        provider = next((p for p in exchange.proxy.node.snapshot.config.providers if p.name == ask.provider), None)
        if provider is None:
            exchange.reply(403, "UAEX", f"{ask.policy}: there is no provider {ask.provider!r}", text="denied")
            return
        destination = exchange.proxy.destinations.at(provider.service, provider.port)

        def heard(answer: Answer) -> None:
            self._question = None
            if not exchange.done:
                self._heard(ask, provider, answer)

        if destination is None:
            heard(Answer(0, [], b"", f"there is no service {provider.service} with port {provider.port}"))
            return
        question = self._question = Question(exchange.session, destination, _request(exchange.request, provider), heard)
        question.ask(provider.timeout)

    def cancel(self) -> None:
        """The request is over."""
        if (question := self._question) is not None:
            self._question = None
            question.finish()

    def _heard(self, ask: Ask, provider: ExtAuthz, answer: Answer) -> None:
        exchange = self._exchange
        if answer.problem and not provider.fail_open:
            why = f"{ask.policy} rule {ask.rule}: {provider.name} was not heard: {answer.problem}"
            exchange.reply(provider.status_on_error, "UAEX", why, text="denied")
        elif answer.problem or answer.status == _OK:
            if not answer.problem:
                self._taken_over(provider, answer)
            self.next()
        else:
            shown = [
                (name, value)
                for name, value in answer.headers
                if name not in _OURS
                and (
                    not provider.downstream_on_deny
                    or name in _ALWAYS_SHOWN
                    or matches(provider.downstream_on_deny, name)
                )
            ]
            why = f"{ask.policy} rule {ask.rule}: {provider.name} says no"
            exchange.deny(answer.status, why, shown, answer.body)

    def _taken_over(self, provider: ExtAuthz, answer: Answer) -> None:
        request = self._exchange.request
        given = [(n, v) for n, v in answer.headers if n not in _OURS]
        put = [(n, v) for n, v in given if matches(provider.upstream_on_allow, n)]
        names = {same(name) for name, _value in put}
        request.headers[:] = [pair for pair in request.headers if same(pair[0]) not in names] + put
        self.add_to_answer += [(n, v) for n, v in given if matches(provider.downstream_on_allow, n)]


def _request(request: Request, provider: ExtAuthz) -> Request:
    added = {name.encode(): value.encode() for name, value in provider.add_headers}
    headers = [
        (name, value)
        for name, value in request.headers
        if name not in _OURS and name not in added and matches(provider.include_headers, name)
    ]
    path = provider.path_prefix.encode() + request.path if request.path != b"*" else request.path
    return Request(request.method, request.authority, path, [*headers, *added.items(), (b"content-length", b"0")])


def matches(patterns: Iterable[str], name: bytes) -> bool:
    """Whether a header's name is one of these, `prefix*`, or `*suffix`."""
    text = name.decode("latin-1")
    return any(
        text == pattern
        or (pattern.endswith("*") and text.startswith(pattern[:-1]))
        or (pattern.startswith("*") and text.endswith(pattern[1:]))
        for pattern in patterns
    )
