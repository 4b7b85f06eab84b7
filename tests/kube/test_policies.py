"""Policies as the cluster's resources, from who may connect to what a token says and what a service is asked."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from kubebed.images import PYTHON
from tests.kube.mesh import Mesh, idle, service, vip
from tests.kube.pods import Space, eventually, pod, web

SYSTEM = "nodemesh-system"
KEYS = {f"https://{name}.example": ec.generate_private_key(ec.SECP256R1()) for name in ("inline", "fetched")}
INLINE, FETCHED = KEYS
# Publishes keys, and is asked whether a request may pass: if it says whose it is.
LOGINS = """
import http.server, sys
class Logins(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.path != "/keys"
        self.send_response(418 if asked and self.headers["x-user"] is None else 200)
        self.end_headers()
        self.wfile.write(b"who?" if asked else sys.argv[1].encode())
http.server.ThreadingHTTPServer(("", 8080), Logins).serve_forever()
"""
ASK = """
import sys, urllib.error, urllib.request
headers = dict(header.split("=", 1) for header in sys.argv[2:])
try:
    answer = urllib.request.urlopen(urllib.request.Request(f"http://{sys.argv[1]}/", headers=headers), timeout=5)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.read().decode().strip())
"""


def policy(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    """One for `web`."""
    selected = {"selector": {"matchLabels": {"app": "web"}}, **spec}
    return {"apiVersion": "nodemesh.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": selected}


def key_set(issuer: str) -> str:
    """Its public key."""
    return json.dumps({"keys": [{**ECAlgorithm.to_jwk(KEYS[issuer].public_key(), as_dict=True), "kid": "k"}]})


def token(issuer: str, signer: str = "") -> str:
    """A header with one of this issuer, signed by it or by another."""
    said = {"iss": issuer, "sub": "ada", "exp": int(time.time()) + 3600}
    return f"authorization=Bearer {jwt.encode(said, KEYS[signer or issuer], 'ES256', {'kid': 'k'})}"


def configure(shop: Space) -> None:
    """Give the controllers a provider to ask, as the documentation says; they are restarted on return, or nearly so."""
    logins = {"service": f"logins.{shop.name}.svc", "port": 80, "includeRequestHeadersInCheck": ["x-user"]}
    file = shop.cluster.get("-n", SYSTEM, "configmap", "nodemesh-controller")["data"]["controller.yaml"]
    config = yaml.safe_load(file) | {"extensionProviders": [{"name": "logins", "envoyExtAuthzHttp": logins}]}
    patch = json.dumps({"data": {"controller.yaml": yaml.safe_dump(config)}})
    shop.cluster.kubectl("-n", SYSTEM, "patch", "configmap", "nodemesh-controller", "--type=merge", "-p", patch)
    shop.cluster.kubectl("-n", SYSTEM, "rollout", "restart", "deployment/nodemesh-controller")


def test_policies_of_the_cluster_are_enforced(mesh: Mesh, shop: Space) -> None:
    configure(shop)
    shop.apply(service("web"), service("logins"))
    client, logins = (
        idle("client", "node-a", image=PYTHON),
        pod("logins", "node-b", ["python3", "-c", LOGINS, key_set(FETCHED)], image=PYTHON),
    )
    probe = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    logins["spec"]["containers"][0]["readinessProbe"] = probe
    shop.start(web("web", "node-b"), client, logins)
    at = vip(shop, "web")

    def asked(*headers: str) -> str:
        return shop.run("client", "python3", "-c", ASK, at, *headers).stdout.strip()

    eventually(lambda: asked() == "200 web")
    here = [{"from": [{"source": {"namespaces": [shop.name]}}]}]
    shop.apply(policy("AuthorizationPolicy", "nobody", action="DENY", rules=here))
    eventually(lambda: asked() == "403 RBAC: access denied")
    shop.kubectl("delete", "authorizationpolicies.nodemesh.dev", "nobody")
    eventually(lambda: asked() == "200 web")

    keys = f"http://{vip(shop, 'logins')}/keys"  # the controller fetches them: from outside the mesh, so in plaintext
    shop.apply(
        policy(
            "RequestAuthentication",
            "tokens",
            jwtRules=[{"issuer": INLINE, "jwks": key_set(INLINE)}, {"issuer": FETCHED, "jwksUri": keys}],
        ),
        policy("AuthorizationPolicy", "signed-in", rules=[{"from": [{"source": {"requestPrincipals": ["*/ada"]}}]}]),
    )
    eventually(lambda: asked() == "403 RBAC: access denied")
    eventually(lambda: {asked(token(issuer)) for issuer in KEYS} == {"200 web"})
    assert asked(token(INLINE, FETCHED)).startswith("401 ")

    shop.cluster.kubectl("-n", SYSTEM, "rollout", "status", "deployment/nodemesh-controller", "--timeout=60s")
    shop.apply(policy("AuthorizationPolicy", "ask", action="CUSTOM", provider={"name": "logins"}, rules=[{}]))
    eventually(lambda: asked(token(FETCHED)) == "418 who?")
    eventually(lambda: asked(token(FETCHED), "x-user=ada") == "200 web")
    assert asked("x-user=ada") == "403 RBAC: access denied"
