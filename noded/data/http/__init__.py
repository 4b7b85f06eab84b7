"""Requests: HTTP/1.1, HTTP/2 and gRPC connections in the engine.

transport   bytes of one connection: a socket, or a stream of a tunnel
server      a client's connection, cut into requests        client   a connection to a backend, carrying them
server2, client2: the same for HTTP/2, on streams           streams  what both have in common
exchange    one request and its response, joined            timers   what happens later
outbound    routing, at the source's node                   inbound  policy, at the destination's
destinations, traffic: what a service's endpoints and policy remember; limiters and shared: its rate limits
connections how many a circuit breaker lets be
upstreams   the connections to backends                     seen     what a request leaves behind:
tally       its count       log_line    its line in the log tracing  its span
tap         it, for who watches                             recent   it, if it was denied or failed
pressure    the memory that all of them may take
"""
