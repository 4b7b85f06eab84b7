"""noded on a node of a cluster: assigned pods, found in /proc or brought by the CNI plug-in itself."""

import contextlib
import ctypes
import errno
import json
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mesh.sync import POD_UID, Assign, Assignment, outside
from noded.control import clean_up, daemon
from noded.control.assignments import Markers
from noded.control.cni import parse
from noded.control.failure import CannotRun, Conflict, Failure, Invalid
from noded.control.kubernetes import Kubernetes
from noded.control.pods import Sandbox
from redirect.cni.install import NAME
from tests.noded.control_world import World, eventually, replace, world

CONFLIST = '{"cniVersion":"0.4.0","name":"n","plugins":[{"type":"bridge"}]}'


class Node:
    """A node with its kubelet, runtime and processes played by the test."""

    def __init__(self, mesh: World) -> None:
        self.mesh = mesh
        self.folder = mesh.folder / "host"
        for name in ("bin", "net.d", "proc"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "net.d" / "10-net.conflist").write_text(CONFLIST)
        mesh.config = replace(
            mesh.config,
            kubernetes=True,
            kubernetes_cni_bin_dir=self.folder / "bin",
            kubernetes_cni_conf_dir=self.folder / "net.d",
            kubernetes_cni_state_dir=self.folder / "state",
        )
        self.kubernetes: Kubernetes
        self.pids = 100

    def build(self, config: Any, enrolments: Any, namespaces: Any, connected: Any) -> Kubernetes:
        self.kubernetes = Kubernetes(config, enrolments, namespaces, connected, self.folder / "proc")
        return self.kubernetes

    def starts(self, pod: str, address: str, netns: str | None = None) -> int:
        """The pod's sandbox runs; its process."""
        self.pids += 1
        process = self.folder / "proc" / str(self.pids)
        (process / "ns").mkdir(parents=True)
        (process / "cgroup").write_text(f"0::/kubepods/burstable/pod{pod}/c")
        (process / "stat").write_text(f"{self.pids} (pause) S {'0 ' * 18}{self.pids} 0\n")
        if netns is None:
            (process / "ns" / "net").write_text(address)
        else:
            os.link(netns, process / "ns" / "net")
        return self.pids

    def mounts_of_the_host(self, folder: str) -> None:
        there = Path(f"{self.folder}/proc/1/root{folder}")
        there.mkdir(parents=True)
        (there / "cni-not-here").write_text("10.77.0.1")

    def ends(self, pid: int) -> None:
        shutil.rmtree(self.folder / "proc" / str(pid))

    def assign(self, *pods: Assignment, others: tuple[str, ...] = (), namespaces: tuple[str, ...] = ("shop",)) -> None:
        self.kubernetes.assignments.assigned(Assign(pods, namespaces, others))

    async def calls(self, command: str, pod: Assignment, netns: str, address: str = "10.77.0.1") -> tuple[int, Any]:
        """As the container runtime calls the plug-in; its status and what it printed."""
        result = {"cniVersion": "0.4.0", "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": netns}],
                  "ips": [{"version": "4", "interface": 1, "address": f"{address}/24"}]}  # fmt: skip
        environment = {
            "CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_NETNS": netns, "CNI_IFNAME": "eth0", "CNI_PATH": "/x",
            "CNI_ARGS": f"K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name};K8S_POD_UID={pod.pod}",
        }  # fmt: skip
        done = await trio.run_process(
            ["/bin/sh", str(self.folder / "bin" / NAME)], env=environment, check=False,
            stdin=json.dumps({"cniVersion": "0.4.0", "prevResult": result}).encode(), capture_stdout=True,
        )  # fmt: skip
        return done.returncode, json.loads(done.stdout or b"null")

    async def is_served(self) -> None:
        await eventually(lambda: (self.mesh.config.run_dir / "cni" / "ready").exists())
        await eventually(lambda: NAME in (self.folder / "net.d" / "10-net.conflist").read_text())

    async def has(self, *names: str) -> list[dict[str, Any]]:
        found = await self.mesh.until(
            "/workloads",
            lambda answer: (
                sorted(w["name"] for w in answer["items"] if w["state"] == "ready") == sorted(names)
                and len(answer["items"]) == len(names)
            ),
        )
        rows: list[dict[str, Any]] = found["items"]
        return rows


@pytest.fixture
async def node(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async with world() as mesh:
        made = Node(mesh)
        monkeypatch.setattr(daemon, "Kubernetes", made.build)
        yield made


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[None]:
    async with node.mesh.controlled():
        node.mesh.token()
        async with node.mesh.node():
            await node.mesh.connected()
            await node.is_served()
            yield


def pod(name: str, *, addresses: tuple[str, ...] = (), **labels: str) -> Assignment:
    return Assignment(str(uuid.uuid4()), name, "shop", name, labels, addresses)


async def test_a_pod_that_runs_is_found_and_enrolled(node: Node) -> None:
    async with running(node):
        web = pod("web", addresses=("10.77.0.9",), app="web")
        pid = node.starts(web.pod, "10.77.0.9")
        node.assign(web)
        (row,) = await node.has("web")
        assert (row["addresses"], row["service_account"]) == (["10.77.0.9"], "web")
        assert row["labels"] == {"app": "web", POD_UID: web.pod}  # so that the controller knows which web it is
        assert row["netns"] == f"{node.folder}/proc/{pid}/ns/net"


async def test_a_process_that_has_taken_a_dead_sandbox_s_number_is_not_taken_for_it(node: Node) -> None:
    async with running(node):
        victim, attacker = pod("victim"), pod("attacker")
        pid = node.starts(attacker.pod, "10.77.0.66")
        node.kubernetes.assignments._pods = {"shop/victim": victim}
        for seen in (Sandbox(pid, pid - 1), Sandbox(pid + 1, pid + 1)):
            with contextlib.suppress(Failure):
                await node.kubernetes.assignments._bring("shop/victim", {victim.pod: seen})
        assert [w["name"] for w in (await node.mesh.get("/workloads"))["items"]] == []
        known = node.mesh.namespaces.open(node.mesh.namespace("one", "10.77.0.1"))
        try:
            other = node.mesh.namespaces.identify(known)
        finally:
            os.close(known)
        with pytest.raises(Conflict, match="another namespace by now"):
            await node.kubernetes.assignments._enrol(
                "shop/victim", victim, node.mesh.namespace("two", "10.77.0.2"), (), other
            )


async def test_a_pod_without_addresses_yet_gets_those_of_its_namespace(node: Node) -> None:
    async with running(node):
        web = pod("web")
        node.starts(web.pod, "10.77.0.3")
        node.assign(web)
        (row,) = await node.has("web")
        assert row["addresses"] == ["10.77.0.3"]


async def test_a_pod_that_is_no_longer_assigned_leaves_in_order(node: Node) -> None:
    async with running(node):
        web = pod("web")
        node.starts(web.pod, "10.77.0.1")
        node.assign(web)
        await node.has("web")
        node.assign(others=(web.pod,))
        await node.has()
        assert [step for step, _ in node.mesh.namespaces.log] == ["apply", "undo_syn", "undo"]


async def test_other_labels_reach_an_enrolled_pod(node: Node) -> None:
    async with running(node):
        web = pod("web", version="v1")
        node.starts(web.pod, "10.77.0.1")
        node.assign(web)
        await node.has("web")
        node.assign(replace(web, labels={"version": "v2"}))
        await node.mesh.until("/workloads", lambda a: a["items"][0]["labels"].get("version") == "v2")


async def test_a_successor_of_the_same_name_inherits_nothing(node: Node) -> None:
    async with running(node):
        first, second = pod("web"), pod("web")
        pid = node.starts(first.pod, "10.77.0.1")
        node.assign(first)
        await node.has("web")
        marks = {row["mark"] for row in await node.mesh.told()}
        key = (node.mesh.config.key_dir / "shop~web.pem").read_bytes()
        node.ends(pid)
        successor = node.starts(second.pod, "10.77.0.2")
        node.assign(second)
        await node.mesh.until("/workloads", lambda a: [w["addresses"] for w in a["items"]] == [["10.77.0.2"]])
        (row,) = await node.has("web")
        assert f"/{successor}/" in row["netns"]
        assert (node.mesh.config.key_dir / "shop~web.pem").read_bytes() != key
        assert marks.isdisjoint({row["mark"] for row in await node.mesh.told()})


async def test_the_plug_in_returns_when_its_pod_is_captured(node: Node) -> None:
    async with running(node):
        web, netns = pod("web"), node.mesh.namespace("cni-1", "10.77.0.1")
        node.assign(web)
        status, result = await node.calls("ADD", web, netns, "10.77.0.5")
        assert (status, result["ips"][0]["address"]) == (0, "10.77.0.5/24")
        (row,) = await node.has("web")
        assert (row["addresses"], row["netns"]) == (["10.77.0.5"], netns)
        assert [step for step, _ in node.mesh.namespaces.log] == ["apply"]
        node.starts(web.pod, "", netns)
        node.assign(replace(web, addresses=("10.77.0.5",)))
        await trio.sleep(0.2)  # nothing is to happen: it is the same namespace, found another way
        assert [step for step, _ in node.mesh.namespaces.log] == ["apply"]


@pytest.mark.parametrize("folder", ["/var/run/netns", "/run/netns", "/somewhere"])
async def test_a_namespace_that_only_the_host_s_mounts_show_is_found_through_process_1(node: Node, folder: str) -> None:
    async with running(node):
        web = pod("web")
        node.mounts_of_the_host(folder.removeprefix("/var"))
        node.assign(web)
        assert (await node.calls("ADD", web, f"{folder}/cni-not-here"))[0] == 0
        await node.has("web")
        assert await node.calls("DEL", web, f"{folder}/cni-not-here") == (0, None)
        await node.has()


async def test_cleaning_up_leaves_the_host_as_it_was(node: Node) -> None:
    async with running(node):
        web, netns = pod("web"), node.mesh.namespace("cni-1", "10.77.0.1")
        node.assign(web)
        await node.calls("ADD", web, netns)
        await node.has("web")
        with pytest.raises(CannotRun, match="another noded runs"):
            await clean_up.run(node.mesh.config, pods=True, namespaces=node.mesh.namespaces)
    node.mesh.namespaces.log.clear()
    await clean_up.run(node.mesh.config, pods=True, namespaces=node.mesh.namespaces)
    assert [step for step, _ in node.mesh.namespaces.log] == ["undo"]
    left = [path.relative_to(node.folder) for path in node.folder.rglob("*") if path.is_file()]
    assert [str(path) for path in left] == ["net.d/10-net.conflist"]
    assert (node.folder / "net.d" / "10-net.conflist").read_text() == CONFLIST
    for folder in (node.mesh.config.run_dir, node.mesh.config.key_dir, node.mesh.config.state_dir):
        assert not folder.exists()
    node.mesh.config.key_dir.mkdir()  # the fixture wants to remove it


async def test_cleaning_up_without_pods_leaves_them_captured(node: Node) -> None:
    async with running(node):
        web, netns = pod("web"), node.mesh.namespace("cni-1", "10.77.0.1")
        node.assign(web)
        await node.calls("ADD", web, netns)
    node.mesh.namespaces.log.clear()
    await clean_up.run(node.mesh.config, pods=False, namespaces=node.mesh.namespaces)
    assert node.mesh.namespaces.log == []
    node.mesh.config.key_dir.mkdir()


async def test_the_plug_in_waits_for_the_assignment(node: Node) -> None:
    async with running(node):
        web, netns = pod("web"), node.mesh.namespace("cni-1", "10.77.0.1")
        node.assign()
        async with trio.open_nursery() as nursery:

            async def add() -> None:
                assert (await node.calls("ADD", web, netns))[0] == 0
                await node.has("web")

            nursery.start_soon(add)
            await eventually(lambda: list((node.mesh.config.run_dir / "cni" / "requests").glob("*.taken")))
            node.assign(web)


async def test_a_pod_that_stays_outside_starts_at_once_and_uncaptured(node: Node) -> None:
    async with running(node):
        plain = pod("plain")
        node.assign(others=(plain.pod,))
        assert (await node.calls("ADD", plain, node.mesh.namespace("cni-1", "10.77.0.1")))[0] == 0
        await node.has()


HASH = "a19fcb739f339de24b29821f43a9b821"


async def test_a_static_pod_is_captured_before_it_starts(node: Node) -> None:
    async with running(node):
        static, netns = replace(pod("static"), pod=HASH), node.mesh.namespace("cni-1", "10.77.0.1")
        node.assign(static)
        assert (await node.calls("ADD", static, netns))[0] == 0
        await node.has("static")


async def test_a_static_pod_that_runs_is_whom_kubelet_has_reported_and_not_whoever_says_so(node: Node) -> None:
    async with running(node):
        node.starts(HASH, "10.77.0.9")
        lie = replace(pod("lie"), pod=HASH)
        other = pod("other", addresses=("10.77.0.8",))
        node.starts(other.pod, "10.77.0.8")
        node.assign(lie, other)
        await node.has("other")
        node.assign(lie, other, replace(pod("static", addresses=("10.77.0.9",)), pod=HASH))
        await node.has("other", "static")


async def test_a_static_pod_stays_outside_by_its_own_name_only(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noded.control.assignments._MARKED_SECONDS", 0.1)
    async with running(node):
        static, netns = replace(pod("static"), pod=HASH), node.mesh.namespace("cni-1", "10.77.0.1")
        node.assign(others=(outside(HASH, "evil/static"), HASH))
        assert (await node.calls("ADD", static, netns))[0] == 1
        node.assign(others=(outside(HASH, "shop/static"),))
        assert (await node.calls("ADD", static, netns))[0] == 0
        await node.has()


async def test_a_pod_that_the_controller_refuses_does_not_start(node: Node) -> None:
    async with running(node):
        web = replace(pod("web"), namespace="forbidden")
        node.assign(web, namespaces=("forbidden",))
        status, error = await node.calls("ADD", web, node.mesh.namespace("cni-1", "10.77.0.1"))
        assert (status, error["code"], error["cniVersion"]) == (1, 11, "0.4.0")
        assert "the controller refused" in error["msg"]


async def test_the_end_of_a_pod_s_network_forgets_it_at_once(node: Node) -> None:
    async with running(node):
        web, netns = pod("web"), node.mesh.namespace("cni-1", "10.77.0.1")
        node.assign(web)
        await node.calls("ADD", web, netns)
        await node.has("web")
        assert await node.calls("DEL", web, node.mesh.namespace("cni-0", "10.77.0.7")) == (0, None)
        await trio.sleep(0.2)  # an older sandbox's: nothing is to happen
        await node.has("web")
        assert await node.calls("DEL", web, netns) == (0, None)
        await node.has()
        assert not (node.mesh.config.key_dir / "shop~web.pem").exists()
        assert [step for step, _ in node.mesh.namespaces.log] == ["apply"], "rules stay with what may still run"
        await eventually(lambda: "shop/web" not in node.mesh.controller.home.register.enrolled)


async def test_the_late_end_of_an_old_sandbox_does_not_end_its_successor(node: Node) -> None:
    async with running(node):
        web, assignments = pod("web"), node.kubernetes.assignments
        node.assign(web)
        paths = [node.mesh.namespace(f"cni-{number}", f"10.77.0.{number}") for number in (1, 2)]
        await node.calls("ADD", web, paths[0])
        await node.has("web")
        # the successor is on its way in when the old one's end is told
        async with trio.open_nursery() as nursery, assignments._alone("shop/web"):
            nursery.start_soon(assignments.gone, "shop/web", paths[0])
            await trio.testing.wait_all_tasks_blocked(0.05)
            await assignments._admit("shop/web", web, paths[1], ("10.77.0.2",))
        (row,) = await node.has("web")
        assert row["addresses"] == ["10.77.0.2"]


async def test_of_pods_that_came_and_went_nothing_is_remembered(node: Node) -> None:
    async with running(node):
        for number in range(3):
            web, netns = pod(f"web-{number}"), node.mesh.namespace(f"cni-{number}", f"10.77.0.{number + 1}")
            node.assign(web)
            assert (await node.calls("ADD", web, netns, f"10.77.0.{number + 1}"))[0] == 0
            await node.calls("DEL", web, netns)
            await node.has()
        node.assign()
        assignments = node.kubernetes.assignments
        assert (assignments._enrolled_as, assignments._said) == ({}, {})
        await eventually(lambda: not assignments._locks)


async def test_on_a_host_without_inotify_to_spare_the_plug_in_is_served_all_the_same(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exhausted:
        @staticmethod
        def inotify_init1(_flags: int) -> int:
            ctypes.set_errno(errno.EMFILE)
            return -1

    monkeypatch.setattr("noded.control.inotify._libc", Exhausted)
    async with running(node):
        web = pod("web")
        node.assign(web)
        assert (await node.calls("ADD", web, node.mesh.namespace("cni-1", "10.77.0.1")))[0] == 0
        await node.has("web")


async def test_cleaning_up_leaves_what_others_keep_in_the_same_folders(node: Node) -> None:
    async with running(node):
        pass
    for folder in (node.mesh.config.run_dir, node.mesh.config.state_dir, node.mesh.config.key_dir):
        (folder / "precious").mkdir()
        (folder / "precious" / "file").write_text("somebody else's")
    await clean_up.run(node.mesh.config, pods=True, namespaces=node.mesh.namespaces)
    for folder in (node.mesh.config.run_dir, node.mesh.config.state_dir, node.mesh.config.key_dir):
        assert [str(path.relative_to(folder)) for path in folder.rglob("*")] == ["precious", "precious/file"]


async def test_a_new_sandbox_of_the_same_pod_takes_the_place_of_the_old(node: Node) -> None:
    async with running(node):
        web = pod("web")
        node.assign(web)
        for number in (1, 2):
            netns = node.mesh.namespace(f"cni-{number}", f"10.77.0.{number}")
            assert (await node.calls("ADD", web, netns, f"10.77.0.{number}"))[0] == 0
        (row,) = await node.has("web")
        assert row["addresses"] == ["10.77.0.2"]


async def test_while_noded_is_away_only_pods_outside_the_mesh_start(node: Node) -> None:
    async with running(node):
        node.assign()
        await eventually(lambda: (node.folder / "state" / "namespaces" / "shop").exists())
    assert not (node.mesh.config.run_dir / "cni" / "ready").exists()
    netns = node.mesh.namespace("cni-1", "10.77.0.1")
    status, error = await node.calls("ADD", pod("web"), netns)
    assert (status, error["code"]) == (1, 11)
    assert (await node.calls("ADD", replace(pod("web"), namespace="other"), netns))[0] == 0


async def test_after_a_restart_pods_go_on_with_what_they_had(node: Node) -> None:
    async with running(node):
        web, netns = pod("web"), node.mesh.namespace("cni-1", "10.77.0.1")
        node.assign(web)
        await node.calls("ADD", web, netns)
        await node.has("web")
    node.starts(web.pod, "", netns)
    key = (node.mesh.config.key_dir / "shop~web.pem").read_bytes()
    async with running(node):
        await node.has("web")
        node.assign(web)
        await trio.sleep(0.2)
        await node.has("web")
        assert (node.mesh.config.key_dir / "shop~web.pem").read_bytes() == key


async def test_a_chain_that_its_owner_writes_anew_gets_the_plug_in_again(node: Node) -> None:
    async with running(node):
        (node.folder / "net.d" / "10-net.conflist").write_text(CONFLIST.replace("bridge", "macvlan"))
        await node.is_served()


def test_markers_are_exactly_the_namespaces_that_are_names(tmp_path: Path) -> None:
    markers = Markers(tmp_path / "namespaces")
    markers.set(("shop", "../x", "a/b", ""))
    assert "shop" in markers
    assert "../namespaces" not in markers
    markers.set(("bank",))
    assert ("shop" in markers, "bank" in markers) == (False, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["namespaces"]


@pytest.mark.parametrize(
    "config",
    ["", "[]", '{"prevResult": 1}', '{"prevResult": {"ips": [1]}}', '{"prevResult": {"ips": [{"address": "x"}]}}',
     '{"prevResult": {"interfaces": [1], "ips": []}}', "[" * 100_000],
)  # fmt: skip
def test_a_result_that_makes_no_sense_is_refused(config: str) -> None:
    with pytest.raises(Invalid, match="prevResult makes no sense"):
        parse("command=ADD\nnamespace=shop\nname=web\n\n" + config)


def test_addresses_of_the_host_s_end_are_not_the_pod_s() -> None:
    result = {
        "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/x"}],
        "ips": [{"address": "10.1.0.1/24", "interface": 0}, {"address": "10.1.0.2/24", "interface": 1},
                {"address": "fd00::2/64"}],
    }  # fmt: skip
    text = "command=ADD\nnamespace=shop\nname=web\n\n" + json.dumps({"prevResult": result})
    assert parse(text).addresses == ("10.1.0.2", "fd00::2")


def by_service_account(mesh: World, roots: bytes) -> None:
    """The node is to join with what kubelet mounts; any secret that the controller takes stands for the JWT."""
    mesh.token()
    secret = (mesh.folder / "token").read_text().rpartition(".")[2]
    (mesh.folder / "token").write_text(secret + "\n")
    (mesh.folder / "roots.pem").write_bytes(roots)
    mesh.config = replace(mesh.config, controller_root_file=mesh.folder / "roots.pem")


async def test_a_node_joins_with_its_service_account_s_token_and_the_published_roots() -> None:
    async with world() as mesh, mesh.controlled():
        by_service_account(mesh, mesh.controller.authority.bundle)
        async with mesh.node():
            await mesh.connected()
        (mesh.folder / "token").write_text("another, an hour later")
        async with mesh.node():
            await mesh.connected()  # with its own certificate: a new token is no reason to join again


async def test_a_token_that_has_changed_is_read_anew_at_the_next_attempt() -> None:
    async with world() as mesh, mesh.controlled():
        by_service_account(mesh, mesh.controller.authority.bundle)
        good = (mesh.folder / "token").read_text()
        (mesh.folder / "token").write_text("stale")
        async with mesh.node():
            await mesh.until("/status", lambda s: "did not let this node join" in s["controller"]["last_error"])
            (mesh.folder / "token").write_text(good)
            await mesh.connected()


async def test_a_controller_under_other_roots_gets_no_token() -> None:
    async with world() as other, other.controlled():
        foreign = other.controller.authority.bundle
        async with world() as mesh, mesh.controlled():
            by_service_account(mesh, foreign)
            async with mesh.node():
                await mesh.until("/status", lambda s: "CERTIFICATE_VERIFY_FAILED" in s["controller"]["last_error"])


async def test_roots_that_are_not_published_yet_are_waited_for() -> None:
    async with world() as mesh, mesh.controlled():
        by_service_account(mesh, mesh.controller.authority.bundle)
        (mesh.folder / "roots.pem").rename(mesh.folder / "later.pem")
        async with mesh.node():
            await mesh.until("/status", lambda s: "roots.pem cannot be read" in s["controller"]["last_error"])
            (mesh.folder / "later.pem").rename(mesh.folder / "roots.pem")
            await mesh.connected()
