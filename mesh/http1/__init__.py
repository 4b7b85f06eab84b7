"""HTTP/1.1 and 1.0 (RFC 9110, RFC 9112) without I/O: strict on what comes in, and one way only to write what goes out.

    RequestParser(sink, limits).feed(data)        a client's bytes -> calls of a `RequestSink`
    ResponseParser(sink, limits).expect(method)   a server's bytes -> calls of a `ResponseSink`
    write_request, write_response, chunk, last_chunk

Nothing that two parsers could read in two ways gets through; `docs/reference/http.md` says what is refused.
"""

from mesh.http1.failure import BadMessage, Limits
from mesh.http1.parse import RequestParser, RequestSink, ResponseParser, ResponseSink
from mesh.http1.write import chunk, last_chunk, write_request, write_response

__all__ = (
    "BadMessage",
    "Limits",
    "RequestParser",
    "RequestSink",
    "ResponseParser",
    "ResponseSink",
    "chunk",
    "last_chunk",
    "write_request",
    "write_response",
)
