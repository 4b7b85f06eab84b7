"""What a worker remembers of connections and requests that were denied or failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from mesh.model import Action, Condition, MeshConfig, Operation, Policy, Rule
from mesh.snapshot import Snapshot
from mesh.sync import Update
from mesh.traffic import Backend, Parent, Route, RouteMatch, RouteRule
from noded.control.why import explain
from tests.noded.data.lab import Lab, Pod, lab, read_all, server
from tests.noded.data.test_http import GET, Web, asked, service

pytestmark = pytest.mark.root


def snapshot_of(made: Lab) -> Snapshot:
    """What the control process would hold the rows against."""
    update = Update(
        "e",
        1,
        0,
        True,
        MeshConfig(),
        has_policies=True,
        services=made.services,
        policies=made.policies,
        routes=made.routes,
    )
    return Snapshot.empty().apply(update)


async def failed(made: Lab, pod: Pod, count: int) -> list[dict[str, Any]]:
    with trio.fail_after(60):
        while len(rows := await made.query(pod, "failed")) < count:
            await trio.sleep(0.05)
    return rows


async def test_denied_and_failed_requests_are_remembered_with_all_that_was_judged(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        client, web = made.pod("client"), made.pod("web")
        await made.enrol(client)
        await made.enrol(web)
        made.services = (service(web),)
        rule = Rule(operations=(Operation(paths=("/denied*",)),), conditions=(Condition("request.headers[x]", ("1",)),))
        made.policies = (Policy("p", "shop", Action.DENY, (rule,)),)
        matches = (RouteMatch("/denied"), RouteMatch("/fine"), RouteMatch("/large"))
        made.routes = (
            Route(
                "HTTPRoute", "r", "shop", (Parent("shop/web", 80),), (RouteRule(matches, (Backend("shop/web", 80),)),)
            ),
        )
        await made.publish()
        get = GET.replace(b"\r\n\r\n", b"\r\nX: 1\r\nAuthorization: Bearer s\r\n\r\n")
        with server(web, 8080, Web()):
            for path in (b"/fine", b"/x/../denied/1?a=b", b"/lost"):
                await asked(client, get.replace(b"/a?b=c", path))
        lost, there = await failed(made, client, 2)
        (denied,) = await failed(made, web, 1)
        assert (denied["method"], denied["path"], denied["code"], denied["flags"]) == (
            "GET",
            "/denied/1?a=b",
            403,
            "RBAC",
        )
        assert ["authorization", "Bearer s"] in denied["headers"]
        assert (denied["source_identity"], denied["target"]) == (client.identity, f"{web.address}:8080")
        assert denied["id"].startswith(f"{denied['worker']}-r")
        assert (lost["path"], lost["code"], lost["flags"], lost["route"]) == ("/lost", 404, "NR", "")
        assert (there["code"], there["flags"], there["route"], there["rule"]) == (403, "-", "HTTPRoute/shop/r", 0)
        answer = explain(denied, snapshot_of(made), {})
        assert (answer["verdict"]["policy"], answer["notes"]) == ("shop/p", [])
        with server(web, 8080, Web()):
            large = b"\r\nX-Large: " + b"x" * 9000 + b"\r\n\r\n"
            await asked(
                client, get.replace(b"/a?b=c", b"/large").replace(b"\r\n\r\n", large).replace(b"/large", b"/no")
            )
        assert [row["whole"] for row in await failed(made, client, 3)] == [False, True, True]


async def test_a_denied_connection_is_remembered_and_explained(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        client, web = made.pod("client"), made.pod("web")
        await made.enrol(client)
        await made.enrol(web)
        made.services = (service(web, protocol="tcp"),)
        made.policies = (Policy("p", "shop", Action.ALLOW, (Rule(operations=(Operation(methods=("GET",)),)),)),)
        await made.publish()
        with server(web, 8080, Web()):
            await trio.to_thread.run_sync(_refused, client)
        (row,) = await failed(made, web, 1)
        assert (row["kind"], row["flags"], row["direction"]) == ("connection", "RBAC", "inbound")
        answer = explain(row, snapshot_of(made), {})
        assert not answer["verdict"]["allowed"]
        assert "TCP" in answer["verdict"]["steps"][0]["rules"][0]["missed"][0]["problem"]


def _refused(client: Pod) -> None:
    with client.connect("10.96.0.1", 80) as sock:
        try:
            sock.sendall(GET)
            read_all(sock)
        except ConnectionResetError:
            pass
