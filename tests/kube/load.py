"""Traffic that goes on while something happens, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kubebed.images import PYTHON
from tests.kube.pods import Space, eventually, pod

# Each request on a connection of its own: a line with the page or with what went wrong.
REQUESTS = """
import http.client, sys, time, urllib.request
while True:
    try:
        with urllib.request.urlopen(f"http://{sys.argv[1]}/", timeout=5) as answer:
            print("answer", answer.read().decode().strip(), flush=True)
    except (OSError, http.client.HTTPException) as problem:
        print("failure", time.strftime("%X"), problem, flush=True)
    time.sleep(0.03)
"""
# The same over one connection, for as long as it lives.
HELD = """
import socket, sys, time
host, port = sys.argv[1].split(":")
try:
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        while True:
            connection.sendall(b"echo\\n")
            if (answer := connection.recv(5)) != b"echo\\n":
                raise OSError(f"got {answer}")
            print("answer echo", flush=True)
            time.sleep(0.03)
except OSError as problem:
    print("failure", time.strftime("%X"), problem, flush=True)
time.sleep(100000)
"""
ECHO = """
import socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
socketserver.ThreadingTCPServer(("", 7000), Echo).serve_forever()
"""


def load(name: str, node: str, address: str) -> dict[str, Any]:
    """A pod that requests a page over and over."""
    return pod(name, node, ["python3", "-c", REQUESTS, address], image=PYTHON)


def held(name: str, node: str, address: str) -> dict[str, Any]:
    """A pod that talks to an `echo` over one connection."""
    return pod(name, node, ["python3", "-c", HELD, address], image=PYTHON)


def echo(name: str, node: str) -> dict[str, Any]:
    """A pod that answers each line with itself on port 7000."""
    probe = {"tcpSocket": {"port": 7000}, "periodSeconds": 1}
    return pod(name, node, ["python3", "-c", ECHO], image=PYTHON, container={"readinessProbe": probe})


def answers(shop: Space, name: str) -> tuple[Counter[str], list[str]]:
    """What a load got so far: how often which page, and its failures."""
    lines = shop.kubectl("logs", name).splitlines()
    pages = Counter(line.removeprefix("answer ") for line in lines if line.startswith("answer "))
    return pages, [line for line in lines if line.startswith("failure ")]


@contextmanager
def unharmed(shop: Space, *names: str) -> Iterator[None]:
    """Requests of these go on meanwhile, before and after, and none fails."""

    def more(than: dict[str, int]) -> None:
        eventually(lambda: all(answers(shop, name)[0].total() > before + 20 for name, before in than.items()))

    more(dict.fromkeys(names, 0))
    yield
    more({name: answers(shop, name)[0].total() for name in names})
    failures = {name: failed for name in names if (failed := answers(shop, name)[1])}
    assert not failures, f"{failures}"


def await_answers(shop: Space, name: str, page: str, times: int) -> None:
    """Until a load has got this page so often."""
    eventually(lambda: answers(shop, name)[0][page] >= times)
