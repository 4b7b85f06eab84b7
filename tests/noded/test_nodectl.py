from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from noded.control.cli import cli, main
from tests.unix_api import Api, Request, Result, Terminal, bash_completes, invoke, serving

NOW = 1_000_000
WEB = {
    "name": "web",
    "namespace": "shop",
    "service_account": "web",
    "uid": "shop/web",
    "addresses": ["10.77.0.2"],
    "labels": {"app": "web"},
    "netns": "/run/netns/web",
    "state": "ready",
    "reason": "",
    "certificate": "valid",
    "connections": 3,
}
CONNECTION = {
    "id": 7,
    "worker": 0,
    "direction": "outbound",
    "workload": "shop/web",
    "source": "10.77.0.2:40000",
    "source_identity": "spiffe://cluster.local/ns/shop/sa/web",
    "destination": "10.77.1.2:8080",
    "destination_identity": "spiffe://cluster.local/ns/shop/sa/api",
    "service": "api.shop.svc.cluster.local",
    "via": "tunnel",
    "policy": "",
    "opened_at": NOW,
    "received": 1024,
    "sent": 5,
    "state": "open",
}
STATUS: dict[str, Any] = {
    "node": "node-a",
    "version": "0.1.0",
    "pid": 42,
    "uptime_seconds": 3700,
    "controller": {"address": "172.30.0.254:15012", "connected": False, "since": NOW, "last_error": "timed out"},
    "snapshot": {"epoch": "e1", "revision": 9, "workloads": 5, "services": 1, "policies": 2, "age_seconds": 61},
    "workers": [{"index": 0, "pid": 43, "connections": 2, "tunnels": 1, "restarts": 0}],
    "workloads": 3,
    "draining": False,
    "log_level": "info",
    "access_log": True,
}
CAPTURED = {"uid": "shop/web", "installed": True, "drift": [], "rules": ["-A PREROUTING -j TPROXY"]}
DRIFTED = {**CAPTURED, "drift": ["missing: mangle PREROUTING -j TPROXY"]}


class Nodectl:
    def __init__(self, socket_path: Path, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.api, self._capsys = str(socket_path), api, capsys

    def __call__(self, *args: str) -> Result:
        return invoke(main, self._capsys, "--socket", self.path, *args)

    def answers(self, **canned: Any) -> None:
        self.api.answers.update({name.replace("_", " /", 1): value for name, value in canned.items()})


@pytest.fixture
def nodectl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Nodectl]:
    answers: dict[str, Any] = {
        "GET /status": STATUS,
        "GET /workloads": {"items": [WEB]},
        "GET /connections": {"items": [CONNECTION]},
        "GET /capture": {"items": [CAPTURED]},
        "GET /why": {"items": [FAILED]},
    }
    with serving(tmp_path / "noded.sock", answers) as api:
        yield Nodectl(tmp_path / "noded.sock", api, capsys)


def test_status_says_how_the_link_to_the_controller_is(nodectl: Nodectl) -> None:
    result = nodectl("status")
    assert result.status == 0
    assert "node-a" in result.out
    assert "disconnected for" in result.out
    assert "(172.30.0.254:15012): timed out" in result.out
    assert "revision 9, 5 workloads, 1 service, 2 policies, received 1m1s ago" in result.out
    assert result.out.splitlines()[-1].split() == ["0", "43", "2", "1", "0"]


def test_status_before_the_first_snapshot_says_that_connections_are_held(nodectl: Nodectl) -> None:
    nodectl.answers(GET_status={**STATUS, "snapshot": {"epoch": "", "revision": 0}})
    assert "none yet: connections are held" in nodectl("status").out


def test_status_in_json_is_the_daemons_answer(nodectl: Nodectl) -> None:
    assert json.loads(nodectl("status", "-o", "json").out) == STATUS


def test_workloads_are_a_table_and_wide_shows_more(nodectl: Nodectl) -> None:
    header, row = nodectl("workloads").out.splitlines()
    assert header.split() == [
        "NAMESPACE",
        "NAME",
        "STATE",
        "CERTIFICATE",
        "SERVICE-ACCOUNT",
        "ADDRESSES",
        "CONNECTIONS",
    ]
    assert row.split() == ["shop", "web", "ready", "valid", "web", "10.77.0.2", "3"]
    assert "/run/netns/web" in nodectl("workloads", "-o", "wide").out
    assert yaml.safe_load(nodectl("workloads", "-o", "yaml").out) == {"items": [WEB]}


def test_no_headers_leaves_only_rows(nodectl: Nodectl) -> None:
    assert nodectl("workloads", "--no-headers").out.split()[:2] == ["shop", "web"]


def test_a_workload_that_failed_shows_why(nodectl: Nodectl) -> None:
    nodectl.answers(GET_workloads={"items": [{**WEB, "state": "failed", "reason": "netns is gone"}]})
    assert "failed: netns is gone" in nodectl("workloads").out


def test_an_empty_list_says_what_to_do_on_standard_error(nodectl: Nodectl) -> None:
    nodectl.answers(GET_workloads={"items": []})
    result = nodectl("workloads")
    assert (result.status, result.out) == (0, "")
    assert "nodectl enroll" in result.err
    assert json.loads(nodectl("workloads", "-o", "json").out) == {"items": []}


def test_the_snapshot_is_listed_with_endpoints_and_policies(nodectl: Nodectl) -> None:
    service = {
        "name": "web",
        "namespace": "shop",
        "addresses": ["10.96.0.1"],
        "ports": [{"name": "http", "port": 80, "app_protocol": ""}],
        "endpoints": [{"address": "10.77.0.2", "workload": "shop/web", "ports": [8080]}],
    }
    rule: dict[str, list[Any]] = {"sources": [], "operations": [], "conditions": []}
    policy = {
        "kind": "AuthorizationPolicy",
        "name": "deny",
        "namespace": "shop",
        "action": "DENY",
        "rules": [rule],
        "selector": {},
        "dry_run": True,
        "applies_to": ["shop/web"],
    }
    strict = {"kind": "PeerAuthentication", "name": "strict", "namespace": "shop", "mode": "STRICT", "applies_to": []}
    mesh = {**WEB, "node": "node-b", "meshed": False}
    nodectl.api.answers |= {
        "GET /mesh/services": {"items": [service]},
        "GET /mesh/policies": {"items": [policy, strict]},
        "GET /mesh/workloads": {"items": [mesh]},
    }
    assert nodectl("services", "--no-headers").out.split() == ["shop", "web", "10.96.0.1", "http:80", "1"]
    assert "10.77.0.2:8080" in nodectl("services", "-o", "wide").out
    deny, other = nodectl("policies", "--no-headers").out.splitlines()
    assert deny.split() == ["AuthorizationPolicy", "shop", "deny", "DENY", "(dry-run)", "1", "shop/web"]
    assert other.split() == ["PeerAuthentication", "shop", "strict", "STRICT", "-", "-"]
    assert nodectl("workloads", "--all", "--no-headers").out.split()[2:4] == ["node-b", "no"]


def test_certificates_show_when_they_expire_and_whose_they_are(nodectl: Nodectl) -> None:
    cert = {"uid": "", "identity": "spiffe://cluster.local/node/node-a", "serial": "0a", "state": "valid"}
    times = {"not_before": 0, "not_after": time.time() + 7300, "renew_at": time.time() - 90, "last_error": "refused"}
    nodectl.answers(GET_certs={"items": [cert | times]})
    row = nodectl("certs", "--no-headers").out.split()
    assert row[:4] == ["(node)", "spiffe://cluster.local/node/node-a", "valid", "2h1m"]
    assert row[4:] == ["1m30s", "ago", "refused"]


def test_connections_name_the_peer_and_can_be_asked_for_one_workload(nodectl: Nodectl) -> None:
    result = nodectl("connections", "--workload", "shop/web", "--no-headers")
    assert nodectl.api.requests[-1].query == {"workload": "shop/web"}
    assert result.out.split()[4:7] == ["tunnel", "shop/api", "open"]


def test_tunnels_show_who_the_peer_proved_to_be(nodectl: Nodectl) -> None:
    tunnel = {
        "worker": 0,
        "direction": "client",
        "workload": "shop/web",
        "peer": "10.77.1.2:15008",
        "local_identity": "spiffe://cluster.local/ns/shop/sa/web",
        "peer_identity": "spiffe://cluster.local/ns/shop/sa/api",
        "streams": 4,
        "opened_at": NOW,
        "received": 0,
        "sent": 0,
        "state": "open",
    }
    nodectl.answers(GET_tunnels={"items": [tunnel]})
    row = nodectl("tunnels", "--no-headers").out.split()
    assert row[:6] == ["client", "shop/web", "10.77.1.2:15008", "shop/api", "open", "4"]


def test_capture_verify_asks_for_it_and_succeeds_without_drift(nodectl: Nodectl) -> None:
    assert nodectl("capture", "--verify").status == 0
    assert nodectl.api.requests[-1].query == {"verify": "1"}
    assert "-A PREROUTING -j TPROXY" in nodectl("capture", "-o", "wide").out


@pytest.mark.parametrize("output", ["table", "json"])
def test_capture_verify_exits_1_upon_drift_and_shows_it(nodectl: Nodectl, output: str) -> None:
    nodectl.answers(GET_capture={"items": [CAPTURED, DRIFTED]})
    result = nodectl("capture", "--verify", "-o", output)
    assert result.status == 1
    assert "missing: mangle PREROUTING" in result.out


def test_capture_verify_has_nothing_against_a_workload_that_leaves(nodectl: Nodectl) -> None:
    nodectl.answers(GET_capture={"items": [{**CAPTURED, "installed": False, "state": "draining"}]})
    assert nodectl("capture", "--verify").status == 0


def test_capture_verify_exits_1_when_nothing_is_installed(nodectl: Nodectl) -> None:
    nodectl.answers(GET_capture={"items": [{**CAPTURED, "installed": False}]})
    assert nodectl("capture", "--verify").status == 1


FAILED = {
    "id": "0-r3",
    "kind": "request",
    "at": NOW,
    "worker": 0,
    "direction": "inbound",
    "workload": "shop/web",
    "source": "10.77.0.9:40000",
    "source_identity": "spiffe://cluster.local/ns/shop/sa/client",
    "destination": "10.77.0.2:8080",
    "target": "10.77.0.2:8080",
    "method": "GET",
    "authority": "web",
    "path": "/admin\x1b[2J",
    "code": 403,
    "flags": "RBAC",
    "reason": "matched a DENY policy: shop/p rule 0",
}
CLAUSE = {
    "place": "to[0]", "name": "paths", "wanted": ["/admin*"], "negated": False, "value": "/admin", "met": True,
    "problem": "",
}  # fmt: skip
FLIP = {"what": "path", "to": "/", "clause": "paths", "wanted": ["/admin*"], "among": False}
DENIED = {
    "allowed": False,
    "policy": "shop/p",
    "rule": 0,
    "reason": "matched a DENY policy",
    "dry_run": [],
    "nearest": None,
    "steps": [
        {
            "policy": "shop/p",
            "action": "DENY",
            "dry_run": False,
            "matched": 0,
            "decided": True,
            "rules": [{"rule": 0, "matched": True, "clauses": [CLAUSE], "missed": []}],
        }
    ],
    "flips": [{"changes": [FLIP], "allowed": True, "policy": "", "rule": -1}],
}
EXPLAINED = {
    "what": FAILED,
    "verdict": DENIED,
    "route": None,
    "target": None,
    "versions": [],
    "notes": ["something changed"],
}


def test_what_was_denied_or_failed_is_listed(nodectl: Nodectl) -> None:
    nodectl.answers(GET_why={"items": [{**FAILED, "count": 41, "first": NOW - 9}]})
    out = nodectl("why").out
    assert all(word in out for word in ("41", "0-r3", "shop/client", "GET /admin", "403", "RBAC", "shop/p rule 0"))
    assert "\x1b" not in out
    nodectl.answers(GET_why={"items": [{**CONNECTION, "kind": "connection", "at": NOW, "flags": "UF"}]})
    assert "10.77.1.2:8080" in nodectl("why").out


def test_why_a_request_was_denied_is_told_by_clause_and_with_what_would_do(nodectl: Nodectl) -> None:
    nodectl.api.answers["GET /why/0-r3"] = EXPLAINED
    result = nodectl("why", "0-r3")
    assert result.status == 0
    assert "\x1b" not in result.out
    head, lines = result.out.split("\n\n")
    assert "inbound request 0-r3 of shop/web" in head
    assert "403 RBAC matched a DENY policy" in head
    assert lines.splitlines() == [
        "note: something changed",
        "denied: matched a DENY policy: shop/p rule 0",
        "  decided by DENY shop/p rule 0",
        "    to[0] paths: '/admin' is like /admin*",
        "  would be allowed if path were not like /admin*, e.g. /",
    ]
    assert json.loads(nodectl("why", "0-r3", "-o", "json").out) == EXPLAINED


def test_why_an_open_connection_goes_where_it_does(nodectl: Nodectl) -> None:
    target = {
        "kind": "tunnel", "reason": "the workload is in the mesh", "flags": "-", "service": "shop/api", "endpoints": 2,
        "workload": "",
    }  # fmt: skip
    what = {**CONNECTION, "id": "0-7", "kind": "connection"}
    nodectl.api.answers["GET /why/0-7"] = {**EXPLAINED, "what": what, "verdict": None, "target": target, "notes": []}
    out = nodectl("why", "0-7").out
    assert "a connection to service shop/api (2 endpoints) goes through a tunnel: the workload is in the mesh" in out
    assert "State:" in out


def test_an_id_that_is_not_a_path_is_sent_as_one_name(nodectl: Nodectl) -> None:
    nodectl("why", "../status")
    assert nodectl.api.requests[-1].path != "/status"


def test_config_is_yaml_and_metrics_are_as_prometheus_reads_them(nodectl: Nodectl) -> None:
    nodectl.answers(GET_config={"node": "node-a", "workers": 2}, GET_metrics='nodemesh_x{a="b"} 1\n')
    assert yaml.safe_load(nodectl("config").out) == {"node": "node-a", "workers": 2}
    assert json.loads(nodectl("config", "-o", "json").out)["workers"] == 2
    assert nodectl("metrics").out == 'nodemesh_x{a="b"} 1\n'


def test_log_level_is_shown_or_set(nodectl: Nodectl) -> None:
    assert nodectl("log-level").out == "info\n"
    nodectl.api.answers["PUT /log-level"] = {}
    assert nodectl("log-level", "debug").status == 0
    assert nodectl.api.requests[-1].body == {"level": "debug"}
    assert nodectl("log-level", "loud").status == 2


def test_enroll_sends_what_was_said_and_shows_the_workload(nodectl: Nodectl) -> None:
    nodectl.api.answers["POST /workloads"] = WEB
    result = nodectl(
        "enroll", "web", "--netns", "web", "--namespace", "shop", "--service-account", "web",
        "--label", "app=web", "--label", "note=a=b",
    )  # fmt: skip
    assert result.status == 0
    assert "ready" in result.out
    assert nodectl.api.requests[-1].body == {
        "name": "web",
        "namespace": "shop",
        "service_account": "web",
        "labels": {"app": "web", "note": "a=b"},
        "netns": "/run/netns/web",
    }


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--netns", "/proc/self/ns/net"), "noded's own namespace"),
        (("--netns", "web", "--label", "app"), "is not KEY=VALUE"),
        ((), "Missing option '--netns'"),
    ],
)
def test_enrolling_nonsense_is_a_usage_error_and_asks_nothing_of_noded(
    nodectl: Nodectl, args: tuple[str, ...], says: str
) -> None:
    result = nodectl("enroll", "web", *args)
    assert result.status == 2
    assert says in result.err
    assert nodectl.api.requests == []


def test_a_refused_enrolment_exits_1_with_the_daemons_remedy(nodectl: Nodectl) -> None:
    error = {"message": "the join token does not allow shop/web", "remedy": "meshctl token create --allow shop/web"}
    nodectl.api.answers["POST /workloads"] = (409, {"error": error})
    result = nodectl("enroll", "web", "--netns", "web")
    assert result.status == 1
    assert result.err == (
        "error: the join token does not allow shop/web\nhint: meshctl token create --allow shop/web\n"
    )


def test_remove_names_the_workload_and_its_grace(nodectl: Nodectl) -> None:
    nodectl.api.answers["DELETE /workloads/shop/web"] = {}
    assert nodectl("remove", "web", "--namespace", "shop", "--drain", "1m").status == 0
    assert nodectl.api.requests[-1].query == {"drain": "60"}
    assert nodectl("remove", "nobody").status == 1
    assert nodectl("remove", "web", "--drain", "soon").status == 2


def test_drain_waits_until_noded_is_gone(nodectl: Nodectl) -> None:
    asked = 0

    def status(request: Request) -> Any:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise ConnectionAbortedError  # as a daemon does that ends: no answer
        return STATUS

    nodectl.api.answers |= {"POST /drain": {"draining": True, "seconds": 5}, "GET /status": status}
    result = nodectl("drain", "--timeout", "5s")
    assert result.status == 0
    assert "drained" in result.out
    assert (nodectl.api.requests[0].body, asked) == ({"seconds": 5}, 3)


def test_exit_3_when_nobody_listens_where_we_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "noded.sock")
    result = invoke(main, capsys, "--socket", path, "status")
    assert result.status == 3
    assert f"no such socket; looked at {path}" in result.err
    assert "is noded running" in result.err
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    result = invoke(main, capsys, "--socket", path, "status")
    assert result.status == 3
    assert f"connection refused; looked at {path}" in result.err


def test_exit_3_when_the_connection_breaks_before_an_answer(nodectl: Nodectl) -> None:
    def die(request: Request) -> Any:
        raise ConnectionAbortedError

    nodectl.answers(GET_certs=die)
    result = nodectl("certs")
    assert result.status == 3
    assert "cannot reach noded" in result.err


def test_an_answer_that_is_not_json_is_an_error_and_not_a_traceback(nodectl: Nodectl) -> None:
    nodectl.answers(GET_certs="<html>")
    result = nodectl("certs")
    assert result.status == 1
    assert "not JSON" in result.err


def test_the_socket_can_be_named_by_the_environment(
    nodectl: Nodectl, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODEMESH_SOCKET", nodectl.path)
    assert invoke(main, capsys, "log-level").out == "info\n"


def test_a_pipe_gets_no_colours_and_a_terminal_only_without_no_color(nodectl: Nodectl) -> None:
    assert "\x1b" not in nodectl("workloads").out
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        with Terminal("noded.control.cli", "--socket", nodectl.path, "workloads", env=env) as terminal:
            assert terminal.ended() == 0
            assert ("\x1b[32mready\x1b[0m" in terminal.shown) is coloured


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_watch_on_a_terminal_redraws_until_interrupted_and_leaves_the_screen_as_it_was(
    nodectl: Nodectl, ending: signal.Signals
) -> None:
    args = ("--socket", nodectl.path, "connections", "--watch", "--interval", "0.1")
    with Terminal("noded.control.cli", *args) as terminal:
        terminal.wait_for("10.77.1.2:8080")
        nodectl.answers(GET_connections={"items": [{**CONNECTION, "destination": "10.77.9.9:99"}]})
        terminal.wait_for("10.77.9.9:99")
        terminal.process.send_signal(ending)
        assert terminal.ended() == 0
    assert terminal.shown.startswith("\x1b[?1049h")
    assert terminal.shown.endswith("\x1b[?1049l")


def test_a_watch_on_a_pipe_prints_changes_and_exits_3_when_noded_ends(nodectl: Nodectl) -> None:
    looks: list[Any] = [[CONNECTION], [CONNECTION], []]

    def connections(request: Request) -> Any:
        if not looks:
            raise ConnectionAbortedError
        return {"items": looks.pop(0)}

    nodectl.answers(GET_connections=connections)
    result = nodectl("connections", "--watch", "--interval", "0.1", "-o", "json")
    assert result.status == 3
    assert [json.loads(line)["type"] for line in result.out.splitlines()] == ["ADDED", "DELETED"]


def test_what_takes_long_says_so_on_a_terminal(nodectl: Nodectl) -> None:
    def slowly(request: Request) -> Any:
        time.sleep(1.5)
        return WEB

    nodectl.api.answers["POST /workloads"] = slowly
    with Terminal("noded.control.cli", "--socket", nodectl.path, "enroll", "web", "--netns", "web") as terminal:
        terminal.wait_for("enrolling default/web")
        assert terminal.ended() == 0
    assert "\r\x1b[K" in terminal.shown


def test_bash_completes_commands_choices_and_names_of_workloads(nodectl: Nodectl, tmp_path: Path) -> None:
    def complete(*words: str) -> list[str]:
        return bash_completes("noded.control.cli", "nodectl", ["--socket", nodectl.path, *words], tmp_path)

    assert complete("conn") == ["connections"]
    assert complete("log-level", "d") == ["debug"]
    assert complete("why", "0-r") == ["0-r3"]
    assert complete("connections", "--workload", "sh") == ["shop/web"]
    assert complete("remove", "--namespace", "shop", "w") == ["web"]
    assert complete("remove", "w") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_for_each_shell_needs_no_daemon(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = invoke(main, capsys, "--socket", "/nowhere", "completion", shell)
    assert result.status == 0
    assert "_NODECTL_COMPLETE" in result.out


@pytest.mark.parametrize("name", ["", *sorted(cli.commands)])
def test_every_command_has_help_with_an_example_that_is_not_rewrapped(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = invoke(main, capsys, *([name] if name else []), "--help")
    assert result.status == 0
    assert f"\n    {f'nodectl {name}' if name != 'completion' else 'source'}" in result.out.split("Examples:")[1]


def test_a_list_of_commands_cuts_no_description_short(capsys: pytest.CaptureFixture[str]) -> None:
    listed = invoke(main, capsys, "--help").out.split("Commands:")[1]
    assert "..." not in listed.split("Examples:")[0]


def test_every_command_is_in_the_reference() -> None:
    reference = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text()
    missing = [name for name in cli.list_commands(click.Context(cli)) if f"`nodectl {name}" not in reference]
    assert missing == []
