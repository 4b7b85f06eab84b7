"""Columns of what both daemons answer in the same form: the mesh's workloads and services (`mesh.model`)."""

from __future__ import annotations

from mesh.present.table import Column, Row, plain
from mesh.present.units import rate


def port_names(row: Row) -> list[str]:
    """`name:port` of a service's ports."""
    return [f"{port.get('name') or '-'}:{port.get('port')}" for port in row.get("ports", [])]


def _endpoints(row: Row) -> list[str]:
    return [f"{endpoint.get('address')}:{plain(endpoint.get('ports'))}" for endpoint in row.get("endpoints", [])]


WORKLOADS = (
    Column("NAMESPACE", "namespace"),
    Column("NAME", "name"),
    Column("NODE", "node"),
    Column("MESHED", "meshed"),
    Column("SERVICE-ACCOUNT", "service_account"),
    Column("ADDRESSES", "addresses"),
    Column("APP", "app", wide=True),
    Column("VERSION", "version", wide=True),
)

SERVICES = (
    Column("NAMESPACE", "namespace"),
    Column("NAME", "name"),
    Column("ADDRESSES", "addresses"),
    Column("PORTS", port_names),
    Column("ENDPOINTS", lambda row: len(row.get("endpoints", [])), right=True),
    Column("HOSTNAME", "hostname", wide=True),
    Column("ADDRESS:TARGET-PORTS", _endpoints, wide=True),
)

RATES = (
    Column("RECEIVED/S", "received_rate", rate, right=True),
    Column("SENT/S", "sent_rate", rate, right=True),
)
"""Of rows that have been through a `Watch` with the counters `received` and `sent`."""
