"""The same policies and the same requests: our inbound side and an Envoy, configured as Istio would, give one verdict.

What Istio makes of an `AuthorizationPolicy` is written here by hand, after its pilot/pkg/security/authz/builder.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.model import Action, Condition, Operation, Policy, Rule
from tests.noded.data.lab import lab, server

pytestmark = pytest.mark.root
Json = dict[str, Any]
_EXTENSIONS = "type.googleapis.com/envoy.extensions"
_HTTP = f"{_EXTENSIONS}.filters.http"
_REQUESTS = 250


def policy(action: Action, *rules: Rule) -> Policy:
    return Policy("p", "shop", action, rules)


def to(**clauses: Any) -> Rule:
    return Rule((), (Operation(**clauses),))


def when(key: str, *values: str, no: tuple[str, ...] = ()) -> Rule:
    return Rule(conditions=(Condition(key, values, no),))


ALLOW, DENY = Action.ALLOW, Action.DENY
CASES: dict[str, tuple[Policy, ...]] = {
    "methods": (policy(ALLOW, to(methods=("GET", "P*"))),),
    "not-methods": (policy(DENY, to(not_methods=("GET", "HEAD"))),),
    "paths": (policy(ALLOW, to(paths=("/a", "/a/*", "*/b"))),),
    "admin": (policy(DENY, to(paths=("/admin*",))),),
    "not-paths": (policy(DENY, to(not_paths=("/a*", "/"))),),
    "one": (policy(ALLOW, to(paths=("/a/{*}", "/{*}/b/{*}"))),),
    "many": (policy(ALLOW, to(paths=("/a/{**}", "/b/{**}/b"))),),
    "both": (policy(DENY, to(paths=("/{*}/{**}/",))),),
    "hosts": (policy(ALLOW, to(hosts=("web.shop", "*.example", "Api*"))),),
    "not-hosts": (policy(DENY, to(not_hosts=("web.shop:*",))),),
    "header": (policy(ALLOW, when("request.headers[X-Team]", "red", "bl*")),),
    "no-header": (policy(ALLOW, when("request.headers[x-team]", no=("red",))),),
    "some-header": (policy(DENY, when("request.headers[x-team]", "*")),),
    "together": (
        policy(DENY, to(methods=("PUT",), paths=("/a*",))),
        policy(ALLOW, to(methods=("GET", "PUT")), Rule((), (), when("request.headers[x-team]", "red").conditions)),
    ),
}


# -- what Istio makes of them -----------------------------------------------------------------------------------------


def text(value: str, **more: Any) -> Json:
    """A string matcher."""
    if value == "*":
        return {"safe_regex": {"regex": ".+"}, **more}
    if value.startswith("*"):
        return {"suffix": value[1:], **more}
    return {"prefix": value[:-1], **more} if value.endswith("*") else {"exact": value, **more}


def header(name: str, value: str, **more: Any) -> Json:
    if value == "*":
        return {"header": {"name": name, "present_match": True}}
    return {"header": {"name": name, "string_match": text(value, **more)}}


def path(value: str) -> Json:
    if "{" in value:
        template = value.replace("{**}", "**").replace("{*}", "*")
        kind = f"{_EXTENSIONS}.path.match.uri_template.v3.UriTemplateMatchConfig"
        return {"uri_template": {"name": "t", "typed_config": {"@type": kind, "path_template": template}}}
    return {"url_path": {"path": text(value)}}


def among(values: tuple[str, ...], no: tuple[str, ...], make: Callable[[str], Json], kind: str) -> list[Json]:
    """The rules for one field; `kind` is `rules` of a permission or `ids` of a principal."""
    either, inverse = ("or_rules", "not_rule") if kind == "rules" else ("or_ids", "not_id")
    found = [{either: {kind: [make(value) for value in values]}}] if values else []
    return found + ([{inverse: {either: {kind: [make(value) for value in no]}}}] if no else [])


def permission(operation: Operation) -> Json:
    rules = [
        *among(operation.hosts, operation.not_hosts, lambda v: header(":authority", v, ignore_case=True), "rules"),
        *among(operation.methods, operation.not_methods, lambda v: header(":method", v), "rules"),
        *among(operation.paths, operation.not_paths, path, "rules"),
    ]
    return {"and_rules": {"rules": rules}}


def principal(rule: Rule) -> Json:
    ids = [
        one
        for c in rule.conditions
        for one in among(c.values, c.not_values, lambda v, c=c: header(c.key[16:-1].lower(), v), "ids")  # type: ignore[misc]  # c=c
    ]
    return {"and_ids": {"ids": ids}} if ids else {"any": True}


def filters(policies: tuple[Policy, ...]) -> list[Json]:
    made = []
    for action in (DENY, ALLOW):
        rules = [rule for one in policies if one.action is action for rule in one.rules]
        if rules:
            named = {
                str(index): {
                    "permissions": [permission(o) for o in rule.operations] or [{"any": True}],
                    "principals": [principal(rule)],
                }
                for index, rule in enumerate(rules)
            }
            config = {"@type": f"{_HTTP}.rbac.v3.RBAC", "rules": {"action": action.value, "policies": named}}
            made.append({"name": f"rbac-{action.value}", "typed_config": config})
    return made


def listener(name: str, policies: tuple[Policy, ...], folder: Path) -> Json:
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    manager = {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "normalize_path": True,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [*filters(policies), {"name": "r", "typed_config": {"@type": f"{_HTTP}.router.v3.Router"}}],
    }
    return {
        "name": name,
        "address": {"pipe": {"path": str(folder / name)}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


@contextlib.contextmanager
def envoy(folder: Path) -> Iterator[None]:
    config = {"static_resources": {"listeners": [listener(name, p, folder) for name, p in CASES.items()]}}
    (folder / "envoy.json").write_text(json.dumps(config))
    command = [str(Path(sys.executable).with_name("envoy")), "-c", str(folder / "envoy.json"), "--concurrency", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--use-dynamic-base-id", "-l", "error"], stdout=log, stderr=log)
    try:
        while not all((folder / name).exists() for name in CASES):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


# -- requests ---------------------------------------------------------------------------------------------------------

_SEGMENTS = ["a", "b", "admin", ".", "..", "%2e%2e", "%61", "%2F", "%5c", "\\", ";x", "%20", "a.b", "~", "*", "A", ""]
_METHODS = ["GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]
_HOSTS = ["web.shop", "WEB.shop", "web.shop:80", "x.EXAMPLE", "example", "apix", "api.shop:8080"]
_ENDS = ["", "", "/", "?q=/../a"]
_TEAMS: list[tuple[str, ...]] = [(), (), ("red",), ("blue",), ("",), ("red", "x"), ("re",)]


def requests() -> list[bytes]:
    """The same ones each time."""
    chance = random.Random(11)
    made = []
    for _ in range(_REQUESTS):
        target = "/" + "/".join(chance.choices(_SEGMENTS, k=chance.randint(0, 4))) + chance.choice(_ENDS)
        lines = [
            f"{chance.choice(_METHODS)} {target} HTTP/1.1",
            f"Host: {chance.choice(_HOSTS)}",
            *(f"X-Team: {team}" for team in chance.choice(_TEAMS)),
            "Connection: close",
        ]
        made.append("\r\n".join([*lines, "", ""]).encode())
    return made


def status(connection: socket.socket, asking: bytes) -> int:
    """Of the answer. Closes the connection."""
    with connection:
        connection.settimeout(30)
        connection.sendall(asking)
        head = b""
        while head.count(b" ") < 2 and (data := connection.recv(65536)):
            head += data
        return int(head.split(b" ")[1])


def theirs(address: Path, asking: bytes) -> int:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(address))
    return status(connection, asking)


def answer(connection: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


async def test_envoy_gives_the_same_verdicts(tmp_path: Path) -> None:
    asked = requests()
    different: list[tuple[str, bytes, int, int]] = []
    async with lab(tmp_path) as made:
        web, outsider = made.pod("web"), made.pod("outsider", "other")
        await made.enrol(web)
        with envoy(tmp_path), server(web, 8080, answer):
            for name, policies in CASES.items():
                made.policies = policies
                await made.publish()

                def verdicts(name: str = name) -> list[tuple[bytes, int, int]]:
                    return [
                        (one, status(outsider.connect(web.address, 8080), one), theirs(tmp_path / name, one))
                        for one in asked
                    ]

                found = await trio.to_thread.run_sync(verdicts)
                different += [(name, *one) for one in found if one[1] != one[2]]
                assert {ours for _one, ours, _envoys in found} >= {200, 403}, name
    assert not different, "\n".join(map(str, different))
