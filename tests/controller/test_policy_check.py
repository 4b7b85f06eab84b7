from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from controller.policy_check import Asked, CheckError, check
from controller.translate import World
from mesh.model import ExtAuthz, MeshConfig
from mesh.paths import Normalization
from mesh.present.why import verdict_lines
from tests.controller.test_translate import build, enrolled, manifest

CONFIG = MeshConfig()
SERVICE = manifest(
    "Service", "web", {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
)


def policy(name: str, source: dict[str, object], action: str = "ALLOW") -> str:
    return manifest("AuthorizationPolicy", name, {"action": action, "rules": [{"from": [{"source": source}]}]})


def of_requests(name: str, operation: dict[str, object], action: str = "ALLOW") -> str:
    return manifest("AuthorizationPolicy", name, {"action": action, "rules": [{"to": [{"operation": operation}]}]})


def route(name: str, *rules: dict[str, Any]) -> str:
    return manifest(
        "HTTPRoute", name, {"parentRefs": [{"kind": "Service", "group": "", "name": "web"}], "rules": rules}
    )


def mesh(*policies: str) -> World:
    outside = manifest("Workload", "old", {"address": "10.0.0.9"}, labels={"app": "web"})
    return build(SERVICE + outside + "".join(policies), enrolled("web-1", "10.77.0.1", app="web"))


def verdicts(world: World, source: str, address: str = "") -> dict[str, bool]:
    return {a.workload: a.allowed for a in check(world, CONFIG, source, "shop/web:80", address).answers}


def test_each_endpoint_is_judged_and_the_deciding_policy_named() -> None:
    world = mesh(policy("only-client", {"principals": ["cluster.local/ns/shop/sa/client"]}))
    inside, outside = check(world, CONFIG, "shop/client", "shop/web:http").answers
    assert (inside.workload, inside.port, inside.allowed) == ("shop/web-1", 8080, True)
    assert (inside.policy, inside.rule, inside.mtls_mode) == ("shop/only-client", 0, "PERMISSIVE")
    assert outside.workload == "shop/old"
    assert "no policy is enforced" in outside.reason
    denied = check(world, CONFIG, "shop/other", "shop/web:80").answers[0]
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


def test_whom_a_custom_policy_asks_counts_before_the_others_and_denies_if_it_is_not_there() -> None:
    spec = {"action": "CUSTOM", "provider": {"name": "logins"}, "rules": [{"to": [{"operation": {"paths": ["/in"]}}]}]}
    world = mesh(manifest("AuthorizationPolicy", "ask", spec), of_requests("all", {"methods": ["*"]}))
    there = MeshConfig(providers=(ExtAuthz("logins", "shop/logins", 80),))

    def told(config: MeshConfig, path: str) -> tuple[bool, str, str]:
        answer = check(world, config, "shop/client", "shop/web:80", asked=Asked(path=path)).answers[0]
        assert answer.why is not None
        return answer.allowed, answer.policy, "\n".join(verdict_lines(answer.why))

    assert told(there, "/out")[:2] == told(CONFIG, "/out")[:2] == (True, "shop/all")
    assert "if logins permits it" not in told(there, "/out")[2]
    allowed, by, lines = told(there, "/in")
    assert (allowed, by) == (True, "shop/all")
    assert lines.startswith("allowed: matched an ALLOW policy, if logins permits it: shop/all rule 0\n")
    allowed, by, lines = told(CONFIG, "/in")
    assert (allowed, by) == (False, "shop/ask")
    assert lines.startswith("denied: there is no provider 'logins': shop/ask rule 0\n")
    assert "nothing about the request" not in lines


def test_what_a_rehearsed_policy_would_change_is_said() -> None:
    spec = {"action": "ALLOW", "rules": [{"from": [{"source": {"namespaces": ["bank"]}}]}]}
    rehearsed = manifest("AuthorizationPolicy", "only-bank", spec, annotations={"istio.io/dry-run": "true"})
    answer = check(mesh(rehearsed), CONFIG, "shop/client", "shop/web:80").answers[0]
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


def test_a_request_is_judged_by_what_it_asks_and_told_what_would_do() -> None:
    world = mesh(of_requests("read", {"methods": ["GET"], "paths": ["/public*"]}))
    asked = Asked(path="/public/../admin?x=1")
    inside = check(world, CONFIG, "shop/client", "shop/web:80", asked=asked).answers[0]
    assert not inside.allowed
    why = inside.why
    assert why is not None
    assert (why["nearest"], why["steps"][0]["rules"][0]["missed"][0]["value"]) == (
        {"policy": "shop/read", "rule": 0},
        "/admin",
    )
    assert [(change["what"], change["to"]) for change in why["flips"][0]["changes"]] == [("path", "/public")]
    assert check(world, CONFIG, "shop/client", "shop/web:80", asked=Asked(path="/public")).answers[0].allowed
    assert not check(world, CONFIG, "shop/client", "shop/web:80", asked=Asked("PUT", "/public")).answers[0].allowed


def test_paths_are_normalised_as_the_mesh_does() -> None:
    world = mesh(of_requests("no", {"paths": ["/a/b"]}, "DENY"))
    merging = MeshConfig(path_normalization=Normalization.MERGE_SLASHES)
    allowed = {
        config.path_normalization: check(world, config, "shop/c", "shop/web:80", asked=Asked(path="/a//b")).answers[0]
        for config in (CONFIG, merging)
    }
    assert allowed[Normalization.BASE].allowed
    assert not allowed[Normalization.MERGE_SLASHES].allowed


def test_a_connection_is_told_that_its_requests_would_be_judged() -> None:
    world = mesh(of_requests("read", {"methods": ["GET"]}))
    answer = check(world, CONFIG, "shop/client", "shop/web:80").answers[0]
    assert not answer.allowed
    assert "--method" in answer.note


def test_headers_and_claims_are_what_was_said() -> None:
    when = [{"key": "request.headers[x-team]", "values": ["red"]}, {"key": "request.auth.claims[g]", "values": ["a"]}]
    world = mesh(manifest("AuthorizationPolicy", "p", {"rules": [{"when": when}]}))
    asked = Asked(headers=(("X-Team", " red"),), claims={"g": ["a", "b"]})
    assert check(world, CONFIG, "shop/client", "shop/web:80", asked=asked).answers[0].allowed
    asked = Asked(headers=(("X-Team", "red"),))
    assert not check(world, CONFIG, "shop/client", "shop/web:80", asked=asked).answers[0].allowed


V2 = manifest("Service", "web-v2", {"selector": {"app": "v2"}, "ports": [{"port": 81, "targetPort": 8081}]})


def routed() -> World:
    canary: dict[str, Any] = {
        "matches": [{"path": {"value": "/cart"}, "headers": [{"name": "x-canary", "value": "yes"}]}],
        "filters": [
            {
                "type": "URLRewrite",
                "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}},
            }
        ],
        "backendRefs": [{"name": "web-v2", "port": 81}],
    }
    gone = {"matches": [{"path": {"value": "/gone"}}], "filters": [
        {"type": "RequestRedirect", "requestRedirect": {"statusCode": 301}}
    ]}  # fmt: skip
    rest = {"matches": [{"path": {"value": "/cart"}}], "backendRefs": [{"name": "web", "port": 80}]}
    policies = of_requests("no-new", {"paths": ["/new*"]}, "DENY")
    return build(
        SERVICE + V2 + route("canary", canary, gone, rest) + policies,
        enrolled("web-1", "10.77.0.1", app="web"),
        enrolled("v2-1", "10.77.0.2", app="v2"),
    )


def test_a_service_split_by_version_is_asked_at_those_that_get_something() -> None:
    spec = {"action": "DENY", "rules": [{}], "selector": {"matchLabels": {"version": "v1"}}}
    denied = manifest("AuthorizationPolicy", "no-old", spec)
    split = manifest("TrafficPolicy", "web", {"targetRef": {"name": "web"}, "versions": {"v1": 0, "v2": 5, "v9": 1}})
    split = split.replace("security.istio.io/v1", "nodemesh.dev/v1alpha1")
    world = build(
        SERVICE + denied + split,
        enrolled("web-1", "10.77.0.1", app="web", version="v1"),
        enrolled("web-2", "10.77.0.2", app="web", version="v2"),
        enrolled("web-3", "10.77.0.3", app="web"),
    )
    for asked in (None, Asked(path="/cart")):
        found = check(world, CONFIG, "shop/client", "shop/web:80", asked=asked)
        assert [(answer.workload, answer.allowed) for answer in found.answers] == [("shop/web-2", True)]
        assert [(one["version"], one["share"], one["endpoints"]) for one in found.versions] == [
            ("v1", 0.0, 1),
            ("v2", 1.0, 1),
            ("v9", 0.0, 0),
        ]
        assert {(one["service"], one["policy"]) for one in found.versions} == {("shop/web:80", "shop/web")}
    outside = check(world, CONFIG, "-", "shop/web:80")  # it has no node that would split
    assert ([answer.workload[-1] for answer in outside.answers], outside.versions) == (["1", "2", "3"], [])


def test_a_request_is_judged_where_its_route_leads_and_as_it_arrives_there() -> None:
    asked = Asked(path="/cart/1", headers=(("x-canary", "yes"),))
    found = check(routed(), CONFIG, "shop/client", "shop/web:80", asked=asked)
    assert found.route is not None
    assert (found.route["route"], found.route["rule"]) == ("HTTPRoute/shop/canary", 0)
    (answer,) = found.answers
    assert (answer.workload, answer.service, answer.port) == ("shop/v2-1", "shop/web-v2:81", 8081)
    assert (answer.allowed, answer.policy) == (False, "shop/no-new")


def test_the_more_specific_rule_says_why_it_does_not_take_the_request() -> None:
    found = check(routed(), CONFIG, "shop/client", "shop/web:80", asked=Asked(path="/cart/1"))
    assert found.route is not None
    assert (found.route["rule"], [answer.workload for answer in found.answers]) == (2, ["shop/web-1"])
    missed = [clause["name"] for clause in found.route["steps"][0]["clauses"] if not clause["met"]]
    assert missed == ["header x-canary"]


def test_a_request_that_goes_nowhere_has_no_endpoints() -> None:
    found = check(routed(), CONFIG, "shop/client", "shop/web:80", asked=Asked(path="/gone"))
    assert (found.answers, found.route and found.route["does"]) == ([], ["redirects with 301"])
    found = check(routed(), CONFIG, "shop/client", "shop/web:80", asked=Asked(path="/other"))
    assert (found.answers, found.route and found.route["route"]) == ([], "")


def test_clients_outside_the_mesh_are_not_routed() -> None:
    found = check(routed(), CONFIG, "-", "shop/web:80", asked=Asked(path="/other"))
    assert (found.route, [answer.workload for answer in found.answers]) == (None, ["shop/web-1"])


def test_on_a_port_that_is_not_http_the_connection_is_judged() -> None:
    database = manifest("Service", "db", {"selector": {"app": "web"}, "ports": [{"name": "tcp", "port": 5432}]})
    world = build(database + of_requests("read", {"methods": ["GET"]}), enrolled("web-1", "10.77.0.1", app="web"))
    (answer,) = check(world, CONFIG, "shop/client", "shop/db:5432", asked=Asked()).answers
    assert not answer.allowed
    assert "declared as other than HTTP" in answer.note


ISSUER = "https://login.example.com"
KEY, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
KEYS = json.dumps({"keys": [ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True)]})


def token(key: ec.EllipticCurvePrivateKey = KEY, **claims: Any) -> str:
    return jwt.encode({"iss": ISSUER, "sub": "me", "aud": "shop", "exp": time.time() + 3600, **claims}, key, "ES256")


def believing(*policies: str, app: str = "web", **rule: Any) -> World:
    """A workload that takes tokens of the issuer."""
    foreign = {"issuer": "https://other.example", "jwks": KEYS}
    rules = [foreign, {"issuer": ISSUER, "jwks": KEYS, "audiences": ["shop"], **rule}]
    spec = {"selector": {"matchLabels": {"app": app}}, "jwtRules": rules}
    return build(
        SERVICE + manifest("RequestAuthentication", "tokens", spec) + "".join(policies),
        enrolled("web-1", "10.77.0.1", app="web"),
    )


SIGNED_IN = {"from": [{"source": {"requestPrincipals": [f"{ISSUER}/*"]}}]}
READERS = manifest(
    "AuthorizationPolicy",
    "readers",
    {"rules": [{**SIGNED_IN, "when": [{"key": "request.auth.claims[groups]", "values": ["readers"]}]}]},
)


def with_token(world: World, text: str) -> Any:
    """The answer, and why."""
    (answer,) = check(world, CONFIG, "shop/client", "shop/web:80", asked=Asked(token=text)).answers
    assert answer.why is not None
    return answer


def test_a_valid_token_is_who_the_request_comes_from() -> None:
    answer = with_token(believing(READERS), token(groups=["readers", "x"]))
    assert (answer.allowed, answer.policy, answer.note) == (True, "shop/readers", "")
    assert [(one["policy"], one["rule"], one["problem"]) for one in answer.why["token"]["tried"]] == [
        ("shop/tokens", 0, "Jwt issuer is not configured"),
        ("shop/tokens", 1, ""),
    ]
    lines = list(verdict_lines(answer.why))
    assert lines[1].startswith(f"  token: issuer '{ISSUER}', subject 'me', audiences shop, expires 2")
    assert '    when[0] request.auth.claims[groups]: \'["readers", "x"]\' is readers' in lines


def test_a_claim_that_misses_is_told_with_its_value_and_what_would_do() -> None:
    answer = with_token(believing(READERS), token(groups="writers"))
    assert not answer.allowed
    (missed,) = answer.why["steps"][0]["rules"][0]["missed"]
    assert (missed["name"], missed["value"]) == ("request.auth.claims[groups]", "writers")
    assert [(change["what"], change["to"]) for change in answer.why["flips"][0]["changes"]] == [("token", "readers")]
    allowed = "  would be allowed by shop/readers rule 0 if the token's request.auth.claims[groups] were readers"
    assert allowed in verdict_lines(answer.why)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (token(exp=time.time() - 3600, groups="readers"), "401: Jwt is expired"),
        (token(aud="bank", groups="readers"), "403: Audiences in Jwt are not allowed"),
        (token(OTHER, groups="readers"), "401: Jwt verification fails"),
    ],
)
def test_a_token_that_is_not_valid_is_refused_whatever_the_policies_say(text: str, reason: str) -> None:
    answer = with_token(believing(READERS), text)
    assert not answer.allowed
    assert (answer.policy, answer.rule) == ("shop/tokens", 1)
    assert answer.reason == f"the token is refused with {reason}"
    assert list(verdict_lines(answer.why))[-1] == "  would be allowed by shop/readers rule 0 if token were valid"
    answer = with_token(believing(), text)
    assert not answer.allowed
    assert "  would be allowed if there were no token" in verdict_lines(answer.why)


def test_that_a_token_would_do_is_not_said_where_a_custom_policy_stands_against_it() -> None:
    custom = {"action": "CUSTOM", "provider": {"name": "gone"}, "rules": [{}]}
    world = believing(manifest("AuthorizationPolicy", "ask", custom))
    assert with_token(world, token(exp=1)).why["flips"] == []


def test_in_whichever_order_rules_are_known_the_one_of_the_token_says_what_becomes_of_it() -> None:
    asking = {"rules": [{"when": [{"key": "request.headers[x-group]", "values": ["readers"]}]}]}
    another = {"selector": {"matchLabels": {"app": "web"}}, "jwtRules": [{"issuer": "https://z", "jwks": KEYS}]}
    world = believing(
        manifest("AuthorizationPolicy", "group", asking),
        manifest("RequestAuthentication", "another", another),
        outputClaimToHeaders=[{"header": "x-group", "claim": "groups"}],
    )
    for auths in (world.request_auths, world.request_auths[::-1]):
        answer = with_token(replace(world, request_auths=auths), token(groups="readers"))
        assert answer.allowed
        assert [one["policy"] for one in answer.why["token"]["tried"]] == ["shop/another"] + 2 * ["shop/tokens"]


def test_a_text_that_is_no_token_is_refused_and_one_of_nobody_known() -> None:
    assert "Header.Payload.Signature" in with_token(believing(), "nonsense").reason
    assert with_token(believing(), token(iss="https://nobody")).reason.endswith("Jwt issuer is not configured")


def test_where_nothing_asks_for_tokens_one_says_nothing_and_that_is_told() -> None:
    answer = with_token(believing(READERS, app="other"), token(groups="readers"))
    assert not answer.allowed
    assert "no RequestAuthentication selects the workload" in answer.note
    asked = Asked(claims={"iss": ISSUER, "sub": "me", "groups": "readers"})
    (answer,) = check(believing(READERS, app="other"), CONFIG, "shop/client", "shop/web:80", asked=asked).answers
    assert answer.allowed
    assert "no RequestAuthentication selects the workload" in answer.note


def test_headers_made_of_the_token_are_what_policies_see() -> None:
    when = [{"key": "request.headers[x-user]", "values": ["me"]}]
    world = believing(
        manifest("AuthorizationPolicy", "user", {"rules": [{"when": when}]}),
        outputClaimToHeaders=[{"header": "x-user", "claim": "sub"}],
    )
    assert with_token(world, token()).allowed
    forged = Asked(headers=(("x-user", "me"),), token=token(sub="other"))
    assert not check(world, CONFIG, "shop/client", "shop/web:80", asked=forged).answers[0].allowed


def test_plaintext_is_refused_by_strict_before_a_token_is_looked_at() -> None:
    strict = manifest("PeerAuthentication", "strict", {"mtls": {"mode": "STRICT"}})
    (answer,) = check(believing(strict), CONFIG, "-", "shop/web:80", asked=Asked(token="nonsense")).answers
    assert not answer.allowed
    assert "token" not in answer.reason
