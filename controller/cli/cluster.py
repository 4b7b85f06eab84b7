"""The Kubernetes API as meshctl uses it: blocking, with errors that say what to do."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from controller.cli.client import Client
from controller.cli.replicas import MERGED
from controller.cli.terminal import progress
from mesh.present.failure import Exit, Failure, read_answer

if TYPE_CHECKING:
    import httpx

    from controller.kubernetes.access import Access
    from controller.kubernetes.remote import Remote

NAMESPACE = "nodemesh-system"
CONTROLLER, NODED = "nodemesh-controller", "noded"
MANAGER = "meshctl"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_PAGE = 500
_SECONDS = 30.0

Json = dict[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Target:
    """Which cluster the user means: `--kubeconfig` and `--context`."""

    kubeconfig: str = ""
    context: str = ""

    def stated(self) -> bool:
        """Whether the user names a cluster, here or by having a kubeconfig."""
        return bool(self.kubeconfig or self.context or _kubeconfigs(""))

    def cluster(self) -> Cluster:
        """Read the kubeconfig. Raises `Failure`."""
        from controller.kubernetes import kubeconfig
        from controller.kubernetes.access import Access, AccessError

        try:
            paths = _kubeconfigs(self.kubeconfig)
            if self.kubeconfig and not paths:
                raise AccessError(f"{self.kubeconfig}: no such file")
            return Cluster(kubeconfig.load(paths, self.context) if paths else Access.in_cluster())
        except AccessError as error:
            raise Failure(f"no access to a cluster: {error}", "--kubeconfig FILE, --context NAME", Exit.USAGE) from None


def _kubeconfigs(given: str) -> list[Path]:
    """What was given, what KUBECONFIG names, or the usual place: those that exist."""
    stated = given or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    return [path for text in stated.split(":") if text and (path := Path(text)).is_file()]


class NotFound(Failure):
    """There is no such object, or no such kind."""


class Cluster:
    """One API server. Every method raises `Failure`, with exit status 3 if it does not answer."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._resources: dict[str, dict[str, Json]] = {}

    @functools.cached_property
    def _http(self) -> httpx.Client:
        import httpx

        from controller.kubernetes.access import AccessError

        try:
            verify = self.access.tls() if self.access.server.startswith("https") else True
        except AccessError as error:
            raise Failure(str(error)) from None
        return httpx.Client(base_url=self.access.server, verify=verify, timeout=_SECONDS, trust_env=False)

    def get(self, path: str, **query: str) -> Json:
        """The object at `path`."""
        return self.ask("GET", path, query=query)

    def find(self, path: str) -> Json | None:
        """The object at `path`, or None."""
        try:
            return self.get(path)
        except NotFound:
            return None

    def items(self, path: str, **query: str) -> Iterator[Json]:
        """The objects of the collection at `path`; none if there is no such kind. Each has its kind."""
        token = ""
        while True:
            page = {"limit": str(_PAGE)} | ({"continue": token} if token else {})
            try:
                answer = self.get(path, **query, **page)
            except NotFound:
                return
            kind, version = str(answer.get("kind", "")).removesuffix("List"), answer.get("apiVersion")
            for item in answer.get("items") or ():
                yield {"apiVersion": version, "kind": kind, **item}
            if not (token := (answer.get("metadata") or {}).get("continue") or ""):
                return

    def apply(self, body: Mapping[str, Any], *, dry_run: bool = False) -> Json:
        """Server-side apply as `meshctl`, taking over fields that others set. With `dry_run` only what would be."""
        query = {"fieldManager": MANAGER, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        return self.ask("PATCH", self.path(body), body, query=query, kind=_APPLY)

    def delete(self, path: str, *, now: bool = False) -> bool:
        """Delete an object and what it owns; whether it was there. With `now` nobody is waited for."""
        options: Json = {"propagationPolicy": "Background"} | ({"gracePeriodSeconds": 0} if now else {})
        try:
            self.ask("DELETE", path, options)
        except NotFound:
            return False
        return True

    def annotate(self, path: str, name: str, value: str | None) -> None:
        """Set an annotation of the object at `path`, or with None remove it; nothing if the object is gone."""
        try:
            self.ask("PATCH", path, {"metadata": {"annotations": {name: value}}}, kind=_MERGE)
        except NotFound:
            pass

    def path(self, body: Mapping[str, Any]) -> str:
        """Where the API has an object of this kind, namespace and name. Raises `NotFound` for an unknown kind."""
        version, kind = str(body["apiVersion"]), str(body["kind"])
        group = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        if kind not in self._resources.get(group, {}):
            known = self.get(group).get("resources") or ()
            self._resources[group] = {str(r["kind"]): r for r in known if "/" not in r["name"]}
        resource = self._resources[group].get(kind)
        if resource is None:
            raise NotFound(f"the cluster has no kind {kind} in {version}")
        metadata = body["metadata"]
        within = f"/namespaces/{metadata.get('namespace') or 'default'}" if resource.get("namespaced") else ""
        return f"{group}{within}/{resource['name']}/{metadata['name']}"

    def allowed(self, verb: str, group: str, resource: str, namespace: str = "") -> bool:
        """Whether the user may, by SelfSubjectAccessReview."""
        resource, _, subresource = resource.partition("/")
        attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes | ({"namespace": namespace} if namespace else {})},
        }
        answer = self.ask("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return bool((answer.get("status") or {}).get("allowed"))

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        kind: str = "application/json",
    ) -> Json:
        """Any request: the JSON object that is answered."""
        import httpx

        token = self.access.bearer()
        headers = {"accept": "application/json", "content-type": kind}
        headers |= {"authorization": f"Bearer {token}"} if token else {}
        content = None if body is None else json.dumps(body).encode()
        request = self._http.build_request(method, path, params=dict(query or {}), content=content, headers=headers)
        try:
            with progress("waiting for the cluster"):
                try:
                    answer = self._http.send(request)
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    # The server ended an idle connection as we took it up. All that is asked here can be asked twice.
                    answer = self._http.send(request)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        try:
            found = answer.json() if answer.content else {}
        except ValueError:
            found = {}
        if answer.is_success and isinstance(found, dict):
            return found
        raise _refusal(answer.status_code, found, f"{method} {path}")

    def _unreachable(self, error: Exception) -> Failure:
        what = str(error) or type(error).__name__
        remedy = "is the cluster up, and is it the right --context?"
        return Failure(f"cannot reach the cluster at {self.access.server}: {what}", remedy, Exit.UNREACHABLE)

    def run(self, pod: str, container: str, command: Sequence[str], *, allowed: Sequence[int] = (0,)) -> bytes:
        """Run a command in a pod of the mesh's own namespace: its output. Raises `Failure` for another exit status."""
        with progress(f"asking {pod}"), self.remote(pod, container, command) as remote:
            output = self.through(remote.wait)
            if remote.reason or remote.status not in allowed:
                said = (
                    remote.reason or remote.stderr.decode(errors="replace").strip() or output.decode(errors="replace")
                )
                raise Failure(f"{' '.join(command)} in pod {pod} exited {remote.status}: {said[-500:]}")
        return output

    def remote(self, pod: str, container: str, command: Sequence[str], *, stdin: bool = False) -> Remote:
        """Start a command in a pod of the mesh's own namespace."""
        from controller.kubernetes.remote import Remote

        return self.through(
            lambda: Remote(self.access, NAMESPACE, pod, container, command, stdin=stdin, timeout=_SECONDS)
        )

    def through(self, call: Callable[[], _T]) -> _T:
        """Call, with the errors of `controller.kubernetes` as `Failure`s."""
        from controller.kubernetes.access import AccessError
        from controller.kubernetes.client import Refused, Unreachable

        try:
            return call()
        except Unreachable as error:
            raise self._unreachable(error) from None
        except Refused as error:
            raise _refusal(error.code, {"message": str(error)}, "exec") from None
        except AccessError as error:
            raise Failure(str(error)) from None


def _refusal(code: int, answer: object, request: str) -> Failure:
    message = answer.get("message") if isinstance(answer, dict) else ""
    text = f"{message or request + ': no explanation'} (status {code})"
    if code == 404:
        return NotFound(text)
    remedies = {
        401: "log in again: the cluster does not know this user",
        403: "meshctl check --pre lists what the user must be allowed to do",
        409: "somebody else changed it at the same time: try again",
    }
    return Failure(text, remedies.get(code, ""))


class ClusterClient(Client):
    """mesh-controller's HTTP API, asked from inside one of its pods, which is where its socket is.

    One `meshctl relay` in a pod serves the whole command, a JSON line for each request and each answer.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(f"{CONTROLLER} in {NAMESPACE}")
        self._target = target
        self._relays: dict[str, Remote] = {}

    @functools.cached_property
    def cluster(self) -> Cluster:
        """The cluster."""
        return self._target.cluster()

    @functools.cached_property
    def _pods(self) -> list[str]:
        """The controllers that are ready."""
        found = self.cluster.items(f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector=SELECTOR[CONTROLLER])
        ready = [
            str(pod["metadata"]["name"])
            for pod in found
            for condition in (pod.get("status") or {}).get("conditions") or ()
            if condition["type"] == "Ready" and condition["status"] == "True"
        ]
        if not ready:
            raise Failure(
                f"no pod of {CONTROLLER} is ready in namespace {NAMESPACE} of {self.cluster.access.server}",
                "is Nodemesh installed there? `meshctl install`, `meshctl check`",
                Exit.UNREACHABLE,
            )
        return sorted(ready)

    def request(
        self, method: str, path: str, query: dict[str, str], body: object, patience: float
    ) -> tuple[int, bytes]:
        """As the client of the socket does, which is what is asked there: one controller, or each if they differ."""
        asked = {"method": method, "path": path, "query": query, "body": body, "patience": patience}
        line = json.dumps(asked).encode() + b"\n"
        merge = MERGED.get(path) if method == "GET" else None
        pods = self._pods if merge else self._pods[:1]
        for pod in pods:
            self.cluster.through(functools.partial(self._ask, pod, line))
        answers = [self._answer(pod) for pod in pods]
        failed = next((answer for answer in answers if answer[0] != HTTPStatus.OK), None)
        if merge is None or failed:
            return failed or answers[0]
        return HTTPStatus.OK, json.dumps({"items": merge([json.loads(each)["items"] for _, each in answers])}).encode()

    def _ask(self, pod: str, line: bytes) -> None:
        self._relay(pod).write(line)

    def _relay(self, pod: str) -> Remote:
        if pod not in self._relays:
            self._relays[pod] = self.cluster.remote(pod, "controller", ["meshctl", "relay"], stdin=True)
        return self._relays[pod]

    def _answer(self, pod: str) -> tuple[int, bytes]:
        relay = self._relay(pod)
        line = self.cluster.through(relay.read_line)
        if relay.status is not None:
            said = relay.reason or relay.stderr.decode(errors="replace").strip()
            raise Failure(f"meshctl relay in pod {pod} ended: {said[-500:]}", "", Exit.UNREACHABLE)
        answer = read_answer(line, "meshctl relay", "mesh-controller", pod)
        return int(answer["status"]), str(answer["content"]).encode()


SELECTOR = {
    CONTROLLER: "app.kubernetes.io/name=nodemesh-controller",
    NODED: "app.kubernetes.io/name=noded",
}
"""By what the pods of each are found."""
