"""`Service` (v1), as https://kubernetes.io/docs/reference/kubernetes-api/service-resources/service-v1/ describes it.

Fields that mean something to a cloud or to kube-proxy only are accepted and have no effect here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from controller.schema.names import Address, Label, Labels, Port, canonical
from controller.schema.strict import Strict, wrong


def _target(value: object) -> object:
    if isinstance(value, str):
        if value.isdigit():
            raise wrong(f"the port {value!r} is a text", "write it without quotes")
        raise wrong(f"named target ports ({value!r}) are not supported yet", "write the number")
    return value


def _type(value: str) -> str:
    if value == "ExternalName":
        raise wrong("services of type ExternalName are not supported yet", "use ClusterIP with a selector")
    return value


def _cluster_ip(value: str) -> str:
    if value not in ("", "None"):
        try:
            canonical(value)
        except ValueError as error:
            raise wrong(
                f"not a usable IP address: {error}", "leave it out to have one given, or None for headless"
            ) from error
    return value


class ServicePort(Strict):
    """One port."""

    name: Label | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    port: Port
    target_port: Annotated[Port | None, BeforeValidator(_target)] = None
    node_port: int | None = None
    app_protocol: str | None = None


class ServiceSpec(Strict):
    """`spec` of a Service."""

    selector: Labels | None = None
    ports: list[ServicePort] | None = None
    type: Annotated[Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"], AfterValidator(_type)] = (
        "ClusterIP"
    )
    cluster_ip: Annotated[str, AfterValidator(_cluster_ip)] | None = Field(default=None, alias="clusterIP")
    cluster_ips: list[Annotated[str, AfterValidator(_cluster_ip)]] | None = Field(default=None, alias="clusterIPs")
    ip_families: list[Literal["IPv4", "IPv6"]] | None = None
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] | None = None
    external_ips: list[Address] | None = Field(default=None, alias="externalIPs")
    external_name: str | None = None
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    session_affinity: str | None = None
    session_affinity_config: Any = None
    publish_not_ready_addresses: bool | None = None
    load_balancer_ip: str | None = Field(default=None, alias="loadBalancerIP")
    load_balancer_class: str | None = None
    load_balancer_source_ranges: list[str] | None = None
    allocate_load_balancer_node_ports: bool | None = None
    health_check_node_port: int | None = None
    traffic_distribution: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> ServiceSpec:
        ports = self.ports or []
        headless = self.cluster_ip == "None"
        if not ports and not headless:
            raise wrong("a service must have at least one port", "add 'ports'")
        names = [port.name for port in ports]
        if len(ports) > 1 and None in names:
            raise wrong("where there are several ports each must have a name", "add 'name' to each of 'ports'")
        if len(set(names)) != len(names):
            raise wrong("two ports have the same name", "name them differently")
        if len({(port.protocol, port.port) for port in ports}) != len(ports):
            raise wrong("two ports have the same number and protocol", "remove one")
        if self.cluster_ip and self.cluster_ips and self.cluster_ips[0] != self.cluster_ip:
            raise wrong("clusterIP is not the first of clusterIPs", "leave clusterIPs out")
        if self.cluster_ips and len({":" in a for a in self.cluster_ips}) != len(self.cluster_ips):
            raise wrong(
                "clusterIPs has more than one address of a family", "give at most one IPv4 and one IPv6 address"
            )
        return self
