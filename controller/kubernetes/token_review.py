"""Does this token belong to the noded pod of that node? The API server is asked (TokenReview), then the pod."""

from __future__ import annotations

from controller.enrol import Refusal
from controller.kubernetes import objects
from controller.kubernetes.client import Client, ClusterError, Json, Refused
from controller.kubernetes.cluster import Cluster

AUDIENCE = "nodemesh"
ACCOUNT = "noded"
_EXTRA = "authentication.kubernetes.io/"


async def check(client: Client, cluster: Cluster, token: str, node: str, namespace: str) -> None:
    """Return if the bearer is service account `noded`'s pod on `node`. Raises `Refusal`."""
    if token.count(".") != 2 or token.startswith("nm1."):
        raise Refusal("this controller lets nodes in by their noded pod's service-account token: see noded's tokenFile")
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [AUDIENCE]},
    }
    try:
        status = (await client.create("/apis/authentication.k8s.io/v1/tokenreviews", body)).get("status") or {}
    except ClusterError as error:
        raise Refusal(f"the API server does not review tokens now: {error}") from error
    if not status.get("authenticated") or AUDIENCE not in (status.get("audiences") or ()):
        raise Refusal(f"the API server does not accept the token for audience {AUDIENCE!r}: {status.get('error')}")
    user = status.get("user") or {}
    wanted = f"system:serviceaccount:{namespace}:{ACCOUNT}"
    if user.get("username") != wanted:
        raise Refusal(f"the token is that of {user.get('username')!r}, not of {wanted!r}")
    name, uid = _extra(user, "pod-name"), _extra(user, "pod-uid")
    if not name or not uid:
        raise Refusal("the token is not bound to a pod: mount a projected serviceAccountToken")
    pod = cluster.pods.objects.get(f"{namespace}/{name}")
    if pod is None or pod.uid != uid or not pod.node:  # it may be younger than what was last seen of the cluster
        try:
            pod = objects.pod(await client.get(f"/api/v1/namespaces/{namespace}/pods/{name}"))
        except Refused as error:
            raise Refusal(f"the token's pod {namespace}/{name}: {error}") from error
        except ClusterError as error:
            raise Refusal(f"the API server does not say where the token's pod runs: {error}") from error
    if pod.uid != uid or pod.finished or pod.service_account != ACCOUNT:
        raise Refusal(f"the token's pod {namespace}/{name} is gone")
    if pod.node != node:
        raise Refusal(f"the token's pod runs on node {pod.node!r}, not {node!r}: see 'node' in noded.yaml")


def _extra(user: Json, name: str) -> str:
    values = (user.get("extra") or {}).get(_EXTRA + name) or [""]
    return str(values[0])
