"""meshctl check: whether a cluster can take the mesh, and whether a mesh is well."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from controller.cli.cluster import NODED, Cluster, ClusterClient
from controller.cli.terminal import show
from mesh.present.failure import Exit, Failure
from mesh.present.options import colour, examples, output_options
from mesh.present.table import Look, clean, paint
from mesh.present.units import count

if TYPE_CHECKING:
    from controller.cli.checks import Result
    from controller.cli.client import Client

_MARKS = {"ok": ("ok", "valid"), "warning": ("warning", "pending"), "failed": ("failed", "failed")}


@examples("meshctl check --pre", "meshctl check", "meshctl check -o json | jq '.items[] | select(.state != \"ok\")'")
@click.command()
@click.option(
    "--pre", is_flag=True, help="Before an installation: can this cluster take the mesh, and may I install it?"
)
@output_options
@click.pass_context
def check(context: click.Context, look: Look, pre: bool) -> None:
    """Say whether the mesh is well, or a cluster can take it.

    On a cluster it looks at the API, at the controller, and into every node's noded; elsewhere at the controller and
    what it knows of its nodes. Exits 1 if anything failed; warnings do not count.
    """
    client: Client = context.obj
    if pre and not isinstance(client, ClusterClient):
        raise click.UsageError("--pre is about a cluster, and none is named: --kubeconfig FILE")
    if isinstance(client, ClusterClient):
        results = prerequisites(client.cluster) if pre else _cluster(client)
    else:
        results = _mesh(client)
    failed = _report(results, look)
    if failed:
        context.exit(Exit.FAILED)


def before(cluster: Cluster) -> None:
    """`check --pre`, silent where all is well. Raises `Failure`."""
    results = [result for result in prerequisites(cluster) if result.state != "ok"]
    _print(results, sys.stderr, colour=colour())
    if failed := sum(result.state == "failed" for result in results):
        raise Failure(f"{count(failed, 'check')} failed; nothing was changed", "--skip-checks goes on regardless")


def _report(results: Iterable[Result], look: Look) -> bool:
    """Show them as they come; whether any has failed."""
    if look.tabular:
        done = _print(results, sys.stdout, colour=look.colour)
        counts = {state: sum(result.state == state for result in done) for state in ("failed", "warning")}
        click.echo(f"\n{count(len(done), 'check')}: {counts['failed']} failed, {count(counts['warning'], 'warning')}")
    else:
        done = list(results)
        show(look, {"items": [asdict(result) for result in done]}, (), empty="")
    return any(result.state == "failed" for result in done)


def _print(results: Iterable[Result], stream: Any, *, colour: bool) -> list[Result]:
    done: list[Result] = []
    for result in results:
        if not done or done[-1].group != result.group:
            click.echo(("\n" if done else "") + result.group, file=stream)
        word, tone = _MARKS[result.state]
        mark = paint(tone, colour=colour).replace(tone, f"{word:<7}")
        detail = f": {clean(result.detail)}" if result.detail else ""
        click.echo(f"  {mark}  {clean(result.check)}{detail}", file=stream)
        if result.remedy and result.state != "ok":
            click.echo(f"           {clean(result.remedy)}", file=stream)
        done.append(result)
    return done


def prerequisites(cluster: Cluster) -> Iterator[Result]:
    """Whether the cluster can take the mesh, and whether the user may put it there."""
    from controller.cli import checks

    try:
        version = cluster.get("/version")
    except Failure as failure:
        yield checks.failed("kubernetes", "the API server answers", failure.message, failure.remedy)
        return
    yield checks.passed("kubernetes", "the API server answers")
    yield checks.kubernetes_version(version)
    yield from checks.permissions(cluster.allowed)
    nodes = list(cluster.items("/api/v1/nodes"))
    yield from checks.nodes(nodes)
    yield from checks.network(nodes, list(cluster.items("/apis/apps/v1/daemonsets")))


def _guarded(group: str, what: str, work: Callable[[], Iterable[Result]]) -> Iterator[Result]:
    """The results of `work`; a failure in it is one too, so that the other checks are made."""
    from controller.cli import checks

    try:
        yield from work()
    except Failure as failure:
        yield checks.failed(group, what, failure.message, failure.remedy)


def _cluster(client: ClusterClient) -> Iterator[Result]:
    from controller.cli import checks
    from controller.cli.rollout import pods

    cluster = client.cluster
    try:
        yield checks.kubernetes_version(cluster.get("/version"))
    except Failure as failure:
        yield checks.failed("kubernetes", "the API server answers", failure.message, failure.remedy)
        return
    yield from _guarded("installation", "it is installed", lambda: checks.installation(cluster.find))
    yield from _mesh(client)
    for pod in pods(cluster, NODED):
        name, node = str(pod["metadata"]["name"]), str(pod["spec"].get("nodeName"))

        def ask(*words: str, name: str = name) -> Any:
            import json

            return json.loads(cluster.run(name, NODED, ["nodectl", *words, "-o", "json"], allowed=(0, 1)))

        yield from _guarded(f"node {node}", "noded answers", partial(checks.node, node, ask))


def _mesh(client: Client) -> Iterator[Result]:
    from controller.cli import checks

    now = time.time()
    try:
        nodes = client.get("/v1/nodes")["items"]
    except Failure as failure:
        yield checks.failed("controller", "it answers", failure.message, failure.remedy)
        return
    yield checks.passed("controller", "it answers")
    yield from _guarded("controller", "its authority", lambda: checks.authority(client.get("/v1/ca"), now))
    yield from checks.joined(nodes, now)
