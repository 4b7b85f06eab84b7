"""Waiting for what was applied to run, and saying how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from controller.cli.cluster import CONTROLLER, NAMESPACE, NODED, SELECTOR, Cluster
from controller.cli.deployment import TEMPLATE_GENERATION
from mesh.present.failure import Failure
from mesh.present.units import age

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
_STUCK = {
    "ImagePullBackOff": "can the node pull this image? --set image=… names another",
    "ErrImageNeverPull": "the image is not on the node, and may not be pulled: --set imagePullPolicy=IfNotPresent",
    "InvalidImageName": "--set image=… names another",
    "CrashLoopBackOff": "its log says why: kubectl -n nodemesh-system logs",
    "CreateContainerConfigError": "kubectl -n nodemesh-system describe pod",
    "RunContainerError": "kubectl -n nodemesh-system describe pod",
}


def say(text: str) -> None:
    """A line of progress, on standard error."""
    click.echo(f"- {text}", err=True)


class Waiting:
    """A deadline for all steps of one command."""

    def __init__(self, seconds: float) -> None:
        self._began, self._seconds = time.monotonic(), seconds

    def until(self, done: Callable[[], bool], what: str, why_not: Callable[[], str] = lambda: "") -> None:
        """Ask at once, soon again, and then each second until it is so. Raises `Failure` when the time is up."""
        pause = _FIRST_PAUSE
        while not done():
            if time.monotonic() - self._began > self._seconds:
                why = why_not()
                remedy = "`meshctl check` says what is wrong; --timeout gives it longer"
                raise Failure(f"{what}: not after {age(self._seconds)}" + (f": {why}" if why else ""), remedy)
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)


def established(cluster: Cluster, definitions: list[str], waiting: Waiting) -> None:
    """Wait until the API serves these CustomResourceDefinitions."""
    for name in definitions:
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"

        def there(path: str = path) -> bool:
            return condition(cluster.get(path), "Established")

        waiting.until(there, f"{name} established")


def condition(body: Mapping[str, Any], name: str) -> bool:
    """Whether an object's status has the condition as true."""
    conditions = (body.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == name and c.get("status") == "True" for c in conditions)


def controller_ready(cluster: Cluster, waiting: Waiting) -> None:
    """Wait until all replicas are of the newest revision and ready."""
    shown = ""

    def done() -> bool:
        nonlocal shown
        body = cluster.get(f"{_APPS}/deployments/{CONTROLLER}")
        status, wanted = body.get("status") or {}, body["spec"]["replicas"]
        seen = status.get("observedGeneration", 0) >= body["metadata"]["generation"]
        updated, ready = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
        if (text := f"controller: {updated} of {wanted} up to date, {ready} ready") != shown and seen:
            say(shown := text)
        complete: bool = seen and updated >= wanted and ready >= wanted and status.get("replicas", 0) <= wanted
        if not complete:
            _raise_if_stuck(cluster, CONTROLLER)
        return complete

    waiting.until(done, "controller ready", lambda: shown)


def nodes_ready(cluster: Cluster, waiting: Waiting, name: str = NODED) -> None:
    """Wait until each node has a ready pod of the newest revision of this DaemonSet; each is named as it comes."""
    told: set[str] = set()
    shown = ""

    def done() -> bool:
        nonlocal shown
        body = cluster.get(f"{_APPS}/daemonsets/{name}")
        status = body.get("status") or {}
        seen = status.get("observedGeneration", 0) >= body["metadata"]["generation"]
        generation = (body["metadata"].get("annotations") or {}).get(TEMPLATE_GENERATION, "")
        if seen:
            for node in _ready_nodes(cluster, name, generation):
                if node not in told:
                    told.add(node)
                    say(f"{name} on {node}: ready")
        wanted = status.get("desiredNumberScheduled", 0)
        counts = [status.get(field, 0) for field in ("updatedNumberScheduled", "numberReady")]
        shown = f"{counts[0]} of {wanted} nodes up to date, {counts[1]} ready"
        complete: bool = seen and all(number >= wanted for number in counts) and status.get("numberUnavailable", 0) == 0
        if not complete:
            _raise_if_stuck(cluster, name)
        return complete

    waiting.until(done, f"{name} ready on all nodes", lambda: shown)


def _ready_nodes(cluster: Cluster, name: str, generation: str) -> Iterator[str]:
    for pod in pods(cluster, name):
        of = pod["metadata"].get("labels", {}).get("pod-template-generation", "")
        if of == generation and condition(pod, "Ready"):
            yield str(pod["spec"].get("nodeName"))


def pods(cluster: Cluster, name: str) -> Iterator[dict[str, Any]]:
    """The pods of the controller, of noded, or of what runs on nodes under another name."""
    selector = SELECTOR.get(name, f"app.kubernetes.io/name={name}")
    return cluster.items(_PODS, labelSelector=selector)


def _raise_if_stuck(cluster: Cluster, name: str) -> None:
    """Raises `Failure` for what no waiting will mend."""
    for pod in pods(cluster, name):
        status = pod.get("status") or {}
        for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
            waiting = (container.get("state") or {}).get("waiting") or {}
            reason = waiting.get("reason")
            # One restart is nobody's fault: what it needs may just not have been there yet.
            if reason in _STUCK and (reason != "CrashLoopBackOff" or container.get("restartCount", 0) >= 3):
                where = f"pod {pod['metadata']['name']} on {pod['spec'].get('nodeName')}"
                last = ((container.get("lastState") or {}).get("terminated") or {}).get("message") or ""
                text = last.strip() or waiting.get("message") or container.get("image")
                raise Failure(f"{where} cannot run: {reason}: {text}", _STUCK[reason])
