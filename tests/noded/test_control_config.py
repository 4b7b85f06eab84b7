from pathlib import Path

import pytest

from noded.config import ConfigError, load, parse

GOOD = """node: node-a
controller: {address: "172.30.0.254:15012", tokenFile: /etc/nodemesh/token}
workers: 2
metricsAddress: ""
"""


@pytest.mark.parametrize("name", ["Node-A", "node_a", "..", "-a", "a" * 254, ""])
def test_a_node_name_that_the_controller_would_refuse_is_refused_here(name: str) -> None:
    with pytest.raises(ConfigError, match="must be a node name"):
        parse("noded.yaml", GOOD.replace("node: node-a", f'node: "{name}"'))


def test_a_minimal_file_gets_the_documented_defaults() -> None:
    config = parse("noded.yaml", GOOD)
    assert config.controller_address == ("172.30.0.254", 15012)
    assert config.controller_token_file == Path("/etc/nodemesh/token")
    assert (config.workers, config.metrics_address, config.ready_address) == (2, None, ("0.0.0.0", 15021))
    assert (config.hold_seconds, config.drain_seconds, config.undo_on_stop) == (5.0, 30.0, False)


@pytest.mark.parametrize(
    ("bad_line", "says"),
    [
        ("worker: 2", "unknown key 'worker'"),
        ("holdSeconds: soon", "holdSeconds: must be a number of seconds"),
        ("drainSeconds: true", "drainSeconds: must be a number of seconds"),
        ("accessLog: 'yes'", "accessLog: must be true or false"),
        ("keyDir: keys", "keyDir: must be an absolute path"),
        ("readyAddress: localhost:80", "readyAddress: must be an IP address with a port"),
        ("logLevel: loud", "logLevel: must be a log level, not 'loud'"),
        ("accessLogFormat: txt", "accessLogFormat: must be json or text, not 'txt'"),
        ("tracing: {endpoint: 'grpc://c:4317'}", "tracing.endpoint: must be an http or https URL"),
        ("node: node-b", "node is given twice"),
        ("runDir: !!python/object:os.system {}", "runDir: tag not allowed"),
        ("controller: {}", "controller is given twice"),
        ("  bad: indentation", "is not YAML"),
    ],
)
def test_a_wrong_line_is_named_with_its_text_and_a_remedy(bad_line: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse("noded.yaml", GOOD + bad_line + "\n")
    problem = caught.value.problems[0]
    assert says in problem.message
    assert (problem.line, problem.text) == (5, bad_line)
    assert problem.remedy
    assert "noded.yaml:5: " in str(caught.value)


@pytest.mark.parametrize(
    ("bad_line", "remedy"),
    [
        ("worker: 2", "did you mean workers?"),
        ("requestIDs: true", "did you mean requestIds?"),
        ("tracing: {smapling: 1}", "did you mean sampling?"),
        ("colour: red", "known keys: accessLog, "),
    ],
)
def test_a_key_that_is_nearly_right_is_named(bad_line: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse("noded.yaml", GOOD + bad_line + "\n")
    assert caught.value.problems[0].remedy.startswith(remedy)


def test_all_problems_of_a_file_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("noded.yaml", "node: a/b\nworkers: -1\ncontroller: {address: nowhere}\n")
    assert [problem.line for problem in caught.value.problems] == [1, 2, 3]


def test_a_key_that_is_wrong_inside_controller_is_named() -> None:
    with pytest.raises(ConfigError, match=r"noded.yaml:2: unknown key 'controller.adress'"):
        parse("noded.yaml", "node: a\ncontroller: {adress: 'a:1'}\n")


def test_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("noded.yaml", "workers: 1\n")
    assert "'node' is missing" in str(caught.value)


def test_a_file_that_is_not_there_is_reported_and_not_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "noded.yaml")


def test_what_the_api_shows_has_the_keys_of_the_file() -> None:
    shown = parse("noded.yaml", GOOD).as_json()
    address, token = "172.30.0.254:15012", "/etc/nodemesh/token"
    assert shown["controller"] == {"address": address, "tokenFile": token, "rootFile": None}
    assert "kubernetes" not in shown
    assert shown["readyAddress"] == "0.0.0.0:15021"
    assert "controllerAddress" not in shown


def test_one_file_serves_all_nodes_of_a_cluster() -> None:
    text = GOOD + "kubernetes: {cniBinDir: /usr/lib/cni}\n"
    config = parse("noded.yaml", text, node="node-b", controller="[fd00::1]:15012")
    assert (config.node, config.controller_address) == ("node-b", ("fd00::1", 15012))
    assert config.kubernetes
    assert config.as_json()["kubernetes"] == {
        "cniBinDir": "/usr/lib/cni",
        "cniConfDir": "/etc/cni/net.d",
        "cniStateDir": "/var/lib/cni/nodemesh",
    }
    with pytest.raises(ConfigError, match="--node:1: must be a node name"):
        parse("noded.yaml", text, node="Node B")
