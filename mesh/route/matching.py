"""One `RouteMatch`, compiled to a test of a request; https://gateway-api.sigs.k8s.io/api-types/httproute/#matches.

- Of several clauses for one header or parameter the first counts.
- A repeated header is its values joined by commas (cookies by `; `), RFC 9110 section 5.2; of a repeated parameter the
  first counts. Parameters are percent-decoded, with `+` for a blank, as whoever answers will read them.
- `host` is the authority, as the client wrote it; `upgrade` the protocol asked for, in lower case.
- A pattern that cannot be compiled matches nothing, nor do any once they have had enough work with one request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from urllib.parse import unquote_to_bytes

from mesh.message import Request
from mesh.route.pattern import BadPattern, Pattern, compile_pattern
from mesh.traffic import Compare, RouteMatch, ValueMatch

_PARAMETERS = 256
"""Of a query that are looked at: it bounds what a hostile one costs."""
_WORK = 8_000_000
"""Steps of patterns times bytes of texts: with one request at most 20 ms, where ten thousand patterns of the usual size
and a short path are still looked at."""
_NONE = Pattern(lambda _: False, b"", 0)


class View:
    """What the tests ask of one request, each part of it read once, when first asked for."""

    __slots__ = ("_headers", "_parameters", "_work", "path", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        path = request.path
        mark = path.find(b"?")
        self.path = path if mark < 0 else path[:mark]
        self._headers: dict[bytes, bytes] | None = None
        self._parameters: dict[bytes, bytes] | None = None
        self._work = 0

    def meets(self, pattern: Pattern, text: bytes) -> bool:
        """Whether a pattern matches something of the request."""
        self._work += pattern.size * len(text)
        return self._work <= _WORK and pattern.matches(text)

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Values by name."""
        found = self._headers
        if found is None:
            found = self._headers = {}
            for name, value in self.request.headers:
                before = found.get(name)
                found[name] = value if before is None else before + (b"; " if name == b"cookie" else b",") + value
            found[b"host"] = self.request.authority
            if self.request.upgrade:
                found[b"upgrade"] = self.request.upgrade
        return found

    @property
    def parameters(self) -> dict[bytes, bytes]:
        """Values by name, decoded."""
        found = self._parameters
        if found is None:
            found = self._parameters = {}
            for pair in self.request.path.partition(b"?")[2].split(b"&", _PARAMETERS)[:_PARAMETERS]:
                name, _, value = pair.partition(b"=")
                found.setdefault(_decoded(name), _decoded(value))
        return found


Test = Callable[[View], bool]


def compile_match(match: RouteMatch) -> Callable[[Request], bool]:
    """The whole match, for what is not routing (rate limits): whether a request is one of those meant."""
    on_path = _path(match)
    test = compile_clauses(match)

    def matches(request: Request) -> bool:
        view = View(request)
        return on_path(view) and (test is None or test(view))

    return matches


def compile_headers(clauses: Iterable[ValueMatch]) -> Callable[[Request], bool]:
    """Header clauses alone, all of which must match (faults)."""
    tests = [_header(clause) for clause in of_headers(clauses)]
    return lambda request: not tests or _all(tests, View(request))


def compile_clauses(match: RouteMatch) -> Test | None:
    """All of a match but its path; None where there is nothing but the path."""
    tests: list[Test] = []
    if match.method:
        method = match.method.encode()
        tests.append(lambda view: view.request.method == method)
    tests += [_header(clause) for clause in of_headers(match.headers)]
    tests += [_parameter(clause) for clause in of_parameters(match.query)]
    if len(tests) < 2:
        return tests[0] if tests else None
    return lambda view: _all(tests, view)


def of_headers(clauses: Iterable[ValueMatch]) -> list[ValueMatch]:
    """Without those for a name, of whatever case, that an earlier one is for."""
    return list({clause.name.lower(): clause for clause in reversed(tuple(clauses))}.values())


def of_parameters(clauses: Iterable[ValueMatch]) -> list[ValueMatch]:
    """Without those for a name that an earlier one is for."""
    return list({clause.name: clause for clause in reversed(tuple(clauses))}.values())


def _all(tests: list[Test], view: View) -> bool:
    for test in tests:  # noqa: SIM110 - all() with a generator takes thrice as long
        if not test(view):
            return False
    return True


def _path(match: RouteMatch) -> Test:
    path = match.path.encode()
    if match.compare is Compare.EXACT:
        return lambda view: view.path == path
    if match.compare is Compare.REGEX:
        pattern = _pattern(match.path)
        return lambda view: view.meets(pattern, view.path)
    prefix = path.rstrip(b"/")
    return lambda view: view.path.startswith(prefix) and view.path[len(prefix) :][:1] in (b"", b"/")


def _header(clause: ValueMatch) -> Test:
    name, value = clause.name.lower().encode(), clause.value.encode()
    if clause.compare is not Compare.REGEX:
        return lambda view: view.headers.get(name) == value
    pattern = _pattern(clause.value)

    def test(view: View) -> bool:
        found = view.headers.get(name)
        return found is not None and view.meets(pattern, found)

    return test


def _parameter(clause: ValueMatch) -> Test:
    name, value = clause.name.encode(), clause.value.encode()
    if clause.compare is not Compare.REGEX:
        return lambda view: view.parameters.get(name) == value
    pattern = _pattern(clause.value)

    def test(view: View) -> bool:
        found = view.parameters.get(name)
        return found is not None and view.meets(pattern, found)

    return test


def _pattern(pattern: str) -> Pattern:
    try:
        return compile_pattern(pattern)
    except BadPattern:  # refused where it was written; a node that knows less than its controller must not fall over
        return _NONE


def _decoded(text: bytes) -> bytes:
    if b"%" in text or b"+" in text:
        return unquote_to_bytes(text.replace(b"+", b" "))
    return text
