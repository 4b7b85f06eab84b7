from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.ca import Authority
from controller.enrol import Enroller, Refusal
from controller.store import Store
from controller.tokens import Scope, TokenError, mint
from mesh.model import Enrolment
from tests.controller.client import csr_for, new_key, uris_of, workload


class Yard:
    """An enroller on a store of its own, with a clock and a list of connected nodes to set."""

    def __init__(self, folder: Path) -> None:
        self.now = 1_800_000_000.0
        self.connected: set[str] = set()
        self.changes = 0
        self.store = Store(folder)
        self.authority = Authority.at(folder, "cluster.local", self.now)
        self.enroller = self.open()

    def open(self) -> Enroller:
        return Enroller(
            self.store,
            self.authority,
            ranges=["10.77.0.0/16", "fd77::/48"],
            service_ranges=["10.77.96.0/20"],
            workload_life=timedelta(hours=24),
            clock=lambda: self.now,
            connected=lambda node: node in self.connected,
            changed=self.change,
        )

    def change(self) -> None:
        self.changes += 1

    def token(self, *allow: str, node: str = "", ttl: float = 60, uses: int = -1) -> str:
        text, stored = mint(
            list(allow or ("*/*",)), node, ttl, uses, "", root_sha256=self.authority.root_sha256, now=self.now
        )
        self.store.add_token(stored)
        return text

    def join(self, node: str, *allow: str) -> str:
        """Join with a token for that node; the credential's serial."""
        return self.enroller.join(self.token(*allow, node=node), node, csr_for(new_key())).serial


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    made = Yard(tmp_path)
    yield made
    made.store.close()


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    return str(caught.value)


def test_an_unknown_or_expired_token_lets_nobody_in(yard: Yard) -> None:
    token, csr = yard.token(ttl=60), csr_for(new_key())
    assert "not known" in refused(lambda: yard.enroller.join("rubbish", "node-a", csr))
    assert "not known" in refused(lambda: yard.enroller.join(token + "x", "node-a", csr))
    yard.now += 60
    assert "expired" in refused(lambda: yard.enroller.join(token, "node-a", csr))
    assert yard.enroller.nodes == {}


def test_the_store_holds_no_secret(yard: Yard) -> None:
    secret = yard.token().rpartition(".")[2]
    assert secret not in repr(yard.store.tokens())


@pytest.mark.parametrize("name", ["", "Node", "a/b", "../x", "a" * 254, "a_b", "-a", "a\n"])
def test_a_bad_node_name_is_refused(yard: Yard, name: str) -> None:
    assert "not a lower-case DNS name" in refused(lambda: yard.enroller.join(yard.token(), name, csr_for(new_key())))


def test_no_workload_gets_the_controllers_own_identity(yard: Yard) -> None:
    yard.join("node-a", "*/*")
    posing = workload("web", "10.77.1.2", namespace="nodemesh-system", account="controller")
    assert "the controller's own identity" in refused(lambda: yard.enroller.enrol("node-a", posing))


def test_a_name_that_has_joined_cannot_be_taken_with_another_token(yard: Yard) -> None:
    serial = yard.join("node-a", "shop/*")
    message = refused(lambda: yard.enroller.join(yard.token("*/*"), "node-a", csr_for(new_key())))
    assert "has joined before" in message
    yard.enroller.authenticate("node-a", serial)
    assert yard.enroller.scope("node-a").allow == ("shop/*",)


def test_the_same_token_may_come_again_only_while_the_node_is_away(yard: Yard) -> None:
    token = yard.token("shop/*")
    first = yard.enroller.join(token, "node-a", csr_for(new_key()))
    yard.connected.add("node-a")
    assert "is connected" in refused(lambda: yard.enroller.join(token, "node-a", csr_for(new_key())))
    yard.connected.clear()
    second = yard.enroller.join(token, "node-a", csr_for(new_key()))
    assert "join again" in refused(lambda: yard.enroller.authenticate("node-a", first.serial))
    yard.enroller.authenticate("node-a", second.serial)


def test_a_new_token_for_the_node_changes_its_scope_at_once(yard: Yard) -> None:
    yard.join("node-a", "shop/*")
    yard.enroller.enrol("node-a", workload("web", "10.77.1.1"))
    yard.join("node-a", "data/*")
    assert "may not enrol shop/web" in refused(lambda: yard.enroller.sign("node-a", "shop/web", csr_for(new_key())))


def test_a_forgotten_nodes_credential_stays_refused_when_it_joins_again(yard: Yard) -> None:
    old = yard.join("node-a")
    assert yard.enroller.forget("node-a")
    assert not yard.enroller.forget("node-a")
    new = yard.join("node-a")
    assert "join again" in refused(lambda: yard.enroller.authenticate("node-a", old))
    yard.enroller.authenticate("node-a", new)


def test_a_credential_of_one_node_is_not_anothers(yard: Yard) -> None:
    serial = yard.join("node-a")
    yard.join("node-b")
    assert refused(lambda: yard.enroller.authenticate("node-b", serial))


@pytest.mark.parametrize(
    ("addresses", "why"),
    [
        ((), "between 1 and 16"),
        (tuple(f"10.77.1.{n}" for n in range(1, 18)), "between 1 and 16"),
        (("10.77.1.300",), "not a usable address"),
        (("10.77.1.0/24",), "not a usable address"),
        (("127.0.0.1",), "not a usable address"),
        (("::1",), "not a usable address"),
        (("fe80::1",), "not a usable address"),
        (("fd77::1%eth0",), "not a usable address"),
        (("224.0.0.1",), "not a usable address"),
        (("8.8.8.8",), "outside the mesh's ranges"),
        (("10.77.96.10",), "range of service addresses"),
        (("\x00",), "not a usable address"),
    ],
)
def test_addresses_that_would_draw_other_traffic_are_refused(yard: Yard, addresses: tuple[str, ...], why: str) -> None:
    yard.join("node-a")
    assert why in refused(lambda: yard.enroller.enrol("node-a", Enrolment("web", "shop", "web", {}, addresses)))
    assert yard.enroller.enrolled == {}


def test_addresses_are_kept_in_canonical_form(yard: Yard) -> None:
    yard.join("node-a")
    given = ("FD77:0::1", "::ffff:10.77.1.1", "10.77.1.1")
    yard.enroller.enrol("node-a", Enrolment("web", "shop", "web", {}, given))
    assert yard.enroller.enrolled["shop/web"].workload.addresses == ("fd77::1", "10.77.1.1")


@pytest.mark.parametrize(
    "bad",
    [
        Enrolment("web/../x", "shop", "web", {}, ("10.77.1.1",)),
        Enrolment("web", "shop/x", "web", {}, ("10.77.1.1",)),
        Enrolment("web", "shop", "web/sa/admin", {}, ("10.77.1.1",)),
        Enrolment("web", "", "web", {}, ("10.77.1.1",)),
        Enrolment("web", "shop", "*", {}, ("10.77.1.1",)),
        Enrolment("web", "shop", "web", {str(n): "" for n in range(65)}, ("10.77.1.1",)),
        Enrolment("web", "shop", "web", {"a": "v" * 64}, ("10.77.1.1",)),
    ],
)
def test_names_that_could_become_another_identity_are_refused(yard: Yard, bad: Enrolment) -> None:
    yard.join("node-a")
    refused(lambda: yard.enroller.enrol("node-a", bad))
    assert list(yard.enroller.replace("node-a", [bad])) == [bad.uid]
    assert yard.enroller.enrolled == {}


def test_a_workload_or_address_of_another_node_cannot_be_taken(yard: Yard) -> None:
    yard.join("node-a")
    yard.join("node-b")
    yard.enroller.enrol("node-a", workload("web", "10.77.1.1"))
    for other in (workload("web", "10.77.1.2"), workload("db", "10.77.1.1"), workload("db", "::ffff:10.77.1.1")):
        assert "node-a" in refused(partial(yard.enroller.enrol, "node-b", other))
        assert list(yard.enroller.replace("node-b", [other])) == [other.uid]
    yard.enroller.withdraw("node-b", "shop/web")
    assert list(yard.enroller.enrolled) == ["shop/web"]
    yard.enroller.withdraw("node-a", "shop/web")
    yard.enroller.enrol("node-b", workload("web", "10.77.1.1"))
    assert yard.enroller.enrolled["shop/web"].node == "node-b"


def test_two_workloads_of_one_node_cannot_share_an_address(yard: Yard) -> None:
    yard.join("node-a")
    both = [workload("web", "10.77.1.1"), workload("db", "10.77.1.1")]
    assert list(yard.enroller.replace("node-a", both)) == ["shop/db"]
    assert "that of shop/web" in refused(lambda: yard.enroller.enrol("node-a", both[1]))


def test_hello_may_give_an_address_to_another_workload_of_the_node(yard: Yard) -> None:
    yard.join("node-a")
    yard.enroller.enrol("node-a", workload("web", "10.77.1.1"))
    assert yard.enroller.replace("node-a", [workload("db", "10.77.1.1")]) == {}
    assert list(yard.enroller.enrolled) == ["shop/db"]
    yard.enroller.enrol("node-a", workload("web", "10.77.1.2"))
    assert "that of shop/db" in refused(lambda: yard.enroller.enrol("node-a", workload("new", "10.77.1.1")))


def test_nothing_is_announced_where_nothing_changed(yard: Yard) -> None:
    yard.join("node-a")
    one = workload("web", "10.77.1.1", app="web")
    yard.enroller.enrol("node-a", one)
    assert yard.changes == 1
    yard.enroller.enrol("node-a", one)
    yard.enroller.replace("node-a", [one])
    yard.enroller.withdraw("node-a", "shop/other")
    assert yard.changes == 1
    yard.enroller.enrol("node-a", workload("web", "10.77.1.1", app="other"))
    assert yard.changes == 2


def test_enrolments_and_scopes_survive_a_restart(yard: Yard) -> None:
    serial = yard.join("node-a", "shop/web")
    yard.enroller.enrol("node-a", workload("web", "10.77.1.1"))
    again = yard.open()
    again.authenticate("node-a", serial)
    assert again.enrolled == yard.enroller.enrolled
    assert uris_of(again.sign("node-a", "shop/web", csr_for(new_key())).chain) == [
        "spiffe://cluster.local/ns/shop/sa/web"
    ]
    assert "may not enrol" in refused(lambda: again.enrol("node-a", workload("db", "10.77.1.2", account="db")))


def test_a_node_that_is_forgotten_while_it_asks_is_refused(yard: Yard) -> None:
    yard.join("node-a")
    yard.enroller.forget("node-a")
    one = workload("web", "10.77.1.1")
    for ask in (
        lambda: yard.enroller.replace("node-a", [one]),
        lambda: yard.enroller.enrol("node-a", one),
        lambda: yard.enroller.sign("node-a", "", csr_for(new_key())),
    ):
        assert "not known" in refused(ask)
    yard.enroller.withdraw("node-a", one.uid)


def test_an_expired_credential_is_refused(yard: Yard) -> None:
    serial = yard.join("node-a")
    yard.now += 8 * 86400
    assert refused(lambda: yard.enroller.authenticate("node-a", serial))


names = st.sampled_from(["shop", "data", "web", "db", "a.b"])


@given(st.lists(st.tuples(st.one_of(names, st.just("*")), st.one_of(names, st.just("*"))), max_size=4), names, names)
def test_a_scope_allows_exactly_what_one_of_its_patterns_says(
    patterns: list[tuple[str, str]], namespace: str, account: str
) -> None:
    scope = Scope(tuple("/".join(pattern) for pattern in patterns))
    expected = any(n in (namespace, "*") and a in (account, "*") for n, a in patterns)
    assert scope.allows(namespace, account) == expected
    assert not expected or scope.touches(namespace)


@pytest.mark.parametrize(
    "pattern", ["", "shop", "shop/", "/web", "shop/web/x", "sh*/web", "shop/we*", "Shop/web", "**/web"]
)
def test_a_pattern_that_is_not_understood_makes_no_token(pattern: str) -> None:
    with pytest.raises(TokenError):
        mint([pattern], "", 60, -1, "", root_sha256="", now=0)


@pytest.mark.parametrize(("ttl", "uses"), [(0, -1), (-1, -1), (1e12, -1), (60, 0), (60, -2)])
def test_a_token_without_a_sensible_life_is_not_made(ttl: float, uses: int) -> None:
    with pytest.raises(TokenError):
        mint(["shop/*"], "", ttl, uses, "", root_sha256="", now=0)
