"""A whole small cluster for meshctl: the fake API server with what kubectl-like clients need, in a thread of its own.

Beyond `FakeKubernetes`: discovery, server-side apply, access reviews, `exec`, and the controllers' part of the work:
a Deployment's and a DaemonSet's pods are there and ready as soon as they are applied.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from controller.config import Address
from controller.http import serve
from controller.listeners import tcp_listener
from tests.controller.fake_kubernetes import KINDS, Failure, FakeKubernetes, Json

MORE = {
    "apis/apps/v1/deployments": "Deployment",
    "apis/apps/v1/daemonsets": "DaemonSet",
    "apis/rbac.authorization.k8s.io/v1/clusterroles": "ClusterRole",
    "apis/rbac.authorization.k8s.io/v1/clusterrolebindings": "ClusterRoleBinding",
    "apis/rbac.authorization.k8s.io/v1/roles": "Role",
    "apis/rbac.authorization.k8s.io/v1/rolebindings": "RoleBinding",
    "apis/apiextensions.k8s.io/v1/customresourcedefinitions": "CustomResourceDefinition",
    "apis/networking.k8s.io/v1/networkpolicies": "NetworkPolicy",
    "apis/policy/v1beta1/poddisruptionbudgets": "PodDisruptionBudget",
}
CLUSTER_WIDE = {"namespaces", "nodes", "clusterroles", "clusterrolebindings", "customresourcedefinitions"}
_ASSIGNED = ("uid", "resourceVersion", "generation", "creationTimestamp")
Command = Callable[[str, list[str], bytes], tuple[int, bytes, bytes]]
"""From a pod's name, the words, and a line of standard input to exit status, output and error output."""


class FakeCluster(FakeKubernetes):
    """`denied` holds (verb, resource) that nobody may; `broken` images never run; `commands` answers `exec`."""

    def __init__(self, nodes: tuple[str, ...] = ("n1", "n2")) -> None:
        super().__init__(kinds=KINDS | MORE)
        self.nodes = nodes
        self.minor = "20+"
        self.denied: set[tuple[str, str]] = set()
        self.broken: set[str] = set()
        self.applied: list[tuple[str, str]] = []
        """Kind and name, dry runs left out."""
        self.seen: list[Json] = []
        """Every DaemonSet that was applied."""
        self.commands: Command = lambda pod, words, line: (1, b"", b"no such command")
        for name in nodes:
            self.put("api/v1/nodes", node(name))

    def application(self) -> Starlette:
        async def version(_request: Request) -> Response:
            return JSONResponse({"major": "1", "minor": self.minor, "gitVersion": f"v1.{self.minor}.2"})

        async def review(request: Request) -> Response:
            asked = (await request.json())["spec"]["resourceAttributes"]
            resource = "/".join(part for part in (asked["resource"], asked.get("subresource")) if part)
            return JSONResponse({"status": {"allowed": (asked["verb"], resource) not in self.denied}}, 201)

        async def discovery(request: Request) -> Response:
            return self._discovery(request.url.path.strip("/"))

        found = super().application()
        found.router.routes[:0] = [
            Route("/version", version),
            Route("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review, methods=["POST"]),
            Route("/api/v1", discovery),
            Route("/apis/{group}/{version}", discovery),
            WebSocketRoute("/api/v1/namespaces/{namespace}/pods/{pod}/exec", self._exec),
        ]
        return found

    def _discovery(self, path: str) -> Response:
        resources = [
            {"name": name, "kind": kind, "namespaced": name not in CLUSTER_WIDE}
            for collection, kind in self.kinds.items()
            for group, _, name in [collection.rpartition("/")]
            if group == path
        ]
        if not resources:
            return JSONResponse(Failure(404, "NotFound", "the server could not find the requested resource").body, 404)
        return JSONResponse({"kind": "APIResourceList", "groupVersion": path, "resources": resources})

    async def _object(self, request: Request, collection: str, namespace: str, name: str, sub: str) -> Response:
        await request.body()  # else the connection cannot be used again
        if request.method == "PATCH" and "apply-patch" in request.headers["content-type"]:
            assert request.query_params["fieldManager"] == "meshctl"
            return JSONResponse(self._apply(collection, await request.json(), "dryRun" in request.query_params))
        return await super()._object(request, collection, namespace, name, sub)

    def _apply(self, collection: str, body: Json, dry_run: bool) -> Json:
        namespace = body["metadata"].get("namespace")
        if namespace and namespace not in {name for _ns, name in self._of("api/v1/namespaces")}:
            raise Failure(404, "NotFound", f"namespaces {namespace!r} not found")
        known = self._of(collection).get(self._key(body))
        merged = copy.deepcopy(body)
        merged["metadata"]["managedFields"] = [{"manager": "meshctl", "operation": "Apply"}]
        if known is not None:  # nobody else sets fields here, so what is not applied any more goes
            kept = {name: known["metadata"][name] for name in _ASSIGNED if name in known["metadata"]}
            merged = {**merged, "metadata": merged["metadata"] | kept}
            merged |= {"status": known["status"]} if "status" in known else {}
        if merged == known:
            return known
        generation = (known["metadata"].get("generation", 1) if known else 0) + 1
        merged["metadata"] |= {"generation": generation, "uid": f"uid-{body['metadata']['name']}"}
        if dry_run:
            return merged
        self.applied.append((body["kind"], body["metadata"]["name"]))
        self._store("MODIFIED" if known else "ADDED", collection, merged)
        self._controllers(collection, merged)
        return merged

    def _controllers(self, collection: str, body: Json) -> None:
        generation, kind = body["metadata"]["generation"], body["kind"]
        if kind == "CustomResourceDefinition":
            body["status"] = {"conditions": [{"type": "Established", "status": "True"}]}
        elif kind == "Deployment":
            wanted = body["spec"]["replicas"]
            ready = self._pods(body, [f"{i}" for i in range(wanted)])
            body["status"] = dict.fromkeys(("replicas", "updatedReplicas"), wanted)
            body["status"] |= {"availableReplicas": ready, "observedGeneration": generation}
        elif kind == "DaemonSet":
            self.seen.append(copy.deepcopy(body))
            labels = body["spec"]["template"]["spec"].get("nodeSelector", {})
            nodes = [] if labels.keys() - {"kubernetes.io/os"} else list(self.nodes)
            ready = self._pods(body, nodes)
            numbers = {"desiredNumberScheduled": len(nodes), "updatedNumberScheduled": len(nodes), "numberReady": ready}
            body["status"] = {**numbers, "numberUnavailable": len(nodes) - ready, "observedGeneration": generation}

    def _pods(self, owner: Json, suffixes: list[str]) -> int:
        """Put the pods of an owner there; how many are ready."""
        self._remove_pods(owner)
        template = owner["spec"]["template"]
        ready = template["spec"]["containers"][0]["image"] not in self.broken
        waiting = {"reason": "ErrImageNeverPull", "message": "not present"}
        for suffix in suffixes:
            status: Json = {"conditions": [{"type": "Ready", "status": str(ready)}]}
            status |= {} if ready else {"containerStatuses": [{"state": {"waiting": waiting}}]}
            metadata = {"name": f"{owner['metadata']['name']}-{suffix}", "namespace": owner["metadata"]["namespace"]}
            metadata |= {"labels": template["metadata"]["labels"]}
            self.put(
                "api/v1/pods",
                {
                    "kind": "Pod",
                    "metadata": metadata,
                    "spec": {**template["spec"], "nodeName": suffix},
                    "status": status,
                },
            )
        return len(suffixes) * ready

    def _remove_pods(self, owner: Json) -> None:
        prefix = owner["metadata"]["name"] + "-"
        names = {*self.nodes, *map(str, range(10))}
        for namespace, name in list(self._of("api/v1/pods")):
            if name.startswith(prefix) and name.removeprefix(prefix) in names:
                super().remove("api/v1/pods", name, namespace)

    def remove(self, collection: str, name: str, namespace: str = "") -> None:
        body = self._of(collection).get((namespace, name))
        if body is not None and body.get("kind") in ("Deployment", "DaemonSet"):
            self._remove_pods(body)
        super().remove(collection, name, namespace)
        if collection == "api/v1/namespaces":
            for other in list(self.objects):
                for within, each in list(self._of(other)):
                    if within == name:
                        super().remove(other, each, within)

    def _chosen(self, request: Request, namespace: str, body: Json) -> bool:
        terms = [term for term in request.query_params.get("labelSelector", "").split(",") if term]
        labels = body["metadata"].get("labels") or {}
        wanted = dict(term.split("=", 1) for term in terms)
        return wanted.items() <= labels.items() and super()._chosen(request, namespace, body)

    async def _exec(self, socket: WebSocket) -> None:
        """Answers each line of standard input, or without it once. Pods `refused` and `cut` are what they are named."""
        words = socket.query_params.getlist("command")
        pod = socket.path_params["pod"]
        if pod == "refused":
            return await socket.close(1008)
        await socket.accept(subprotocol="v4.channel.k8s.io")
        if pod == "cut":
            return await socket.close()
        if socket.query_params.get("stdin") != "true":
            status, out, error = self.commands(pod, words, b"")
            await socket.send_bytes(b"\1" + out[: len(out) // 2])
            await socket.send_bytes(b"\1" + out[len(out) // 2 :])
            await socket.send_bytes(b"\2" + error)
            causes = f'{{"details":{{"causes":[{{"reason":"ExitCode","message":"{status}"}}]}},"status":"Failure"}}'
            await socket.send_bytes(b"\3" + (causes.encode() if status else b'{"status":"Success"}'))
            return await socket.close()
        buffer = b""
        while (message := await socket.receive())["type"] == "websocket.receive":
            buffer += message["bytes"][1:]
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                await socket.send_bytes(b"\1" + self.commands(pod, words, line)[1])
        return None


def node(name: str, kernel: str = "6.1.0-18-amd64", ready: str = "True") -> Json:
    info = {"kernelVersion": kernel, "operatingSystem": "linux", "containerRuntimeVersion": "containerd://1.6.20"}
    conditions = [{"type": "Ready", "status": ready, "message": "cni plugin not initialized" * (ready != "True")}]
    return {
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {},
        "status": {"nodeInfo": info, "conditions": conditions},
    }


@contextmanager
def serving() -> Iterator[FakeCluster]:
    """The cluster on a free port of loopback, as long as the body runs."""
    cluster = FakeCluster()
    ready = threading.Event()
    scope = trio.CancelScope()
    token: list[trio.lowlevel.TrioToken] = []

    async def main() -> None:
        token.append(trio.lowlevel.current_trio_token())
        with scope, tcp_listener(Address("127.0.0.1", 0), "test") as listener:
            cluster.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, cluster.application(), listener)
                ready.set()

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield cluster
    finally:
        token[0].run_sync_soon(scope.cancel)
        thread.join(10)
