"""The control plane: etcd, the API server, the controller manager and the scheduler, in the namespace `control`."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from kubebed.cache import Parts
from kubebed.errors import KubebedError
from kubebed.spec import CONTROL, CONTROL_ADDRESS, SERVICE_RANGE, Spec
from testbed.processes import Processes

_ETCD = "http://127.0.0.1:2379"
_ISSUER = "https://kubernetes.default.svc.cluster.local"
_EVICTION_SECONDS = 20
"""How long pods stay on a node that is lost; five minutes elsewhere."""
SILENCE_SECONDS = 16
"""40 elsewhere."""
_SECONDS = 60.0


class ControlPlane:
    """The control plane of one cluster; `folder` has `pki` and takes etcd's data."""

    def __init__(self, spec: Spec, parts: Parts, folder: Path, processes: Processes) -> None:
        self._spec, self._parts, self._folder, self._processes = spec, parts, folder, processes

    def start(self, silence_seconds: int = SILENCE_SECONDS) -> None:
        """Start all of it and wait until the API server is ready. A node is NotReady after so much silence."""
        peers = "http://127.0.0.1:2380"
        self._start(
            "etcd",
            f"--name=kubebed --data-dir={self._folder / 'etcd'} --logger=zap --initial-cluster=kubebed={peers}",
            f"--listen-client-urls={_ETCD} --advertise-client-urls={_ETCD}",
            f"--listen-peer-urls={peers} --initial-advertise-peer-urls={peers}",
        )
        self.start_api_server()
        pki = self._folder / "pki"
        self._start(
            "kube-controller-manager",
            f"--kubeconfig={pki}/kube-controller-manager.kubeconfig --use-service-account-credentials=true",
            f"--service-account-private-key-file={pki}/sa.key --root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt --cluster-signing-key-file={pki}/ca.key",
            "--leader-elect=false --allocate-node-cidrs=false --bind-address=127.0.0.1 --v=1",
            f"--node-monitor-grace-period={silence_seconds}s",
        )
        self._start(
            "kube-scheduler",
            f"--kubeconfig={pki}/kube-scheduler.kubeconfig --leader-elect=false --bind-address=127.0.0.1 --v=1",
        )

    def start_api_server(self) -> None:
        """Start the API server alone and wait until it is ready."""
        pki = self._folder / "pki"
        self._start(
            "kube-apiserver",
            f"--etcd-servers={_ETCD} --advertise-address={CONTROL_ADDRESS} --bind-address=0.0.0.0 --secure-port=6443",
            f"--service-cluster-ip-range={SERVICE_RANGE} --client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/kube-apiserver.crt --tls-private-key-file={pki}/kube-apiserver.key",
            f"--service-account-issuer={_ISSUER} --api-audiences={_ISSUER}",
            f"--service-account-key-file={pki}/sa.pub --service-account-signing-key-file={pki}/sa.key",
            "--authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true",
            "--feature-gates=BoundServiceAccountTokenVolume=true --profiling=false --v=1",
            f"--default-not-ready-toleration-seconds={_EVICTION_SECONDS}",
            f"--default-unreachable-toleration-seconds={_EVICTION_SECONDS}",
            f"--kubelet-client-certificate={pki}/admin.crt --kubelet-client-key={pki}/admin.key",
            f"--kubelet-certificate-authority={pki}/ca.crt --kubelet-preferred-address-types=InternalIP",
        )
        self.await_true("kube-apiserver", self._ready, "be ready")

    def stop_api_server(self) -> None:
        """Stop the API server alone; everything else goes on without it."""
        # It would wait a minute for watches to end.
        self._processes.stop("kube-apiserver", 3)

    def await_true(self, process: str, ready: Callable[[], bool], what: str, seconds: float = _SECONDS) -> None:
        """Wait for what `process` does. Raises `KubebedError` with the end of its log."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self._processes.alive(process):
                raise KubebedError(f"{process} ended; its log's last lines:\n{self._processes.tail(process)}")
            if time.monotonic() > deadline:
                tail = self._processes.tail(process)
                raise KubebedError(f"{process} took more than {seconds:.0f} s to {what}; its log's last lines:\n{tail}")
            time.sleep(0.1)

    def _start(self, program: str, *options: str) -> None:
        argv = [str(self._parts.program(program)), *" ".join(options).split()]
        self._processes.start(program, argv, self._spec.netns(CONTROL))

    def _ready(self) -> bool:
        trust = ssl.create_default_context(cafile=str(self._folder / "pki/ca.crt"))
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        )
        try:
            with direct.open(f"https://{self._spec.api_address}:6443/readyz", timeout=5) as answer:
                return bool(answer.read() == b"ok")
        except (OSError, urllib.error.URLError):
            return False
