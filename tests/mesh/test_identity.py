"""SPIFFE ids: what is accepted, what is not, and when certificates are renewed."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity import Identity, IdentityError, check_trust_domain, node_uri, parse_node_uri, renew_at

segments = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=253).filter(
    lambda text: text not in (".", "..")
)
trust_domains = st.text(string.ascii_lowercase + string.digits + "._-", min_size=1, max_size=255)


@given(trust_domains, segments, segments)
def test_an_identity_is_read_back_from_its_uri(trust_domain: str, namespace: str, account: str) -> None:
    identity = Identity(trust_domain, namespace, account)
    assert Identity.parse(identity.uri) == identity
    assert identity.uri == f"spiffe://{identity.principal}" == f"spiffe://{trust_domain}/ns/{namespace}/sa/{account}"


@given(trust_domains, segments)
def test_a_node_is_read_back_from_its_uri(trust_domain: str, node: str) -> None:
    assert parse_node_uri(node_uri(trust_domain, node)) == (trust_domain, node)


@given(st.text())
def test_no_text_is_read_as_anything_but_itself(text: str) -> None:
    for candidate in (text, f"spiffe://{text}", f"spiffe://td/ns/{text}", f"spiffe://td/ns/a/sa/{text}"):
        try:
            identity = Identity.parse(candidate)
        except IdentityError:
            continue
        assert identity.uri == candidate


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "https://td/ns/a/sa/b",
        "SPIFFE://td/ns/a/sa/b",
        "spiffe:/td/ns/a/sa/b",
        "spiffe:///ns/a/sa/b",
        "spiffe://TD/ns/a/sa/b",
        "spiffe://td:80/ns/a/sa/b",
        "spiffe://user@td/ns/a/sa/b",
        "spiffe://td/ns/a/sa/b/",
        "spiffe://td//ns/a/sa/b",
        "spiffe://td/ns/a/sa/b/c",
        "spiffe://td/ns/a/sa/",
        "spiffe://td/ns//sa/b",
        "spiffe://td/ns/../sa/b",
        "spiffe://td/ns/./sa/b",
        "spiffe://td/ns/a/sa/b?c",
        "spiffe://td/ns/a/sa/b#c",
        "spiffe://td/ns/a%2f/sa/b",
        "spiffe://td/ns/a/sa/b\n",
        "spiffe://td\n/ns/a/sa/b",
        "spiffe://td/ns/ä/sa/b",
        "spiffe://td/ns/a/sb/b",
        "spiffe://td/node/n",
        "spiffe://" + "t" * 256 + "/ns/a/sa/b",
        "spiffe://td/ns/a/sa/" + "b" * 254,
        "spiffe://td/ns/a/sa/" + "b" * 2048,
    ],
)
def test_what_is_no_workloads_spiffe_id_is_refused(uri: str) -> None:
    with pytest.raises(IdentityError):
        Identity.parse(uri)


@pytest.mark.parametrize(
    "uri", ["spiffe://td/ns/a/sa/b", "spiffe://td/node/", "spiffe://td/node/a/b", "spiffe://td/node/..", "node"]
)
def test_what_is_no_nodes_spiffe_id_is_refused(uri: str) -> None:
    with pytest.raises(IdentityError):
        parse_node_uri(uri)


@pytest.mark.parametrize("trust_domain", ["", "a/b", "A", "a b", "x" * 256])
def test_identities_and_nodes_cannot_be_built_in_a_bad_trust_domain(trust_domain: str) -> None:
    with pytest.raises(IdentityError, match="may hold only"):
        check_trust_domain(trust_domain)
    with pytest.raises(IdentityError):
        Identity(trust_domain, "a", "b")
    with pytest.raises(IdentityError):
        node_uri(trust_domain, "n")


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a b", "a\n"])
def test_names_that_would_change_the_path_are_refused(bad: str) -> None:
    for build in (lambda: Identity("td", bad, "b"), lambda: Identity("td", "a", bad), lambda: node_uri("td", bad)):
        with pytest.raises(IdentityError):
            build()


def test_a_huge_id_is_not_repeated_in_the_message() -> None:
    with pytest.raises(IdentityError) as caught:
        Identity.parse("spiffe://" + "x" * 100_000)
    assert len(str(caught.value)) < 200


@given(st.floats(0, 4e9), st.floats(1, 1e8), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_renewal_falls_between_four_tenths_and_half_of_a_certificates_life(
    start: float, life: float, early: float, late: float
) -> None:
    at = renew_at(start, start + life, early)
    slack = 1e-6 * (start + life)
    assert start + 0.4 * life - slack <= at <= start + 0.5 * life + slack
    if early < late:
        assert renew_at(start, start + life, late) <= at
