"""The answer of a `RequestRedirect` filter; https://gateway-api.sigs.k8s.io/reference/spec/#httprequestredirectfilter."""

from __future__ import annotations

from mesh.message import Request, Response
from mesh.route.edits import edited_path
from mesh.traffic import Redirect, RouteMatch

_WELL_KNOWN = {b"http": 80, b"https": 443}


def redirect_response(request: Request, redirect: Redirect, scheme: bytes, port: int, match: RouteMatch) -> Response:
    """Where else a request should go.

    `scheme` and `port` are those it came by (the service's port), `match` the one that was met. A scheme that the
    filter states has its well-known port, unless it states that too. Where the request has no authority (HTTP/1.0) and
    the filter no hostname, the location is the path alone.
    """
    stated = redirect.scheme.encode()
    to_scheme = stated or scheme
    to_port = redirect.port or _WELL_KNOWN.get(stated, port)
    path = edited_path(request.path, redirect.path_edit, redirect.path, match)
    if not path.startswith(b"/"):  # OPTIONS *
        path = b""
    host = redirect.hostname.encode() or _host(request.authority)
    if not host:
        location = b"/" + path.lstrip(b"/\\")  # `//x` or `/\x` would be another host
    elif _WELL_KNOWN.get(to_scheme) == to_port:
        location = b"%b://%b%b" % (to_scheme, host, path)
    else:
        location = b"%b://%b:%d%b" % (to_scheme, host, to_port, path)
    return Response(redirect.status, [(b"location", location), (b"content-length", b"0")])


def _host(authority: bytes) -> bytes:
    if authority.startswith(b"["):
        return authority[: authority.find(b"]") + 1]
    return authority.partition(b":")[0]
