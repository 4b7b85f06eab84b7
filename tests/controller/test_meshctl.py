from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from controller.cli import cli, main
from controller.cli.kinds import plural, singular
from tests.unix_api import Api, Request, Result, Terminal, bash_completes, invoke, serving

ROOT = Path(__file__).parents[2]
POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  rules:
  - from:
    - source: {principals: ["spiffe://cluster.local/ns/shop/sa/client"]}
"""
STORED = {
    **yaml.safe_load(POLICY),
    "metadata": {"name": "web", "namespace": "shop", "creationTimestamp": "2024-01-01T00:00:00Z", "generation": 1},
    "spec": {"selector": {"matchLabels": {"app": "web"}}, "action": "DENY", "rules": [{}, {}]},
}
WEB = {
    "uid": "shop/web",
    "name": "web",
    "namespace": "shop",
    "service_account": "web",
    "node": "node-b",
    "addresses": ["10.77.1.2"],
    "meshed": True,
    "app": "web",
    "version": "v1",
    "labels": {"app": "web"},
    "identity": "spiffe://cluster.local/ns/shop/sa/web",
}
OTHER = {**WEB, "uid": "other/db", "name": "db", "namespace": "other", "labels": {"app": "db"}, "node": "node-a"}
SERVICE = {
    "name": "web",
    "namespace": "shop",
    "addresses": ["10.96.0.1"],
    "ports": [{"name": "http", "port": 80, "app_protocol": ""}],
    "endpoints": [{"address": "10.77.1.2", "workload": "shop/web", "ports": [8080]}],
    "hostname": "web.shop.svc.cluster.local",
}
NODE = {
    "name": "node-b",
    "connected": True,
    "since": 1,
    "last_seen": 1,
    "address": "172.30.0.2",
    "version": "0.1.0",
    "revision": 12,
    "acked_revision": 10,
    "last_nack": None,
    "workloads": 3,
    "certificate_expires": 1,
}
EDGE: dict[str, Any] = {
    "reporter": "destination",
    "source": {"workload": "client", "namespace": "shop", "principal": "p", "app": "client", "version": "v1"},
    "destination": {"workload": "web", "namespace": "shop", "principal": "q", "app": "web", "version": "v1"},
    "service": "web.shop.svc.cluster.local",
    "security": "mutual_tls",
    "flags": "-",
    "open": 1,
    "opened": 4,
    "closed": 3,
    "failed": 0,
    "denied": 2,
    "received": 100,
    "sent": 2048,
    "first_seen": 1,
    "last_seen": 1,
}
ALLOWED = {
    "workload": "shop/web",
    "port": 8080,
    "allowed": True,
    "policy": "shop/allow",
    "rule": 0,
    "reason": "rule 0 matched",
    "mtls_mode": "STRICT",
}
DENIED = {**ALLOWED, "allowed": False, "policy": "", "rule": -1, "reason": "no ALLOW policy matched"}
CREATED = {"id": "3f9a2c", "expires": 1_900_000_000, "token": "nm1.abc.secret"}
APPLIED = {
    "file": "policy.yaml",
    "line": 1,
    "kind": "AuthorizationPolicy",
    "namespace": "shop",
    "name": "web",
    "result": "created",
}


class Meshctl:
    def __init__(self, socket_path: Path, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.api, self._capsys = str(socket_path), api, capsys

    def __call__(self, *args: str) -> Result:
        return invoke(main, self._capsys, "--socket", self.path, *args)

    @property
    def asked(self) -> Request:
        return self.api.requests[-1]


@pytest.fixture
def meshctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Meshctl]:
    answers: dict[str, Any] = {
        "GET /v1/resources/authorizationpolicies": {"items": [STORED]},
        "GET /v1/resources/authorizationpolicies/shop/web": STORED,
        "GET /v1/resources/peerauthentications": {"items": []},
        "GET /v1/resources/requestauthentications": {"items": []},
        "GET /v1/nodes": {"items": [NODE]},
        "GET /v1/workloads": {"items": [WEB, OTHER]},
        "GET /v1/services": {"items": [SERVICE]},
        "GET /v1/edges": {"items": [EDGE]},
        "POST /v1/apply": {"results": [APPLIED]},
        "POST /v1/tokens": CREATED,
    }
    with serving(tmp_path / "controller.sock", answers) as api:
        yield Meshctl(tmp_path / "controller.sock", api, capsys)


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def test_apply_sends_the_files_text_and_says_what_became_of_each_resource(meshctl: Meshctl, policy_file: Path) -> None:
    result = meshctl("apply", "-f", str(policy_file))
    assert result.status == 0
    assert result.out == "authorizationpolicy/web -n shop created\n"
    assert meshctl.asked.body == {"files": [{"name": str(policy_file), "text": POLICY}]}
    assert meshctl.asked.query == {}


def test_apply_takes_what_a_shell_makes_of_a_glob(meshctl: Meshctl, tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml", "c.yaml"):
        (tmp_path / name).write_text("{}")
    assert meshctl("apply", "-f", *(str(tmp_path / name) for name in ("a.yaml", "b.yaml", "c.yaml"))).status == 0
    assert [Path(file["name"]).name for file in meshctl.asked.body["files"]] == ["a.yaml", "b.yaml", "c.yaml"]


def test_apply_takes_a_directorys_manifests_in_order_and_nothing_else(meshctl: Meshctl, tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    (folder / "below.yaml").mkdir(parents=True)
    for name in ("2.yml", "1.yaml", "3.json", "notes.md"):
        (folder / name).write_text(name)
    meshctl("apply", "-f", str(folder))
    assert [file["text"] for file in meshctl.asked.body["files"]] == ["1.yaml", "2.yml", "3.json"]


def test_apply_reads_standard_input(meshctl: Meshctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(POLICY.encode())))
    meshctl("apply", "-f", "-")
    assert meshctl.asked.body == {"files": [{"name": "<stdin>", "text": POLICY}]}


def test_a_dry_run_is_asked_for_and_marked(meshctl: Meshctl, policy_file: Path) -> None:
    assert "created (dry run)" in meshctl("apply", "-f", str(policy_file), "--dry-run").out
    assert meshctl.asked.query == {"dryRun": "true"}


def test_rejected_resources_show_the_line_at_fault_and_exit_1(meshctl: Meshctl, policy_file: Path) -> None:
    error = {
        "file": str(policy_file),
        "line": 7,
        "column": 27,
        "path": "spec.rules[0].from[0].source.principals[0]",
        "message": "a principal is written without spiffe://",
        "remedy": "write cluster.local/ns/shop/sa/client",
    }
    meshctl.api.answers["POST /v1/apply"] = (422, {"errors": [error]})
    result = meshctl("apply", "-f", str(policy_file))
    assert (result.status, result.out) == (1, "")
    where, source, mark, hint, _, total = result.err.splitlines()
    assert where == f"{policy_file}:7:27: {error['path']}: {error['message']}"
    assert source == '    7 |     - source: {principals: ["spiffe://cluster.local/ns/shop/sa/client"]}'
    assert source[mark.index("^") :].startswith(POLICY.splitlines()[6][26:])
    assert hint == "hint: write cluster.local/ns/shop/sa/client"
    assert total == "1 error in 1 file; nothing was changed"


@pytest.mark.parametrize("make", ["missing", "empty directory", "binary"])
def test_files_that_cannot_be_read_are_usage_errors_and_nothing_is_sent(
    meshctl: Meshctl, tmp_path: Path, make: str
) -> None:
    path = tmp_path / "x"
    if make == "empty directory":
        path.mkdir()
    elif make == "binary":
        path.write_bytes(b"\xff\xfe")
    result = meshctl("apply", "-f", str(path))
    assert result.status == 2
    assert str(path) in result.err
    assert meshctl.api.requests == []


def test_delete_by_file_exits_1_when_something_was_not_there(meshctl: Meshctl, policy_file: Path) -> None:
    meshctl.api.answers["POST /v1/delete"] = {"results": [{**APPLIED, "result": "deleted"}]}
    assert meshctl("delete", "-f", str(policy_file)).status == 0
    meshctl.api.answers["POST /v1/delete"] = {"results": [{**APPLIED, "result": "not found"}]}
    result = meshctl("delete", "-f", str(policy_file))
    assert result.status == 1
    assert "1 resource not found" in result.err


def test_delete_by_kind_and_name(meshctl: Meshctl) -> None:
    meshctl.api.answers["DELETE /v1/resources/authorizationpolicies/shop/web"] = {}
    for args in (("ap", "web"), ("AuthorizationPolicy/web",)):
        assert meshctl("delete", *args, "-n", "shop").out == "authorizationpolicy/web deleted\n"
    assert meshctl("delete", "ap", "web").status == 1
    assert meshctl("delete", "ap").status == 2


def test_get_looks_in_one_namespace_or_in_all(meshctl: Meshctl) -> None:
    row = meshctl("get", "ap", "--no-headers").out.split()
    assert row[:4] == ["shop", "web", "DENY", "2"]
    assert meshctl.asked.query == {"namespace": "default"}
    meshctl("get", "authorizationpolicies", "-A", "-l", "app=web")
    assert meshctl.asked.query == {"selector": "app=web"}
    assert meshctl("get", "ap", "-A", "-n", "shop").status == 2


def test_get_of_one_is_the_resource_itself(meshctl: Meshctl) -> None:
    assert yaml.safe_load(meshctl("get", "authorizationpolicy", "web", "-n", "shop", "-o", "yaml").out) == STORED
    assert json.loads(meshctl("get", "ap/web", "-n", "shop", "-o", "json").out) == STORED
    assert meshctl("get", "ap", "nothing", "-n", "shop").status == 1


def test_get_of_nothing_says_where_it_looked(meshctl: Meshctl) -> None:
    result = meshctl("get", "pa", "-n", "shop")
    assert (result.status, result.out) == (0, "")
    assert "No peerauthentications in namespace shop; -A looks in all" in result.err


@pytest.mark.parametrize("text", ["svc", "service", "Services", "SERVICE", "services.v1"])
def test_a_kind_may_be_written_in_any_way(text: str) -> None:
    assert (singular(text), plural(text)) == ("service", "services")


def test_nodes_show_whether_they_have_the_latest_snapshot(meshctl: Meshctl) -> None:
    assert "pending (2 behind)" in meshctl("nodes").out
    meshctl.api.answers["GET /v1/nodes"] = {"items": [{**NODE, "acked_revision": 12}]}
    assert "in-step" in meshctl("nodes").out
    meshctl.api.answers["GET /v1/nodes"] = {"items": [{**NODE, "last_nack": "revision 12: bad cidr"}]}
    assert "rejected: revision 12: bad cidr" in meshctl("nodes").out
    meshctl.api.answers["GET /v1/nodes"] = {"items": [{**NODE, "connected": False, "acked_revision": 12}]}
    assert meshctl("nodes", "--no-headers").out.split()[:3] == ["node-b", "disconnected", "unknown"]


def test_workloads_and_services_can_be_narrowed_to_a_namespace(meshctl: Meshctl) -> None:
    assert meshctl("workloads", "--no-headers").out.count("\n") == 2
    assert meshctl("workloads", "-n", "shop", "--no-headers").out.split()[:4] == ["shop", "web", "node-b", "yes"]
    assert json.loads(meshctl("services", "-n", "other", "-o", "json").out) == {"items": []}
    assert meshctl("services", "--no-headers").out.split() == ["shop", "web", "10.96.0.1", "http:80", "1"]


def test_edges_show_who_talks_to_whom(meshctl: Meshctl) -> None:
    row = meshctl("edges", "--no-headers").out.split()
    assert row[:10] == ["shop/client", "shop/web", "destination", "mutual_tls", "-", "1", "4", "0", "2", "100B"]
    assert meshctl("edges", "-n", "other").out == ""


def test_edges_come_in_order_with_the_sources_view_first(meshctl: Meshctl) -> None:
    def edge(source: str, reporter: str, flags: str = "-") -> Any:
        return {**EDGE, "source": {**EDGE["source"], "workload": source}, "reporter": reporter, "flags": flags}

    order = [edge("a", "source"), edge("a", "source", "RBAC"), edge("a", "destination"), edge("b", "source")]
    meshctl.api.answers["GET /v1/edges"] = {"items": order[::-1]}
    assert json.loads(meshctl("edges", "-o", "json").out)["items"] == order


@pytest.mark.parametrize("command", ["workloads", "services", "edges"])
def test_all_namespaces_may_be_asked_for_though_it_is_the_default(meshctl: Meshctl, command: str) -> None:
    everywhere = meshctl(command).out
    assert everywhere
    assert meshctl(command, "-A").out == everywhere
    assert meshctl(command, "--all-namespaces").out == everywhere
    both = meshctl(command, "-A", "-n", "shop")
    assert both.status == 2
    assert "-n and -A contradict each other" in both.err


def test_watching_edges_prints_the_ones_that_changed(meshctl: Meshctl) -> None:
    looks: list[Any] = [[EDGE], [EDGE], [{**EDGE, "denied": 3}]]

    def edges(request: Request) -> Any:
        if not looks:
            raise ConnectionAbortedError
        return {"items": looks.pop(0)}

    meshctl.api.answers["GET /v1/edges"] = edges
    result = meshctl("edges", "--watch", "--interval", "0.1")
    assert result.status == 3
    assert [line.split()[0] for line in result.out.splitlines()] == ["EVENT", "ADDED", "MODIFIED"]


def test_watching_edges_on_a_terminal_redraws_until_interrupted(meshctl: Meshctl) -> None:
    with Terminal("controller.cli", "--socket", meshctl.path, "edges", "--watch", "--interval", "0.1") as terminal:
        terminal.wait_for("shop/client")
        meshctl.api.answers["GET /v1/edges"] = {"items": []}
        terminal.wait_for("\x1b[H" + "every 0.1s: meshctl edges")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ended() == 0


def test_nothing_seen_says_of_what_and_where(meshctl: Meshctl) -> None:
    meshctl.api.answers.update({"GET /v1/edges": {"items": []}, "GET /v1/requests": {"items": []}})
    since = "since the controller started.\n"
    assert meshctl("edges").err == f"No connection was seen {since}"
    assert meshctl("edges", "-n", "shop").err == f"No connection was seen in namespace shop {since}"
    assert meshctl("top", "-n", "shop").err == f"No request was seen in namespace shop {since}"
    assert meshctl("routes").err == f"No route has taken a request {since}"


def test_describe_service_shows_its_endpoints_policies_and_edges(meshctl: Meshctl) -> None:
    out = meshctl("describe", "service", "web", "-n", "shop").out
    assert "web.shop.svc.cluster.local" in out
    assert ["10.77.1.2", "8080", "shop/web", "node-b", "yes"] in [line.split() for line in out.splitlines()]
    assert ["AuthorizationPolicy", "shop", "web", "DENY"] in [line.split() for line in out.splitlines()]
    assert "shop/client" in out
    meshctl.api.answers["GET /v1/edges"] = {"items": [{**EDGE, "service": ""}, {**EDGE, "service": "other.shop"}]}
    assert meshctl("describe", "service", "web", "-n", "shop").out.count("shop/client") == 1


def test_describe_workload_shows_identity_services_and_policies_that_select_it(meshctl: Meshctl) -> None:
    out = meshctl("describe", "workload", "web", "-n", "shop").out
    assert "spiffe://cluster.local/ns/shop/sa/web" in out
    assert "Services it is behind" in out
    assert "AuthorizationPolicy" in out
    assert "AuthorizationPolicy" not in meshctl("describe", "wl/db", "-n", "other").out


def test_describe_policy_names_the_workloads_it_applies_to(meshctl: Meshctl) -> None:
    out = meshctl("describe", "ap", "web", "-n", "shop").out
    assert "action: DENY" in out
    applies = out.split("Applies to:")[1]
    assert "web" in applies
    assert "db" not in applies


def test_a_policy_of_the_root_namespace_applies_everywhere(meshctl: Meshctl) -> None:
    everywhere = {**STORED, "metadata": {"name": "all", "namespace": "nodemesh-system"}, "spec": {}}
    meshctl.api.answers["GET /v1/resources/authorizationpolicies/nodemesh-system/all"] = everywhere
    applies = meshctl("describe", "ap", "all", "-n", "nodemesh-system").out.split("Applies to:")[1]
    assert "web" in applies
    assert "db" in applies


def test_describe_node_lists_its_workloads_and_an_unknown_one_names_those_there_are(meshctl: Meshctl) -> None:
    out = meshctl("describe", "node", "node-b").out
    assert "172.30.0.2" in out
    assert "shop" in out
    assert "other" not in out
    result = meshctl("describe", "node", "node-x")
    assert result.status == 1
    assert result.err == "error: no node node-x\nhint: there are: node-b\n"


@pytest.mark.parametrize(
    ("verdicts", "status"), [([ALLOWED], 0), ([ALLOWED, DENIED], 1), ([DENIED], 1)], ids=["all", "some", "none"]
)
def test_policy_check_exits_1_if_any_endpoint_would_refuse(meshctl: Meshctl, verdicts: list[Any], status: int) -> None:
    meshctl.api.answers["GET /v1/policy-check"] = {"items": verdicts}
    result = meshctl("policy", "check", "--from", "shop/client", "--to", "shop/web:80", "--address", "10.0.0.9")
    assert result.status == status
    assert meshctl.asked.query == {"from": "shop/client", "to": "shop/web:80", "address": "10.0.0.9"}
    assert ("no ALLOW policy matched" in result.out) is (status == 1)


def test_policy_check_of_a_service_without_endpoints_is_a_no(meshctl: Meshctl) -> None:
    meshctl.api.answers["GET /v1/policy-check"] = {"items": []}
    result = meshctl("policy", "check", "--from", "-", "--to", "shop/web:80")
    assert result.status == 1
    assert "no endpoint" in result.err


READ = {
    "place": "to[0]", "name": "paths", "wanted": ["/public*"], "negated": False, "value": "/\x1badmin", "met": False,
    "problem": "",
}  # fmt: skip
FLIP = {"what": "path", "to": "/public", "clause": "paths", "wanted": ["/public*"], "among": True}
WHY = {
    "allowed": False,
    "policy": "",
    "rule": -1,
    "reason": "matched no ALLOW policy (shop/read)",
    "dry_run": [],
    "nearest": {"policy": "shop/read", "rule": 0},
    "steps": [
        {
            "policy": "shop/read",
            "action": "ALLOW",
            "dry_run": False,
            "matched": -1,
            "decided": False,
            "rules": [{"rule": 0, "matched": False, "clauses": [READ], "missed": [READ]}],
        }
    ],
    "flips": [{"changes": [FLIP], "allowed": True, "policy": "shop/read", "rule": 0}],
}
CANARY = {"name": "header x-canary", "compare": "Exact", "wanted": "yes", "value": "", "met": False, "problem": ""}
ALL = {"name": "path", "compare": "PathPrefix", "wanted": "/", "value": "/a", "met": True, "problem": ""}
ROUTE: dict[str, Any] = {
    "route": "HTTPRoute/shop/web",
    "rule": 1,
    "rule_name": "",
    "match": 0,
    "backends": [{"service": "shop/web:80", "weight": 1, "share": 1.0, "invalid": ""}],
    "does": [],
    "steps": [
        {"route": "HTTPRoute/shop/web", "rule": 0, "rule_name": "", "match": 0, "taken": False, "clauses": [CANARY]},
        {"route": "HTTPRoute/shop/web", "rule": 1, "rule_name": "", "match": 0, "taken": True, "clauses": [ALL]},
    ],
    "aside": [],
}


def test_policy_check_of_a_request_tells_route_clause_and_what_would_do(meshctl: Meshctl) -> None:
    rows = [{**DENIED, "workload": name, "why": WHY} for name in ("shop/web-1", "shop/web-2")]
    meshctl.api.answers["GET /v1/policy-check"] = {"items": rows, "route": ROUTE}
    request = ("--path", "/a", "--header", "x-a: 1", "--header", "x-b: 2", "--jwt-claims", '{"iss": "i"}')
    result = meshctl("policy", "check", "--from", "shop/client", "--to", "shop/web:80", *request)
    assert result.status == 1
    assert meshctl.asked.query == {
        "from": "shop/client", "to": "shop/web:80", "path": "/a", "headers": "x-a: 1\nx-b: 2", "claims": '{"iss": "i"}'
    }  # fmt: skip
    assert "\x1b" not in result.out
    table, route, verdict = result.out.split("\n\n")
    assert "DENIED" in table.upper()
    assert route.splitlines() == [
        "routed by HTTPRoute/shop/web rule 1",
        "    path: '/a' is below /",
        "  to shop/web:80 (100%)",
        "  more specific, but no match: HTTPRoute/shop/web rule 0: header x-canary: absent is not yes",
    ]
    assert verdict.splitlines() == [
        "shop/web-1, shop/web-2: denied: matched no ALLOW policy (shop/read)",
        "  no match: ALLOW shop/read rule 0",
        "    to[0] paths: '/\\x1badmin' is not like /public*",
        "  would be allowed by shop/read rule 0 if path were like /public*, e.g. /public",
    ]


def test_policy_check_of_a_request_that_no_route_takes_is_a_no(meshctl: Meshctl) -> None:
    lost = {**ROUTE, "route": "", "rule": -1, "match": -1, "backends": [], "steps": ROUTE["steps"][:1]}
    meshctl.api.answers["GET /v1/policy-check"] = {"items": [], "route": lost}
    result = meshctl("policy", "check", "--from", "shop/client", "--to", "shop/web:80", "--path", "/a")
    assert result.status == 1
    assert "no route matches: the answer is 404" in result.out
    assert "\n  no match: HTTPRoute/shop/web rule 0: header x-canary" in result.out


def test_policy_check_of_a_connection_explains_only_when_asked_to(meshctl: Meshctl) -> None:
    meshctl.api.answers["GET /v1/policy-check"] = {"items": [{**DENIED, "why": WHY, "note": "ask about requests"}]}
    ask = ("policy", "check", "--from", "shop/client", "--to", "shop/web:80")
    assert "would be" not in meshctl(*ask).out
    assert "would be allowed" in meshctl(*ask, "-o", "wide").out
    assert meshctl(*ask).err == "note: ask about requests\n"
    assert '"flips"' in meshctl(*ask, "-o", "json").out


def test_policy_check_takes_a_token_from_a_file_and_tells_it_in_the_body_alone(
    meshctl: Meshctl, tmp_path: Path
) -> None:
    token = {"issuer": "i", "subject": "me", "audiences": [], "expires": 0.0, "algorithm": "ES256", "key_id": "k"}
    tried = {"policy": "shop/t", "rule": 0, "issuer": "i", "audiences": ["a"], "problem": "Jwt is expired"}
    why = {**WHY, "token": {**token, "problem": "", "tried": [{**tried, "detail": "", "status": 401}]}}
    meshctl.api.answers["POST /v1/policy-check"] = {"items": [{**DENIED, "why": why}], "route": None}
    (tmp_path / "token").write_text("Bearer a.b.c\n")
    ask = ("policy", "check", "--from", "shop/client", "--to", "shop/web:80")
    result = meshctl(*ask, "--token", str(tmp_path / "token"))
    assert result.status == 1
    assert (meshctl.asked.query, meshctl.asked.body["token"]) == ({}, "a.b.c")
    assert "  token: issuer 'i', subject 'me', signed ES256 by key 'k'" in result.out
    assert "    shop/t rule 0 (issuer i, audiences a): Jwt is expired" in result.out
    for text in ("", "a b"):
        (tmp_path / "token").write_text(text)
        assert meshctl(*ask, "--token", str(tmp_path / "token")).status == 2
    assert meshctl(*ask, "--token", str(tmp_path / "none")).status == 2
    assert meshctl(*ask, "--token", str(tmp_path / "token"), "--jwt-claims", "{}").status == 2


def test_policy_check_of_a_header_that_is_none_is_a_usage_error(meshctl: Meshctl) -> None:
    ask = ("policy", "check", "--from", "shop/client", "--to", "shop/web:80")
    assert meshctl(*ask, "--header", "x-a=1").status == 2
    assert meshctl.api.requests == []


@pytest.mark.parametrize(
    ("source", "target"), [("client", "shop/web:80"), ("shop/client", "web:80"), ("-", "shop/web")]
)
def test_policy_check_of_nonsense_is_a_usage_error(meshctl: Meshctl, source: str, target: str) -> None:
    assert meshctl("policy", "check", "--from", source, "--to", target).status == 2
    assert meshctl.api.requests == []


def test_a_token_alone_is_on_standard_output(meshctl: Meshctl) -> None:
    result = meshctl("token", "create", "--allow", "shop/*", "--node", "node-a", "--ttl", "1h", "--uses", "1")
    assert result.out == "nm1.abc.secret\n"
    assert "3f9a2c can be used until 2030-03-17T17:46:40Z" in result.err
    assert meshctl.asked.body == {"allow": ["shop/*"], "ttl_seconds": 3600, "node": "node-a", "uses": 1}


@pytest.mark.parametrize("output", ["table", "json"])
def test_a_token_in_a_file_is_for_its_owner_only_and_nowhere_else(
    meshctl: Meshctl, tmp_path: Path, output: str
) -> None:
    path = tmp_path / "join.token"
    old = os.umask(0)
    try:
        result = meshctl("token", "create", "--allow", "shop/*", "--output-file", str(path), "-o", output)
    finally:
        os.umask(old)
    assert result.status == 0
    assert path.read_text() == "nm1.abc.secret\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "secret" not in result.out + result.err


def test_no_token_is_made_that_could_not_be_kept(meshctl: Meshctl, tmp_path: Path) -> None:
    path = tmp_path / "join.token"
    path.write_text("precious")
    result = meshctl("token", "create", "--allow", "shop/*", "--output-file", str(path))
    assert result.status == 1
    assert "remove it first" in result.err
    assert path.read_text() == "precious"
    assert meshctl.api.requests == []


def test_a_token_that_was_not_made_leaves_no_file(meshctl: Meshctl, tmp_path: Path) -> None:
    meshctl.api.answers["POST /v1/tokens"] = (400, {"error": {"message": "no such namespace", "remedy": ""}})
    path = tmp_path / "join.token"
    assert meshctl("token", "create", "--allow", "shop/*", "--output-file", str(path)).status == 1
    assert not path.exists()


def test_a_token_for_something_that_is_no_service_account_is_a_usage_error(meshctl: Meshctl) -> None:
    assert meshctl("token", "create", "--allow", "shop").status == 2
    assert meshctl("token", "create").status == 2


def test_tokens_are_listed_and_revoked_and_nodes_forgotten(meshctl: Meshctl) -> None:
    token = {"id": "3f9a2c", "allow": ["shop/*"], "node": "", "uses": None, "expires": time.time() + 3601}
    meshctl.api.answers |= {
        "GET /v1/tokens": {"items": [token]},
        "DELETE /v1/tokens/3f9a2c": {},
        "DELETE /v1/nodes/node-b": {},
    }
    assert meshctl("token", "list", "--no-headers").out.split()[:2] == ["3f9a2c", "shop/*"]
    assert meshctl("token", "revoke", "3f9a2c").status == 0
    assert meshctl("token", "revoke", "other").status == 1
    assert meshctl("node", "forget", "node-b").status == 0
    assert meshctl("node", "forget", "node-x").status == 1


def test_the_ca_shows_its_roots_or_just_their_pem(meshctl: Meshctl) -> None:
    pem = "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----"
    root = {"subject": "CN=root", "serial": "1", "sha256": "ab", "not_before": 1, "not_after": 2, "pem": pem}
    answer = {"trust_domain": "cluster.local", "roots": [root, root], "issued": 7, "workload_certificate_hours": 24}
    meshctl.api.answers["GET /v1/ca"] = answer
    assert "cluster.local" in meshctl("ca").out
    assert meshctl("ca", "-o", "pem").out == 2 * (pem + "\n")
    assert json.loads(meshctl("ca", "-o", "json").out) == answer


def test_exit_3_when_no_controller_listens_where_we_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "none.sock")
    result = invoke(main, capsys, "--socket", path, "nodes")
    assert result.status == 3
    assert f"cannot reach mesh-controller: no such socket; looked at {path}" in result.err
    assert "NODEMESH_CONTROLLER_SOCKET" in result.err


def test_the_socket_can_be_named_by_the_environment(
    meshctl: Meshctl, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODEMESH_CONTROLLER_SOCKET", meshctl.path)
    assert invoke(main, capsys, "nodes").status == 0


def test_bash_completes_kinds_and_names(meshctl: Meshctl, tmp_path: Path) -> None:
    def complete(*words: str) -> list[str]:
        return bash_completes("controller.cli", "meshctl", ["--socket", meshctl.path, *words], tmp_path)

    assert complete("get", "auth") == ["authorizationpolicies"]
    assert complete("get", "-n", "shop", "ap", "w") == ["web"]
    assert complete("get", "ap", "-n", "sh") == ["shop"]
    assert complete("node", "forget", "no") == ["node-b"]
    assert complete("policy", "") == ["check"]
    assert "shop/web:80" in complete("policy", "check", "--to", "shop/")
    assert "shop/web" in complete("policy", "check", "--from", "shop/")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_for_each_shell_needs_no_daemon(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = invoke(main, capsys, "--socket", "/nowhere", "completion", shell)
    assert result.status == 0
    assert "_MESHCTL_COMPLETE" in result.out


def _commands(group: click.Group, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from _commands(command, (*before, name))
        else:
            yield (*before, name)


@pytest.mark.parametrize("names", [(), *_commands(cli)], ids=" ".join)
def test_every_command_has_help_with_an_example_that_is_not_rewrapped(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    result = invoke(main, capsys, *names, "--help")
    assert result.status == 0
    expected = "source" if names == ("completion",) else " ".join(("meshctl", *names))
    assert f"\n    {expected}" in result.out.split("Examples:")[1]


@pytest.mark.parametrize("names", [(), ("policy",), ("token",), ("ca",), ("node",)], ids=" ".join)
def test_a_list_of_commands_cuts_no_description_short(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    listed = invoke(main, capsys, *names, "--help").out.split("Commands:")[1]
    assert "..." not in listed.split("Examples:")[0]


def test_every_command_is_in_the_reference() -> None:
    reference = (ROOT / "docs/reference/cli.md").read_text()
    assert [names for names in _commands(cli) if f"`meshctl {' '.join(names)}" not in reference] == []


def test_nodectl_and_meshctl_behave_alike_at_the_terminal() -> None:
    """Their rooms may share only what does no I/O, so the module is there twice; it must not drift apart."""
    texts = [(ROOT / path / "terminal.py").read_text() for path in ("noded/control/cli", "controller/cli")]
    assert texts[0].replace("nodectl", "meshctl") == texts[1]
