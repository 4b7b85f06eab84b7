"""`python -m demo`, which `tools/demo` calls."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from demo import claims, http_claims, kube
from demo.claims import Shop
from demo.story import Story
from testbed import mesh, network
from testbed.api import ApiError, Unreachable
from testbed.document import SpecError
from testbed.mesh import BEDS, Testbed, TestbedError
from testbed.network import NetworkError
from testbed.spec import parse

_FILE = Path(__file__).parent / "shop" / "testbed.yaml"
_TRY = """
It stays up. Things to try:
   {testbed} status
   {testbed} exec web -- curl -s http://api/order
   {testbed} node node-a -- nodectl connections --watch
   {testbed} node node-b -- nodectl status
   {testbed} meshctl get authorizationpolicies -o yaml
   {testbed} meshctl edges --watch
   {testbed} meshctl top edges --watch
   {testbed} logs node-a -f
   {testbed} kill node-b; {testbed} restart node-b
   {testbed} down {name}          when you are done
"""


def main() -> int:
    """Bring the shop up and tell the story; 0 if every claim held."""
    parser = argparse.ArgumentParser(prog="tools/demo", description="Watch unmodified programs talk through the mesh.")
    parser.add_argument("--once", action="store_true", help="check every claim, take everything down, exit 0 or 1")
    parser.add_argument("-n", dest="name", default="demo", help="a name, so that several can be up; replaces its last")
    parser.add_argument("--kube", action="store_true", help="on a real Kubernetes cluster, from install to uninstall")
    options = parser.parse_args()
    if options.kube:
        return kube.main(options.name, options.once)
    text = _FILE.read_text().replace("name: demo\n", f"name: {options.name}\n", 1)
    try:
        bed = Testbed(parse(text, _FILE))
        with BEDS.claim(bed.spec.name):
            failed = _tour(bed, text, options.once)
    except (SpecError, TestbedError, NetworkError, ApiError, Unreachable) as error:
        print(f"tools/demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntools/demo: interrupted, and taken down again", file=sys.stderr)
        return 130
    return 1 if failed else 0


def _tour(bed: Testbed, text: str, once: bool) -> list[str]:
    """Bring it up and tell; the claims that did not hold. Taken down again if `once`, or if it can't be told."""
    began = time.monotonic()
    if mesh.down(bed.spec.name):
        print("(removed the demo that was still up)")
    print("Two hosts, six pods, on this machine, in network namespaces:")
    up = False
    try:
        bed.up(text, _FILE, lambda line: print(f"   {line}", flush=True))
        story, shop = Story(bed), Shop(bed)
        shop.wait()
        for claim in (*claims.CLAIMS, *http_claims.CLAIMS, claims.observed):
            claim(story, shop)
        up = not once
    finally:
        if not up:
            mesh.down(bed.spec.name)
    if once:
        story.check(not network.remaining(bed.spec.name), "taken down, and nothing is left of it")
    story.verdict(time.monotonic() - began)
    if up:
        print(_TRY.format(testbed=story.testbed, name=bed.spec.name))
    return story.failed


sys.exit(main())
