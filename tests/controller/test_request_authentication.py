from __future__ import annotations

import contextlib
import datetime
import gzip
import http.server
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from controller.daemon import Daemon
from controller.issuer_keys import FetchError, IssuerKeys, fetch_url
from controller.kubernetes.policies import declared
from controller.schema.manifests import load
from controller.store import Resource
from controller.translate import KeySource, World, policy, world
from mesh import jwks
from mesh.authz import Authorizer, Denial, Peer
from mesh.model import JwtRule
from tests.controller.conftest import config_in
from tests.controller.test_publish import Source, a_workload, a_world

KEY = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
JWKS = json.dumps({"keys": [{**KEY, "kid": "a", "use": "sig", "x5c": ["…"]}, {"kty": "RSA", "use": "enc"}]})
PACKED = gzip.compress(bytes(64 * jwks.MAX_BYTES))
ISSUER = "https://issuer.example"


class Known:
    """Keys as if they had been fetched."""

    def __init__(self, **sets: str) -> None:
        self.sets = sets
        self.kept: list[KeySource] = []

    def of(self, source: KeySource) -> tuple[str, str]:
        found = self.sets.get(source.uri.rpartition("/")[2], "")
        return found, "" if found else "no answer"

    def keep(self, sources: Any) -> None:
        self.kept = list(sources)


def built(rules: list[dict[str, Any]], keys: Known | None = None) -> World:
    metadata = {"name": "tokens", "namespace": "shop"}
    spec = {"selector": {"matchLabels": {"app": "web"}}, "jwtRules": rules}
    text = yaml.safe_dump(
        {"apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication", "metadata": metadata, "spec": spec}
    )
    manifests, problems = load([("f", text)])
    assert problems == []
    return world([Resource(*m.key, m.body, "uid", 1, 1, 0) for m in manifests], {}, keys=keys)


def test_every_field_of_a_rule_arrives() -> None:
    rule = {
        "issuer": ISSUER,
        "audiences": ["shop"],
        "jwks": JWKS,
        "fromHeaders": [{"name": "X-Token", "prefix": "jwt "}, {"name": "y"}],
        "fromParams": ["t"],
        "fromCookies": ["c"],
        "outputPayloadToHeader": "x-payload",
        "forwardOriginalToken": True,
        "outputClaimToHeaders": [{"header": "x-sub", "claim": "sub"}],
        "timeout": "1s",
    }
    (auth,) = built([rule]).request_auths
    assert (auth.key, auth.selector) == ("shop/tokens", {"app": "web"})
    assert auth.rules == (
        JwtRule(
            ISSUER,
            jwks.write(({"kty": "EC", "kid": "a", **{part: KEY[part] for part in ("crv", "x", "y")}},)),
            "",
            ("shop",),
            (("X-Token", "jwt "), ("y", "")),
            ("t",),
            ("c",),
            "x-payload",
            True,
            (("x-sub", "sub"),),
        ),
    )


def test_keys_that_are_published_come_from_who_fetches_them_and_without_them_a_rule_says_why() -> None:
    keys = Known(good='{"keys":[]}')
    rules = [
        {"issuer": "a", "jwksUri": "https://keys.example/good", "timeout": "2s"},
        {"issuer": "b", "jwksUri": "https://keys.example/bad"},
        {"issuer": ISSUER},
        {"issuer": "c", "jwks": JWKS},
    ]
    (auth,) = built(rules, keys).request_auths
    assert [(rule.issuer, bool(rule.jwks), rule.problem) for rule in auth.rules] == [
        ("a", True, ""),
        ("b", False, "no answer"),
        (ISSUER, False, "no answer"),
        ("c", True, ""),
    ]
    problems = f"issuer b: no answer; issuer {ISSUER}: no answer"
    assert built(rules, keys).key_problems == {"shop/tokens": problems}
    assert built(rules[:1], keys).key_problems == {"shop/tokens": ""}
    assert built(rules[3:], keys).key_problems == {}
    built(rules, keys)
    assert keys.kept == [
        KeySource("a", "https://keys.example/good", 2.0),
        KeySource("b", "https://keys.example/bad", 5.0),
        KeySource(ISSUER, "", 5.0),
    ]


def test_a_namespace_with_many_issuers_does_not_crowd_out_anothers() -> None:
    def one(namespace: str, *uris: str) -> Resource:
        spec = {"jwtRules": [{"issuer": ISSUER, "jwksUri": uri} for uri in uris]}
        key = ("RequestAuthentication", namespace, "tokens")
        return Resource(*key, {"metadata": {"name": "tokens", "namespace": namespace}, "spec": spec}, "uid", 1, 1, 0)

    keys = Known()
    many = [one("a", *(f"https://a/{number}-{rule}" for rule in range(32))) for number in range(10)]
    world([*many, one("shop", "https://shop/keys")], {}, keys=keys)
    assert len(keys.kept) == 321
    assert keys.kept[1].uri == "https://shop/keys"


def test_only_nodes_whose_workloads_it_concerns_are_told_of_one() -> None:
    auths = built([{"issuer": ISSUER, "jwks": JWKS}]).request_auths
    web, other = a_workload("web"), a_workload("other", "10.77.0.2", node="node-b")
    source = Source(a_world(web, other, request_auths=auths))
    assert source.publisher.update("node-a", None).request_auths == auths
    assert source.publisher.update("node-b", None).request_auths == ()
    base = source.publisher.epoch, source.publisher.revision
    source.publish(a_world(web, other))
    assert source.publisher.update("node-a", base, ((), (), auths)).removed == (f"q:{auths[0].key}",)


def test_one_that_cannot_be_read_closes_what_it_selects() -> None:
    spec = {"selector": {"matchLabels": {"app": "web"}}, "jwtRules": [{"issuer": "a", "jwks": "{}"}]}
    body = {"metadata": {"name": "t", "namespace": "shop", "uid": "u"}, "spec": spec}
    entry = declared("RequestAuthentication")(body)
    assert "has no list 'keys'" in entry.problem
    assert entry.resource is not None
    assert entry.resource.kind == "AuthorizationPolicy"
    closed = policy(entry.resource)
    for labels, refused in (({"app": "web"}, True), ({"app": "db"}, False)):
        authorizer = Authorizer.of((closed,), (), namespace="shop", labels=labels, root_namespace="nodemesh-system")
        verdict = authorizer.check(Peer(None, "10.0.0.1", "10.0.0.2", 80))
        assert isinstance(verdict, Denial) is refused


# -- fetching ---------------------------------------------------------------------------------------------------------

SOURCE = KeySource(ISSUER, "https://issuer.example/keys", 5.0)
MANIFEST = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec: {jwtRules: [{issuer: "https://issuer.example", jwksUri: "%s"}]}
"""


class Web:
    """Answers by URL: bytes, an error, or None to hang."""

    def __init__(self, **answers: bytes | str | None) -> None:
        self.answers = {f"{ISSUER}/{name.replace('__', '/')}": answer for name, answer in answers.items()}
        self.asked: list[str] = []
        self.changes = 0

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        answer = self.answers.get(url, "status 404")
        if answer is None:
            await trio.sleep_forever()
        if isinstance(answer, str):
            raise FetchError(f"{url}: {answer}")
        assert answer is not None
        return answer

    def changed(self) -> None:
        self.changes += 1


async def test_keys_are_fetched_again_and_the_last_good_ones_are_kept(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    web = Web(keys=JWKS.encode())
    keys = IssuerKeys(web.changed, web.fetch)
    assert keys.of(SOURCE)[0] == ""
    nursery.start_soon(keys.run)
    keys.keep([SOURCE])
    await trio.sleep(1)
    good = jwks.write(jwks.read(JWKS))
    assert (keys.of(SOURCE), web.changes) == ((good, ""), 1)
    web.answers[SOURCE.uri] = "status 500"
    await trio.sleep(20 * 60)
    key_set, problem = keys.of(SOURCE)
    assert key_set == good
    assert problem.endswith("status 500")
    web.answers[SOURCE.uri] = JWKS.replace('"a"', '"b"').encode()
    await trio.sleep(60)
    assert (keys.of(SOURCE), web.changes) == ((good.replace('"a"', '"b"'), ""), 3)
    keys.keep([])
    count = len(web.asked)
    await trio.sleep(3600)
    assert len(web.asked) == count


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "no answer within 5 s"),
        ("status 503", "status 503"),
        (b"<html>", "not JSON"),
        (b'{"keys": [{"kty": "oct", "k": "AA"}]}', "shared secret"),
        (b'{"keys": [{"kty": "EC", "d": "AA"}]}', "private key"),
        (b'{"keys": []}', "no public key"),
    ],
)
async def test_what_is_no_key_set_says_so(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, answer: bytes | str | None, problem: str
) -> None:
    web = Web(keys=answer)
    keys = IssuerKeys(web.changed, web.fetch)
    keys.keep([SOURCE])
    nursery.start_soon(keys.run)
    await trio.sleep(5.5)
    key_set, said = keys.of(SOURCE)
    assert key_set == ""
    assert problem in said


async def test_without_an_address_the_issuer_is_asked_for_it(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    configuration = json.dumps({"jwks_uri": f"{ISSUER}/elsewhere"}).encode()
    web = Web(elsewhere=JWKS.encode())
    web.answers[f"{ISSUER}/.well-known/openid-configuration"] = configuration
    keys = IssuerKeys(web.changed, web.fetch)
    source = KeySource(ISSUER, "", 5.0)
    keys.keep([source])
    nursery.start_soon(keys.run)
    await trio.sleep(1)
    assert keys.of(source) == (jwks.write(jwks.read(JWKS)), "")
    web.answers[f"{ISSUER}/.well-known/openid-configuration"] = b'{"jwks_uri": "http://issuer.example/elsewhere"}'
    await trio.sleep(20 * 60)
    assert keys.of(source)[1].endswith("no jwks_uri that is a URL")


async def test_a_controller_that_starts_tells_no_node_that_there_are_no_keys_while_it_fetches_them(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async def publish(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await trio.sleep(0.5)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(JWKS))
        await stream.send_all(JWKS.encode())

    (listener,) = await nursery.start(partial(trio.serve_tcp, publish, 0, host="127.0.0.1"))
    uri = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/keys"
    before = Daemon(config_in(tmp_path))
    before.home.resources.apply([("tokens", MANIFEST % uri)])
    before.close()
    daemon = Daemon(config_in(tmp_path))
    try:
        await nursery.start(daemon.run)  # until it serves nodes
        assert daemon.publisher.world.request_auths[0].rules[0].jwks
    finally:
        daemon.close()


# -- over HTTP --------------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves keys, something large, something that would be, and a redirection."""

    def do_GET(self) -> None:
        body = {"/keys": JWKS.encode(), "/packed": PACKED}.get(self.path, b"x" * (jwks.MAX_BYTES + 1))
        self.send_response(302 if self.path == "/moved" else 200)
        if self.path == "/packed":
            self.send_header("content-encoding", "gzip")
        if self.path == "/moved":
            self.send_header("location", "/keys")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not on standard error."""


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on loopback; its port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


async def test_what_is_fetched_is_bounded_and_comes_from_where_it_was_asked() -> None:
    with serving() as port:
        assert await fetch_url(f"http://127.0.0.1:{port}/keys") == JWKS.encode()
        with pytest.raises(FetchError, match="more than 131072 bytes"):
            await fetch_url(f"http://127.0.0.1:{port}/large")
        assert await fetch_url(f"http://127.0.0.1:{port}/packed") == PACKED, "not unpacked"
        with pytest.raises(FetchError, match="status 302"):
            await fetch_url(f"http://127.0.0.1:{port}/moved")
    with pytest.raises(FetchError, match=f"http://127.0.0.1:{port}/keys"):
        await fetch_url(f"http://127.0.0.1:{port}/keys")


async def test_a_server_whose_certificate_nobody_vouches_for_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority()
    chain, key = authority.issue_for("127.0.0.1")
    (tmp_path / "chain.pem").write_bytes(chain + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain.pem")
    with serving(context) as port:
        with pytest.raises(FetchError, match="certificate"):
            await fetch_url(f"https://127.0.0.1:{port}/keys")
        (tmp_path / "roots.pem").write_bytes(authority.roots)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
        assert await fetch_url(f"https://127.0.0.1:{port}/keys") == JWKS.encode()


class Authority:
    """Makes a certificate for an address."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test root")])
        self.roots = self._signed(self._name, self._key.public_key(), x509.BasicConstraints(True, None))

    def issue_for(self, address: str) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._signed(x509.Name([]), key.public_key(), names), private

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(hours=1)).add_extension(extension, True)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
