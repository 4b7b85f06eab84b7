"""L4 policy by identity, on live traffic."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import pytest

from tests.e2e.pods import Bed, Server, echo, eventually, talks


def policy(name: str, spec: str, annotations: str = "{}") -> str:
    """An AuthorizationPolicy for web."""
    return (
        f"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
        f"metadata: {{name: {name}, namespace: shop, annotations: {annotations}}}\n"
        f"spec:\n  selector: {{matchLabels: {{app: web}}}}\n{textwrap.indent(textwrap.dedent(spec), '  ')}"
    )


STRICT = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""
DENY_CLIENT = policy(
    "deny-client", 'action: DENY\nrules: [{from: [{source: {principals: ["cluster.local/ns/shop/sa/client"]}}]}]'
)


@pytest.fixture
def web(bed: Bed) -> Iterator[Server]:
    """An echo server in the pod web."""
    with bed["web"].serve(echo) as server:
        yield server


def reach(bed: Bed) -> dict[str, bool]:
    """Who gets through to web."""
    return {name: bed[name].reaches(bed["web"].v4) for name in ("client", "near", "stranger", "outsider")}


def test_without_policy_everybody_is_let_in_and_plaintext_too(bed: Bed, web: Server) -> None:
    assert reach(bed) == {"client": True, "near": True, "stranger": True, "outsider": True}
    assert web.peers[-1] == bed["outsider"].v4


def test_strict_refuses_plaintext_and_nothing_else(bed: Bed, web: Server) -> None:
    with bed.resources(STRICT):
        assert reach(bed) == {"client": True, "near": True, "stranger": True, "outsider": False}
    assert bed["outsider"].reaches(bed["web"].v4)


@pytest.mark.parametrize(
    ("spec", "let_in"),
    [
        ('action: DENY\nrules: [{from: [{source: {namespaces: ["other"]}}]}]', {"client", "near", "outsider"}),
        ('action: ALLOW\nrules: [{from: [{source: {namespaces: ["shop"]}}]}]', {"client", "near"}),
        ('action: ALLOW\nrules: [{from: [{source: {serviceAccounts: ["shop/near"]}}]}]', {"near"}),
        (
            'action: ALLOW\nrules: [{from: [{source: {notPrincipals: ["*/sa/client"]}}]}]',
            {"near", "stranger", "outsider"},
        ),
        ('action: ALLOW\nrules: [{from: [{source: {ipBlocks: ["10.77.2.0/24"]}}]}]', {"stranger", "outsider"}),
        ('action: DENY\nrules: [{to: [{operation: {ports: ["8080"]}}]}]', set()),
        ('action: DENY\nrules: [{to: [{operation: {ports: ["80"]}}]}]', {"client", "near", "stranger", "outsider"}),
        ("action: ALLOW", set()),
    ],
)
def test_a_policy_lets_in_whom_it_says(bed: Bed, web: Server, spec: str, let_in: set[str]) -> None:
    with bed.resources(policy("trial", spec)):
        assert {name for name, through in reach(bed).items() if through} == let_in


def test_deny_beats_allow(bed: Bed, web: Server) -> None:
    allow = policy("allow-all", "action: ALLOW\nrules: [{}]")
    with bed.resources(f"{allow}\n---\n{DENY_CLIENT}"):
        assert not bed["client"].reaches(bed["web"].v4)
        assert bed["near"].reaches(bed["web"].v4)


def test_a_dry_run_is_logged_and_changes_nothing(bed: Bed, web: Server) -> None:
    annotated = DENY_CLIENT.replace("annotations: {}", 'annotations: {"istio.io/dry-run": "true"}')
    rehearsal = annotated.replace("deny-client", "rehearsal")
    with bed.resources(rehearsal):
        assert bed["client"].reaches(bed["web"].v4)
        eventually(lambda: "shop/rehearsal" in bed.log("web"))


def test_a_refused_connection_is_logged_with_the_policy_and_the_identity(bed: Bed, web: Server) -> None:
    before = len(bed.log("web"))
    with bed.resources(DENY_CLIENT):
        assert not bed["client"].reaches(bed["web"].v4)
        lines = eventually(
            lambda: [line for line in bed.log("web")[before:].splitlines() if "shop/deny-client" in line]
        )
    assert "spiffe://cluster.local/ns/shop/sa/client" in lines[0]


def test_a_policy_change_closes_the_live_connections_that_it_denies_and_no_others(bed: Bed, web: Server) -> None:
    with (
        bed["client"].connect(bed["web"].v4) as denied,
        bed["near"].connect(bed["web"].v4) as allowed,
        bed["outsider"].connect(bed["web"].v4) as plaintext,
    ):
        assert talks(denied)
        assert talks(allowed)
        assert talks(plaintext)
        with bed.resources(f"{DENY_CLIENT}\n---\n{STRICT}"):
            for closed in (denied, plaintext):
                with pytest.raises(ConnectionError):
                    closed.recv(1)
            assert talks(allowed)
        assert bed["client"].reaches(bed["web"].v4)
