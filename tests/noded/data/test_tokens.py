"""Requests with JSON Web Tokens through a real pair of workers; the test is the control process that checks them."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import jwt
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import ec

from mesh import jwks
from mesh.model import Action, JwtRule, Operation, Policy, RequestAuth, Rule, Source
from mesh.request_auth import TokenRules
from noded.control.token_keys import TokenKeys
from noded.data.http.tokens import Tokens
from noded.link import CheckToken, TokenChecked
from tests.noded.data.lab import Lab, Pod, server
from tests.noded.data.test_http import VIP, Web, asked, logged, pair
from tests.noded.data.test_http2 import run

__all__ = ["pair"]
pytestmark = pytest.mark.root

KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
ISSUER = "https://issuer.example"


def key_set(*keys: ec.EllipticCurvePrivateKey) -> str:
    stated = [jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True) for key in keys]
    return jwks.write(tuple({**key, "kid": f"k{index}"} for index, key in enumerate(stated)))


def token(key: ec.EllipticCurvePrivateKey = KEY, **claims: Any) -> bytes:
    said = {"iss": ISSUER, "sub": "ada", "exp": int(time.time()) + 600, **claims}
    return jwt.encode(said, key, "ES256", {"kid": "k0"}).encode()


def auth(*rules: JwtRule) -> RequestAuth:
    return RequestAuth("tokens", "shop", rules or (JwtRule(ISSUER, key_set(KEY)),))


def get(*headers: bytes, path: bytes = b"/a") -> bytes:
    return b"\r\n".join([b"GET %b HTTP/1.1" % path, b"Host: web", *headers, b"", b""])


def bearer(value: bytes) -> bytes:
    return b"Authorization: Bearer " + value


@asynccontextmanager
async def checking(made: Lab, pod: Pod) -> AsyncIterator[list[CheckToken]]:
    """Answer what the pod's worker asks; what it asked so far."""
    questions: list[CheckToken] = []
    keys = TokenKeys()
    keys.adopt(made.request_auths)

    async def answer() -> None:
        assert pod.link is not None
        while (received := await pod.link.receive()) is not None:
            if isinstance(message := received[0], CheckToken):
                questions.append(message)
                await pod.link.send(TokenChecked(message.request, keys.check(message.token, message.key_set)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        yield questions
        nursery.cancel_scope.cancel()


async def test_an_invalid_token_is_401_and_never_reaches_the_workload(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.request_auths = (auth(),)
    await made.publish()
    web = Web()
    refused = [
        (token(OTHER_KEY), b"Jwt verification fails"),
        (token(exp=int(time.time()) - 100), b"Jwt is expired"),
        (token(iss="https://else.example"), b"Jwt issuer is not configured"),
        (jwt.encode({"iss": ISSUER}, "", "none").encode(), b"Jwt signature is an invalid Base64url encoded"),
        (jwt.encode({"iss": ISSUER}, "secret" * 8, "HS256").encode(), b"Jwt header [alg] is not supported"),
        (b"nonsense", b"Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"),
    ]
    with server(pod, 8080, web):
        async with checking(made, pod) as questions:
            for value, why in refused:
                answer = await asked(client, get(bearer(value)))
                assert answer.startswith(b"HTTP/1.1 401 "), why
                assert answer.endswith(why + b"\n")
                assert b'www-authenticate: Bearer realm="http://web/a", error="invalid_token"' in answer
            assert len(questions) == 1  # the others need no key to be refused
    assert web.heads == []
    line = (await logged(pod))[-1]
    assert (line["response_code"], line["reason"]) == (401, refused[-1][1].decode())
    assert (line["response_code_details"], line["upstream_host"]) == ("jwt_authn_access_denied", None)
    assert line["upstream_service_time"] is None


async def test_a_request_without_a_token_passes_without_an_identity(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.request_auths = (auth(),)
    await made.publish()
    web = Web()
    with server(pod, 8080, web):
        assert (await asked(client, get(b"Authorization: Basic YTpi"))).startswith(b"HTTP/1.1 200 ")
        assert b"authorization: Basic YTpi" in web.heads[0].splitlines()
        required = Rule((Source(request_principals=("*",)),))
        made.policies = (Policy("tokens", "shop", Action.ALLOW, (required,)),)
        await made.publish()
        assert (await asked(client, get())).startswith(b"HTTP/1.1 403 ")
    assert len(web.heads) == 1


async def test_claims_decide_and_the_token_is_checked_once_and_taken_out(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.request_auths = (auth(),)
    made.policies = (
        Policy(
            "ada",
            "shop",
            Action.ALLOW,
            (Rule((Source(request_principals=(f"{ISSUER}/ada",)),), (Operation(paths=("/a",)),)),),
        ),
    )
    await made.publish()
    web = Web()
    with server(pod, 8080, web):
        async with checking(made, pod) as questions:
            ada, bob = token(), token(sub="bob")
            assert (await asked(client, get(bearer(ada)) * 3)).count(b"HTTP/1.1 200 ") == 3
            assert (await asked(client, get(bearer(bob)))).startswith(b"HTTP/1.1 403 ")
            assert [q.token for q in questions] == [ada, bob]
    assert len(web.heads) == 3
    assert not any(b"authorization" in head.lower() for head in web.heads)


async def test_tokens_come_from_where_the_rule_says_and_go_where_it_says(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    rule = JwtRule(
        ISSUER,
        key_set(KEY),
        from_headers=(("x-token", "jwt "),),
        from_params=("t",),
        from_cookies=("session",),
        output_payload_to_header="x-payload",
        output_claim_to_headers=(("x-sub", "sub"), ("x-team", "of.team")),
    )
    made.request_auths = (auth(rule),)
    await made.publish()
    web = Web()
    value = token(of={"team": 7})
    with server(pod, 8080, web):
        async with checking(made, pod) as questions:
            for asking in (
                get(b"X-Token: jwt " + value, b"X-Sub: root"),
                get(path=b"/a?x=1&t=" + value + b"&y"),
                get(b"Cookie: a=b; session=" + value + b"; c=d"),
            ):
                assert (await asked(client, asking)).startswith(b"HTTP/1.1 200 ")
            assert len(questions) == 1
            assert (await asked(client, get(b"X-Sub: root", b"X_Sub: root"))).startswith(b"HTTP/1.1 200 ")
            chunked = get(b"Transfer-Encoding: chunked") + b"0\r\nX-Sub: root\r\nx_sub: root\r\nx-other: o\r\n\r\n"
            assert (await asked(client, chunked)).startswith(b"HTTP/1.1 200 ")
            assert (await asked(client, get())).startswith(b"HTTP/1.1 200 ")
    for head in web.heads[:3]:
        lines = head.split(b"\r\n")
        assert value not in head
        assert lines.count(b"x-sub: ada") == lines.count(b"x-team: 7") == head.count(b"x-sub") == 1
        assert b"x-payload: " + value.split(b".")[1] in lines
    assert web.heads[1].startswith(b"GET /a?x=1&y ")
    assert b"cookie: a=b; c=d" in web.heads[2].split(b"\r\n")
    assert b"sub" not in web.heads[3]
    assert web.heads[5].startswith(b"0\r\nx-other: o"), "which `Web` takes for the head after the body"


async def test_where_nobody_checks_a_token_the_request_is_refused_in_time(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.request_auths = (auth(),)
    await made.publish()
    web = Web()
    with server(pod, 8080, web):
        answer = await asked(client, get(bearer(token())))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert web.heads == []


async def test_without_an_issuers_keys_its_tokens_are_refused(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.request_auths = (auth(JwtRule(ISSUER, "", "no answer")),)
    await made.publish()
    web = Web()
    with server(pod, 8080, web):
        answer = await asked(client, get(bearer(token())))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert answer.endswith(b"\r\n\r\nJwks remote fetch is failed\n")
    assert (await logged(pod))[-1]["reason"] == "Jwks remote fetch is failed: no answer"
    assert web.heads == []


@pytest.mark.parametrize("enrolled", [True, False], ids=["in a tunnel", "in plaintext"])
@pytest.mark.parametrize("odd", [b"\r\nGET", b"get", b" GET"])
async def test_at_a_port_that_declares_http_nothing_goes_past_the_check_for_being_written_oddly(
    pair: tuple[Lab, Pod, Pod], odd: bytes, enrolled: bool
) -> None:
    """Many servers take these for requests, and this one believes `x-sub`."""
    made, client, pod = pair
    if not enrolled:
        client = made.pod("outside")
    made.request_auths = (auth(JwtRule(ISSUER, key_set(KEY), output_claim_to_headers=(("x-sub", "sub"),))),)
    await made.publish()
    arrived: list[bytes] = []

    def careless(connection: socket.socket) -> None:
        arrived.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    request = get(b"x-sub: root").replace(b"GET", odd, 1)
    with server(pod, 8080, careless), client.connect(pod.address, 8080) as sock:
        sock.sendall(request)
        answer = await trio.to_thread.run_sync(sock.recv, 65536)
    if odd == b"\r\nGET":  # as RFC 9112 section 2.2 wants it
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"x-sub" not in arrived[0]
    else:
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
        assert arrived == []


async def test_an_audience_that_is_not_allowed_is_403(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.request_auths = (auth(JwtRule(ISSUER, key_set(KEY), audiences=("https://shop.example/",))),)
    await made.publish()
    web = Web()
    with server(pod, 8080, web):
        async with checking(made, pod):
            answer = await asked(client, get(bearer(token(aud=["blog", "bank"]))))
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert (await asked(client, get(bearer(token(aud="shop.example"))))).startswith(b"HTTP/1.1 200 ")
    assert len(web.heads) == 1


async def test_a_grpc_client_is_told_that_it_is_unauthenticated(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, _pod = pair
    made.request_auths = (auth(),)
    await made.publish()
    headers = "content-type: application/grpc", "authorization: Bearer a.b.c", "te: trailers"
    asking = ["curl", "-s", "--http2-prior-knowledge", "-i", "-m", "20", "-X", "POST", f"http://{VIP}/s/m"]
    answer = await run(client, *asking, *(word for header in headers for word in ("-H", header)))
    assert "grpc-status: 16" in answer
    assert "grpc-message: Jwt header is an invalid Base64url encoded" in answer


class Bench:
    """`Tokens` without a worker."""

    def __init__(self) -> None:
        self.tokens = Tokens(cast(Any, self), cast(Any, self))
        self.rule = TokenRules.of([auth()], namespace="shop", labels={}, root_namespace="").rules[0]  # type: ignore[union-attr]  # one applies

    def wake(self, event: trio.Event) -> None:
        event.set()

    def after(self, _seconds: float, _call: Any) -> Any:
        return trio.CancelScope()  # what has a `cancel`

    def check(self, source: str, value: bytes) -> list[Any]:
        """What is said of it, as soon as it is."""
        said: list[Any] = []
        self.tokens.check(self.rule, value, source, said.append)
        return said

    async def answer(self, problem: str = "") -> list[bytes]:
        """Say this of all that is asked, one after the other; which tokens these were."""
        sent: list[CheckToken] = []

        async def send(message: CheckToken) -> None:
            sent.append(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.tokens.run, send)
            await trio.testing.wait_all_tasks_blocked()
            answered = 0
            while answered < len(sent):
                self.tokens.answered(TokenChecked(sent[answered].request, problem))
                answered += 1
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return [message.token for message in sent]


async def test_who_has_many_tokens_checked_leaves_room_and_turns_to_others() -> None:
    bench = Bench()
    many = [bench.check("hog", token(sub=f"{number}")) for number in range(600)]
    refused = [said[0] for said in many if said]
    assert len(refused) >= 300
    assert {(error.reason, error.status) for error in refused} == {("too many tokens are being checked", 503)}
    mine = token(sub="ada")
    heard = bench.check("ada", mine)
    assert heard == []
    order = await bench.answer()
    assert order.index(mine) < 8
    assert heard[0].claims["sub"] == "ada"
    assert all(many)
    assert bench.check("hog", token(sub="more")) == []


async def test_made_up_tokens_do_not_drive_out_what_is_known_of_good_ones() -> None:
    bench = Bench()
    good = token(sub="ada")
    bench.check("ada", good)
    await bench.answer()
    for begin in range(0, 6000, 200):
        for number in range(begin, begin + 200):
            bench.check("hog", good[:-8] + b"%08d" % number)
        await bench.answer("Jwt verification fails")
    assert bench.check("ada", good)[0].claims["sub"] == "ada"
