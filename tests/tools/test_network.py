"""A testbed's network without any daemon in it, in real namespaces."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import network, services
from testbed.processes import Processes, Record
from testbed.spec import Spec, parse

FILE = """\
nodes: [a, b]
pods:
  - {name: client, node: a, namespace: shop}
  - {name: web, node: b, namespace: shop}
  - {name: outsider, node: b, namespace: other, mesh: false}
"""
SERVER = """\
import socket
s = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    c, (address, *_) = s.accept()
    c.sendall(address.encode())
    c.close()
"""
ASK = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).recv(100).decode())"
pytestmark = pytest.mark.root


def make(name: str) -> Spec:
    return parse(f"name: {name}\n{FILE}", Path("t.yaml"))


@pytest.fixture
def bed() -> Iterator[Spec]:
    spec = make(f"t{os.getpid()}")
    try:
        network.create(spec)
        yield spec
    finally:
        network.destroy(spec.name)


def ask(bed: Spec, pod: str, host: str, port: int) -> str:
    argv = ["ip", "netns", "exec", bed.netns(bed.pod(pod)), "python3", "-c", ASK, host, str(port)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout.strip()


def serve(bed: Spec, pod: str, folder: Path) -> Record:
    record = Processes(folder).start(f"pod/{pod}", ["python3", "-c", SERVER], bed.netns(bed.pod(pod)))
    listening = ["ip", "netns", "exec", bed.netns(bed.pod(pod)), "ss", "-Htln", "sport = 8080"]
    while not subprocess.run(listening, capture_output=True, text=True, check=True).stdout:
        assert record.alive, Processes(folder).tail(f"pod/{pod}")
    return record


def test_pods_of_two_nodes_reach_each_other_with_their_own_addresses(bed: Spec, tmp_path: Path) -> None:
    serve(bed, "web", tmp_path)
    v4, v6 = bed.pod("web").addresses
    assert ask(bed, "client", v4, 8080) == f"::ffff:{bed.pod('client').addresses[0]}"
    assert ask(bed, "client", v6, 8080) == bed.pod("client").addresses[1]


def test_a_services_name_and_address_lead_to_its_endpoint(bed: Spec, tmp_path: Path) -> None:
    serve(bed, "web", tmp_path)
    web = {
        "name": "web",
        "namespace": "shop",
        "addresses": ["10.96.0.9"],
        "ports": [{"name": "http", "port": 80}],
        "endpoints": [{"address": bed.pod("web").addresses[0], "workload": "shop/web", "ports": [8080]}],
    }
    services.publish(bed, [web])
    services.publish(bed, [web])  # again, as after each `meshctl apply`
    assert ask(bed, "client", "web", 80).endswith(bed.pod("client").addresses[0])
    assert ask(bed, "outsider", "web.shop.svc.cluster.local", 80).endswith(bed.pod("outsider").addresses[0])


def test_two_testbeds_do_not_meet_and_go_one_by_one(bed: Spec, tmp_path: Path) -> None:
    other = make(f"{bed.name}x")
    try:
        network.create(other)
        record = serve(other, "web", tmp_path)
        network.destroy(bed.name)
        assert network.remaining(bed.name) == []
        assert record.alive
        assert ask(other, "client", other.pod("web").addresses[0], 8080)
    finally:
        network.destroy(other.name)
    assert not record.alive
    assert network.remaining(other.name) == []


def test_destroy_ends_what_runs_in_the_namespaces_and_nothing_else(bed: Spec, tmp_path: Path) -> None:
    mine = serve(bed, "web", tmp_path)
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        network.destroy(bed.name)
        assert not mine.alive
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_process_id_that_now_belongs_to_somebody_else_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        stale = Record(pid=other.pid, started=1, argv=["sleep"])
        assert not stale.alive
        stale.terminate()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
