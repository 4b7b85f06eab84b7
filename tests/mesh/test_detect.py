"""A port's declared protocol, as Istio's protocol selection reads it."""

from __future__ import annotations

import pytest

from mesh.detect import protocol
from mesh.model import ServicePort


@pytest.mark.parametrize(
    ("name", "app_protocol", "expected"),
    [
        ("http", "", "http"),
        ("http-admin", "", "http"),
        ("HTTP2-x", "", "http2"),
        ("grpc", "", "grpc"),
        ("grpc-web-x", "", "http"),
        ("tcp-http", "", "tcp"),
        ("https", "", "tcp"),
        ("web", "", ""),
        ("httpish", "", ""),
        ("", "", ""),
        ("tcp", "http", "http"),
        ("http", "mysql", "tcp"),
        ("x", "kubernetes.io/h2c", "http2"),
        ("x", "kubernetes.io/ws", "http"),
        ("x", "kubernetes.io/wss", "tcp"),
        ("http", "example.com/own", ""),
    ],
)
def test_the_app_protocol_counts_before_the_name(name: str, app_protocol: str, expected: str) -> None:
    assert protocol(ServicePort(name, 80, app_protocol)) == expected


def test_a_port_where_the_server_speaks_first_is_opaque_unless_it_says_otherwise() -> None:
    assert protocol(ServicePort("db", 3306)) == "tcp"
    assert protocol(ServicePort("http", 3306)) == "http"
