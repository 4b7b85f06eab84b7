"""`controller.yaml`: what it may hold, and its defaults."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from controller.schema.documents import read
from controller.schema.providers import ExtensionProvider, named_once, providers
from controller.schema.strict import Strict, check, wrong
from mesh.identity import IdentityError, check_trust_domain
from mesh.model import MeshConfig
from mesh.names import is_subdomain
from mesh.paths import Normalization


class ConfigError(Exception):
    """The configuration cannot be used; the message has a line for each thing wrong with it."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _address(value: object) -> Address:
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        if colon and port.isascii() and port.isdigit() and int(port) < 65536:
            return Address(host, int(port))
    except ValueError:
        pass
    raise wrong(f"{value!r} is not an IP address and port", 'write it as "0.0.0.0:15012" or "[::]:15012"')


def _host(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        if not is_subdomain(value):
            raise wrong(f"{value!r} is not a host name or IP address", "leave the port out") from None
    return value


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        raise wrong(f"{value!r} is not an address range: {error}", "write it as 10.77.0.0/16") from error


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _one_a_family(value: list[str]) -> list[str]:
    if len({":" in network for network in value}) != len(value):
        raise wrong("more than one range of a family", "give at most one IPv4 and one IPv6 range")
    return value


def _trust_domain(value: str) -> str:
    try:
        return check_trust_domain(value)
    except IdentityError as error:
        raise wrong(str(error), "write it without spiffe://, such as cluster.local") from error


def _absolute(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith("/"):
        raise wrong(f"{value!r} is not an absolute path")
    return Path(value)


_Host = Annotated[str, AfterValidator(_host)]
_Listen = Annotated[Address, BeforeValidator(_address)]
_Network = Annotated[str, AfterValidator(_network)]
_Folder = Annotated[Path, BeforeValidator(_absolute)]


class Config(Strict):
    """The controller's configuration. Keys in the file are in camelCase."""

    store: Literal["sqlite", "kubernetes"] = "sqlite"
    """Where resources, enrolments and the CA are: in `stateDir`, or in a cluster's API."""
    kubeconfig: Annotated[Path | None, BeforeValidator(_absolute)] = None
    """How to reach that cluster; left out: as the service account of the pod this runs in."""
    listen: _Listen = Address("0.0.0.0", 15012)
    """Where nodes connect."""
    advertise: Annotated[list[_Host], Field(min_length=1)] = Field(default=["127.0.0.1"])
    """Names and addresses by which nodes reach it: SANs of its certificate."""
    trust_domain: Annotated[str, AfterValidator(_trust_domain)] = "cluster.local"
    cluster: str = "Kubernetes"
    state_dir: _Folder = Path("/var/lib/nodemesh/controller")
    run_dir: _Folder = Path("/run/nodemesh")
    mesh_ranges: list[_Network] = Field(default=[])
    service_range: Annotated[
        list[_Network], BeforeValidator(_one_or_more), AfterValidator(_one_a_family), Field(min_length=1)
    ] = Field(default=["10.96.0.0/16"])
    """Where Services without a clusterIP get theirs from: one range, or a list of one of each family."""
    monitoring_address: _Listen = Address("0.0.0.0", 15014)
    workload_certificate_hours: Annotated[int, Field(ge=1, le=24 * 30)] = 24
    path_normalization: Literal["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"] = "BASE"
    """The form that paths of requests are given before a rule is matched, as in Istio."""
    extension_providers: Annotated[list[ExtensionProvider], AfterValidator(named_once)] = Field(
        default=[], max_length=64
    )
    """Whom policies of action CUSTOM ask, as in Istio."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def mesh_config(config: Config) -> MeshConfig:
    """What of it the nodes are told."""
    return MeshConfig(
        config.trust_domain,
        config.cluster,
        path_normalization=Normalization(config.path_normalization),
        providers=providers(config.extension_providers),
    )


def load(path: Path) -> Config:
    """Read the file; raise `ConfigError` with everything that is wrong with it."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    documents, problems = read(str(path), text)
    if not problems and len(documents) > 1:
        problems = [documents[1].problem((), "a second document", "keep one")]
    if not documents and not problems:
        return Config()
    if not problems:
        config, problems = check(Config, documents[0], documents[0].value)
        if config is not None:
            return config
    raise ConfigError("\n".join(map(str, sorted(problems))))
