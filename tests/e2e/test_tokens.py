"""`RequestAuthentication` through real daemons: the controller tells of the keys, noded checks with them."""

from __future__ import annotations

import json
import socket
import textwrap
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from tests.e2e.pods import Bed, Pods, eventually, read_all

PORT, KEYS_PORT = 8081, 8082
ISSUER = "https://issuer.example"
KEY, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
JWKS = json.dumps({"keys": [{**ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True), "kid": "k"}]})
RESOURCES = f"""\
apiVersion: v1
kind: Service
metadata: {{name: pages, namespace: shop}}
spec:
  selector: {{app: web}}
  ports: [{{name: http, port: {PORT}}}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  jwtRules:
    - issuer: {ISSUER}
      jwks: '{JWKS}'
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: readers, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  rules:
    - to: [{{operation: {{paths: [/public]}}}}]
    - from: [{{source: {{requestPrincipals: ["{ISSUER}/*"]}}}}]
      when: [{{key: "request.auth.claims[group]", values: [readers]}}]
"""


def token(key: ec.EllipticCurvePrivateKey = KEY, **claims: Any) -> str:
    said = {"iss": ISSUER, "sub": "ada", "exp": int(time.time()) + 600, "group": ["readers"], **claims}
    return jwt.encode(said, key, "ES256", {"kid": "k"})


def page(conn: socket.socket) -> None:
    """Say whether a request holds a token."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += conn.recv(65536)
    body = b"token" if b"authorization:" in head.lower() else b"none"
    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)


def status(bed: Bed, client: str, path: str = "/", bearer: str = "") -> tuple[int, bytes]:
    """Of a request to web, and the last line of the answer."""
    with bed[client].connect(bed["web"].v4, PORT) as conn:
        lines = [f"GET {path} HTTP/1.1", "Host: pages", "Connection: close"]
        lines += [f"Authorization: Bearer {bearer}"] if bearer else []
        conn.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = read_all(conn)
    return int(answer.split(b" ")[1]), answer.strip().rpartition(b"\n")[2]


def predicted(bed: Bed, path: str = "/", bearer: str = "") -> int:
    """The status that the controller says a client outside the mesh would get."""
    asked = {"from": "-", "to": f"shop/pages:{PORT}", "path": path, "token": bearer}
    (answer,) = bed.testbed.controller_api("POST", "/v1/policy-check", asked)["items"]
    refused = [one["status"] for one in answer["why"].get("token", {}).get("tried", ()) if one["problem"]]
    return 200 if answer["allowed"] else (refused or [403])[0]


@pytest.mark.parametrize("client", ["client", "outsider"])
def test_tokens_say_who_asks_in_tunnels_and_in_plaintext(bed: Bed, client: str) -> None:
    with bed["web"].serve(page, PORT) as server, bed.resources(textwrap.dedent(RESOURCES)):
        assert status(bed, client, "/public") == (200, b"none")
        assert status(bed, client) == (403, b"RBAC: access denied")
        assert status(bed, client, bearer=token()) == (200, b"none")
        assert status(bed, client, bearer=token(group=["writers"])) == (403, b"RBAC: access denied")
        served = len(server.peers)
        assert status(bed, client, "/public", token(OTHER)) == (401, b"Jwt verification fails")
        assert status(bed, client, "/public", token(exp=1)) == (401, b"Jwt is expired")
        assert len(server.peers) == served == 2
        for path, bearer, code in (
            ("/public", "", 200),
            ("/", "", 403),
            ("/", token(), 200),
            ("/", token(group=["writers"]), 403),
            ("/public", token(OTHER), 401),
            ("/public", token(exp=1), 401),
        ):
            assert predicted(bed, path, bearer) == code


def test_published_keys_are_fetched_by_the_controller_and_describe_says_if_they_are_not(bed: Bed) -> None:
    answers = [b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]

    def keys(conn: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += conn.recv(65536)
        conn.sendall(answers[-1])

    def described() -> str:
        command = ["meshctl", "describe", "requestauthentication", "tokens", "-n", "shop"]
        done = bed.testbed.capture(bed.testbed.enter("controller", command), bed.testbed.environment(None))
        return next((line for line in done.stdout.splitlines() if line.startswith("KeysFetched")), "")

    where = Pods(bed.testbed, "controller")
    published = RESOURCES.replace(f"jwks: '{JWKS}'", f"jwksUri: http://127.0.0.1:{KEYS_PORT}/keys")
    with where.serve(keys, KEYS_PORT), bed["web"].serve(page, PORT), bed.resources(published):
        eventually(lambda: "status 503" in described())
        assert status(bed, "client", bearer=token()) == (401, b"Jwks remote fetch is failed")
        body = JWKS.encode()
        answers.append(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        eventually(lambda: described().split() == ["KeysFetched:", "True"], 90)
        eventually(lambda: status(bed, "client", bearer=token()) == (200, b"none"))
        assert status(bed, "client", bearer=token(OTHER)) == (401, b"Jwt verification fails")
