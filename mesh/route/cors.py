"""A rule's `Cors`: the answer to a preflight, and what other answers say.

https://fetch.spec.whatwg.org/#http-cors-protocol and https://gateway-api.sigs.k8s.io/geps/gep-1767/: the filter has the
last word, so a preflight goes no further, and what a backend says of CORS is dropped. A request with credentials
(cookies, Authorization) is told nothing where the filter does not allow them, and `*` is for filters without.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from mesh.message import Headers, Request, Response
from mesh.traffic import Cors

_LABELS = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")
"""What the `*` of an origin stands for: labels of a host, and no port."""
_PORTS = ((b"http:", b":80"), (b"https:", b":443"))


def preflight_response(request: Request, cors: Cors) -> Response | None:
    """The answer to a preflight, without CORS headers where it is not allowed; None if the request is none."""
    if request.method != b"OPTIONS":
        return None
    origin, method = request.header(b"origin"), request.header(b"access-control-request-method")
    if origin is None or method is None:
        return None
    headers = _shared(origin, cors)
    if headers:
        if methods := _allowed(cors.allow_methods, method):
            headers.append((b"access-control-allow-methods", methods))
        names = request.header(b"access-control-request-headers")
        if names and (names := _allowed(cors.allow_headers, names)):
            headers.append((b"access-control-allow-headers", names))
        headers.append((b"access-control-max-age", b"%d" % cors.max_age))
    return Response(204, headers + _vary(cors))


def cors_headers(request: Request, cors: Cors) -> Headers:
    """What the answer to this request is to say, for `set_cors`. Ask before the request's headers are edited."""
    origin = request.header(b"origin")
    told = origin is not None and (
        cors.allow_credentials or (request.header(b"cookie") is None and request.header(b"authorization") is None)
    )
    return (_shared(origin, cors) if origin is not None and told else []) + _vary(cors)


def set_cors(response: Response, headers: Headers) -> None:
    """Put what `cors_headers` made into an answer, in place of what the backend says of CORS."""
    response.headers[:] = [header for header in response.headers if not header[0].startswith(b"access-control-")]
    response.headers += headers


def _shared(origin: bytes, cors: Cors) -> Headers:
    """Of every answer to an origin that is allowed; nothing to another."""
    any_origin, allows = _origins(cors.allow_origins)
    if not any_origin and not allows(origin):
        return []
    headers = [(b"access-control-allow-origin", b"*" if any_origin and not cors.allow_credentials else origin)]
    if cors.allow_credentials:
        headers.append((b"access-control-allow-credentials", b"true"))
    if exposed := [name for name in cors.expose_headers if name != "*" or not cors.allow_credentials]:
        headers.append((b"access-control-expose-headers", ", ".join(exposed).encode()))
    return headers


def _vary(cors: Cors) -> Headers:
    """Caches keep the answers to two origins apart, unless all are told the same."""
    return [] if cors.allow_origins == ("*",) and not cors.allow_credentials else [(b"vary", b"Origin")]


def _allowed(configured: tuple[str, ...], asked: bytes) -> bytes:
    """`*` is answered with what was asked for, which all browsers understand, with credentials or without."""
    return asked if "*" in configured else ", ".join(configured).encode()


@lru_cache(1024)
def _origins(configured: tuple[str, ...]) -> tuple[bool, Callable[[bytes], bool]]:
    """Whether all are allowed, and else a test of one."""
    plain = frozenset(_canonical(origin.encode()) for origin in configured if "*" not in origin)
    partial = [
        (before, after)
        for before, star, after in (_canonical(origin.encode()).partition(b"*") for origin in configured)
        if star
    ]

    def allows(origin: bytes) -> bool:
        origin = _canonical(origin)
        return origin in plain or any(
            origin.startswith(before)
            and origin.endswith(after)
            and len(origin) > len(before) + len(after)
            and _LABELS.issuperset(origin[len(before) : len(origin) - len(after)])
            for before, after in partial
        )

    return "*" in configured, allows


def _canonical(origin: bytes) -> bytes:
    """In lower case, without its scheme's own port."""
    origin = origin.lower()
    for scheme, port in _PORTS:
        if origin.startswith(scheme):
            return origin.removesuffix(port)
    return origin
