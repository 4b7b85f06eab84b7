"""Enrolments on file: what a restarted daemon needs to take its workloads up again without being asked."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.codec import DecodeError, decode, encode
from mesh.identity import Identity, IdentityError
from mesh.model import Enrolment
from mesh.names import is_subdomain
from noded.control.failure import Invalid
from noded.control.files import private_directory, remove_unfinished, write_atomic

_log = logging.getLogger(__name__)
_FIELDS = {"name", "namespace", "service_account", "labels", "netns", "addresses"}
_MAX_LABELS, _MAX_ADDRESSES = 64, 16


@dataclass(frozen=True, slots=True)
class NamespaceId:
    """Which network namespace it is. `cookie` (Linux 5.14, else 0) is never used twice until a reboot; inodes are."""

    device: int
    inode: int
    cookie: int


@dataclass(frozen=True, slots=True)
class Record:
    """One enrolled workload."""

    workload: Enrolment
    netns: str
    """Path that it was enrolled with."""
    namespace_id: NamespaceId
    mark: int
    """SO_MARK of the proxy's own sockets in there."""


class Records:
    """One file a workload in a folder that a reboot empties, as it ends the namespaces that the records name."""

    def __init__(self, directory: Path) -> None:
        private_directory(directory)
        remove_unfinished(directory)
        self._directory = directory

    def load(self) -> Iterator[Record]:
        """All of them; one that can't be read is reported and left where it is."""
        for path in sorted(self._directory.glob("*.msgpack")):
            try:
                yield decode(Record, path.read_bytes())
            except (DecodeError, OSError) as error:
                _log.error("enrolment not readable; its workload stays cut off until it is enrolled again",
                           extra={"path": str(path), "error": str(error)})  # fmt: skip

    def write(self, record: Record) -> None:
        """Add or replace."""
        write_atomic(self._path(record.workload.uid), encode(record))

    def forget(self, uid: str) -> None:
        """Remove; nothing happens if it isn't there."""
        self._path(uid).unlink(missing_ok=True)

    def _path(self, uid: str) -> Path:
        return self._directory / f"{uid.replace('/', '~')}.msgpack"


@dataclass(frozen=True, slots=True)
class Request:
    """`POST /workloads`. With no addresses, those of the namespace are used."""

    workload: Enrolment
    netns: str


def parse_request(body: Any) -> Request:
    """Check the JSON body of `POST /workloads`; raise `Invalid`."""
    if not isinstance(body, dict):
        raise Invalid("the body is not a JSON object", "send {name, namespace, service_account, labels, netns}")
    if unknown := body.keys() - _FIELDS:
        raise Invalid(f"unknown field {min(unknown)!r}", f"known fields: {', '.join(sorted(_FIELDS))}")
    names = {field: _name(body, field) for field in ("name", "namespace", "service_account")}
    try:
        Identity("example.org", names["namespace"], names["service_account"])
    except IdentityError as error:
        raise Invalid(str(error), "use a name that can be part of a SPIFFE id") from error
    netns = body.get("netns")
    if not isinstance(netns, str) or not netns.startswith("/") or "\0" in netns or len(netns) > 4096:
        raise Invalid("netns is not an absolute path", "give /run/netns/NAME or /proc/PID/ns/net")
    return Request(Enrolment(**names, labels=_labels(body), addresses=_addresses(body)), netns)


def _name(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str) or not is_subdomain(value):
        raise Invalid(f"{field} {value!r:.80} is not a DNS name", "use lower-case letters, digits, '-' and '.'")
    return value


def _labels(body: dict[str, Any]) -> dict[str, str]:
    labels = body.get("labels") or {}
    if (
        not isinstance(labels, dict)
        or len(labels) > _MAX_LABELS
        or not all(len(key) <= 317 and isinstance(value, str) and len(value) <= 63 for key, value in labels.items())
    ):
        raise Invalid(
            "labels is not a map of short strings",
            f"give at most {_MAX_LABELS} labels, values of at most 63 characters in quotes",
        )
    return labels


def _addresses(body: dict[str, Any]) -> tuple[str, ...]:
    given = body.get("addresses") or []
    if not isinstance(given, list) or len(given) > _MAX_ADDRESSES:
        raise Invalid("addresses is not a list of addresses", f"give at most {_MAX_ADDRESSES} IP addresses")
    found = []
    for text in given:
        try:
            address = ipaddress.ip_address(text if isinstance(text, str) else "")
        except ValueError:
            raise Invalid(f"{text!r:.80} is not an IP address", "give it without prefix length or port") from None
        found.append(str(getattr(address, "ipv4_mapped", None) or address))
    return tuple(found)
