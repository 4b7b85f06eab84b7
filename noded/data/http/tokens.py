"""Who a request says it comes from: the JSON Web Tokens in it, checked as `RequestAuthentication` asks.

A token's signature is checked by the control process, once for each token and worker; the request waits meanwhile. What
cannot be found out in time is refused.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from mesh import jwt
from mesh.message import Request
from mesh.request_auth import MAX_TOKENS, TokenRule, TokenRules, is_preflight
from noded.data.engine import Engine
from noded.data.timers import Timer, Timers
from noded.link import CheckToken, TokenChecked

_WAIT_SECONDS = 3.0
_MAX_ASKED = 256
"""Tokens that this worker has the control process check at one time."""
_MAX_KNOWN = 4096
_MAX_KNOWN_BYTES = 4 * 1024 * 1024
"""Of tokens whose claims are remembered."""
_BAD_SECONDS = 60.0
"""How long a bad signature is remembered. The keys are part of the question, so new ones are not kept out by it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not to be served, and with which status it is answered."""

    status: int
    reason: str
    """For the client."""
    detail: str
    """For the log, beside it."""
    challenge: bytes = b""
    """For WWW-Authenticate, with status 401."""


Claims = Mapping[str, Any]
Done = Callable[[Claims | Refusal | None], None]
"""Called with the claims of a request's token, None if it has no token, or the refusal."""
_Told = Callable[[jwt.Token | jwt.BadToken], None]


@dataclass(frozen=True, slots=True)
class _Known:
    until: float
    """Unix seconds."""
    said: jwt.Token | jwt.BadToken
    size: int


class Tokens:
    """Made once a worker. `run` must run for questions to be sent."""

    def __init__(self, engine: Engine, timers: Timers) -> None:
        self._engine, self._timers = engine, timers
        self._known: OrderedDict[tuple[str, bytes], _Known] = OrderedDict()
        """By name of the rule and hash of the token, the one used last at the end."""
        self._size = 0
        self._asked: dict[int, _Question] = {}
        self._open: dict[tuple[str, bytes], _Question] = {}
        self._numbers = 0
        self._queue: deque[CheckToken] = deque()
        self._queued = trio.Event()

    async def run(self, send: Callable[[CheckToken], Awaitable[None]]) -> None:
        """Send what is asked until cancelled."""
        while True:
            while self._queue:
                await send(self._queue.popleft())
            self._queued = trio.Event()
            await self._queued.wait()

    def authenticate(self, rules: TokenRules, request: Request, done: Done) -> None:
        """Check a request's tokens and take them out of it; calls `done` now or, from a trio task, later."""
        rules.clean(request)
        if is_preflight(request):
            done(None)
        else:
            _Authentication(self, rules, request, done).next()

    def check(self, rule: TokenRule, token: bytes, told: _Told) -> None:
        """Whether a token is valid by a rule: what it says, or what is wrong."""
        key = rule.name, hashlib.sha256(token).digest()
        now = time.time()
        if (known := self._known.get(key)) is not None and now < known.until:
            self._known.move_to_end(key)
            told(known.said)
            return
        if (question := self._open.get(key)) is not None:
            question.told.append(told)
            return
        try:
            read = jwt.read(token)
            read.check(rule.issuer, rule.audiences, now)
            if not rule.key_set:
                raise jwt.BadToken("Jwks remote fetch is failed", detail=rule.problem)
            if len(self._asked) >= _MAX_ASKED:
                raise jwt.BadToken("too many tokens are being checked", 503)
        except jwt.BadToken as error:
            told(error)
            return
        self._numbers += 1
        number = self._numbers
        timer = self._timers.after(_WAIT_SECONDS, lambda: self._late(number))
        self._asked[number] = self._open[key] = _Question(key, read, len(token), timer, [told])
        self._queue.append(CheckToken(number, token, rule.key_set))
        self._engine.wake(self._queued)

    def answered(self, message: TokenChecked) -> None:
        """The control process has checked one."""
        if (question := self._asked.pop(message.request, None)) is None:
            return
        question.timer.cancel()
        if message.problem:
            said: jwt.Token | jwt.BadToken = jwt.BadToken(message.problem)
            until = time.time() + _BAD_SECONDS
        else:
            said = question.token
            until = question.token.expires + jwt.SKEW_SECONDS if question.token.expires else float("inf")
        self._remember(question.key, _Known(until, said, question.size))
        self._tell(question, said)

    def _late(self, number: int) -> None:
        if (question := self._asked.pop(number, None)) is not None:
            self._tell(question, jwt.BadToken("the token was not checked in time", 503))

    def _tell(self, question: _Question, said: jwt.Token | jwt.BadToken) -> None:
        del self._open[question.key]
        for told in question.told:
            told(said)

    def _remember(self, key: tuple[str, bytes], known: _Known) -> None:
        if (before := self._known.pop(key, None)) is not None:
            self._size -= before.size
        self._known[key] = known
        self._size += known.size
        while len(self._known) > _MAX_KNOWN or self._size > _MAX_KNOWN_BYTES:
            self._size -= self._known.popitem(last=False)[1].size


@dataclass(slots=True)
class _Question:
    key: tuple[str, bytes]
    token: jwt.Token
    size: int
    timer: Timer
    told: list[_Told]


class _Authentication:
    """One request's: rule by rule, and of each rule token by token, until the tokens of one are all valid."""

    __slots__ = ("_done", "_failure", "_request", "_rules", "_tokens")

    def __init__(self, tokens: Tokens, rules: TokenRules, request: Request, done: Done) -> None:
        self._tokens, self._request, self._done = tokens, request, done
        self._rules = [(rule, found) for rule in rules.rules if (found := rule.tokens(request))]
        self._rules.reverse()
        self._failure: jwt.BadToken | None = None

    def next(self) -> None:
        """Look at the next rule that finds a token."""
        if self._rules:
            rule, found = self._rules.pop()
            if len(found) > MAX_TOKENS:
                self._failed(jwt.BadToken(f"more than {MAX_TOKENS} tokens"))
            else:
                self._check(rule, found, 0)
        elif self._failure is None:
            self._done(None)
        else:
            self._done(self._refusal(self._failure))

    def _check(self, rule: TokenRule, found: list[bytes], index: int) -> None:
        token = found[index]

        def told(said: jwt.Token | jwt.BadToken) -> None:
            if isinstance(said, jwt.BadToken):
                self._failed(said)
            elif index + 1 < len(found):
                self._check(rule, found, index + 1)
            else:
                rule.accept(self._request, token, said.claims)
                self._done(said.facts)

        self._tokens.check(rule, token, told)

    def _failed(self, error: jwt.BadToken) -> None:
        """That of a rule for another issuer is told only if there is nothing better to tell."""
        if self._failure is None or self._failure.reason == jwt.UNKNOWN_ISSUER:
            self._failure = error
        self.next()

    def _refusal(self, error: jwt.BadToken) -> Refusal:
        if error.status != 401:
            return Refusal(error.status, error.reason, error.detail)
        request = self._request
        realm = b"http://" + request.authority + request.path.partition(b"?")[0]
        quoted = realm.replace(b"\\", b"%5C").replace(b'"', b"%22")
        return Refusal(401, error.reason, error.detail, b'Bearer realm="%b", error="invalid_token"' % quoted)
