"""HAProxy in pairs: routes at the source, ACLs at the destination, mutual TLS between.

It has no HBONE, so HTTP itself crosses between the two: HTTP/1.1 over connections that are kept and shared, or HTTP/2
where the client speaks it. Nor has it a way to mark its own connections in this version: in its client's pod a
redirection of the service's address captures, and in its server's nothing needs to.
"""

from __future__ import annotations

from bench import work
from bench.certificates import Credentials

OUTBOUND_PORT = 15001
_BETWEEN = {False: 15008, True: 15009}
"""Port of the server's side for HTTP/1.1 and HTTP/2."""

_COMMON = """\
global
    nbthread 1
    maxconn 9000
    log stdout format raw local0
defaults
    mode http
    log global
    log-format '{{"time":"%t","source":"%ci:%cp","route":"%b","upstream_host":"%si:%sp","method":"%HM","path":"%HP",\
"authority":"%[capture.req.hdr(0)]","protocol":"%HV","response_code":%ST,"flags":"%ts","bytes_received":%U,\
"bytes_sent":%B,"duration":%Ta}}'
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
    option http-keep-alive
    http-reuse always
"""
_CAPTURE = "    declare capture request len 64\n    http-request capture req.hdr(host) id 0\n"


def capture(netns: str) -> list[str]:
    """The command that redirects connections to the service in a pod to its HAProxy."""
    rule = ["-p", "tcp", "-d", work.VIP, "-j", "REDIRECT", "--to-ports", str(OUTBOUND_PORT)]
    return ["ip", "netns", "exec", netns, "iptables", "-t", "nat", "-A", "OUTPUT", *rule]


def client(credentials: Credentials, *, server: str) -> str:
    """HTTP on 15001, routed to the server's side."""
    lines = ["frontend outbound", f"    bind 0.0.0.0:{OUTBOUND_PORT} backlog 4096", *_CAPTURE.splitlines()]
    name, value = work.CANARY
    for protocol in work.PROTOCOLS:
        port = f"{{ dst_port {protocol.port} }}"
        lines.append(f"    use_backend canary-{protocol.port} if {port} {{ req.hdr({name}) -m str {value} }}")
        lines += [
            f"    use_backend {prefix[1:]}-{protocol.port} if {port} {{ path_beg {prefix}/ }}"
            for prefix in (*work.OTHER_ROUTES, work.ROUTE)
        ]
    for protocol in work.PROTOCOLS:
        for backend in ("canary", *(prefix[1:] for prefix in (*work.OTHER_ROUTES, work.ROUTE))):
            alpn = "h2" if protocol.http2 else "http/1.1"
            lines += [
                f"backend {backend}-{protocol.port}",
                f"    server peer {server}:{_BETWEEN[protocol.http2]} {_tls(credentials)} alpn {alpn} "
                f"verifyhost server pool-max-conn -1",
            ]
    return _COMMON.format() + "\n".join(lines) + "\n"


def server(credentials: Credentials, *, policies: int = work.POLICIES) -> str:
    """Mutual TLS on 15008 and 15009, checked against the policies, then sent to the pod's own ports."""
    lines = ["frontend inbound"]
    for http2, port in _BETWEEN.items():
        lines.append(
            f"    bind 0.0.0.0:{port} backlog 4096 {_tls(credentials)} alpn {'h2' if http2 else 'http/1.1'} "
            "no-tls-tickets"
        )
    lines += _CAPTURE.splitlines()
    methods = " ".join(work.METHODS)
    for number in range(policies):
        prefixes = " ".join(work.policy_paths(number, policies))
        lines.append(
            f"    http-request allow if {{ ssl_c_s_dn(cn) -m str client }} {{ method {methods} }} "
            f"{{ path_beg {prefixes} }}"
        )
    lines.append("    http-request deny")
    lines += [f"    use_backend local-{p.port} if {{ req.hdr(host) {' '.join(p.hosts)} }}" for p in work.PROTOCOLS]
    for protocol in work.PROTOCOLS:
        speaks = " proto h2" if protocol.http2 else ""
        lines += [f"backend local-{protocol.port}", f"    server app 127.0.0.1:{protocol.target_port}{speaks}"]
    return _COMMON.format() + "\n".join(lines) + "\n"


def _tls(credentials: Credentials) -> str:
    """HAProxy takes chain and key in one file."""
    both = credentials.chain.with_suffix(".both.pem")
    both.touch(mode=0o600)
    both.write_bytes(credentials.chain.read_bytes() + credentials.key.read_bytes())
    return f"ssl crt {both} ca-file {credentials.roots} verify required ssl-min-ver TLSv1.3"
