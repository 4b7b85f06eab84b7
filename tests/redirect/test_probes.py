"""Probes of the host get into a captured pod past the proxy, and nobody else does: in namespaces, on one bridge.

`host` has the bridge and plays the node; `pod` is in the mesh; `other` is its neighbour on the bridge, with every right
in its own namespace. Sockets of the test are root's.
"""

import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from redirect import guard
from redirect import host as redirect_host
from redirect.capture import Capture, new_mark
from redirect.host import LAYOUTS, Probes
from redirect.netns import inside, open_netns
from redirect.plan import PROBE_SOURCES, Family
from tests.redirect.pods import FAMILIES, INBOUND, Echo, Host, Proxy, Tap, exchange, ip, transparent

pytestmark = pytest.mark.root
each_family = pytest.mark.parametrize("family", FAMILIES, ids=("IPv4", "IPv6"))
SOURCES: dict[int, str] = {socket.AF_INET: PROBE_SOURCES[Family.IPV4], socket.AF_INET6: PROBE_SOURCES[Family.IPV6]}
REFUSED_SECONDS = 0.5


@dataclass
class Node:
    host: Host
    pod: Host
    other: Host
    mark: int
    probes: Probes
    probed: tuple[str, ...] = ()

    def enrol(self) -> None:
        with inside(self.host.fd):
            self.probed = self.probes.admit(self.mark, self.pod.fd, (self.pod.v4, self.pod.v6))
        self.capture.apply()

    @property
    def capture(self) -> Capture:
        return Capture(self.pod.path, self.mark, self.probed)

    def verify(self) -> list[str]:
        with inside(self.host.fd):
            return self.probes.verify()

    def connect(self, origin: Host, family: int, port: int, *, source: str = "") -> socket.socket:
        sock = origin.open(family)
        if source:
            transparent(sock)
            sock.bind((source, 0))
        sock.connect((self.pod.address(family), port))
        return sock


@pytest.fixture
def node() -> Iterator[Node]:
    prefix = f"nmb{os.getpid()}"
    hosts: list[Host] = []
    try:
        for letter, number in (("h", 1), ("p", 2), ("o", 3)):
            ip("netns", "add", prefix + letter)
            name = prefix + letter
            hosts.append(Host(name, open_netns(f"/run/netns/{name}"), f"10.98.0.{number}", f"fd98::{number}"))
            ip("-n", name, "link", "set", "lo", "up")
        host, pod, other = hosts
        ip("-n", host.name, "link", "add", "cni0", "type", "bridge")
        for guest in (pod, other):
            end = f"veth{guest.name[-1]}"
            ip("-n", host.name, "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", guest.name)
            ip("-n", host.name, "link", "set", end, "master", "cni0", "up")
        for each, device in ((host, "cni0"), (pod, "eth0"), (other, "eth0")):
            ip("-n", each.name, "link", "set", device, "up")
            ip("-n", each.name, "address", "add", f"{each.v4}/24", "dev", device)
            ip("-n", each.name, "address", "add", f"{each.v6}/64", "dev", device, "nodad")
        for guest in (pod, other):
            ip("-n", guest.name, "route", "add", "default", "via", host.v4)
            ip("-n", guest.name, "-6", "route", "add", "default", "via", host.v6)
        host.sysctl("net.ipv4.ip_forward", 1)
        host.sysctl("net.ipv6.conf.all.forwarding", 1)
        yield Node(host, pod, other, new_mark(), Probes())
    finally:
        for each in hosts:
            os.close(each.fd)
            ip("netns", "del", each.name)


@contextlib.contextmanager
def app(node: Node, family: int) -> Iterator[Echo]:
    with Proxy(node.pod, node.mark), Echo(node.pod.listen(node.pod.address(family))) as echo:
        yield echo


@each_family
def test_the_host_s_probe_is_answered_and_is_not_captured(node: Node, family: int) -> None:
    node.enrol()
    with Proxy(node.pod, node.mark) as proxy, Echo(node.pod.listen(node.pod.address(family))) as echo:
        for _ in range(3):
            with node.connect(node.host, family, echo.port) as probe:
                assert exchange(probe)[0] == SOURCES[family]
    assert proxy.accepted == []
    assert node.verify() == []
    assert node.capture.verify() == []


@each_family
def test_others_are_captured_as_ever(node: Node, family: int) -> None:
    node.enrol()
    with Proxy(node.pod, node.mark) as proxy, Echo(node.pod.listen(node.pod.address(family))) as echo:
        with node.connect(node.other, family, echo.port) as sock:
            assert exchange(sock)[0] == node.other.address(family)
        assert [seen.port for seen in proxy.accepted] == [INBOUND]


def test_a_process_of_the_host_that_is_not_root_s_is_captured(node: Node) -> None:
    node.enrol()
    with Proxy(node.pod, node.mark) as proxy, Echo(node.pod.listen(node.pod.v4)) as echo:
        first = "import encodings.idna, os, socket; os.setuid(65534)"  # afterwards it may find no module any more
        script = f"{first}; s = socket.create_connection(({node.pod.v4!r}, {echo.port}), 5)"
        subprocess.run(
            ["ip", "netns", "exec", node.host.name, sys.executable, "-c", script + "; print(s.recv(1))"],
            check=True, timeout=20, capture_output=True,
        )  # fmt: skip
    assert [(seen.port, seen.client[0]) for seen in proxy.accepted] == [(INBOUND, node.host.v4)]


@each_family
@pytest.mark.parametrize("bridge_calls_iptables", [0, 1])
def test_a_neighbour_with_the_probe_s_source_does_not_get_in(
    node: Node, family: int, bridge_calls_iptables: int
) -> None:
    for name in ("iptables", "ip6tables"):
        with contextlib.suppress(AssertionError):
            node.host.sysctl(f"net.bridge.bridge-nf-call-{name}", bridge_calls_iptables)
    node.enrol()
    # The answer would find its way back: the neighbour has the address, and the pod believes that it lives there.
    lladdr = node.other.run("cat", "/sys/class/net/eth0/address").strip()
    version = "-4" if family == socket.AF_INET else "-6"
    ip("-n", node.other.name, "address", "add", SOURCES[family], "dev", "eth0", *(["nodad"] * (version == "-6")))
    ip("-n", node.pod.name, version, "route", "add", SOURCES[family], "dev", "eth0")
    ip(
        "-n",
        node.pod.name,
        version,
        "neigh",
        "add",
        SOURCES[family],
        "lladdr",
        lladdr,
        "dev",
        "eth0",
        "nud",
        "permanent",
    )
    with Proxy(node.pod, node.mark) as proxy, Echo(node.pod.listen(node.pod.address(family))) as echo:
        with node.other.open(family) as sock:
            sock.settimeout(REFUSED_SECONDS)
            sock.bind((SOURCES[family], 0))
            with pytest.raises(TimeoutError):
                sock.connect((node.pod.address(family), echo.port))
        assert (echo.seen, proxy.accepted) == ([], [])
        with inside(node.host.fd):  # it is the filter that has stopped it, or else this test shows nothing
            for index in guard.host_ends(node.pod.fd).values():
                guard.remove(index)
        if not bridge_calls_iptables:
            with node.other.open(family) as sock:
                sock.bind((SOURCES[family], 0))
                sock.connect((node.pod.address(family), echo.port))
                exchange(sock)
            assert [host for host, _ in echo.seen] == [SOURCES[family]]


def syn(source: str, target: str, port: int) -> bytes:
    segment = struct.pack("!HHIIBBHHH", 4444, port, 1000, 0, 5 << 4, 0x02, 1000, 0, 0)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, socket.IPPROTO_TCP, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target)
    total = sum(struct.unpack("!10H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:] + segment


TAGS = {
    "untagged": b"",
    "VLAN 0": b"\x81\x00\x00\x00",
    "VLAN 0 in VLAN 0": b"\x81\x00\x00\x00\x81\x00\x00\x00",
    "VLAN 0 of 802.1ad": b"\x88\xa8\x00\x00",
    "VLAN 0 in 802.1ad": b"\x88\xa8\x00\x00\x81\x00\x00\x00",
    "VLAN 5": b"\x81\x00\x00\x05",
}


@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("bridge_calls_iptables", [0, 1])
def test_a_forged_frame_does_not_reach_the_pod_however_it_is_tagged(
    node: Node, tag: bytes, bridge_calls_iptables: int
) -> None:
    with contextlib.suppress(AssertionError):
        node.host.sysctl("net.bridge.bridge-nf-call-iptables", bridge_calls_iptables)
    node.enrol()
    mac = bytes.fromhex(node.pod.run("cat", "/sys/class/net/eth0/address").strip().replace(":", ""))
    gateway = bytes.fromhex(node.host.run("cat", "/sys/class/net/cni0/address").strip().replace(":", ""))
    with node.other.open(socket.AF_PACKET, socket.SOCK_RAW) as sock, Tap(node.pod) as tap:
        sock.bind(("eth0", 0))
        for source in (gateway, b"\x02\0\0\0\0\x07"):
            sock.send(mac + source + tag + b"\x08\x00" + syn(SOURCES[socket.AF_INET], node.pod.v4, 9))
        assert tap.from_port(4444) == []
        sock.send(mac + b"\x02\0\0\0\0\x07" + b"\x08\x00" + syn("10.98.0.77", node.pod.v4, 9))
        assert len(tap.from_port(4444)) == 1, "an ordinary frame arrives, or this test shows nothing"


def test_a_packet_from_afar_with_the_probe_s_source_does_not_pass_the_host(node: Node) -> None:
    node.enrol()
    gateway = bytes.fromhex(node.host.run("cat", "/sys/class/net/cni0/address").strip().replace(":", ""))
    with node.other.open(socket.AF_PACKET, socket.SOCK_RAW) as sock, Tap(node.pod) as tap:
        sock.bind(("eth0", 0))
        packet = b"\x02\0\0\0\0\x07" + b"\x08\x00" + syn(SOURCES[socket.AF_INET], node.pod.v4, 9)
        sock.send(gateway + packet)
        assert tap.from_port(4444) == []


def leftovers(node: Node) -> str:
    tables = "".join(
        node.host.run(program, "-t", layout.table)
        for layout in LAYOUTS
        for program in ("iptables-legacy-save", "ip6tables-legacy-save")
    )
    return "".join(line for line in tables.splitlines() if "NODEMESH" in line) + node.host.run("tc", "qdisc", "show")


def test_nothing_is_left_when_the_last_pod_leaves(node: Node) -> None:
    clean = leftovers(node)
    node.enrol()
    assert "clsact" in leftovers(node)
    with inside(node.host.fd):
        node.probes.leave(node.mark, dead=False)
    assert leftovers(node) == clean


def test_nothing_is_left_after_undo_by_a_process_that_knows_of_nothing(node: Node) -> None:
    clean = leftovers(node)
    node.enrol()
    with inside(node.host.fd):
        redirect_host.undo()
        assert leftovers(node) == clean
        redirect_host.undo()


def test_what_others_remove_is_noticed_and_put_back(node: Node) -> None:
    node.enrol()
    node.enrol()  # idempotent
    assert node.verify() == []
    node.host.run("iptables-legacy", "-t", "nat", "-F")
    node.host.run("ip6tables-legacy", "-t", "raw", "-F")
    node.host.run("tc", "qdisc", "del", "dev", "vethp", "clsact")
    drift = "\n".join(node.verify())
    assert "nat" in drift
    assert "raw" in drift
    assert "the filter on interface" in drift
    with inside(node.host.fd):
        node.probes.repair()
    assert node.verify() == []


def test_other_software_s_filter_stays(node: Node) -> None:
    node.host.run("tc", "qdisc", "add", "dev", "vethp", "clsact")
    node.host.run(
        "tc", "filter", "add", "dev", "vethp", "ingress", "prio", "3", "bpf", "bytecode", "1,6 0 0 4294967295"
    )
    node.enrol()
    with inside(node.host.fd):
        node.probes.leave(node.mark, dead=False)
    assert "bpf" in node.host.run("tc", "filter", "show", "dev", "vethp", "ingress")


def test_an_interface_that_is_no_veth_is_not_trusted(node: Node) -> None:
    ip("-n", node.pod.name, "link", "add", "dummy0", "type", "bridge")
    node.enrol()
    assert node.probed == ("eth0",)


def test_a_veth_that_does_not_lead_to_the_host_is_not_trusted(node: Node) -> None:
    ip("-n", node.pod.name, "link", "add", "side0", "type", "veth", "peer", "name", "side1", "netns", node.other.name)
    node.enrol()
    assert node.probed == ("eth0",)
