from __future__ import annotations

import pytest

from controller.policy_check import CheckError, check
from controller.translate import World
from mesh.model import MeshConfig
from tests.controller.test_translate import build, enrolled, manifest

CONFIG = MeshConfig()
SERVICE = manifest(
    "Service", "web", {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
)


def policy(name: str, source: dict[str, object], action: str = "ALLOW") -> str:
    return manifest("AuthorizationPolicy", name, {"action": action, "rules": [{"from": [{"source": source}]}]})


def mesh(*policies: str) -> World:
    outside = manifest("Workload", "old", {"address": "10.0.0.9"}, labels={"app": "web"})
    return build(SERVICE + outside + "".join(policies), enrolled("web-1", "10.77.0.1", app="web"))


def verdicts(world: World, source: str, address: str = "") -> dict[str, bool]:
    return {a.workload: a.allowed for a in check(world, CONFIG, source, "shop/web:80", address)}


def test_each_endpoint_is_judged_and_the_deciding_policy_named() -> None:
    world = mesh(policy("only-client", {"principals": ["cluster.local/ns/shop/sa/client"]}))
    inside, outside = check(world, CONFIG, "shop/client", "shop/web:http")
    assert (inside.workload, inside.port, inside.allowed) == ("shop/web-1", 8080, True)
    assert (inside.policy, inside.rule, inside.mtls_mode) == ("shop/only-client", 0, "PERMISSIVE")
    assert outside.workload == "shop/old"
    assert "no policy is enforced" in outside.reason
    denied = check(world, CONFIG, "shop/other", "shop/web:80")[0]
    assert not denied.allowed
    assert "shop/only-client" in denied.reason


def test_a_client_outside_the_mesh_has_no_identity_and_strict_keeps_it_out() -> None:
    strict = manifest("PeerAuthentication", "strict", {"mtls": {"mode": "STRICT"}})
    assert verdicts(mesh(), "-")["shop/web-1"]
    assert not verdicts(mesh(strict), "-")["shop/web-1"]
    assert verdicts(mesh(strict), "shop/client")["shop/web-1"]


def test_the_clients_address_counts() -> None:
    world = mesh(policy("no-net", {"ipBlocks": ["192.0.2.0/24"]}, "DENY"))
    assert not verdicts(world, "-", "192.0.2.7")["shop/web-1"]
    assert verdicts(world, "-", "198.51.100.7")["shop/web-1"]
    assert verdicts(world, "-")["shop/web-1"]


def test_what_a_rehearsed_policy_would_change_is_said() -> None:
    spec = {"action": "ALLOW", "rules": [{"from": [{"source": {"namespaces": ["bank"]}}]}]}
    rehearsed = manifest("AuthorizationPolicy", "only-bank", spec, annotations={"istio.io/dry-run": "true"})
    answer = check(mesh(rehearsed), CONFIG, "shop/client", "shop/web:80")[0]
    assert (answer.allowed, answer.dry_run) == (True, ("shop/only-bank would deny",))


@pytest.mark.parametrize(
    ("source", "target", "address", "missing"),
    [
        ("client", "shop/web:80", "", False),
        ("a/b/c", "shop/web:80", "", False),
        ("shop/client", "web:80", "", False),
        ("shop/client", "shop/web", "", False),
        ("shop/client", "shop/web:80", "nonsense", False),
        ("shop/client", "shop/none:80", "", True),
        ("shop/client", "shop/web:81", "", True),
    ],
)
def test_a_question_that_makes_no_sense_is_answered_with_a_remedy(
    source: str, target: str, address: str, missing: bool
) -> None:
    with pytest.raises(CheckError) as caught:
        check(mesh(), CONFIG, source, target, address)
    assert caught.value.remedy
    assert caught.value.missing is missing
