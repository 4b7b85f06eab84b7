"""CUSTOM and AUDIT policies through a real pair of workers: a service is asked before a request passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mesh.model import Action, ExtAuthz, Operation, Policy, Rule
from mesh.paths import Normalization
from tests.noded.data.lab import Lab, Pod, server
from tests.noded.data.test_http import Web, asked, logged, pair, service

__all__ = ["pair"]
pytestmark = pytest.mark.root

PROVIDER = ExtAuthz(
    "asker",
    "shop/asker",
    80,
    path_prefix="/check",
    timeout=2.0,
    include_headers=("x-token", "x-in-*"),
    add_headers=(("x-asks", "web"),),
    upstream_on_allow=("x-user",),
    downstream_on_deny=("x-why",),
)
CUSTOM = Policy(
    "custom", "shop", Action.CUSTOM, (Rule((), (Operation(paths=("/a*",)),)),), {"app": "web"}, provider="asker"
)
ASKING = (
    b"GET /a?b=c HTTP/1.1\r\nHost: web\r\nX-Token: t\r\nX-In-Y: y\r\nX-Other: o\r\nX-User: root\r\n"
    b"Authorization: secret\r\n\r\n"
)
YES = b"HTTP/1.1 200 OK\r\nX-User: ada\r\nX-Else: e\r\nContent-Length: 0\r\n\r\n"
NO = b"HTTP/1.1 418 No\r\nX-Why: tea\r\nX-Else: e\r\nLocation: /login\r\nContent-Length: 5\r\n\r\nnever"


async def put(made: Lab, *policies: Policy, **provider: Any) -> None:
    made.policies = policies
    made.config = replace(made.config, providers=(replace(PROVIDER, **provider),))
    await made.publish()


@pytest.fixture
async def trio_of(pair: tuple[Lab, Pod, Pod]) -> tuple[Lab, Pod, Pod, Pod]:
    made, client, web = pair
    asker = made.pod("asker")
    await made.enrol(asker)
    made.services = (service(web), service(asker, name="asker", vip="10.96.0.2"))
    await put(made, CUSTOM)
    return made, client, web, asker


async def test_what_is_permitted_passes_with_what_was_said(trio_of: tuple[Lab, Pod, Pod, Pod]) -> None:
    made, client, pod, asker = trio_of
    web, judge = Web(), Web(YES)
    with server(pod, 8080, web), server(asker, 8080, judge):
        assert (await asked(client, ASKING)).startswith(b"HTTP/1.1 200 ")
        assert (await asked(client, ASKING.replace(b"/a", b"/b"))).startswith(b"HTTP/1.1 200 ")
    assert len(judge.heads) == 1
    lines = judge.heads[0].split(b"\r\n")
    assert lines[0] == b"GET /check/a?b=c HTTP/1.1"
    assert {b"host: web", b"x-token: t", b"x-in-y: y", b"x-asks: web", b"content-length: 0"} <= set(
        map(bytes.lower, lines)
    )
    assert not any(line.lower().startswith((b"x-other", b"x-user", b"authorization")) for line in lines)
    told = web.heads[0].lower().split(b"\r\n")
    assert b"x-user: ada" in told
    assert b"x-user: root" not in told
    assert not any(line.startswith(b"x-else") for line in told)
    (connection,) = await made.query(asker, "connections")
    assert connection["source_identity"] == pod.identity, connection


async def test_what_is_refused_gets_the_answer_of_who_was_asked(trio_of: tuple[Lab, Pod, Pod, Pod]) -> None:
    _made, client, pod, asker = trio_of
    web = Web()
    with server(pod, 8080, web), server(asker, 8080, Web(NO)):
        answer = await asked(client, ASKING)
    assert answer.startswith(b"HTTP/1.1 418 ")
    assert b"\r\nx-why: tea\r\n" in answer
    assert b"\r\nlocation: /login\r\n" in answer
    assert b"x-else" not in answer
    assert answer.endswith(b"\r\n\r\nnever")
    assert web.heads == []
    (line,) = [line for line in await logged(pod) if line["direction"] == "inbound"]
    assert (line["response_code"], line["response_flags"], line["reason"]) == (
        418,
        "UAEX",
        "shop/custom rule 0: asker says no",
    )


@pytest.mark.parametrize("fail_open", [False, True])
async def test_who_is_not_heard_refuses_unless_it_is_to_fail_open(
    trio_of: tuple[Lab, Pod, Pod, Pod], fail_open: bool
) -> None:
    made, client, pod, asker = trio_of
    await put(made, CUSTOM, fail_open=fail_open, status_on_error=503)
    web = Web()
    expected = b"HTTP/1.1 200 " if fail_open else b"HTTP/1.1 503 "
    with server(pod, 8080, web):
        assert (await asked(client, ASKING)).startswith(expected)  # nobody listens
        with server(asker, 8080, Web(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")):
            assert (await asked(client, ASKING)).startswith(expected)
        with server(asker, 8080, Web(b"")):  # never answers
            assert (await asked(client, ASKING)).startswith(expected)
    assert len(web.heads) == 3 * fail_open


async def test_custom_comes_before_deny_and_an_unknown_provider_refuses(trio_of: tuple[Lab, Pod, Pod, Pod]) -> None:
    made, client, pod, asker = trio_of
    web, judge = Web(), Web(YES)
    deny = Policy("deny", "shop", Action.DENY, (Rule((), (Operation(paths=("/a",)),)),), {"app": "web"})
    with server(pod, 8080, web), server(asker, 8080, judge):
        await put(made, CUSTOM, deny)
        assert (await asked(client, ASKING)).endswith(b"RBAC: access denied\n")
        assert len(judge.heads) == 1
        await put(made, replace(CUSTOM, provider="other"))
        assert (await asked(client, ASKING)).startswith(b"HTTP/1.1 403 ")
        assert len(judge.heads) == 1
    assert web.heads == []


async def test_what_is_not_http_is_closed_by_a_custom_policy(trio_of: tuple[Lab, Pod, Pod, Pod]) -> None:
    made, client, pod, asker = trio_of
    made.services = (replace(service(pod), ports=(replace(service(pod).ports[0], app_protocol="tcp"),)),)
    await made.publish()
    web = Web()
    with server(pod, 8080, web), server(asker, 8080, Web(YES)):
        try:
            answer = await asked(client, ASKING)
        except OSError:
            answer = b""
    assert (answer, web.heads) == (b"", [])


async def test_paths_are_given_the_form_that_the_mesh_is_configured_for(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    made.policies = (Policy("admin", "shop", Action.DENY, (Rule((), (Operation(paths=("/admin/x",)),)),)),)
    asking = [b"GET %b HTTP/1.1\r\nHost: web\r\n\r\n" % path for path in (b"/admin//x", b"/admin%2fx", b"/%61dmin/x")]
    web = Web()
    with server(pod, 8080, web):
        for mode, refused in (("NONE", 0), ("BASE", 1), ("MERGE_SLASHES", 2), ("DECODE_AND_MERGE_SLASHES", 3)):
            made.config = replace(made.config, path_normalization=Normalization(mode))
            await made.publish()
            assert (await asked(client, b"".join(asking))).count(b"HTTP/1.1 403 ") == refused
    assert [head.split()[1] for head in web.heads[:3]] == [b"/admin//x", b"/admin%2fx", b"/%61dmin/x"]


async def test_what_audit_policies_match_is_marked_in_the_log_and_passes(pair: tuple[Lab, Pod, Pod]) -> None:
    made, client, pod = pair
    rules = Rule((), (Operation(methods=("POST",)),)), Rule((), (Operation(paths=("/a",)),))
    made.policies = (Policy("watched", "shop", Action.AUDIT, rules),)
    await made.publish()
    with server(pod, 8080, Web()):
        assert (await asked(client, ASKING + ASKING.replace(b"/a", b"/b"))).count(b"HTTP/1.1 200 ") == 2
    first, second = await logged(pod, 2)
    assert first["audit"] == ["shop/watched rule 1"]
    assert "audit" not in second
