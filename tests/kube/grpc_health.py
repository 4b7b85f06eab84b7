"""A gRPC health service in a pod, and a probe of it as kubelet makes it from 1.24 on.

The tested cluster's kubelet has none yet. Where a probe comes from and what it carries is all that the mesh sees of it:
a connection of a process in the node's own network namespace, with HTTP/2 in it.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import h2.connection
import h2.events

from kubebed.cluster import Cluster
from kubebed.images import PYTHON
from redirect.netns import inside, open_netns
from testbed.network import NETNS
from tests.kube.pods import pod

PORT = 9000
SERVING, NOT_SERVING = 1, 2
# Answers each request with the status that is its argument, in the bytes of RFC 9113 and RFC 7541.
SERVER = f"""
import socketserver, struct, sys
BODY = bytes([0, 0, 0, 0, 2, 8, int(sys.argv[1])])
HEADERS = b"\\x88\\x00\\x0ccontent-type\\x10application/grpc"
TRAILERS = b"\\x00\\x0bgrpc-status\\x010"
def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
class Health(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.read(24)
        self.wfile.write(frame(4, 0, 0))
        while head := self.rfile.read(9):
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            self.rfile.read(int.from_bytes(head[:3], "big"))
            if kind == 4 and not flags & 1:
                self.wfile.write(frame(4, 1, 0))
            if kind == 0 and flags & 1:
                answer = frame(1, 4, stream, HEADERS), frame(0, 0, stream, BODY), frame(1, 5, stream, TRAILERS)
                self.wfile.write(b"".join(answer))
socketserver.ThreadingTCPServer(("", {PORT}), Health).serve_forever()
"""


def health(name: str, node: str, status: int) -> dict[str, Any]:
    """A pod whose health service says `status`."""
    probe = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
    command = ["python3", "-c", SERVER, str(status)]
    return pod(name, node, command, image=PYTHON, container={"readinessProbe": probe})


def probe(cluster: Cluster, node: str, address: str) -> int:
    """What the health service of a pod says to its node. Raises `OSError` if nothing is said."""
    namespace = open_netns(str(NETNS / cluster.spec.netns(node)))
    try:
        with inside(namespace):
            client = socket.socket()
    finally:
        os.close(namespace)
    with client:
        client.settimeout(5)
        client.connect((address, PORT))
        session = h2.connection.H2Connection()
        session.initiate_connection()
        path = "/grpc.health.v1.Health/Check"
        headers = [(":method", "POST"), (":scheme", "http"), (":authority", address), (":path", path)]
        session.send_headers(1, [*headers, ("te", "trailers"), ("content-type", "application/grpc")])
        session.send_data(1, bytes(5), end_stream=True)
        body = b""
        trailers: dict[bytes, bytes] = {}
        while not trailers:
            client.sendall(session.data_to_send())
            if not (data := client.recv(65536)):
                raise ConnectionError("the service closed the connection")
            for event in session.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    body += event.data
                elif isinstance(event, h2.events.TrailersReceived):
                    trailers = dict(event.headers)
        assert trailers == {b"grpc-status": b"0"}
        assert body[:-1] == b"\0\0\0\0\2\x08"
        return body[-1]
