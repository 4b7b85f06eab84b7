"""The HTTP API (docs/reference/http-api.md) as a Starlette application, and the small one for monitoring.

Handlers run in trio's loop and never wait but for the request's body and the next publication.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import trio
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from controller import policy_check
from controller.ca import Authority, CaError
from controller.http import ON_ERROR, ApiError, Handler, answering, read_flag, read_json
from controller.kubernetes.client import ClusterError
from controller.kubernetes.resources import ClusterResources
from controller.link import LinkServer
from controller.metrics import Metrics
from controller.publish import Publisher
from controller.register import Register
from controller.request_telemetry import OfEdge
from controller.resources import Elsewhere, Rejected, Resources, shown
from controller.rotation import STEPS, NotYet, Rotation
from controller.schema.manifests import KINDS, Kind, kind_named
from controller.selector import SelectorError, parse_selector
from controller.store import Resource, Store, Token
from controller.telemetry import Edge, Telemetry
from controller.tokens import TokenError, mint
from controller.translate import ROUTES, status_entries
from mesh.identity import Identity
from mesh.traffic import TrafficPolicy
from mesh.traffic_index import age
from mesh.versions import shares

_MAX_BODY = 64 * 1024 * 1024
_DEFAULT_TTL = 3600


@dataclass(frozen=True, slots=True)
class Api:
    """The handlers, over the controller's parts."""

    store: Store | None
    """Of join tokens; None where nodes join otherwise."""
    authority: Authority
    enroller: Register
    resources: Resources | ClusterResources
    publisher: Publisher
    link: LinkServer
    telemetry: Telemetry
    metrics: Metrics
    clock: Callable[[], float]
    workload_hours: int
    ready: Callable[[], bool]
    """Whether nodes are served."""
    rotation: Rotation

    def application(self) -> Starlette:
        """All of it, for the unix socket."""
        routes: list[tuple[str, str, Handler]] = [
            ("POST", "/v1/apply", self._apply),
            ("POST", "/v1/delete", self._delete),
            ("GET", "/v1/resources/{kind}", self._list),
            ("GET", "/v1/resources/{kind}/{namespace}/{name}", self._get),
            ("DELETE", "/v1/resources/{kind}/{namespace}/{name}", self._delete_one),
            ("GET", "/v1/nodes", self._nodes),
            ("DELETE", "/v1/nodes/{name}", self._forget),
            ("GET", "/v1/workloads", self._workloads),
            ("GET", "/v1/services", self._services),
            ("GET", "/v1/edges", self._edges),
            ("GET", "/v1/requests", self._requests),
            ("GET", "/v1/config", self._config),
            ("GET", "/v1/policy-check", self._policy_check),
            ("POST", "/v1/policy-check", self._policy_check),
            ("POST", "/v1/tokens", self._make_token),
            ("GET", "/v1/tokens", self._tokens),
            ("DELETE", "/v1/tokens/{id}", self._delete_token),
            ("GET", "/v1/ca", self._ca),
            ("POST", "/v1/ca/rotate", self._rotate),
        ]
        found = [Route(path, answering(handler), methods=[method]) for method, path, handler in routes]
        return Starlette(routes=[*found, *self._monitoring()], exception_handlers=_HANDLERS)

    def monitoring(self) -> Starlette:
        """What is also on TCP: health and metrics, nothing that changes or tells much."""
        return Starlette(routes=self._monitoring(), exception_handlers=_HANDLERS)

    def _monitoring(self) -> list[Route]:
        async def healthy(_request: Request) -> Response:
            return JSONResponse({"status": "ok"})

        async def ready(_request: Request) -> Response:
            if self.ready():
                return JSONResponse({"status": "ok"})
            raise ApiError(503, "not ready: the cluster was not read yet, or there is no CA", "see the log")

        async def metrics(_request: Request) -> Response:
            return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

        return [Route("/healthz", healthy), Route("/readyz", ready), Route("/metrics", metrics)]

    # Resources

    async def _apply(self, request: Request) -> Any:
        dry_run = read_flag(request, "dryRun")
        results = self.resources.apply(await _files(request), dry_run=dry_run)
        await self.publisher.settled()
        return {"results": [asdict(result) for result in results]}

    async def _delete(self, request: Request) -> Any:
        results = self.resources.delete_files(await _files(request))
        await self.publisher.settled()
        return {"results": [asdict(result) for result in results]}

    async def _list(self, request: Request) -> Any:
        kind, namespace = _kind(request), request.query_params.get("namespace") or ""
        try:
            wanted = parse_selector(request.query_params.get("selector", ""))
        except SelectorError as error:
            raise ApiError(400, str(error), "write it as app=web,version!=v1") from error
        chosen = [
            resource
            for resource in await self._of_kind(kind.name, namespace)
            if wanted(resource.body["metadata"].get("labels") or {})
        ]
        return [self._shown(resource) for resource in sorted(chosen, key=lambda r: r.key)]

    async def _get(self, request: Request) -> Any:
        kind, namespace, name = key = _key(request)
        found = await self._of_kind(kind, namespace)
        if (resource := next((r for r in found if r.key == key), None)) is None:
            raise ApiError(404, f"no {kind} {name} in namespace {namespace}")
        return self._shown(resource)

    def _shown(self, resource: Resource) -> dict[str, Any]:
        body = shown(resource)
        if resource.kind in ROUTES:
            key = f"{resource.kind}/{resource.namespace}/{resource.name}"
            said = self.publisher.world.route_statuses.get(key, ())
            references = dict(enumerate(body["spec"].get("parentRefs") or ()))
            body["status"] = {"parents": status_entries(references, resource.generation, said)}
        problem = self.publisher.world.key_problems.get(f"{resource.namespace}/{resource.name}")
        if resource.kind == "RequestAuthentication" and problem is not None:
            status = "False" if problem else "True"
            body["status"] = {"conditions": [{"type": "KeysFetched", "status": status, "message": problem}]}
        return body

    async def _of_kind(self, kind: str, namespace: str) -> list[Resource]:
        try:
            return await self.resources.of_kind(kind, namespace)
        except ClusterError as error:
            raise ApiError(503, f"the Kubernetes API does not answer: {error}", "try again") from error

    async def _delete_one(self, request: Request) -> Any:
        kind, namespace, name = key = _key(request)
        if not self.resources.delete([key]):
            raise ApiError(404, f"no {kind} {name} in namespace {namespace}")
        await self.publisher.settled()
        return {"kind": kind, "namespace": namespace, "name": name, "result": "deleted"}

    # The mesh

    async def _nodes(self, _request: Request) -> Any:
        rows = []
        for name, node in sorted(self.enroller.nodes.items()):
            status = self.link.statuses.get(name)
            rows.append(
                {
                    "name": name,
                    "connected": self.link.connected(name),
                    "since": status.since if status else node.joined,
                    "last_seen": status.last_seen if status else None,
                    "address": status.address if status else "",
                    "version": status.software if status else "",
                    "revision": status.revision if status else None,
                    "acked_revision": status.acked if status else None,
                    "last_nack": status.last_nack if status else "",
                    "workloads": len(self.enroller.uids(name)),
                    "certificate_expires": self.enroller.certificate_expires(name)
                    or (status.certificate_expires if status else None),
                    "certificate_life": self.enroller.node_life.total_seconds(),
                }
            )
        return rows

    async def _forget(self, request: Request) -> Any:
        name = request.path_params["name"]
        if not self.enroller.forget(name):
            raise ApiError(404, f"no node {name}")
        self.link.disconnect(name)
        await self.publisher.settled()
        return {"name": name, "result": "forgotten"}

    async def _workloads(self, _request: Request) -> Any:
        world, trust_domain = self.publisher.world, self.authority.trust_domain
        return [
            {
                **asdict(workload),
                "labels": dict(world.labels[uid]),
                "identity": Identity(trust_domain, workload.namespace, workload.service_account).uri,
            }
            for uid, workload in sorted(world.workloads.items())
        ]

    async def _services(self, _request: Request) -> Any:
        world = self.publisher.world
        attached: dict[str, list[str]] = {}
        for key, route in sorted(world.routes.items()):
            for service_key in dict.fromkeys(parent.service for parent in route.parents):
                attached.setdefault(service_key, []).append(key)
        holding: dict[str, TrafficPolicy] = {}
        for policy in sorted(world.traffic.values(), key=age):
            holding.setdefault(policy.service, policy)
        return [
            {
                **asdict(service),
                "hostname": service.hostname,
                "routes": attached.get(key, []),
                "traffic_policy": held.key if (held := holding.get(key)) else "",
                "versions": [
                    asdict(share)
                    for share in shares(
                        held.versions if held else {},
                        (world.version_of(endpoint.workload) for endpoint in service.endpoints),
                    )
                ],
            }
            for key, service in sorted(world.services.items())
        ]

    async def _edges(self, _request: Request) -> Any:
        live, requests = self.telemetry.open_now(), self.telemetry.requests.by_edge()
        rows = [
            {
                **asdict(key),
                **asdict(requests.pop(key, OfEdge())),
                **asdict(edge),
                "open": max(live[key], 0) if key.flags == "-" else 0,
            }
            for key, edge in self.telemetry.edges()
        ]
        none = asdict(Edge(0.0, 0.0)) | {"open": 0}
        return [*rows, *({**none, **asdict(key), **asdict(edge)} for key, edge in requests.items())]

    async def _requests(self, _request: Request) -> Any:
        return self.telemetry.requests.rows()

    async def _config(self, _request: Request) -> Any:
        config = self.publisher.config
        # Not all of a provider: the headers that are added to its questions may be secrets.
        providers = [{"name": each.name, "service": each.service, "port": each.port} for each in config.providers]
        return {
            "trust_domain": config.trust_domain,
            "cluster": config.cluster,
            "root_namespace": config.root_namespace,
            "path_normalization": config.path_normalization.value,
            "providers": providers,
        }

    async def _policy_check(self, request: Request) -> Any:
        given = request.query_params if request.method == "GET" else await read_json(request, _MAX_BODY)
        if not all(isinstance(value, str) for value in given.values()):
            raise ApiError(400, "all that is asked about must be texts")
        for name in ("from", "to"):
            if not given.get(name):
                raise ApiError(400, f"the parameter {name!r} is missing", "from=ns/sa&to=ns/service:port")
        where = self.publisher.world, self.publisher.config, given["from"], given["to"], given.get("address", "")
        try:
            # In a thread: with thousands of policies it takes a while, and what it reads does not change.
            found = await trio.to_thread.run_sync(policy_check.check, *where, policy_check.asked(given))
        except policy_check.CheckError as error:
            raise ApiError(404 if error.missing else 400, str(error), error.remedy) from error
        return {"items": [asdict(answer) for answer in found.answers], "route": found.route, "versions": found.versions}

    # Joining

    def _tokens_of(self) -> Store:
        if self.store is None:
            raise ApiError(409, "there are no join tokens on Kubernetes: nodes join by their noded pod's own token")
        return self.store

    async def _make_token(self, request: Request) -> Any:
        body = await read_json(request, _MAX_BODY)
        known: dict[str, tuple[type, Any]] = {
            "allow": (list, None),
            "node": (str, ""),
            "ttl_seconds": (int, _DEFAULT_TTL),
            "uses": (int, -1),
            "description": (str, ""),
        }
        if unknown := body.keys() - known.keys():
            raise ApiError(400, f"unknown field {sorted(unknown)[0]!r}", f"known: {', '.join(known)}")
        given = {name: default if body.get(name) is None else body[name] for name, (_type, default) in known.items()}
        for name, (of, _default) in known.items():
            if type(given[name]) is not of:
                raise ApiError(400, f"{name!r} must be a {of.__name__}")
        if not all(isinstance(pattern, str) for pattern in given["allow"]):
            raise ApiError(400, "'allow' must hold texts", "such as shop/web or shop/*")
        try:
            text, stored = mint(**given, root_sha256=self.authority.root_sha256, now=self.clock())
        except TokenError as error:
            raise ApiError(400, str(error)) from error
        self._tokens_of().add_token(stored)
        return {"token": text, "id": stored.id, "expires": stored.expires}

    async def _tokens(self, _request: Request) -> Any:
        return [_shown_token(token) for token in self._tokens_of().tokens()]

    async def _delete_token(self, request: Request) -> Any:
        identifier = request.path_params["id"]
        if not self._tokens_of().delete_tokens([identifier]):
            raise ApiError(404, f"no token {identifier}")
        return {"id": identifier, "result": "deleted"}

    async def _ca(self, _request: Request) -> Any:
        roots = [
            {
                "subject": root.subject.rfc4514_string(),
                "serial": f"{root.serial_number:x}",
                "sha256": hashlib.sha256(root.public_bytes(Encoding.DER)).hexdigest(),
                "not_before": root.not_valid_before_utc.timestamp(),
                "not_after": root.not_valid_after_utc.timestamp(),
                "pem": root.public_bytes(Encoding.PEM).decode(),
            }
            for root in self.authority.roots
        ]
        return {
            "trust_domain": self.authority.trust_domain,
            "roots": roots,
            "issued": self.authority.issued,
            "workload_certificate_hours": self.workload_hours,
            "rotation": asdict(self.rotation.progress()),
        }

    async def _rotate(self, request: Request) -> Any:
        body = await read_json(request, _MAX_BODY)
        step, force = body.get("step"), body.get("force", False)
        if step not in STEPS or not isinstance(force, bool) or body.keys() - {"step", "force"}:
            raise ApiError(400, f"'step' must be one of {', '.join(STEPS)}, 'force' true or false")
        try:
            return asdict(await self.rotation.take(step, force=force))
        except NotYet as error:
            remedy = "wait, or force it and lose the connections of those named" if error.forcible else ""
            raise ApiError(409, str(error), remedy) from error
        except (CaError, ClusterError) as error:
            raise ApiError(409, str(error)) from error


def _shown_token(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "allow": list(token.allow),
        "node": token.node,
        "created": token.created,
        "expires": token.expires,
        "uses": None if token.uses_left < 0 else token.uses_left,
        "description": token.description,
    }


async def _files(request: Request) -> list[tuple[str, str]]:
    files = (await read_json(request, _MAX_BODY)).get("files")
    remedy = 'send {"files": [{"name": "...", "text": "..."}]}'
    if not isinstance(files, list):
        raise ApiError(400, "'files' must be a list", remedy)
    found = []
    for file in files:
        name, text = (file.get("name"), file.get("text")) if isinstance(file, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise ApiError(400, "each of 'files' must have a name and a text", remedy)
        found.append((name, text))
    return found


def _kind(request: Request) -> Kind:
    text: str = request.path_params["kind"]
    if (kind := kind_named(text)) is None:
        raise ApiError(404, f"no kind {text!r}", f"there are: {', '.join(k.plural for k in KINDS.values())}")
    return kind


def _key(request: Request) -> tuple[str, str, str]:
    return _kind(request).name, request.path_params["namespace"], request.path_params["name"]


async def _on_rejected(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected)
    return JSONResponse({"errors": [asdict(problem) for problem in error.problems]}, 422)


async def _on_elsewhere(_request: Request, error: Exception) -> Response:
    body = {"message": "resources live in the Kubernetes API here", "remedy": f"use kubectl {error}"}
    return JSONResponse({"error": body}, 409)


_HANDLERS = {**ON_ERROR, Rejected: _on_rejected, Elsewhere: _on_elsewhere}
