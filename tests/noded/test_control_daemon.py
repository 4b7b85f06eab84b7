import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio

from controller.publish import Publisher
from mesh.identity import Identity
from mesh.model import Enrolment
from mesh.sync import Update
from noded.control import enrolment, syncer, view
from noded.control.credential import parse
from noded.control.failure import CannotRun
from noded.control.syncer import Syncer
from tests.noded.control_world import World, eventually, failing_command, replace, world


@pytest.fixture
async def mesh() -> AsyncIterator[World]:
    async with world() as made:
        yield made


async def test_a_new_node_joins_and_takes_a_workload_into_the_mesh(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            response = await mesh.enrol("web", labels={"app": "web"})
            assert response.status_code == 200, response.text
            row = response.json()
            assert (row["uid"], row["state"], row["certificate"]) == ("shop/web", "ready", "valid")
            assert row["addresses"] == ["10.77.0.1"]
            assert mesh.controller.home.register.enrolled["shop/web"].node == "node-a"
            told = await mesh.told()
            assert [(t["worker"], t["workload"], t["fds"], t["labels"]) for t in told] == [
                (0, "shop/web", 4, {"app": "web"}),
                (1, "shop/web", 4, {"app": "web"}),
            ]
            held = parse((mesh.config.key_dir / "shop~web.pem").read_bytes())
            assert held.identity == Identity("cluster.local", "shop", "web").uri
            assert {t["certificate"] for t in told} == {held.chain.decode()}
            assert [step for step, _ in mesh.namespaces.log] == ["apply"]
            assert stat.S_IMODE((mesh.config.run_dir / "noded.sock").stat().st_mode) == 0o600
            nodes = (await mesh.get("/mesh/workloads"))["items"]
            assert [(w["uid"], w["meshed"], w["app"]) for w in nodes] == [("shop/web", True, "web")]


async def test_workers_know_the_workload_from_the_mesh_before_they_accept_for_it(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            before = mesh.controller.publisher.revision
            await mesh.enrol("web")
            assert all(t["revision"] > before for t in await mesh.told())


async def test_others_that_hear_of_a_workload_before_its_own_workers_can_connect(
    mesh: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol = Syncer.enrol
    early: list[socket.socket] = []

    async def told(self: Syncer, workload: Enrolment) -> None:
        await enrol(self, workload)
        early.extend(socket.create_connection(address) for address in mesh.namespaces.listening)

    monkeypatch.setattr(Syncer, "enrol", told)
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            assert (await mesh.enrol("web")).status_code == 200
            assert len(early) == 6, "three ports, two workers"
    for connection in early:
        connection.close()


async def test_the_same_request_again_changes_nothing_and_puts_back_missing_rules(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            first = await mesh.enrol("web")
            told = await mesh.told()
            assert (await mesh.enrol("web")).json() == first.json()
            assert await mesh.told() == told
            applied, again = mesh.namespaces.log
            assert applied == again


async def test_other_labels_reach_controller_and_workers_without_new_listeners(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            await mesh.enrol("web", labels={"version": "v1"})
            marks = {t["mark"] for t in await mesh.told()}
            assert (await mesh.enrol("web", labels={"version": "v2"})).status_code == 200
            told = await mesh.told()
            assert [(t["labels"], t["fds"]) for t in told] == [({"version": "v2"}, 4)] * 2
            assert {t["mark"] for t in told} == marks
            assert mesh.controller.home.register.enrolled["shop/web"].workload.labels == {"version": "v2"}


async def test_what_its_token_does_not_allow_is_refused_and_leaves_nothing(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token(["other/*"])
        async with mesh.node():
            await mesh.connected()
            response = await mesh.enrol("web")
            assert response.status_code == 409
            assert "the controller refused" in response.json()["error"]["message"]
            assert (await mesh.get("/workloads"))["items"] == []
            assert await mesh.told() == []
            assert list((mesh.config.run_dir / "enrolments").iterdir()) == []


async def test_a_failure_of_the_last_step_undoes_the_others(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            mesh.namespaces.broken = True
            assert (await mesh.enrol("web")).status_code == 500
            assert await mesh.told() == []
            assert [step for step, _ in mesh.namespaces.log] == ["undo"]
            assert not (mesh.config.key_dir / "shop~web.pem").exists()
            assert list((mesh.config.run_dir / "enrolments").iterdir()) == []
            await eventually(lambda: "shop/web" not in mesh.controller.home.register.enrolled)


async def test_removing_undoes_everything_in_order(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            await mesh.enrol("web")
            assert (await mesh.api.delete("/workloads/shop/web?drain=0")).status_code == 200
            assert [step for step, _ in mesh.namespaces.log] == ["apply", "undo_syn", "undo"]
            assert await mesh.told() == []
            assert not (mesh.config.key_dir / "shop~web.pem").exists()
            assert (await mesh.api.delete("/workloads/shop/web")).status_code == 404
            await eventually(lambda: "shop/web" not in mesh.controller.home.register.enrolled)


async def test_a_workload_that_leaves_takes_tunnels_until_the_others_know(
    mesh: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncer, "_SPREAD_SECONDS", 0.0)
    withdrawn, release = trio.Event(), trio.Event()
    withdraw = Syncer.withdraw

    async def held_up(self: Syncer, uid: str) -> None:
        withdrawn.set()
        await release.wait()
        await withdraw(self, uid)

    monkeypatch.setattr(Syncer, "withdraw", held_up)
    async with mesh.controlled():
        mesh.token()
        async with mesh.node(), trio.open_nursery() as nursery:
            await mesh.connected()
            await mesh.enrol("web")
            nursery.start_soon(mesh.api.delete, "/workloads/shop/web?drain=20")
            await withdrawn.wait()
            assert [step for step, _ in mesh.namespaces.log] == ["apply", "undo_syn"]
            assert [(t["worker"], t["workload"]) for t in await mesh.told()] == [(0, "shop/web"), (1, "shop/web")]
            mesh.namespaces.broken = True
            (row,) = (await mesh.get("/capture?verify=1"))["items"]
            assert (row["state"], row["installed"], row["drift"]) == ("draining", False, []), "it was taken for drift"
            mesh.namespaces.broken = False
            release.set()
            await mesh.until("/workloads", lambda answer: answer["items"] == [])
            assert await mesh.told() == []
            assert "shop/web" not in mesh.controller.home.register.enrolled
            assert (await mesh.get("/mesh/workloads"))["items"] == []


async def test_after_a_crash_and_without_the_controller_everything_comes_back(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            await mesh.enrol("web")
            await mesh.until("/status", lambda s: (mesh.config.state_dir / "snapshot.msgpack").exists())
            before = {t["worker"]: t for t in await mesh.told()}
    (mesh.folder / "token").unlink()
    async with mesh.node():
        await mesh.until("/workloads", lambda w: [i["state"] for i in w["items"]] == ["ready"])
        assert not (await mesh.get("/status"))["controller"]["connected"]
        for row in await mesh.told():
            earlier = before[row["worker"]]
            assert row["pid"] != earlier["pid"]
            for same in ("mark", "certificate", "labels", "fds"):
                assert row[same] == earlier[same]
            assert row["revision"] >= 1
        again = await mesh.enrol("web")
        assert again.status_code == 200
        new = await mesh.enrol("api", "10.77.0.2")
        assert new.status_code == 503
        assert new.json()["error"]["remedy"]
        async with mesh.controlled():
            await mesh.connected()
            assert (await mesh.enrol("api")).status_code == 200
            assert set(mesh.controller.home.register.enrolled) == {"shop/web", "shop/api"}


_SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}], clusterIPs: [10.96.0.1]}
"""


async def test_what_does_not_apply_is_rejected_and_leaves_what_was_in_force(
    mesh: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            await mesh.enrol("web", labels={"app": "web"})
            publisher, sent = mesh.controller.publisher, list[bool]()

            def spoilt(*args: Any) -> Update:
                update = Publisher.update(publisher, *args)
                sent.append(update.full)
                return replace(update, removed=(*update.removed, "x:nothing"))

            monkeypatch.setattr(publisher, "update", spoilt)
            mesh.controller.home.resources.apply([("s", _SERVICE)])
            status = mesh.controller.link.statuses["node-a"]
            await eventually(lambda: True in sent and "x:nothing" in status.last_nack)
            assert not sent[0]
            in_force = (await mesh.get("/status"))["snapshot"]["revision"]
            assert in_force < publisher.revision
            assert {told["revision"] for told in await mesh.told()} == {in_force}
            assert not (await mesh.get("/mesh/services"))["items"]
            monkeypatch.undo()
            publisher.touch()
            await mesh.until("/mesh/services", lambda found: [one["name"] for one in found["items"]] == ["web"])
            await eventually(lambda: not status.last_nack)


async def test_a_replaced_worker_gets_all_that_the_one_before_had(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            await mesh.enrol("web")
            await mesh.enrol("api", "10.77.0.2")
            before = await mesh.told()
            victim = next(t["pid"] for t in before if t["worker"] == 1)
            os.kill(victim, signal.SIGKILL)
            await mesh.until("/status", lambda s: s["workers"][1]["restarts"] == 1 and s["workers"][1]["pid"])
            after = (await mesh.until("/connections", lambda c: len(c["items"]) == 4 and _all_certified(c)))["items"]
            for a, b in zip(before, after, strict=True):
                assert {**a, "pid": 0, "revision": 0} == {**b, "pid": 0, "revision": 0}
            assert all(t["revision"] == mesh.controller.publisher.revision for t in after)
            assert victim not in {t["pid"] for t in after}


async def test_connections_queue_while_a_worker_is_replaced(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            await mesh.enrol("web")
            for pid in {t["pid"] for t in await mesh.told()}:
                os.kill(pid, signal.SIGKILL)
            for address in mesh.namespaces.listening:
                with trio.fail_after(60):
                    await (await trio.open_tcp_stream(*address)).aclose()
            await mesh.api.delete("/workloads/shop/web?drain=0")
            for address in mesh.namespaces.listening:
                with pytest.raises(OSError, match="failed"):
                    await trio.open_tcp_stream(*address)


def _all_certified(connections: dict[str, list[dict[str, object]]]) -> bool:
    return all(row["certificate"] for row in connections["items"])


async def test_a_namespace_that_vanished_while_the_daemon_was_away_is_withdrawn(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            await mesh.enrol("web")
            await mesh.enrol("api", "10.77.0.2")
        mesh.namespace("web", "10.77.0.9")  # another one at the same path
        (mesh.folder / "api").unlink()
        async with mesh.node():
            await mesh.connected()
            assert (await mesh.get("/workloads"))["items"] == []
            assert mesh.controller.home.register.enrolled == {}
            assert list(mesh.config.key_dir.glob("*~*")) == []


async def test_a_namespace_that_vanishes_later_is_withdrawn(mesh: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment, "_WATCH_EVERY", 0.05)
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            await mesh.enrol("web")
            (mesh.folder / "web").unlink()
            await mesh.until("/workloads", lambda w: not w["items"])
            assert await mesh.told() == []
            assert [step for step, _ in mesh.namespaces.log] == ["apply"]  # what still runs in there stays cut off


async def test_a_successor_of_the_same_name_takes_its_place(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            await mesh.enrol("web")
            before = {t["mark"] for t in await mesh.told()}
            mesh.namespace("web", "10.77.0.8")
            assert (await mesh.enrol("web")).json()["addresses"] == ["10.77.0.8"]
            told = await mesh.told()
            assert {t["mark"] for t in told}.isdisjoint(before)
            assert _all_certified({"items": told})


async def test_one_namespace_is_not_enrolled_twice(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            await mesh.enrol("web")
            response = await mesh.enrol("api", netns=str(mesh.folder / "web"))
            assert (response.status_code, "shop/web" in response.text) == (409, True)


async def test_sigterm_drains_and_leaves_the_rules_in_place(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            await mesh.enrol("web")
        mesh.namespaces.log.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_terminate_when_ready, mesh)
            with trio.fail_after(60):
                await mesh.run(mesh.config)
        assert [step for step, _ in mesh.namespaces.log] == ["apply"]


async def test_sigterm_removes_the_rules_where_the_configuration_says_so(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            await mesh.enrol("web")
        mesh.namespaces.log.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_terminate_when_ready, mesh)
            with trio.fail_after(60):
                await mesh.run(replace(mesh.config, undo_on_stop=True))
        assert [step for step, _ in mesh.namespaces.log] == ["apply", "undo"]


async def _terminate_when_ready(mesh: World) -> None:
    await eventually(lambda: [step for step, _ in mesh.namespaces.log] == ["apply"])
    os.kill(os.getpid(), signal.SIGTERM)


async def test_counts_of_the_workers_reach_metrics_and_controller(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            await mesh.until("/status", lambda s: sum(worker["connections"] for worker in s["workers"]) == 2)
            text = (await mesh.api.get("/metrics")).text
            [sent] = [line for line in text.splitlines() if line.startswith("istio_tcp_sent_bytes_total{")]
            assert sent.endswith(" 400.0")  # 200 of each worker
            assert "nodemesh_open_connections 2.0" in text


async def test_a_restart_takes_up_the_scope_of_a_new_token_and_lives_with_one_that_is_refused(mesh: World) -> None:
    async with mesh.controlled():
        mesh.token()
        async with mesh.node():
            await mesh.connected()
            assert "allows only shop/*" in (await mesh.enrol("web", namespace="bank")).text
        mesh.token(["shop/*", "bank/*"], node="node-a")
        async with mesh.node():
            await mesh.connected()
            assert (await mesh.enrol("web", namespace="bank")).status_code == 200
        mesh.token(["other/*"])  # the name is taken, and this token is not made for it
        async with mesh.node():
            await mesh.connected()
            assert (await mesh.enrol("web", namespace="bank")).status_code == 200


async def test_a_second_daemon_in_the_same_folder_is_turned_away(mesh: World) -> None:
    async with mesh.node():
        await mesh.until("/status", lambda s: s)
        with pytest.raises(CannotRun, match="another noded runs"):
            await mesh.run(mesh.config)


async def test_it_is_ready_when_workers_run_and_have_a_snapshot(mesh: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = replace(mesh.config, ready_address=("127.0.0.1", port))
    url = f"http://127.0.0.1:{port}/healthz/ready"
    async with mesh.node(config), httpx.AsyncClient() as client:
        await mesh.until("/status", lambda s: all(worker["pid"] for worker in s["workers"]))
        assert (await client.get(url)).status_code == 503
        async with mesh.controlled():
            mesh.token()
            await mesh.connected()
            with trio.fail_after(60):
                while (answer := await client.get(url)).status_code != 200:
                    assert "no snapshot" in answer.text or "workers" in answer.text
                    await trio.sleep(0.02)
        assert (await client.get(url)).status_code == 200  # also with the controller away again


async def test_workers_that_do_not_start_are_tried_again_and_shown(mesh: World) -> None:
    mesh.command = failing_command()
    async with mesh.node():
        status = await mesh.until("/status", lambda s: s["workers"][0]["restarts"] > 1)
        assert status["node"] == "node-a"


async def test_a_bug_is_answered_as_any_other_error(mesh: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "status", lambda parts: 1 / 0)
    async with mesh.node():
        await mesh.until("/config", lambda c: c)
        response = await mesh.api.get("/status")
        assert response.status_code == 500
        assert "ZeroDivisionError" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"name": "web"', "not JSON"),
        ("[]", "not a JSON object"),
        ('{"nam": 1}', "unknown field 'nam'"),
        ('{"name": "../x", "namespace": "shop", "service_account": "x", "netns": "/x"}', "not a DNS name"),
        ('{"name": "x", "namespace": "shop", "service_account": "x", "netns": "x"}', "not an absolute path"),
        ('{"name": "x", "namespace": "shop", "service_account": "x", "netns": "/nowhere"}', "No such file"),
        (
            '{"name": "x", "namespace": "shop", "service_account": "x", "netns": "/x", "labels": {"a": 1}}',
            "short strings",
        ),
        (
            '{"name": "x", "namespace": "shop", "service_account": "x", "netns": "/x", "addresses": ["1"]}',
            "not an IP address",
        ),
        ("x" * 70_000, "longer than"),
    ],
)
async def test_a_request_that_makes_no_sense_is_answered_with_the_reason(mesh: World, body: str, says: str) -> None:
    async with mesh.node():
        await mesh.until("/status", lambda s: s)
        response = await mesh.api.post("/workloads", content=body)
        assert response.status_code == 400
        assert says in response.json()["error"]["message"]
        assert response.json()["error"]["remedy"]


async def test_the_log_level_changes_at_run_time(mesh: World) -> None:
    async with mesh.node():
        await mesh.until("/status", lambda s: s)
        assert (await mesh.api.put("/log-level", json={"level": "loud"})).status_code == 400
        assert (await mesh.api.put("/log-level", json={"level": "info"})).status_code == 200
        assert (await mesh.get("/status"))["log_level"] == "info"
        assert (await mesh.get("/config"))["logLevel"] == "info"
