"""nodectl why: what was denied or failed, and how that came about."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import click

from mesh.present.options import examples, output_options
from mesh.present.table import Look, Row, clean, fields, structured
from mesh.present.units import ago
from mesh.present.why import route_lines, verdict_lines, version_lines
from noded.control.cli import columns
from noded.control.cli.client import Client
from noded.control.cli.columns import short_identity, status
from noded.control.cli.completion import failed_ids
from noded.control.cli.terminal import show


@examples(
    "nodectl why                # what was denied or failed here of late",
    "nodectl why 0-r12          # a request; its x-request-id does, too",
    "nodectl why 0-17           # a connection",
    "nodectl why 0-r12 -o json | jq '.verdict.flips'",
)
@click.command()
@click.argument("wanted", metavar="[ID]", required=False, shell_complete=failed_ids)
@output_options
@click.pass_obj
def why(client: Client, look: Look, wanted: str | None) -> None:
    """Say why a connection or request was denied or routed so.

    Without an ID those that say the same of the same client are one line: the last of them, how many, and since when.
    Of the connections and requests that fared well only the open connections are remembered: ask meshctl policy check
    about others.
    """
    if not wanted:
        show(look, client.get("/why"), columns.FAILED, empty="Nothing was denied or failed here of late.")
        return
    answer = client.get(f"/why/{quote(wanted, safe='')}")
    if not look.tabular:
        click.echo(structured(answer, look.output), nl=False)
        return
    click.echo(fields(_pairs(answer["what"]), colour=look.colour), nl=False)
    lines = [f"note: {clean(str(note))}" for note in answer["notes"]]
    if answer["route"]:
        lines += route_lines(answer["route"])
    if answer["verdict"]:
        lines += verdict_lines(answer["verdict"])
    if answer["target"]:
        lines.append(clean(_target(answer["target"])))
    lines += version_lines(answer["versions"])
    if lines:
        click.echo("\n" + "\n".join(lines))


def _pairs(what: Row) -> list[tuple[str, str]]:
    now = time.time()
    since = f", {ago(what['at'], now)} ago" if what.get("at") else ""
    client = short_identity(what.get("source_identity") or "") or "no identity"
    pairs = [
        ("What", f"{what.get('direction')} {what.get('kind')} {what.get('id')} of {what.get('workload')}{since}"),
        ("From", f"{what.get('source')} ({client})"),
        ("To", " -> ".join(dict.fromkeys(filter(None, (what.get("destination"), what.get("target")))))),
    ]
    if "method" in what:
        pairs.append(("Asked", f"{what['method']} {what['authority']} {what['path']}"))
    if "flags" in what:
        code = f"{status(what, what['code'])} " if what.get("code") else ""
        flags = f"{what['flags']} " if what["flags"] != "-" else ""
        pairs.append(("Outcome", f"{code}{flags}{what.get('reason', '')}".strip()))
    else:
        pairs.append(("State", str(what.get("state", ""))))
    if what.get("count", 1) > 1:
        pairs.append(("Alike", f"{what['count']}, the first {ago(what['first'], now)} ago"))
    return pairs


def _target(target: dict[str, Any]) -> str:
    number = target["endpoints"]
    endpoints = f"{number} endpoint{'' if number == 1 else 's'}"
    where = f"service {target['service']} ({endpoints})" if target["service"] else target["workload"]
    done = {
        "tunnel": "goes through a tunnel",
        "plaintext": "goes in plaintext",
        "hold": "is held",
        "refuse": "is reset",
    }
    flags = f" ({target['flags']})" if target["flags"] != "-" else ""
    return f"a connection {f'to {where}' if where else 'there'} {done[target['kind']]}: {target['reason']}{flags}"
