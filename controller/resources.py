"""The stored resources: apply, delete, get. A call does all that it was asked, or nothing.

Held in memory as well, as every publication reads them all.
"""

from __future__ import annotations

import copy
import ipaddress
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controller.schema.manifests import Manifest, load
from controller.schema.names import canonical
from controller.schema.problem import Problem
from controller.service_addresses import AddressError, ServiceAddresses
from controller.store import Key, Resource, Store


class Rejected(Exception):
    """Nothing was applied; `problems` says why, all of it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = sorted(problems)


class Elsewhere(Exception):
    """Resources are not written here: they live in the Kubernetes API."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one document."""

    file: str
    line: int
    kind: str
    namespace: str
    name: str
    result: str
    """`created`, `configured`, `unchanged`, `deleted` or `not found`."""


class Resources:
    """All stored resources."""

    def __init__(
        self, store: Store, ranges: Iterable[str], *, clock: Callable[[], float], changed: Callable[[], None]
    ) -> None:
        self._store, self._clock, self._changed = store, clock, changed
        self._ranges = tuple(ipaddress.ip_network(cidr) for cidr in ranges)
        self._all: dict[Key, Resource] = {resource.key: resource for resource in store.resources()}

    def all(self) -> Iterable[Resource]:
        """In no order."""
        return self._all.values()

    async def of_kind(self, kind: str, namespace: str = "") -> list[Resource]:
        """Those of a namespace, or all; in no order."""
        return [r for r in self._all.values() if r.kind == kind and namespace in ("", r.namespace)]

    def get(self, key: Key) -> Resource | None:
        """One, by (kind, namespace, name)."""
        return self._all.get(key)

    def apply(self, files: Iterable[tuple[str, str]], *, dry_run: bool = False) -> list[Result]:
        """Create or change what the files hold. Raises `Rejected`."""
        manifests, problems = load(files)
        problems += self._conflicts(manifests)
        puts, results = [], []
        addresses = ServiceAddresses(self._ranges, self._all)
        for manifest in sorted(manifests, key=lambda m: not m.body["spec"].get("clusterIP")):  # stated ones come first
            known = self._all.get(manifest.key)
            body = copy.deepcopy(manifest.body)
            if manifest.kind == "Service":
                try:
                    addresses.settle(manifest.key, body["spec"], known.body["spec"] if known else None)
                except AddressError as error:
                    problems.append(manifest.problem(("spec", error.field), str(error), error.remedy))
                    continue
            if known is None:
                puts.append(Resource(*manifest.key, body, str(uuid.uuid4()), 1, 0, int(self._clock())))
            elif known.body != body:
                generation = known.generation + (known.body["spec"] != body["spec"])
                puts.append(Resource(*manifest.key, body, known.uid, generation, 0, known.created))
            outcome = "created" if known is None else "unchanged" if known.body == body else "configured"
            results.append(_result(manifest, outcome))
        if problems:
            raise Rejected(problems)
        if puts and not dry_run:
            for resource in self._store.write_resources(puts, []):
                self._all[resource.key] = resource
            self._changed()
        order = {manifest.key: index for index, manifest in enumerate(manifests)}
        return sorted(results, key=lambda r: order[r.kind, r.namespace, r.name])

    def delete_files(self, files: Iterable[tuple[str, str]]) -> list[Result]:
        """Delete what the files name. Raises `Rejected`."""
        manifests, problems = load(files, with_spec=False)
        if problems:
            raise Rejected(problems)
        found = self.delete([manifest.key for manifest in manifests])
        return [_result(m, "deleted" if m.key in found else "not found") for m in manifests]

    def delete(self, keys: Iterable[Key]) -> set[Key]:
        """Delete these; return those that were there."""
        found = {key for key in keys if key in self._all}
        if found:
            self._store.write_resources([], found)
            for key in found:
                del self._all[key]
            self._changed()
        return found

    def _conflicts(self, manifests: Iterable[Manifest]) -> list[Problem]:
        """What is wrong with a manifest beside what is stored, and beside the others."""
        problems = []
        replaced = {manifest.key for manifest in manifests}
        owners = {a: r.key for r in self._all.values() if r.key not in replaced for a in workload_addresses(r.body)}
        for manifest in manifests:
            known = self._all.get(manifest.key)
            if manifest.resource_version is not None and (
                known is None or str(known.version) != manifest.resource_version
            ):
                problems.append(
                    manifest.problem(
                        ("metadata", "resourceVersion"),
                        "the object has changed since this version" if known else "there is no such object (any more)",
                        "get it again, or leave resourceVersion out",
                    )
                )
            for address in workload_addresses(manifest.body):
                _kind, namespace, name = owner = owners.setdefault(address, manifest.key)
                if owner != manifest.key:
                    field = "address" if "address" in manifest.body["spec"] else "addresses"
                    message = f"{address} is the address of Workload {namespace}/{name}"
                    problems.append(manifest.problem(("spec", field), message, "give each its own"))
        return problems


def workload_addresses(body: dict[str, Any]) -> tuple[str, ...]:
    """The canonical addresses of a `Workload`; none of any other kind."""
    if body["kind"] != "Workload":
        return ()
    spec = body["spec"]
    stated = [spec["address"]] if spec.get("address") else spec["addresses"]
    return tuple(dict.fromkeys(map(canonical, stated)))


def shown(resource: Resource) -> dict[str, Any]:
    """As the API gives it out: with what the store says of it in the metadata."""
    created = datetime.fromtimestamp(resource.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assigned = {
        "uid": resource.uid,
        "resourceVersion": str(resource.version),
        "generation": resource.generation,
        "creationTimestamp": created,
    }
    return {**resource.body, "metadata": {**resource.body["metadata"], **assigned}}


def _result(manifest: Manifest, result: str) -> Result:
    return Result(manifest.document.file, manifest.line, *manifest.key, result)
