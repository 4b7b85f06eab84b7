"""A Kubernetes API server for tests: collections with list, watch, versions, conflicts and 410, over real HTTP.

It stores any object of the collections it is told of, checks what an API server checks of versions and UIDs, and can be
made to compact its history, to be away, and to cut every watch.
"""

from __future__ import annotations

import base64
import copy
import json
import secrets
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from controller.config import Address
from controller.http import serve
from controller.kubernetes.access import Access
from controller.listeners import tcp_listener

Json = dict[str, Any]
KINDS = {
    "api/v1/pods": "Pod",
    "api/v1/services": "Service",
    "api/v1/namespaces": "Namespace",
    "api/v1/nodes": "Node",
    "api/v1/secrets": "Secret",
    "api/v1/configmaps": "ConfigMap",
    "api/v1/serviceaccounts": "ServiceAccount",
    "apis/discovery.k8s.io/v1beta1/endpointslices": "EndpointSlice",
    "apis/coordination.k8s.io/v1/leases": "Lease",
    "apis/nodemesh.dev/v1alpha1/workloads": "Workload",
    "apis/nodemesh.dev/v1alpha1/authorizationpolicies": "AuthorizationPolicy",
    "apis/nodemesh.dev/v1alpha1/peerauthentications": "PeerAuthentication",
    "apis/nodemesh.dev/v1alpha1/requestauthentications": "RequestAuthentication",
    "apis/nodemesh.dev/v1alpha1/trafficpolicies": "TrafficPolicy",
}
CLUSTERED = {"namespaces", "nodes"}


class Failure(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}


@dataclass
class FakeKubernetes:
    """The server's state. `url` is where it serves."""

    url: str = ""
    kinds: dict[str, str] = field(default_factory=lambda: dict(KINDS))
    objects: dict[str, dict[tuple[str, str], Json]] = field(default_factory=dict)
    version: int = 100
    floor: int = 0
    """Watches from before this version are answered 410."""
    down: bool = False
    tokens: dict[str, Json] = field(default_factory=dict)
    """TokenReview's `status.user` by token."""
    requests: list[str] = field(default_factory=list)
    page: int = 1_000_000
    _log: list[tuple[int, str, str, Json]] = field(default_factory=list)
    _news: trio.Event = field(default_factory=trio.Event)
    _cut: trio.Event = field(default_factory=trio.Event)

    @property
    def access(self) -> Access:
        return Access(self.url)

    # What tests do to it

    def put(self, collection: str, body: Json, *, status: bool = True) -> Json:
        """Create or replace, as `kubectl apply` would."""
        metadata = body["metadata"]
        if collection.rpartition("/")[2] not in CLUSTERED:
            metadata.setdefault("namespace", "default")
        known = self._of(collection).get(self._key(body))
        metadata["uid"] = known["metadata"]["uid"] if known else metadata.get("uid") or str(uuid.uuid4())
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        return self._store("MODIFIED" if known else "ADDED", collection, body)

    def remove(self, collection: str, name: str, namespace: str = "") -> None:
        body = self._of(collection).pop((namespace, name))
        self._note("DELETED", collection, body)

    def get(self, collection: str, name: str, namespace: str = "") -> Json | None:
        return self._of(collection).get((namespace, name))

    def compact(self) -> None:
        """Forget the history."""
        self.floor = self.version
        self._log.clear()

    def cut(self) -> None:
        """End all watches."""
        self._cut.set()
        self._cut = trio.Event()

    def stop(self) -> None:
        self.down = True
        self.cut()

    def start(self) -> None:
        self.down = False

    # The protocol

    def _of(self, collection: str) -> dict[tuple[str, str], Json]:
        return self.objects.setdefault(collection, {})

    @staticmethod
    def _key(body: Json) -> tuple[str, str]:
        return body["metadata"].get("namespace", ""), body["metadata"]["name"]

    def _store(self, event: str, collection: str, body: Json) -> Json:
        self._of(collection)[self._key(body)] = body
        self._note(event, collection, body)
        return body

    def _note(self, event: str, collection: str, body: Json) -> None:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self._log.append((self.version, collection, event, copy.deepcopy(body)))
        self._news.set()
        self._news = trio.Event()

    def application(self) -> Starlette:
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        return Starlette(routes=[Route("/{path:path}", self._handle, methods=methods)])

    async def _handle(self, request: Request) -> Response:
        path = request.path_params["path"]
        self.requests.append(f"{request.method} /{path}")
        if self.down:
            return Response("etcd is away", 503)
        try:
            if path == "apis/authentication.k8s.io/v1/tokenreviews":
                return JSONResponse(self._review(await request.json()), 201)
            return await self._object(request, *self._parse(path))
        except Failure as failure:
            return JSONResponse(failure.body, failure.code)

    def _parse(self, path: str) -> tuple[str, str, str, str]:
        """(collection, namespace, name, subresource)."""
        parts = path.split("/")
        head, rest = (parts[:2], parts[2:]) if parts[0] == "api" else (parts[:3], parts[3:])
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        collection = "/".join([*head, rest[0]])
        if collection not in self.kinds:
            raise Failure(404, "NotFound", "the server could not find the requested resource")
        name, sub = [*rest[1:], "", ""][:2]
        return collection, namespace, name, sub

    async def _object(self, request: Request, collection: str, namespace: str, name: str, sub: str) -> Response:
        if request.method == "GET" and not name:
            return (
                self._watch(request, collection, namespace)
                if "watch" in request.query_params
                else self._list(request, collection, namespace)
            )
        if request.method == "POST":
            return JSONResponse(self._create(collection, namespace, await request.json()), 201)
        known = self._of(collection).get((namespace, name))
        if known is None:
            raise Failure(404, "NotFound", f"{collection} {name!r} not found")
        if request.method == "GET":
            return JSONResponse(known)
        if request.method == "DELETE":
            self.remove(collection, name, namespace)
            return JSONResponse({"kind": "Status", "status": "Success"})
        body = await request.json()
        if request.method == "PATCH":
            assert request.headers["content-type"] == "application/merge-patch+json"
            body = _merge(copy.deepcopy(known), body)
        return JSONResponse(self._update(collection, known, body, sub))

    def _create(self, collection: str, namespace: str, body: Json) -> Json:
        if collection.rpartition("/")[2] not in CLUSTERED:
            body["metadata"]["namespace"] = namespace
        if self._key(body) in self._of(collection):
            raise Failure(409, "AlreadyExists", f"{collection} {body['metadata']['name']!r} already exists")
        body["metadata"]["uid"] = str(uuid.uuid4())
        body["metadata"].setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        body["metadata"]["generation"] = 1
        return self._store("ADDED", collection, body)

    def _update(self, collection: str, known: Json, body: Json, sub: str) -> Json:
        now, given = known["metadata"], body["metadata"]
        if given.get("uid") not in (None, now["uid"]):
            raise Failure(422, "Invalid", f"metadata.uid: Invalid value: {given['uid']!r}: field is immutable")
        if given.get("resourceVersion") not in (None, "", now["resourceVersion"]):
            raise Failure(
                409, "Conflict", "the object has been modified; please apply your changes to the latest version"
            )
        if sub == "status":  # of a pod, annotations can be written by this way, too
            metadata = given if collection == "api/v1/pods" else now
            body = {**known, "status": body.get("status"), "metadata": dict(metadata)}
        elif "status" in known:
            body = {**body, "status": known["status"]}
        if {**body, "metadata": {**given, "resourceVersion": 0}} == {
            **known,
            "metadata": {**now, "resourceVersion": 0},
        }:
            return known  # a write that changes nothing makes no event
        generation = now.get("generation", 1) + (body.get("spec") != known.get("spec"))
        kept = {key: now[key] for key in ("uid", "creationTimestamp") if key in now}
        body["metadata"] = {**body["metadata"], **kept, "generation": generation}
        return self._store("MODIFIED", collection, body)

    def _chosen(self, request: Request, namespace: str, body: Json) -> bool:
        if namespace not in ("", body["metadata"].get("namespace")):
            return False
        terms = [term for term in request.query_params.get("fieldSelector", "").split(",") if term]
        wanted = dict(term.split("=", 1) for term in terms)
        assert wanted.keys() <= {"metadata.name", "metadata.namespace", "spec.serviceAccountName"}
        return all(body[key.partition(".")[0]].get(key.partition(".")[2]) == value for key, value in wanted.items())

    def _list(self, request: Request, collection: str, namespace: str) -> Response:
        items = [b for _k, b in sorted(self._of(collection).items()) if self._chosen(request, namespace, b)]
        version, start = self.version, 0
        if token := request.query_params.get("continue"):
            version, start = json.loads(base64.b64decode(token))
            if version < self.floor:
                raise Failure(410, "Expired", "The provided continue parameter is too old")
        limit = min(int(request.query_params.get("limit", self.page)), self.page)
        metadata: Json = {"resourceVersion": str(version)}
        if start + limit < len(items):
            metadata["continue"] = base64.b64encode(json.dumps([version, start + limit]).encode()).decode()
        kind = self.kinds[collection] + "List"
        return JSONResponse({"kind": kind, "metadata": metadata, "items": items[start : start + limit]})

    def _watch(self, request: Request, collection: str, namespace: str) -> Response:
        since = int(request.query_params["resourceVersion"])

        async def events() -> AsyncIterator[bytes]:
            at, cut = since, self._cut
            if at < self.floor:
                body = Failure(410, "Expired", f"too old resource version: {at} ({self.floor})").body
                yield json.dumps({"type": "ERROR", "object": body}).encode() + b"\n"
                return
            yield _bookmark(self.kinds[collection], at)
            while not cut.is_set():
                news = self._news
                for version, of, event, body in [entry for entry in self._log if entry[0] > at]:
                    at = version
                    if of == collection and self._chosen(request, namespace, body):
                        line = json.dumps({"type": event, "object": body}).encode() + b"\n"
                        half = secrets.randbelow(len(line))  # a line may arrive in parts
                        yield line[:half]
                        yield line[half:]
                if news is self._news:
                    async with trio.open_nursery() as nursery:
                        for event_ in (news, cut):
                            nursery.start_soon(_then, event_.wait, nursery.cancel_scope.cancel)

        return StreamingResponse(events(), media_type="application/json")

    def _review(self, body: Json) -> Json:
        user = self.tokens.get(body["spec"]["token"])
        if user is None:
            return {**body, "status": {"error": "[invalid bearer token]"}}
        audiences = [a for a in body["spec"].get("audiences", []) if a in user.get("audiences", ["nodemesh"])]
        if not audiences:
            return {**body, "status": {"error": "token audiences are not for this"}}
        return {**body, "status": {"authenticated": True, "user": user, "audiences": audiences}}


def _bookmark(kind: str, version: int) -> bytes:
    return (
        json.dumps(
            {"type": "BOOKMARK", "object": {"kind": kind, "metadata": {"resourceVersion": str(version)}}}
        ).encode()
        + b"\n"
    )


async def _then(wait: Any, act: Any) -> None:
    await wait()
    act()


def _merge(into: Json, patch: Json) -> Json:
    """RFC 7386."""
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict):
            into[key] = _merge(into[key] if isinstance(into.get(key), dict) else {}, value)
        else:
            into[key] = value
    return into


@asynccontextmanager
async def fake_kubernetes() -> AsyncIterator[FakeKubernetes]:
    """A server on a free port of loopback."""
    server = FakeKubernetes()
    with tcp_listener(Address("127.0.0.1", 0), "test") as listener:
        server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, server.application(), listener)
            yield server
            nursery.cancel_scope.cancel()


def pod(name: str, address: str = "", *, namespace: str = "shop", node: str = "node-a", **given: Any) -> Json:
    """A running pod."""
    spec = {"nodeName": node, "serviceAccountName": given.pop("account", "web"), "containers": []}
    metadata: Json = {"name": name, "namespace": namespace, "labels": given.pop("labels", {"app": name})}
    metadata |= {key: given.pop(key) for key in ("uid", "annotations") if key in given}
    status = {"phase": given.pop("phase", "Running"), "podIP": address, "podIPs": [{"ip": address}] if address else []}
    return {"kind": "Pod", "metadata": metadata, "spec": {**spec, **given}, "status": status}
