"""HTTP/2 (RFC 9113) as tunnels need it: frames, header blocks, streams and flow control, with no I/O.

`connection` is the state machine; `frames` holds the wire's constants and builders; `headers` is HPACK (RFC 7541).
"""
