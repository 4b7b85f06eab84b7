"""What crosses the network between hosts, and what pods and operators see of it."""

from __future__ import annotations

import secrets
import socket
import threading

import pytest

from tests.e2e.pods import Bed, echo, eventually


class Tap:
    """Every frame on the fabric, both ports, from `with` to its end."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self.frames: list[bytes] = []

    def __enter__(self) -> Tap:
        self._socket = self._bed.fabric.open(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.settimeout(0.5)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def _read(self) -> None:
        while True:
            try:
                self.frames.append(self._socket.recv(65536))
            except TimeoutError:
                if self._stop.is_set():
                    return

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def saw(self, text: bytes) -> bool:
        return any(text in frame for frame in self.frames)


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_no_plaintext_crosses_between_enrolled_workloads(bed: Bed, family: str) -> None:
    secret, public = (secrets.token_hex(16).encode() for _ in range(2))
    with bed["web"].serve(echo, 8765), bed["client"].serve(echo, 8766), Tap(bed) as tap:
        for source, target, port, word in (("client", "web", 8765, secret), ("outsider", "client", 8766, public)):
            with bed[source].connect(getattr(bed[target], family), port) as conn:
                conn.sendall(word)
                assert conn.recv(100) == word
    assert tap.saw(public), "the tap does not see plaintext, so it proves nothing"
    assert not tap.saw(secret)
    ports = {port for frame in tap.frames for port in _tcp_ports(frame)}
    assert 8765 not in ports, "a packet to or from the server's own port was on the fabric"
    assert 15008 in ports


def _tcp_ports(frame: bytes) -> set[int]:
    kind = int.from_bytes(frame[12:14], "big")
    if kind == 0x0800 and frame[23] == 6:
        at = 14 + (frame[14] & 15) * 4
    elif kind == 0x86DD and frame[20] == 6:
        at = 54
    else:
        return set()
    return {int.from_bytes(frame[at : at + 2], "big"), int.from_bytes(frame[at + 2 : at + 4], "big")}


def test_metrics_have_istios_names_and_count_the_bytes(bed: Bed) -> None:
    def received(reporter: str, pod: str) -> float:
        argv = bed.testbed.enter(bed.node(pod), ["curl", "-sS", "-m", "10", "http://127.0.0.1:15020/metrics"])
        labels = [f'reporter="{reporter}"', 'source_workload="stranger"', 'destination_workload="near"']
        labels += ['connection_security_policy="mutual_tls"']
        return sum(
            float(line.rpartition(" ")[2])
            for line in bed.testbed.capture(argv).stdout.splitlines()
            if line.startswith("istio_tcp_received_bytes_total{") and all(label in line for label in labels)
        )

    with bed["near"].serve(echo), bed["stranger"].connect(bed.service("near"), 80) as conn:
        conn.sendall(b"x" * 12_345)
        count = 0
        while count < 12_345:
            count += len(conn.recv(65536))
    # No other test sends anything from `stranger` to `near`: counters of a shared edge arrive at any time.
    eventually(lambda: (received("source", "stranger"), received("destination", "near")) == (12_345, 12_345))


def test_the_controller_learns_who_talked_to_whom(bed: Bed) -> None:
    with bed["near"].serve(echo):
        assert bed["client"].reaches(bed["near"].v4)

    def known() -> bool:
        return any(
            (edge["source"]["workload"], edge["destination"]["workload"]) == ("client", "near") and edge["opened"]
            for edge in bed.testbed.controller_api("GET", "/v1/edges")["items"]
            if edge["security"] == "mutual_tls"
        )

    eventually(known, 30)


def test_keys_are_on_tmpfs_and_for_root_only(bed: Bed) -> None:
    folder = bed.testbed.node_folder(bed.node("client")) / "keys"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert {path.stat().st_mode & 0o077 for path in [folder, *files]} == {0}
    state = bed.testbed.node_folder(bed.node("client")) / "state"
    assert not [path for path in state.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
