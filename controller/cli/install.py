"""meshctl's commands that put the mesh on a cluster, change it there, and take it away."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from controller.cli import clean_up, route_statuses
from controller.cli.cluster import CONTROLLER, NAMESPACE, NODED, Cluster, Target
from mesh.present.failure import Exit, Failure
from mesh.present.options import duration, examples
from mesh.present.units import count

if TYPE_CHECKING:
    from controller.cli.rollout import Waiting

_Command = TypeVar("_Command", bound=Callable[..., Any])
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
_ENROLLED = "nodemesh.dev/enrolled"
_KINDS = (
    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    _CRDS,
)
"""What lies outside the namespace."""


def _shared(command: _Command) -> _Command:
    timeout = click.option(
        "--timeout", callback=duration, default="5m", show_default=True, metavar="DURATION", help="How long to wait."
    )
    return timeout(command)


def _set(command: _Command) -> _Command:
    return click.option(
        "--set", "texts", multiple=True, metavar="KEY=VALUE", help="image, imagePullPolicy, trustDomain, …. Repeatable."
    )(command)


def target_of(context: click.Context) -> Target:
    """The cluster that the options before the command name, or the current one."""
    given = context.find_root().params
    return Target(given.get("kubeconfig") or "", given.get("kube_context") or "")


@examples(
    "meshctl install",
    "meshctl install --set image=registry.example/nodemesh:0.1.0 --set trustDomain=example.org",
    "meshctl install --dry-run -o yaml | kubectl diff -f -",
)
@click.command()
@_set
@click.option("--dry-run", is_flag=True, help="Print what would be applied, as YAML; nothing is asked or changed.")
@click.option("-o", "--output", type=click.Choice(["yaml"]), default="yaml", help="Of --dry-run.")
@click.option("--kubernetes-version", metavar="1.N", help="With --dry-run: for which; the newest by default.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it runs.")
@click.option("--skip-checks", is_flag=True, help="Do not do what `meshctl check --pre` does first.")
@_shared
@click.pass_context
def install(
    context: click.Context,
    texts: tuple[str, ...],
    dry_run: bool,
    output: str,
    kubernetes_version: str | None,
    no_wait: bool,
    skip_checks: bool,
    timeout: int,
) -> None:
    """Put the mesh on a cluster. Pods join it by a label, so nothing else changes yet.

    It is applied server-side as field manager `meshctl`; doing it again changes nothing.
    """
    from controller.cli import deployment
    from controller.cli.check import before
    from controller.cli.rollout import Waiting

    settings = deployment.parse_settings(texts)
    if dry_run:
        click.echo(deployment.as_yaml(deployment.objects(_stated_version(kubernetes_version), settings)), nl=False)
        return
    cluster = target_of(context).cluster()
    bodies = _bodies(cluster, settings)
    there = cluster.find(f"{_APPS}/daemonsets/{NODED}")
    if there and (old := deployment.images([{"kind": "DaemonSet", **there}])) != deployment.images(bodies):
        raise Failure(f"{', '.join(sorted(old))} is installed already", "meshctl upgrade")
    if not skip_checks:
        before(cluster)
    waiting = Waiting(timeout)
    _apply(cluster, bodies, waiting)
    if not no_wait:
        _run(cluster, waiting)
        click.echo("installed; `kubectl label namespace NAME nodemesh.dev/mode=enabled` brings its pods into the mesh")


def _stated_version(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 999
    major, dot, minor = text.partition(".")
    if not (dot and major.isdigit() and minor.isdigit()):
        raise click.BadParameter(f"{text!r} is not a version", param_hint="--kubernetes-version")
    return int(major), int(minor)


def _bodies(cluster: Cluster, settings: Mapping[str, str]) -> list[dict[str, Any]]:
    """What is to be on the cluster."""
    from controller.cli import deployment

    return [
        deployment.with_added(body, cluster.find(cluster.path(body))) if body["kind"] == "ConfigMap" else body
        for body in deployment.objects(deployment.version_of(cluster.get("/version")), settings)
    ]


def _apply(cluster: Cluster, bodies: list[dict[str, Any]], waiting: Waiting) -> None:
    from controller.cli import deployment
    from controller.cli.rollout import established, say

    for body in bodies:
        before = cluster.find(cluster.path(body))
        after = cluster.apply(body)
        old, new = (b and b["metadata"].get("resourceVersion") for b in (before, after))
        became = "created" if before is None else "unchanged" if old == new else "configured"
        say(f"{deployment.name_of(body)}: {became}")
        if body["kind"] == "CustomResourceDefinition":
            established(cluster, [body["metadata"]["name"]], waiting)


def _run(cluster: Cluster, waiting: Waiting) -> None:
    from controller.cli.rollout import controller_ready, nodes_ready

    controller_ready(cluster, waiting)
    nodes_ready(cluster, waiting)


@examples(
    "meshctl upgrade",
    "meshctl upgrade --set image=registry.example/nodemesh:0.2.0 --yes",
    "meshctl upgrade --diff",
)
@click.command()
@_set
@click.option("--diff", "only_diff", is_flag=True, help="Only show what would change; exits 1 if anything would.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_shared
@click.pass_context
def upgrade(context: click.Context, texts: tuple[str, ...], only_diff: bool, yes: bool, timeout: int) -> None:
    """Bring the installed mesh to this meshctl's version.

    It shows what changes, asks, then rolls node by node. What it does not hold any more is deleted when the rest
    runs, but never a CRD or a Secret. Settings stay as they were installed unless given anew, and so do keys that
    were added to the daemons' files. A node's pods keep their capture while its noded is replaced; their connections
    are reset when the old one ends.
    """
    from controller.cli import deployment
    from controller.cli.prune import dropped
    from controller.cli.rollout import Waiting, say

    cluster = target_of(context).cluster()
    namespace = cluster.find(f"/api/v1/namespaces/{NAMESPACE}")
    there = cluster.find(f"{_APPS}/daemonsets/{NODED}")
    if namespace is None or there is None:
        raise Failure(f"Nodemesh is not installed on {cluster.access.server}", "meshctl install")
    settings = deployment.settings_of(namespace) | deployment.parse_settings(texts)
    bodies = _bodies(cluster, settings)
    gone = dropped(cluster, bodies)
    changed = [text for body in bodies if (text := _diff(cluster, body))]
    changed += [_shown(deployment.name_of(body), deployment.comparable(body), "") for _path, body in gone]
    click.echo("".join(changed), nl=False)
    if not changed:
        say("nothing changes")
        return
    if only_diff:
        context.exit(Exit.FAILED)
    if not yes:
        click.confirm(f"change {count(len(changed), 'object')}?", abort=True, err=True)
    waiting = Waiting(timeout)
    _apply(cluster, bodies, waiting)
    _run(cluster, waiting)
    for path, body in gone:  # not before: until now something may have run with it
        if cluster.delete(path):
            say(f"{deployment.name_of(body)}: deleted")
    click.echo("upgraded")


def _diff(cluster: Cluster, body: Mapping[str, Any]) -> str:
    """How applying it would change the object, as a unified diff; `""` for not at all."""
    from controller.cli import deployment

    name = deployment.name_of(body)
    there = cluster.find(cluster.path(body))
    old = "" if there is None else deployment.comparable(there)
    try:
        new = deployment.comparable(cluster.apply(body, dry_run=True))
    except Failure:
        if there is not None:
            raise
        new = deployment.comparable(body)  # in a namespace, or of a kind, that is not there yet
    return _shown(name, old, new)


def _shown(name: str, old: str, new: str) -> str:
    then = "then" if new else "deleted"
    return "".join(
        difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"{name} (now)", f"{name} ({then})")
    )


@examples("meshctl uninstall", "meshctl uninstall --yes --keep-resources")
@click.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--keep-resources", is_flag=True, help="Leave the CRDs, and so the policies, to be installed again.")
@click.option("--force", is_flag=True, help="Leave what is on nodes that are not ready as it is.")
@_shared
@click.pass_context
def uninstall(context: click.Context, yes: bool, keep_resources: bool, force: bool, timeout: int) -> None:
    """Take the mesh away, from nodes, pods and the API.

    That includes the CRDs with the policies in them, unless --keep-resources is given, and the certificate authority.
    Open tunnels are closed. Labels that people put on namespaces and pods stay. Policies of Istio's own kinds are not
    ours, and stay.
    """
    from controller.cli.rollout import Waiting, condition

    cluster = target_of(context).cluster()
    waiting = Waiting(timeout)
    away = {_name(node) for node in cluster.items("/api/v1/nodes") if not condition(node, "Ready")}
    if away and not force:
        remedy = "start them, or remove them from the cluster; --force leaves what noded did there"
        raise Failure(f"nodes that are not ready cannot be cleaned: {', '.join(sorted(away))}", remedy)
    own = 0 if keep_resources else sum(1 for _ in _resources(cluster))
    if not yes:
        also = f", with {count(own, 'resource')} of kinds of nodemesh.dev" if own else ""
        click.confirm(f"remove Nodemesh from {cluster.access.server}{also}?", abort=True, err=True)
    _stop_nodes(cluster, waiting, away)
    _remove_objects(cluster, waiting, keep_resources, away)
    left = [*_left(cluster, keep_resources)]
    if left:
        raise Failure(f"still there: {', '.join(left)}", "run it again, or delete them with kubectl")
    click.echo("uninstalled")
    if away:
        click.echo(f"not cleaned: {', '.join(sorted(away))}; `noded --clean-up --pods` does it there", err=True)


def _name(body: Mapping[str, Any]) -> str:
    return str(body["metadata"]["name"])


def _give_up(cluster: Cluster, away: set[str]) -> None:
    """Forget our pods on nodes that cannot say that they have ended."""
    for pod in cluster.items(f"/api/v1/namespaces/{NAMESPACE}/pods"):
        if pod["spec"].get("nodeName") in away:
            cluster.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{_name(pod)}", now=True)


def _resources(cluster: Cluster) -> Any:
    policies = ("authorizationpolicies", "peerauthentications", "requestauthentications", "trafficpolicies")
    for kind in (*policies, "workloads"):
        yield from cluster.items(f"/apis/nodemesh.dev/v1alpha1/{kind}")


def _stop_nodes(cluster: Cluster, waiting: Waiting, away: set[str]) -> None:
    """End noded everywhere, then undo what it did to each node and to the pods on it."""
    from controller.cli.rollout import nodes_ready, pods, say

    there = cluster.find(f"{_APPS}/daemonsets/{NODED}")
    if there is None and cluster.find(f"{_APPS}/daemonsets/{clean_up.NAME}") is None:
        return
    if there is not None:
        # First what does the cleaning, so that this can be taken up again if it is interrupted after noded is gone.
        cluster.apply(clean_up.daemonset(there, paused=True))
        cluster.delete(f"{_APPS}/daemonsets/{NODED}")
        say("ending noded")
        _give_up(cluster, away)
        waiting.until(lambda: not any(pods(cluster, NODED)), "noded ended")
    for pod in pods(cluster, clean_up.NAME):  # of an attempt before: it may be waiting long for its next one
        cluster.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{_name(pod)}")
    body = cluster.get(f"{_APPS}/daemonsets/{clean_up.NAME}")
    cluster.apply(clean_up.daemonset(body, paused=False, without=away))
    say("undoing what it did on each node")
    nodes_ready(cluster, waiting, clean_up.NAME)
    cluster.delete(f"{_APPS}/daemonsets/{clean_up.NAME}")
    waiting.until(lambda: not any(pods(cluster, clean_up.NAME)), "clean-up ended")


def _remove_objects(cluster: Cluster, waiting: Waiting, keep_resources: bool, away: set[str]) -> None:
    from controller.cli.deployment import PART_OF
    from controller.cli.rollout import say

    for pod in cluster.items("/api/v1/pods"):
        metadata = pod["metadata"]
        if _ENROLLED in (metadata.get("annotations") or {}):
            path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
            cluster.annotate(path, _ENROLLED, None)
    cluster.delete(f"{_APPS}/deployments/{CONTROLLER}")
    for collection in _KINDS:
        if collection == _CRDS and keep_resources:
            continue
        for body in list(cluster.items(collection, labelSelector=PART_OF)):
            if cluster.delete(f"{collection}/{body['metadata']['name']}"):
                say(f"{body['kind']} {body['metadata']['name']}: deleted")
    route_statuses.take_back(cluster)  # now that the controller has no right any more to write them again
    cluster.delete(f"/api/v1/namespaces/{NAMESPACE}")
    _give_up(cluster, away)
    say(f"Namespace {NAMESPACE}: deleting all in it")
    waiting.until(lambda: not [*_left(cluster, keep_resources)], "all objects gone")


def _left(cluster: Cluster, keep_resources: bool) -> Any:
    from controller.cli.deployment import PART_OF, name_of

    if cluster.find(f"/api/v1/namespaces/{NAMESPACE}") is not None:
        yield f"Namespace {NAMESPACE}"
    for collection in _KINDS:
        if collection != _CRDS or not keep_resources:
            yield from (name_of(body) for body in cluster.items(collection, labelSelector=PART_OF))
