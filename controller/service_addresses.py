"""The virtual addresses of Services: stated, kept, or given from the configured ranges, as Kubernetes does it."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from typing import Any

from controller.schema.names import canonical
from controller.store import Key, Resource

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_MAX_PROBES = 1 << 16


class AddressError(ValueError):
    """A Service cannot have the address it states, or none is left."""

    def __init__(self, field: str, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.field, self.remedy = field, remedy


class ServiceAddresses:
    """Those in use, for the length of one apply."""

    def __init__(self, ranges: tuple[Network, ...], stored: Mapping[Key, Resource]) -> None:
        self._ranges = ranges
        self._owners: dict[str, Key] = {
            address: key
            for key, resource in stored.items()
            if key[0] == "Service"
            for address in resource.body["spec"].get("clusterIPs") or ()
            if address != "None"
        }

    def settle(self, key: Key, spec: dict[str, Any], known: Mapping[str, Any] | None) -> None:
        """Write `clusterIP` and `clusterIPs` into `spec`; `known` is the stored spec. Raises `AddressError`."""
        stated = list(spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else []))
        stated = [address if address == "None" else canonical(address) for address in stated if address]
        kept = list(known.get("clusterIPs") or ()) if known else []
        if stated and kept and stated[: len(kept)] != kept[: len(stated)]:
            raise AddressError(
                "clusterIP", f"the field cannot be changed (it is {kept[0]})", "delete the Service first"
            )
        chosen = kept or stated
        for address in chosen:
            self._claim(key, address)
        if not chosen:
            chosen = [self._give(key, network) for network in self._networks(spec)]
        spec["clusterIP"], spec["clusterIPs"] = chosen[0], chosen

    def _claim(self, key: Key, address: str) -> None:
        if address == "None":
            return
        if not any(ipaddress.ip_address(address) in network for network in self._ranges):
            ranges = ", ".join(map(str, self._ranges))
            raise AddressError(
                "clusterIP", f"{address} is outside serviceRange ({ranges})", "leave it out to have one given"
            )
        if (owner := self._owners.setdefault(address, key)) != key:
            raise AddressError("clusterIP", f"{address} is that of Service {owner[1]}/{owner[2]}", "choose another")

    def _networks(self, spec: Mapping[str, Any]) -> list[Network]:
        by_family = {f"IPv{network.version}": network for network in self._ranges}
        policy = spec.get("ipFamilyPolicy")
        wanted = list(spec.get("ipFamilies") or ())
        if not wanted:
            wanted = list(by_family) if policy in ("PreferDualStack", "RequireDualStack") else list(by_family)[:1]
        missing = [family for family in wanted if family not in by_family]
        if missing or (policy == "RequireDualStack" and len(by_family) < 2):
            family = (missing or [f for f in ("IPv4", "IPv6") if f not in by_family])[0]
            raise AddressError("ipFamilies", f"serviceRange has no {family} range", "add one to controller.yaml")
        return [by_family[family] for family in wanted]

    def _give(self, key: Key, network: Network) -> str:
        """A free address; from the name, so that a Service made again is likely to have the same one again."""
        size = network.num_addresses - 2
        start = int.from_bytes(hashlib.sha256("/".join(key).encode()).digest()[:8], "big")
        for step in range(min(max(size, 0), _MAX_PROBES)):
            address = str(network[1 + (start + step) % size])
            if address not in self._owners:
                self._owners[address] = key
                return address
        raise AddressError("clusterIP", f"no address is left in {network}", "delete Services, or enlarge serviceRange")
