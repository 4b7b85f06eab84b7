"""meshctl's commands on stored resources: apply, delete, get."""

from __future__ import annotations

from typing import Any

import click

from controller.cli import columns, manifests
from controller.cli.client import Client
from controller.cli.completion import kinds, names, namespaces
from controller.cli.kinds import PLURALS, plural, singular
from controller.cli.terminal import show
from mesh.present.failure import Failure, Rejected
from mesh.present.options import examples, output_options
from mesh.present.table import Look, clean, paint
from mesh.present.units import count

_MANIFEST = click.Path(allow_dash=True)
_APPLY_PATIENCE = 120.0
_NOT_STORED = ("nodes", "edges")


@examples(
    "meshctl apply -f policy.yaml",
    "meshctl apply -f *.yaml",
    "meshctl apply -f shop/ --dry-run",
    "kustomize build . | meshctl apply -f -",
)
@click.command()
@click.option(
    "-f", "--filename", "files", type=_MANIFEST, multiple=True, required=True, help="A file, a directory, or - (stdin)."
)
@click.argument("more", type=_MANIFEST, nargs=-1, metavar="[FILE]...")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@output_options
@click.pass_obj
def apply(client: Client, look: Look, files: tuple[str, ...], more: tuple[str, ...], dry_run: bool) -> None:
    """Create or change the resources in files. All of them, or none if one is at fault."""
    answer = _send(client, "/v1/apply", (*files, *more), {"dryRun": "true"} if dry_run else {}, "applying")
    _results(look, answer, " (dry run)" if dry_run else "")


@examples(
    "meshctl delete -f policy.yaml",
    "meshctl delete authorizationpolicy deny-all -n shop",
)
@click.command()
@click.option("-f", "--filename", "files", type=_MANIFEST, multiple=True, help="Delete what these files name.")
@click.argument("kind", required=False, shell_complete=kinds)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=names)
@click.option("-n", "--namespace", default="default", show_default=True, shell_complete=namespaces)
@output_options
@click.pass_obj
def delete(
    client: Client, look: Look, files: tuple[str, ...], kind: str | None, names: tuple[str, ...], namespace: str
) -> None:
    """Delete resources, by file or by kind and name."""
    if files:
        more = (kind, *names) if kind else ()
        answer = _send(client, "/v1/delete", (*files, *more), {}, "deleting")
        _results(look, answer)
        if missing := [row for row in answer["results"] if row.get("result") == "not found"]:
            raise Failure(f"{count(len(missing), 'resource')} not found")
        return
    kind, named = split_kind(kind, names)
    if not named:
        raise click.UsageError("name what to delete: -f FILE, or KIND NAME")
    for name in named:
        client.send("DELETE", f"/v1/resources/{plural(kind)}/{namespace}/{name}", doing=f"deleting {kind}/{name}")
        click.echo(f"{singular(kind)}/{name} deleted")


def split_kind(kind: str | None, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Understand `KIND NAME` and `KIND/NAME` alike."""
    if not kind:
        raise click.UsageError(f"which kind? {', '.join(PLURALS.values())}")
    kind, slash, name = kind.partition("/")
    return kind, ((name, *names) if slash else names)


def _send(client: Client, path: str, files: tuple[str, ...], query: dict[str, str], doing: str) -> Any:
    sources = manifests.read(files)
    body = {"files": [{"name": name, "text": text} for name, text in sources.items()]}
    doing = f"{doing} {count(len(sources), 'file')}"
    try:
        return client.send("POST", path, body, doing=doing, query=query, patience=_APPLY_PATIENCE)
    except Rejected as rejected:
        raise Rejected(rejected.errors, sources) from None


def _results(look: Look, answer: Any, note: str = "") -> None:
    if look.output.value != "table":
        shown = answer if not look.tabular else {"items": answer["results"]}
        show(look, shown, columns.RESULTS, empty="Nothing in these files.")
        return
    for row in answer["results"]:
        what = f"{singular(str(row.get('kind')))}/{row.get('name')} -n {row.get('namespace')}"
        click.echo(f"{clean(what)} {paint(str(row.get('result')), colour=look.colour)}{note}")
    if not answer["results"]:
        click.echo("Nothing in these files.", err=True)


@examples(
    "meshctl get services",
    "meshctl get authorizationpolicies -A",
    "meshctl get svc web -n shop -o yaml",
    "meshctl get workloads -A -l app=web,version=v2",
)
@click.command()
@click.argument("kind", shell_complete=kinds)
@click.argument("name", required=False, shell_complete=names)
@click.option("-n", "--namespace", shell_complete=namespaces, help="Only this one.  [default: default]")
@click.option("-A", "--all-namespaces", "everywhere", is_flag=True)
@click.option("-l", "--selector", metavar="KEY=VALUE,…", help="Only those with these labels.")
@output_options
@click.pass_obj
def get(
    client: Client,
    look: Look,
    kind: str,
    name: str | None,
    namespace: str | None,
    everywhere: bool,
    selector: str | None,
) -> None:
    """List stored resources, or show one.

    Kinds: services (svc), workloads (wl), authorizationpolicies (ap), peerauthentications (pa),
    requestauthentications (ra), httproutes (hr), grpcroutes (gr), referencegrants (refgrant), trafficpolicies (tp).
    What nodes enrolled at run time is in `meshctl workloads`, not here.
    """
    if kind.lower() in _NOT_STORED:
        raise click.UsageError(f"{kind} are not stored resources: `meshctl {kind}` lists them")
    kind, named = split_kind(kind, (name,) if name else ())
    shown = columns.RESOURCES.get(singular(kind), columns.OTHER_RESOURCES)
    if named:
        if everywhere or selector:
            raise click.UsageError("a name is in one namespace: use it without -A and -l")
        show(look, client.get(f"/v1/resources/{plural(kind)}/{namespace or 'default'}/{named[0]}"), shown, empty="")
        return
    if namespace and everywhere:
        raise click.UsageError("-n and -A contradict each other")
    query = {"namespace": namespace or "default"} if not everywhere else {}
    if selector:
        query["selector"] = selector
    where = "" if everywhere else f" in namespace {namespace or 'default'}; -A looks in all"
    show(look, client.get(f"/v1/resources/{plural(kind)}", **query), shown, empty=f"No {plural(kind)}{where}.")
