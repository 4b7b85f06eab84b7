"""HTTP/2 (RFC 9113) for tunnels and for requests: frames, header blocks, streams and flow control, with no I/O.

`connection` is the state machine; `frames` holds the wire's constants and builders; `headers` is HPACK (RFC 7541);
`messages` reads and writes requests and responses.
"""
