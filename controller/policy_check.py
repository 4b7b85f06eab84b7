"""What the policies would say to a connection: the answer of `mesh.authz`, asked for each endpoint of a service."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from controller.translate import World
from mesh.authz import Authorizer, Peer, Permit
from mesh.identity import Identity, IdentityError
from mesh.model import Endpoint, MeshConfig, Service


class CheckError(ValueError):
    """The question does not make sense, or (`missing`) is about something that is not there."""

    def __init__(self, message: str, remedy: str = "", *, missing: bool = False) -> None:
        super().__init__(message)
        self.remedy, self.missing = remedy, missing


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


def check(world: World, config: MeshConfig, source: str, target: str, address: str = "") -> list[Answer]:
    """May `source` (`ns/sa`, or `-` for a client outside the mesh) connect to `target` (`ns/svc:port`)?

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
    answers = []
    for endpoint in service.endpoints:
        workload = world.workloads.get(endpoint.workload)
        if not endpoint.ports[index]:
            continue
        if workload is None or not workload.meshed:
            reason = "not in the mesh: no policy is enforced there"
            answers.append(Answer(endpoint.workload, endpoint.ports[index], True, "", -1, reason, "DISABLE"))
            continue
        # In the mesh, the client arrives in a tunnel with its identity, or in plaintext without one.
        authorizer = Authorizer.of(
            world.policies,
            world.peer_auths,
            namespace=workload.namespace,
            labels=world.labels[workload.uid],
            root_namespace=config.root_namespace,
        )
        port = endpoint.ports[index]
        client = address or _address(world, identity, endpoint)
        verdict = authorizer.check(Peer(identity, client, endpoint.address, port))
        allowed = isinstance(verdict, Permit)
        mode = authorizer.mtls_mode(port).value
        decided = (verdict.policy, verdict.rule, verdict.reason)
        answers.append(Answer(workload.uid, port, allowed, *decided, mode, verdict.dry_run))
    return answers


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
