"""What the policies would say to a connection, or to a request on the way that its client's routes send it.

The answers are those of `mesh.authz`, asked for each endpoint of a service, and of `mesh.route`.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from controller.token_check import Believed, believe
from controller.translate import World
from mesh import explained, jwt
from mesh.authz import Authorizer, Peer
from mesh.authz.explain import Case, printable
from mesh.authz.selection import applies
from mesh.detect import protocol
from mesh.identity import Identity, IdentityError
from mesh.message import Request
from mesh.model import Endpoint, MeshConfig, Service
from mesh.route import edit_headers, rewrite_request
from mesh.route.explain import explain_route
from mesh.traffic import HeaderEdit
from mesh.traffic_index import age

_FAR = 253_402_300_800.0
"""The year 10,000."""


class CheckError(ValueError):
    """The question does not make sense, or (`missing`) is about something that is not there."""

    def __init__(self, message: str, remedy: str = "", *, missing: bool = False) -> None:
        super().__init__(message)
        self.remedy, self.missing = remedy, missing


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to ask about."""

    method: str = "GET"
    path: str = "/"
    host: str = ""
    """By default the service's name."""
    headers: tuple[tuple[str, str], ...] = ()
    claims: Mapping[str, Any] | None = None
    """Of a JWT that is valid."""
    token: str = ""
    """A JWT that is to be held against the `RequestAuthentication`s."""


def asked(given: Mapping[str, str]) -> Asked | None:
    """Out of the parameters `method`, `path`, `host`, `headers` (lines of `name: value`), `claims` (JSON) and `token`.

    None if there is none of them. Raises `CheckError`.
    """
    if not any(given.get(name) for name in ("method", "path", "host", "headers", "claims", "token")):
        return None
    if given.get("claims") and given.get("token"):
        raise CheckError("claims and token: a request has one or the other", "leave one of them out")
    headers = []
    for line in given.get("headers", "").splitlines():
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise CheckError(f"headers: {line!r:.80} is no header", "write it as name: value")
        headers.append((name, value))
    claims = None
    if given.get("claims"):
        try:
            claims = json.loads(given["claims"])
        except (ValueError, RecursionError) as error:
            raise CheckError(f"claims: not JSON: {error}", 'write them as {"iss": "…", "sub": "…"}') from error
        if not isinstance(claims, dict):
            raise CheckError("claims: not a JSON object", 'write them as {"iss": "…", "sub": "…"}')
    method, path = given.get("method") or "GET", given.get("path") or "/"
    return Asked(method, path, given.get("host", ""), tuple(headers), claims, given.get("token", ""))


@dataclass(frozen=True, slots=True)
class Answer:
    """The verdict for one endpoint, as the API shows it."""

    workload: str
    port: int
    allowed: bool
    policy: str
    rule: int
    reason: str
    mtls_mode: str
    dry_run: tuple[str, ...] = ()
    """What would be different if the dry-run policies were enforced, as in the access log."""
    service: str = ""
    """`<namespace>/<name>:<port>`: where a route leads, it need not be the one that was asked for."""
    note: str = ""
    """What is to be known about the verdict."""
    why: dict[str, Any] | None = None
    """See `mesh.explained.verdict`; None where nothing is enforced."""


@dataclass(frozen=True, slots=True)
class Checked:
    """All there is to say."""

    answers: list[Answer]
    route: dict[str, Any] | None
    """Which way the request goes (see `mesh.explained.route`); None of a connection, or where nothing routes."""
    versions: list[dict[str, Any]]
    """How it is split at each service (see `mesh.explained.versions`); endpoints that get nothing are not asked."""


@dataclass(frozen=True, slots=True)
class _Destination:
    service: Service
    index: int
    request: Request | None
    """As it arrives there; None where it is not read."""


def check(
    world: World, config: MeshConfig, source: str, target: str, address: str = "", asked: Asked | None = None
) -> Checked:
    """May `source` (`ns/sa`, or `-` for a client outside the mesh) connect to `target` (`ns/svc:port`), or ask this?

    `address` is the client's; without it, the address of a workload of that identity, if there is one, is taken.
    Raises `CheckError`.
    """
    identity = _identity(source, config.trust_domain)
    service, index = _service(world, target)
    if address:
        try:
            address = str(ipaddress.ip_address(address))
        except ValueError as error:
            raise CheckError(f"address: {error}", "write it as 10.77.1.2") from error
    destinations, route = [_Destination(service, index, None)], None
    if asked is not None and protocol(service.ports[index]) != "tcp":
        destinations, route = _routed(world, config, identity, service, index, asked)
    known: dict[object, dict[str, Any]] = {}
    answers = []
    versions: list[dict[str, Any]] = []
    for to in destinations:
        split = _versions(world, identity, to)
        versions += split
        weighing = {one["version"] for one in split if one["weight"]}
        for endpoint in to.service.endpoints:
            if endpoint.ports[to.index] and (not split or world.version_of(endpoint.workload) in weighing):
                client = address or _address(world, identity, endpoint)
                peer = Peer(identity, client, endpoint.address, endpoint.ports[to.index])
                answers.append(_answer(world, config, to, endpoint, peer, asked, known))
    return Checked(answers, route, versions)


def _versions(world: World, identity: Identity | None, to: _Destination) -> list[dict[str, Any]]:
    if identity is None:  # no node of the mesh chooses the endpoint
        return []
    policy = min((one for one in world.traffic.values() if one.service == to.service.key), key=age, default=None)
    return explained.versions(policy, to.service, to.service.ports[to.index].port, world.version_of)


def _routed(
    world: World, config: MeshConfig, identity: Identity | None, service: Service, index: int, asked: Asked
) -> tuple[list[_Destination], dict[str, Any] | None]:
    """Where the client's node sends the request, as it then is. It has no node that routes if it is outside."""
    port = service.ports[index].port
    try:
        host, mode = asked.host or service.hostname, config.path_normalization
        request = explained.request_of(asked.method, host, asked.path, asked.headers, mode)
    except ValueError as error:
        raise CheckError(f"the request: {error}", "it would be refused with 400") from error
    here = [_Destination(service, index, request)]
    attached = [
        route
        for route in world.routes.values()
        if any(parent.service == service.key and parent.port in (0, port) for parent in route.parents)
    ]
    if identity is None or not attached:
        return here, None
    found = explain_route(attached, identity.namespace, service.namespace, request)
    told = explained.route(found)
    if not found.steps:
        return here, told
    if (matched := found.matched) is None or matched.rule.redirect is not None:
        return [], told
    edited = _edited(request, matched.rule.request_headers)
    if matched.rule.rewrite is not None:
        rewrite_request(edited, matched.rule.rewrite, matched.match)
    if not matched.rule.backends:
        return [_Destination(service, index, edited)], told
    destinations = []
    for backend in matched.rule.backends:
        to = world.services.get(backend.service)
        ports = [at for at, known in enumerate(to.ports) if known.port == backend.port] if to is not None else []
        if to is not None and ports and backend.weight and not backend.invalid:
            destinations.append(_Destination(to, ports[0], _edited(edited, backend.request_headers)))
    return destinations, told


def _edited(request: Request, edit: HeaderEdit | None) -> Request:
    made = replace(request, headers=list(request.headers))
    if edit is not None:
        edit_headers(made.headers, edit)
    return made


def _answer(
    world: World,
    config: MeshConfig,
    to: _Destination,
    endpoint: Endpoint,
    peer: Peer,
    asked: Asked | None,
    known: dict[object, dict[str, Any]],
) -> Answer:
    service = f"{to.service.key}:{to.service.ports[to.index].port}"
    workload = world.workloads.get(endpoint.workload)
    port = peer.destination_port
    if workload is None or not workload.meshed:
        reason = "not in the mesh: no policy is enforced there"
        return Answer(endpoint.workload, port, True, "", -1, reason, "DISABLE", service=service)
    # In the mesh, the client arrives in a tunnel with its identity, or in plaintext without one.
    who: dict[str, Any] = {
        "namespace": workload.namespace,
        "labels": world.labels[workload.uid],
        "root_namespace": config.root_namespace,
    }
    authorizer = Authorizer.of(world.policies, world.peer_auths, **who)
    request, claims, believed = to.request, asked.claims if asked is not None else None, None
    if asked is not None and asked.token and request is not None and authorizer.strict(peer) is None:
        request = _edited(request, None)
        believed = believe(world.request_auths, request, asked.token.encode(), time.time(), **who)
        claims = believed.claims
    case = Case.of(peer, request, claims)
    # Endpoints of one service hardly differ, and what would turn a verdict round takes a search.
    by_address = any(c.key == "destination.ip" for p in authorizer.policies for r in p.rules for c in r.conditions)
    same = (
        tuple(map(id, authorizer.policies)),
        authorizer.mtls_mode(port),
        peer if by_address else peer._replace(destination_ip=""),
        service,
        believed.tried if believed is not None else None,
    )
    if (why := known.get(same)) is None:
        why = _asked_first(explained.verdict(authorizer, case), config)
        if believed is not None and asked is not None:
            why = _with_token(why, authorizer, case, believed, asked.token.encode(), config)
        known[same] = why
    decided = (why["allowed"], why["policy"], why["rule"], why["reason"], why["mtls_mode"])
    return Answer(
        *(workload.uid, port, *decided),
        dry_run=tuple(why["dry_run"]),
        service=service,
        note=_note(to, authorizer, asked, tokens=any(applies(auth, **who) for auth in world.request_auths)),
        why=why,
    )


def _asked_first(why: dict[str, Any], config: MeshConfig) -> dict[str, Any]:
    """CUSTOM policies come before all others: whom they ask may say no, and one that is not there does."""
    there = {provider.name for provider in config.providers}
    for ask in why["asks"]:
        if ask["provider"] not in there:
            reason = f"there is no provider {ask['provider']!r}"
            return {
                **why,
                "allowed": False,
                "policy": ask["policy"],
                "rule": ask["rule"],
                "reason": reason,
                "flips": [],
            }
    if why["allowed"] and why["asks"]:
        providers = ", ".join(dict.fromkeys(ask["provider"] for ask in why["asks"]))
        return {**why, "reason": f"{why['reason']}, if {providers} permits it"}
    return why


def _with_token(
    why: dict[str, Any], authorizer: Authorizer, case: Case, believed: Believed, token: bytes, config: MeshConfig
) -> dict[str, Any]:
    """`why` with what the token says and which rules took it or did not; if it is refused, that is the verdict."""
    facts: Mapping[str, Any] | None = None
    told: dict[str, Any]
    try:
        said = jwt.read(token)
    except jwt.BadToken as error:
        told = {"problem": error.reason}
    else:
        facts = said.facts
        told = {
            "issuer": printable(said.issuer),
            "subject": printable(facts.get("sub", "")),
            "audiences": [printable(audience) for audience in said.audiences],
            "expires": said.expires if said.expires < _FAR else 0.0,
            "algorithm": said.algorithm,
            "key_id": printable(said.key_id),
            "problem": "",
        }
    why = {**why, "token": {**told, "tried": [asdict(one) for one in believed.tried]}}
    if (refusal := believed.refusal) is None:
        return why
    flips = [_flip(why, "")] if why["allowed"] else []
    if facts is not None:
        valid = _asked_first(explained.verdict(authorizer, case._replace(claims=facts)), config)
        flips += [_flip(valid, "valid")] if valid["allowed"] else []
    decided = {"allowed": False, "policy": refusal.policy, "rule": refusal.rule, "dry_run": [], "asks": []}
    reason = f"the token is refused with {refusal.status}: {refusal.problem}"
    return {**why, **decided, "reason": reason, "nearest": None, "steps": [], "flips": flips}


def _flip(why: dict[str, Any], token: str) -> dict[str, Any]:
    wanted = [token] if token else []
    change = {"what": "token", "to": token, "clause": "", "wanted": wanted, "among": bool(token)}
    return {"changes": [change], "allowed": True, "policy": why["policy"], "rule": why["rule"]}


def _note(to: _Destination, authorizer: Authorizer, asked: Asked | None, *, tokens: bool) -> str:
    port, of_request = to.service.ports[to.index], asked is not None
    if asked is not None and to.request is not None and (asked.token or asked.claims) and not tokens:
        taken = "the claims are taken as valid all the same" if asked.claims else "the token says nothing"
        return f"no RequestAuthentication selects the workload, so it looks for no token: {taken}"
    if of_request and to.request is None:
        return f"port {port.port} is declared as other than HTTP: requests are not read there, the connection is judged"
    if not of_request and authorizer.reads_requests and protocol(port) != "tcp":
        return "policies there ask about requests: say which one with --method, --path, --header …"
    return ""


def _identity(source: str, trust_domain: str) -> Identity | None:
    if source == "-":
        return None
    namespace, slash, account = source.partition("/")
    try:
        if not slash:
            raise IdentityError(f"{source!r} has no '/'")
        return Identity(trust_domain, namespace, account)
    except IdentityError as error:
        raise CheckError(
            f"from: {error}", "write it as namespace/service-account, or - for outside the mesh"
        ) from error


def _service(world: World, target: str) -> tuple[Service, int]:
    name, colon, port = target.rpartition(":")
    if not colon or name.count("/") != 1:
        raise CheckError(f"to: {target!r} is not a service and port", "write it as namespace/service:port")
    service = world.services.get(name)
    if service is None:
        raise CheckError(f"no service {name}", _known(world.services), missing=True)
    for index, known in enumerate(service.ports):
        if port in (str(known.port), known.name) and port:
            return service, index
    ports = [f"{p.port} ({p.name})" if p.name else str(p.port) for p in service.ports]
    raise CheckError(f"service {name} has no port {port!r}", _known(ports), missing=True)


def _known(names: Iterable[str]) -> str:
    some = sorted(names)[:10]
    return f"there are: {', '.join(some)}" if some else "there is none"


def _address(world: World, identity: Identity | None, endpoint: Endpoint) -> str:
    version6 = ":" in endpoint.address
    if identity is not None:
        for workload in world.workloads.values():
            if (workload.namespace, workload.service_account) == (identity.namespace, identity.service_account):
                for address in workload.addresses:
                    if (":" in address) == version6:
                        return address
    return "::" if version6 else "0.0.0.0"
