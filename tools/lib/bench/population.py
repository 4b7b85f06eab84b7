"""The measurement of `tools/bench kube`: simulated nodes and pods beside the real ones of a cluster."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable

import trio

from bench import scale, simulated, usage
from bench.fleet import Fleet, Question
from bench.scale import Change, Scale
from bench.simulated import NAMESPACE, SYSTEM, Plan
from controller.kubernetes import kubeconfig, objects
from controller.kubernetes.client import Client, Json
from controller.kubernetes.mirror import Mirror
from controller.kubernetes.objects import Slice
from kubebed.cluster import Cluster
from kubebed.steps import say
from redirect.netns import open_netns
from testbed.network import NETNS, processes

_AT_ONCE = 8
_PAUSE = 0.4
"""After a change, for what it brings about besides, and so that the next is alone."""
_SECONDS = 420.0
_RENEWAL_SECONDS = 30
_CORE = f"/api/v1/namespaces/{NAMESPACE}"
_SLICES = tuple(
    f"/apis/discovery.k8s.io/{version}/namespaces/{NAMESPACE}/endpointslices" for version in ("v1", "v1beta1")
)
_POLICIES = f"/apis/nodemesh.dev/v1alpha1/namespaces/{NAMESPACE}/authorizationpolicies"
_COMPONENTS = ("kube-apiserver", "etcd", "kube-controller-manager")


async def measure(bed: Cluster, plan: Plan, changes: int, idle: float) -> Scale:
    """All of it, with that many changes of each kind, and seconds in which nothing changes."""
    netns = open_netns(str(NETNS / bed.spec.netns(bed.spec.nodes[0])))
    try:
        async with Client(kubeconfig.load([bed.kubeconfig])) as client, trio.open_nursery() as nursery:
            measured = await Measurement(bed, plan, client, netns, nursery).run(changes, idle)
            nursery.cancel_scope.cancel()
    finally:
        os.close(netns)
    return measured


class Measurement:
    """One run, in a nursery for what goes on beside it. Errors of the fleet and the API end it."""

    def __init__(self, bed: Cluster, plan: Plan, client: Client, netns: int, nursery: trio.Nursery) -> None:
        self._bed, self._plan, self._client, self._netns, self._nursery = bed, plan, client, netns, nursery
        self._figures = Scale(plan.pods, plan.nodes, plan.services)
        self._endpoints: dict[str, dict[str, frozenset[str]]] = {}
        """What the cluster itself says: service -> slice -> addresses that are ready."""
        self._said = trio.Event()
        self._fleet: Fleet
        self._processes: dict[str, int] = {}

    async def run(self, changes: int, idle: float) -> Scale:
        """All of it."""
        figures = self._figures
        await self._prepare()
        figures.idle_cpu_share["no pods"] = await self._idle(idle)
        figures.rss_mb["no pods"] = self._memory()
        before = self._besides()
        await self._fill()
        self._figures.others_share["the filling"] = _share(before, self._besides())
        await trio.sleep(5)  # the cluster's own controllers have to end, too
        figures.idle_cpu_share[f"{self._plan.pods} pods"] = await self._idle(idle)
        before = self._besides()
        for number in range(changes):
            await self._change_each(number)
            if number % 10 == 9:
                say(f"  {number + 1} of {changes} rounds of changes")
        self._figures.others_share["the changes"] = _share(before, self._besides())
        figures.rss_mb["at the end"] = self._memory()
        if self._fleet.refusals:
            refusals = self._fleet.refusals
            say(f"  {len(refusals)} requests of simulated nodes were refused, such as: {refusals[0]}")
        return figures

    # Preparing

    async def _prepare(self) -> None:
        client, plan = self._client, self._plan
        say(f"creating {plan.nodes} simulated nodes and {plan.services} services")
        await client.create("/api/v1/namespaces", simulated.namespace())
        for number in range(plan.services):
            await client.create(f"{_CORE}/services", simulated.service(f"service-{number:04}"))
        slices: Mirror[Slice] = Mirror(client, _SLICES, objects.endpoint_slice, self._on_slice)
        self._nursery.start_soon(slices.run)
        await self._each(range(plan.nodes), self._create_node)
        self._nursery.start_soon(self._renew)
        service = await client.get(f"/api/v1/namespaces/{SYSTEM}/services/nodemesh-controller")
        roots = await client.get(f"/api/v1/namespaces/{SYSTEM}/configmaps/nodemesh-root")
        address = (service["spec"]["clusterIP"], 15012)
        self._fleet = Fleet(self._netns, address, roots["data"]["roots.pem"], NAMESPACE)
        await self._find_processes()
        before = trio.current_time()
        await self._each(range(plan.nodes), self._join)
        self._figures.joined_s = trio.current_time() - before
        say(f"  joined and connected in {self._figures.joined_s:.1f} s")

    async def _create_node(self, number: int) -> None:
        node = simulated.node(self._plan, number)
        path = f"/api/v1/nodes/{node['metadata']['name']}/status"
        await self._client.create("/api/v1/nodes", node)
        await self._client.merge(path, simulated.node_status())
        await self._client.create(simulated.LEASES, simulated.lease(self._plan, number))

    async def _join(self, number: int) -> None:
        client = self._client
        pod = await client.create(f"/api/v1/namespaces/{SYSTEM}/pods", simulated.noded_pod(self._plan, number))
        request = simulated.token_request(pod)
        answer = await client.create(f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/noded/token", request)
        await self._fleet.start(self._plan.node(number), answer["status"]["token"], self._nursery)

    async def _renew(self) -> None:
        """Say that the nodes live, one after the other."""
        while True:
            for number in range(self._plan.nodes):
                await self._client.merge(f"{simulated.LEASES}/{self._plan.node(number)}", simulated.renewal())
                await trio.sleep(_RENEWAL_SECONDS / self._plan.nodes)

    async def _find_processes(self) -> None:
        pods = await self._client.get(f"/api/v1/namespaces/{SYSTEM}/pods")
        found: dict[str, int] = {}
        for pod in sorted(pods["items"], key=lambda body: str(body["metadata"]["name"])):
            if pod["metadata"]["name"].startswith("nodemesh-controller-"):
                found[f"{scale.CONTROLLERS} {len(found) + 1}"] = usage.in_pod(pod["metadata"]["uid"], "mesh-controller")
        for name in _COMPONENTS:
            if (record := self._bed.processes.record(name)) is not None:
                found[name] = record.pid
        self._processes = found | {"simulated nodes": os.getpid()}

    # What the cluster itself says of endpoints

    def _on_slice(self, key: str, old: Slice | None, new: Slice | None) -> None:
        if old is not None:
            self._endpoints[_name(old.service)].pop(key, None)
        if new is not None:
            ready = frozenset(address for backend in new.backends if backend.ready for address in backend.addresses)
            self._endpoints.setdefault(_name(new.service), {})[key] = ready
        self._said.set()
        self._said = trio.Event()

    async def _cluster_says(self, holds: Callable[[], bool]) -> float:
        while not holds():
            await self._said.wait()
        return trio.current_time()

    def _is_endpoint(self, service: str, address: str) -> bool:
        return any(address in addresses for addresses in self._endpoints.get(service, {}).values())

    # All at once

    async def _fill(self) -> None:
        plan, fleet, figures = self._plan, self._fleet, self._figures
        say(f"creating {plan.pods} pods")
        waiting: dict[str, Callable[[], Awaitable[float]]] = {}

        def all_endpoints() -> bool:
            return sum(len(there) for slices in self._endpoints.values() for there in slices.values()) == plan.pods

        known = fleet.ask(lambda view: len(view.known) == plan.pods)
        meshed = fleet.ask(lambda view: len(view.meshed) == plan.pods)
        endpoints = fleet.ask(lambda view: sum(map(len, view.endpoints.values())) == plan.pods)
        waiting["the EndpointSlices hold them all"] = lambda: self._cluster_says(all_endpoints)
        waiting[f"all {plan.nodes} nodes know every pod's address"] = known.answered
        waiting[f"all {plan.nodes} nodes know that every pod is in the mesh"] = meshed.answered
        waiting[f"all {plan.nodes} nodes know every endpoint"] = endpoints.answered
        received, updates, cpu, began = self._received(), self._updates(), self._cpu(), trio.current_time()

        async def create(number: int) -> None:
            await self._client.create(f"{_CORE}/pods", simulated.pod(plan, number))
            await self._ready(number, True)

        async def all_created() -> float:
            await self._each(range(plan.pods), create)
            return trio.current_time()

        steps = {"the API server has them all, ready": all_created, **waiting}
        done = await self._all(steps)
        figures.filling_s = {what: at - began for what, at in done.items()}
        figures.filling_cpu_s = _difference(self._cpu(), cpu)
        figures.filling_received = _each_more(self._received(), received)
        figures.filling_updates = _each_more(self._updates(), updates)
        figures.rss_mb[f"{plan.pods} pods"] = self._memory()
        for what, seconds in figures.filling_s.items():
            say(f"  {seconds:6.1f} s: {what}")

    # One at a time

    async def _change_each(self, number: int) -> None:
        """A round: each kind of change once, all of them undone."""
        plan, fleet, client = self._plan, self._fleet, self._client
        pod = plan.pods + number
        name, service, address = simulated.pod_name(pod), plan.service_of(pod), plan.address_of(pod)
        uid = f"{NAMESPACE}/{name}"

        def says(there: bool) -> Callable[[], Awaitable[float]]:
            return lambda: self._cluster_says(lambda: self._is_endpoint(service, address) == there)

        def knows(there: bool) -> Question:
            return fleet.ask(lambda view: (address in view.endpoints.get(service, ())) == there)

        async def ready() -> None:
            await self._ready(pod, True)

        await client.create(f"{_CORE}/pods", simulated.pod(plan, pod))
        await trio.sleep(_PAUSE)
        known = fleet.ask(lambda view: uid in view.known)
        meshed = fleet.ask(lambda view: uid in view.meshed)
        steps = {
            "nodes know its address": known.answered,
            "nodes know it is in the mesh": meshed.answered,
            "EndpointSlice": says(True),
            "nodes know the endpoint": knows(True).answered,
        }
        await self._change("a new pod is ready", ready, steps)
        await self._change(
            "a pod is not ready",
            lambda: self._ready(pod, False),
            {"EndpointSlice": says(False), "nodes know": knows(False).answered},
        )
        await self._change(
            "a pod is ready again", ready, {"EndpointSlice": says(True), "nodes know": knows(True).answered}
        )
        await self._change(
            "a pod is deleted",
            lambda: client.delete(f"{_CORE}/pods/{name}"),
            {
                "nodes forget it": fleet.ask(lambda view: uid not in view.known).answered,
                "EndpointSlice": says(False),
                "nodes forget the endpoint": knows(False).answered,
            },
        )
        concerned = {plan.node(plan.node_of(at)) for at in range(plan.pods) if plan.service_of(at) == service}
        rule = simulated.policy(name, service)
        await self._change(
            f"a policy for {len(concerned)} nodes",
            lambda: client.create(_POLICIES, rule),
            {"they know": fleet.ask(lambda view: name in view.policies, concerned).answered},
        )
        await self._change(
            "it is deleted",
            lambda: client.delete(f"{_POLICIES}/{name}"),
            {"they know": fleet.ask(lambda view: name not in view.policies, concerned).answered},
        )

    async def _change(
        self, kind: str, act: Callable[[], Awaitable[object]], steps: dict[str, Callable[[], Awaitable[float]]]
    ) -> None:
        """Do it, and note when each step was done, since the API server's answer."""
        received, updates, cpu = self._received(), self._updates(), self._cpu()
        answered = 0.0

        async def do() -> float:
            nonlocal answered
            await act()
            answered = trio.current_time()
            return answered

        done = await self._all({"": do, **steps})
        await trio.sleep(_PAUSE)
        self._figures.changes.append(
            Change(
                kind,
                {step: max(0.0, done[step] - answered) for step in steps},
                _each_more(self._received(), received),
                _each_more(self._updates(), updates),
                _difference(self._cpu(), cpu),
            )
        )

    async def _ready(self, pod: int, ready: bool) -> Json:
        path = f"{_CORE}/pods/{simulated.pod_name(pod)}/status"
        return await self._client.merge(path, simulated.pod_status(self._plan, pod, ready=ready))

    # Counting

    async def _idle(self, seconds: float) -> dict[str, float]:
        before, began = self._cpu(), time.monotonic()
        await trio.sleep(seconds)
        took = time.monotonic() - began
        return {name: used / took for name, used in _difference(self._cpu(), before).items()}

    def _besides(self) -> tuple[float, float]:
        """Now, and what processes that are none of the cluster's have had of the cores, s."""
        ours = {*processes(self._bed.spec.namespaces), *self._processes.values()}
        used = usage.busy_us()
        for pid in ours:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
                used -= usage.cpu_us([pid])
        return time.monotonic(), used / 1e6

    def _cpu(self) -> dict[str, float]:
        return {name: usage.cpu_us([pid]) / 1e6 for name, pid in self._processes.items()}

    def _memory(self) -> dict[str, float]:
        return {name: usage.rss_mb(pid) for name, pid in self._processes.items()}

    def _received(self) -> list[int]:
        return [node.received for node in self._fleet.nodes]

    def _updates(self) -> list[int]:
        return [node.updates for node in self._fleet.nodes]

    @staticmethod
    async def _all(steps: dict[str, Callable[[], Awaitable[float]]]) -> dict[str, float]:
        """Await all of these at the same time."""
        done: dict[str, float] = {}

        async def wait(what: str, step: Callable[[], Awaitable[float]]) -> None:
            done[what] = await step()

        with trio.fail_after(_SECONDS):
            async with trio.open_nursery() as nursery:
                for what, step in steps.items():
                    nursery.start_soon(wait, what, step)
        return {what: done[what] for what in steps}

    @staticmethod
    async def _each(numbers: Iterable[int], act: Callable[[int], Awaitable[object]]) -> None:
        """In order, some at a time."""
        left = iter(numbers)

        async def work() -> None:
            for number in left:
                await act(number)

        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(work)


def _name(service: str) -> str:
    return service.partition("/")[2]


def _share(before: tuple[float, float], after: tuple[float, float]) -> float:
    return max(0.0, after[1] - before[1]) / (after[0] - before[0]) / (os.cpu_count() or 1)


def _difference(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


def _each_more(after: list[int], before: list[int]) -> tuple[int, ...]:
    return tuple(now - was for now, was in zip(after, before, strict=True))
