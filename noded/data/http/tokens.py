"""Who a request says it comes from: the JSON Web Tokens in it, checked as `RequestAuthentication` asks.

A token's signature is checked by the control process, once for each token and worker; the request waits meanwhile. What
cannot be found out in time is refused.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from mesh import jwt
from mesh.message import Request
from mesh.request_auth import MAX_TOKENS, TokenRule, TokenRules, is_preflight
from noded.data.engine import Engine
from noded.data.timers import Timer, Timers
from noded.link import CheckToken, TokenChecked

_WAIT_SECONDS = 3.0
_MAX_ASKED = 512
"""Tokens of this worker that wait for their check. Each source may have as many there as there is room left, so that
one alone has half, and there is always some for another."""
_MAX_SENT = 8
"""Of these, how many the control process has at one time: each source's in turn, so that nobody waits behind all of
another's."""
_MAX_VALID, _MAX_BAD = 4096, 512
"""Tokens that are remembered: bad ones, which anybody can make up, apart, lest they drive out the others."""
_TYPICAL = 1024
"""Bytes of one; of larger ones fewer are remembered."""
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
Source = Hashable
"""Who sends requests."""
Done = Callable[[Claims | Refusal | None], None]
"""Called with the claims of a request's token, None if it has no token, or the refusal."""
_Told = Callable[[jwt.Token | jwt.BadToken], None]
_Key = tuple[str, bytes]
"""Name of the rule and hash of the token."""


@dataclass(frozen=True, slots=True)
class _Known:
    until: float
    """Unix seconds."""
    said: jwt.Token | jwt.BadToken
    size: int


class _Remembered:
    """What was found out, of those used last."""

    def __init__(self, most: int) -> None:
        self._most, self._room = most, most * _TYPICAL
        self._all: OrderedDict[_Key, _Known] = OrderedDict()

    def get(self, key: _Key, now: float) -> _Known | None:
        """It, if it still holds."""
        known = self._all.get(key)
        if known is None or known.until <= now:
            return None
        self._all.move_to_end(key)
        return known

    def put(self, key: _Key, known: _Known) -> None:
        """Remember it."""
        if (before := self._all.pop(key, None)) is not None:
            self._room += before.size
        self._all[key] = known
        self._room -= known.size
        while len(self._all) > self._most or self._room < 0:
            self._room += self._all.popitem(last=False)[1].size


class Tokens:
    """Made once a worker. `run` must run for questions to be sent."""

    def __init__(self, engine: Engine, timers: Timers) -> None:
        self._engine, self._timers = engine, timers
        self._valid, self._bad = _Remembered(_MAX_VALID), _Remembered(_MAX_BAD)
        self._asked: dict[int, _Question] = {}
        self._open: dict[_Key, _Question] = {}
        self._numbers = 0
        self._sources: OrderedDict[Source, _Questions] = OrderedDict()
        """Those that have asked and not all been told, in the order of their turns."""
        self._sent = 0
        """Questions under way."""
        self._go_on = trio.Event()

    async def run(self, send: Callable[[CheckToken], Awaitable[None]]) -> None:
        """Send what is asked until cancelled."""
        while True:
            while self._sent < _MAX_SENT and (message := self._next()) is not None:
                await send(message)
            self._go_on = trio.Event()
            await self._go_on.wait()

    def _next(self) -> CheckToken | None:
        """The first question of the source whose turn it is; then it is the next one's."""
        for source, questions in self._sources.items():
            if questions.unsent:
                number, _ = questions.unsent.popitem(last=False)
                self._sources.move_to_end(source)
                self._sent += 1
                question = self._asked[number]
                question.sent = True
                return CheckToken(number, question.text, question.key_set)
        return None

    def authenticate(self, rules: TokenRules, request: Request, source: Source, done: Done) -> None:
        """Check a request's tokens and take them out of it; calls `done` now or, from a trio task, later."""
        rules.clean(request.headers)
        if is_preflight(request):
            done(None)
        else:
            _Authentication(self, rules, request, source, done).next()

    def check(self, rule: TokenRule, token: bytes, source: Source, told: _Told) -> None:
        """Whether a token is valid by a rule: what it says, or what is wrong."""
        key = rule.name, hashlib.sha256(token).digest()
        now = time.time()
        if (known := self._valid.get(key, now) or self._bad.get(key, now)) is not None:
            told(known.said)
            return
        if (question := self._open.get(key)) is not None:
            question.told.append(told)
            return
        try:
            read = rule.read(token, now)
            mine = self._sources.get(source)
            if mine is not None and mine.open >= _MAX_ASKED - len(self._asked):
                raise jwt.BadToken("too many tokens are being checked", 503)
        except jwt.BadToken as error:
            told(error)
            return
        self._numbers += 1
        number = self._numbers
        timer = self._timers.after(_WAIT_SECONDS, lambda: self._late(number))
        self._asked[number] = self._open[key] = _Question(key, source, token, rule.key_set, read, timer, [told])
        if mine is None:
            mine = self._sources[source] = _Questions()
        mine.open += 1
        mine.unsent[number] = None
        self._engine.wake(self._go_on)

    def answered(self, message: TokenChecked) -> None:
        """The control process has checked one."""
        if (question := self._asked.get(message.request)) is None:
            return
        question.timer.cancel()
        if message.problem:
            said: jwt.Token | jwt.BadToken = jwt.BadToken(message.problem)
            self._bad.put(question.key, _Known(time.time() + _BAD_SECONDS, said, len(question.text)))
        else:
            said = question.token
            until = said.expires + jwt.SKEW_SECONDS if said.expires else float("inf")
            self._valid.put(question.key, _Known(until, said, len(question.text)))
        self._close(message.request, said)

    def _late(self, number: int) -> None:
        self._close(number, jwt.BadToken("the token was not checked in time", 503))

    def _close(self, number: int, said: jwt.Token | jwt.BadToken) -> None:
        question = self._asked.pop(number)
        del self._open[question.key]
        mine = self._sources[question.source]
        mine.open -= 1
        mine.unsent.pop(number, None)
        if not mine.open:
            del self._sources[question.source]
        if question.sent:
            self._sent -= 1
            self._engine.wake(self._go_on)
        for told in question.told:
            told(said)


@dataclass(slots=True)
class _Question:
    key: _Key
    source: Source
    text: bytes
    key_set: str
    token: jwt.Token
    timer: Timer
    told: list[_Told]
    sent: bool = False


@dataclass(slots=True)
class _Questions:
    """Of one source."""

    open: int = 0
    unsent: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Their numbers."""


class _Authentication:
    """One request's: rule by rule, and of each rule token by token, until the tokens of one are all valid."""

    __slots__ = ("_done", "_failure", "_request", "_rules", "_source", "_tokens")

    def __init__(self, tokens: Tokens, rules: TokenRules, request: Request, source: Source, done: Done) -> None:
        self._tokens, self._request, self._source, self._done = tokens, request, source, done
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

        self._tokens.check(rule, token, self._source, told)

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
