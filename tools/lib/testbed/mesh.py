"""A testbed that is up: its daemons, and what can be done with it.

Everything it has written is under `/run/nodemesh-testbed/NAME`, a tmpfs of its own: the daemons' configuration, state,
sockets and keys, all logs, and the spec that it was made from.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from testbed import network, services
from testbed.api import ApiError, Unreachable, call
from testbed.beds import Beds, is_name
from testbed.document import SpecError
from testbed.processes import Processes
from testbed.spec import CONTROLLER_ADDRESS, POD_RANGES, SERVICE_RANGE, Node, Pod, Spec, parse

FOLDER = Path("/run/nodemesh-testbed")
_BIN = Path(sys.executable).parent
_SECONDS = 60.0
"""How long a daemon may take for what `up` and `restart` wait for."""


class TestbedError(Exception):
    """A testbed that can't be made, found, or used so."""

    __test__ = False


def names() -> list[str]:
    """The testbeds there are, in whatever state."""
    return sorted(path.name for path in FOLDER.glob("*")) if FOLDER.is_dir() else []


BEDS = Beds("testbed", "testbed", TestbedError, names)


def find(name: str = "") -> Testbed:
    """The testbed of this name, or the only one. Raises `TestbedError`."""
    folder = FOLDER / BEDS.choose(name)
    try:
        source = Path((folder / "source").read_text())
        return Testbed(parse((folder / "spec.yaml").read_text(), source, up=True))
    except (OSError, SpecError) as error:
        raise TestbedError(
            f"testbed '{folder.name}' is incomplete ({error}); remove it with: tools/testbed down {folder.name}"
        ) from None


def down(name: str) -> bool:
    """Remove a testbed, whatever became of it. False if there was nothing to remove."""
    if not is_name(name):
        return False
    folder = FOLDER / name
    there = folder.exists() or bool(network.remaining(name))
    network.destroy(name)
    while folder.is_mount():
        done = subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, text=True)
        if done.returncode:
            raise TestbedError(f"umount {folder}: {done.stderr.strip()}")
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        FOLDER.rmdir()
    return there


class Testbed:
    """One testbed."""

    __test__ = False

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.folder = FOLDER / spec.name
        self.processes = Processes(self.folder)

    # Where things are.

    def node_folder(self, node: Node) -> Path:
        """Its noded's configuration, `run`, `keys` and `state`."""
        return self.folder / "nodes" / node.name

    def socket(self, who: Node | None) -> Path:
        """A node's admin socket, or the controller's (None)."""
        return (
            self.folder / "controller/run/controller.sock" if who is None else self.node_folder(who) / "run/noded.sock"
        )

    def controller_api(self, method: str, target: str, body: object = None) -> Any:
        """One request to the controller. Raises `ApiError`, `Unreachable`."""
        return call(self.socket(None), method, target, body)

    def node_api(self, node: Node, method: str, target: str, body: object = None) -> Any:
        """One request to a node's `noded`. Raises `ApiError`, `Unreachable`."""
        return call(self.socket(node), method, target, body)

    def enter(self, who: Node | Pod | str, argv: list[str]) -> list[str]:
        """The command line that runs `argv` in the namespace of a node, a pod, `controller` or `fabric`."""
        return ["ip", "netns", "exec", self.spec.netns(who), *argv]

    def environment(self, who: Node | None) -> dict[str, str]:
        """What `nodectl` on a node, or `meshctl` on the controller's host (None), needs to be found and to work."""
        path = f"{_BIN}:{os.environ.get('PATH', '/usr/bin:/bin')}"
        variable = "NODEMESH_CONTROLLER_SOCKET" if who is None else "NODEMESH_SOCKET"
        return {"PATH": path, variable: str(self.socket(who))}

    def capture(
        self, argv: list[str], environment: dict[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command line and keep its output. A command that takes longer is ended, with exit code 124."""
        try:
            return subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                env=os.environ | (environment or {}),
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(argv, 124, "", f"no end after {timeout:.0f} s")

    @property
    def source(self) -> Path:
        """The file that it was made from."""
        return Path((self.folder / "source").read_text())

    # Making it.

    def up(self, text: str, source: Path, say: Callable[[str], None]) -> None:
        """Make everything and wait until every workload is enrolled. Raises whatever was in the way, half-made."""
        for program in ("mesh-controller", "noded"):
            if not (_BIN / program).exists():
                raise TestbedError(f"{_BIN / program} is missing: is the project installed there? Run tools/setup")
        if self.folder.exists() or network.remaining(self.spec.name):
            raise TestbedError(
                f"testbed '{self.spec.name}' is there already; remove it: tools/testbed down {self.spec.name}"
            )
        self.folder.mkdir(parents=True)
        network.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "nodemesh-testbed", str(self.folder)])
        (self.folder / "source").write_text(str(source.absolute()))
        (self.folder / "spec.yaml").write_text(text)
        network.create(self.spec)
        say(f"network: {len(self.spec.nodes)} nodes on 172.30.0.0/24, {len(self.spec.pods)} pods in 10.77.0.0/16")
        self.start_controller()
        self.apply(
            {"testbed": yaml.safe_dump_all([*self.spec.services, *(self._declared(p) for p in self._outside())])}
        )
        self.apply({str(policy): policy.read_text() for policy in self.spec.policies})
        counts = f"{len(self.spec.services)} services, {len(self.spec.policies)} policy files"
        say(f"controller: up at {CONTROLLER_ADDRESS}, {counts}")
        for node in self.spec.nodes:
            self._configure(node)
            self.launch_node(node)
        for node in self.spec.nodes:
            self.await_node(node)
            for pod in self.enrolled_pods(node):
                self.enrol(pod)
            say(f"{node.name}: noded up at {node.address}, {len(self.enrolled_pods(node))} workloads enrolled")
        self.publish()
        for pod in self.spec.pods:
            if pod.run:
                self.run(pod)
        time.sleep(0.3 if any(pod.run for pod in self.spec.pods) else 0)
        for pod in self.spec.pods:
            if pod.run and not self.processes.alive(f"pod/{pod.uid}"):
                raise TestbedError(
                    f"the program of pod {pod.uid} ended at once:\n{self.processes.tail(f'pod/{pod.uid}')}"
                )

    def _outside(self) -> list[Pod]:
        return [pod for pod in self.spec.pods if not pod.mesh]

    def enrolled_pods(self, node: Node) -> list[Pod]:
        """Those that the file wants in the mesh."""
        return [pod for pod in self.spec.pods if pod.mesh and pod.node == node.name]

    def _declared(self, pod: Pod) -> dict[str, Any]:
        return {
            "apiVersion": "nodemesh.dev/v1alpha1",
            "kind": "Workload",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels},
            "spec": {"addresses": list(pod.addresses), "serviceAccount": pod.service_account},
        }

    def _configure(self, node: Node) -> None:
        folder = self.node_folder(node)
        for part in ("run", "keys", "state"):
            (folder / part).mkdir(parents=True, mode=0o700)
        allow = sorted({f"{pod.namespace}/{pod.service_account}" for pod in self.enrolled_pods(node)})
        token = self.controller_api(
            "POST", "/v1/tokens", {"allow": allow, "node": node.name, "ttl_seconds": 3600, "uses": 1}
        )["token"]
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(token + "\n")
        settings = {
            "node": node.name,
            "controller": {"address": f"{CONTROLLER_ADDRESS}:15012", "tokenFile": str(folder / "token")},
            "runDir": str(folder / "run"),
            "keyDir": str(folder / "keys"),
            "stateDir": str(folder / "state"),
            "drainSeconds": 5,
        }
        (folder / "noded.yaml").write_text(yaml.safe_dump(settings | self.spec.noded, sort_keys=False))

    # The daemons.

    def launch_node(self, node: Node) -> None:
        argv = [str(_BIN / "noded"), "--config", str(self.node_folder(node) / "noded.yaml")]
        self.processes.start(f"node/{node.name}", argv, self.spec.netns(node))

    def start_node(self, node: Node) -> None:
        """Start its noded and wait until all that it had enrolled is in the mesh again."""
        self.launch_node(node)
        self.await_node(node)

    def start_controller(self) -> None:
        """Start the controller and wait until it answers."""
        folder = self.folder / "controller"
        for part in ("run", "state"):
            (folder / part).mkdir(parents=True, mode=0o700, exist_ok=True)
        settings = {
            "listen": "0.0.0.0:15012",
            "advertise": [CONTROLLER_ADDRESS],
            "cluster": self.spec.name,
            "stateDir": str(folder / "state"),
            "runDir": str(folder / "run"),
            "meshRanges": list(POD_RANGES),
            "serviceRange": SERVICE_RANGE,
        }
        (folder / "controller.yaml").write_text(yaml.safe_dump(settings | self.spec.controller, sort_keys=False))
        argv = [str(_BIN / "mesh-controller"), "--config", str(folder / "controller.yaml")]
        self.processes.start("controller", argv, self.spec.netns("controller"))
        self._await("controller", lambda: self.controller_api("GET", "/readyz") is not None, "answer on its socket")

    def _workloads(self, node: Node) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.node_api(node, "GET", "/workloads")["items"]
        return items

    def await_node(self, node: Node) -> None:
        """Wait until noded is connected to the controller and what it has enrolled is ready."""

        def ready() -> bool:
            status = self.node_api(node, "GET", "/status")
            return bool(status["controller"]["connected"]) and all(w["state"] == "ready" for w in self._workloads(node))

        self._await(f"node/{node.name}", ready, "be connected to the controller with its workloads ready")

    def _await(self, process: str, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _SECONDS
        last = "nothing"
        while time.monotonic() < deadline:
            if not self.processes.alive(process):
                raise TestbedError(f"{process} ended; its log's last lines:\n{self.processes.tail(process)}")
            try:
                if ready():
                    return
                last = "not yet"
            except (ApiError, Unreachable) as error:
                last = str(error)
            time.sleep(0.1)
        raise TestbedError(
            f"{process} took more than {_SECONDS:.0f} s to {what} (last answer: {last}); its log's last lines:\n"
            f"{self.processes.tail(process)}"
        )

    # What is in it.

    def enrol(self, pod: Pod, **changes: Any) -> Any:
        """Put a pod in the mesh; returns when its capture is in place. `changes` override what the file says."""
        request = {
            "name": pod.name,
            "namespace": pod.namespace,
            "service_account": pod.service_account,
            "labels": pod.labels,
            "netns": str(network.NETNS / self.spec.netns(pod)),
        }
        return self.node_api(self.spec.node(pod.node), "POST", "/workloads", request | changes)

    def remove(self, pod: Pod, drain: float = 0) -> None:
        """Take a pod out of the mesh."""
        self.node_api(self.spec.node(pod.node), "DELETE", f"/workloads/{pod.uid}?drain={drain}")

    def run(self, pod: Pod) -> None:
        """Start the pod's program, in the folder of the testbed file, with a TMPDIR of its own."""
        scratch = self.folder / "pods" / pod.uid
        scratch.mkdir(parents=True, exist_ok=True)
        environment = {"TMPDIR": str(scratch)}
        self.processes.start(f"pod/{pod.uid}", list(pod.run), self.spec.netns(pod), self.source.parent, environment)

    def apply(self, files: dict[str, str]) -> None:
        """What `meshctl apply -f` does, by file name. Raises `ApiError` with line numbers."""
        if files:
            body = {"files": [{"name": name, "text": text} for name, text in files.items()]}
            self.controller_api("POST", "/v1/apply", body)

    def publish(self) -> None:
        """Make the pods' name resolution and the nodes' DNAT follow the services that the controller has now."""
        services.publish(self.spec, self.controller_api("GET", "/v1/services")["items"])
