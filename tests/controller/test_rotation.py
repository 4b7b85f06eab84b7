from __future__ import annotations

from typing import Any

import pytest
import trio
from cryptography import x509

from controller.ca import signer_of
from controller.rotation import NotYet
from mesh.sync import Ack, Signed, Trust
from tests.controller.client import Credential, NodeClient, connected, csr_for, new_key, pem_of, workload
from tests.controller.conftest import Running


def trusted(node: NodeClient) -> bytes:
    found: list[Any] = [m for m in node.messages if isinstance(m, Trust)]
    return bytes(found[-1].roots) if found else b""


async def step(controller: Running, name: str, **how: bool) -> None:
    """Take a step, as soon as it may be taken."""
    with trio.fail_after(60):
        while True:
            try:
                await controller.daemon.rotation.take(name, **how)
                return
            except NotYet:
                await trio.sleep(0.02)


async def test_a_root_is_replaced_and_at_no_time_is_a_valid_certificate_untrusted(controller: Running) -> None:
    old = await controller.join("node-a")
    authority = controller.daemon.authority
    async with connected(controller.port, old) as node:
        await node.enrol(workload("web", "10.77.0.1"))
        before = await node.sign("shop/web", csr_for(new_key()))
        assert isinstance(before, Signed)
        await step(controller, "add")
        await node.until(lambda: trusted(node).count(b"BEGIN") == 2, "both roots")
        assert trusted(node).startswith(old.roots)
        still = await node.sign("shop/web", csr_for(new_key()))
        assert isinstance(still, Signed)
        issuer = signer_of(x509.load_pem_x509_certificate(before.chain))
        assert signer_of(x509.load_pem_x509_certificate(still.chain)) == issuer

        await step(controller, "sign")
        await node.until(lambda: trusted(node) == authority.bundle, "the new root first")
        assert trusted(node).endswith(old.roots)
        with pytest.raises(NotYet, match=r"2 certificates are not renewed yet.*node-a: its own, node-a: shop/web"):
            await controller.daemon.rotation.take("drop")
        after, key = await node.sign("shop/web", csr_for(new_key())), new_key()
        assert isinstance(after, Signed)
        x509.load_pem_x509_certificate(after.chain).verify_directly_issued_by(authority.roots[0])
        own = await node.sign("", csr_for(key))
        assert isinstance(own, Signed)

        await step(controller, "drop")
        await node.until(lambda: trusted(node).count(b"BEGIN") == 1, "one root")
        assert trusted(node) != old.roots
    async with connected(controller.port, Credential(own.chain, pem_of(key), trusted(node))) as again:
        await again.until(lambda: again.updates, "service with the new certificate")
    with pytest.raises((trio.BrokenResourceError, AssertionError, BaseExceptionGroup)):
        async with connected(controller.port, Credential(old.chain, old.key, trusted(node))) as again:
            await again.until(lambda: again.updates, "nothing: its root is not trusted any more")


async def test_the_new_root_does_not_sign_before_every_node_has_acknowledged_it(controller: Running) -> None:
    await controller.join("node-away")
    credential = await controller.join("node-a")
    rotation = controller.daemon.rotation
    async with connected(controller.port, credential, ack=False) as node:
        await node.until(lambda: node.updates, "an update")
        await node.send(Ack(node.updates[-1].revision))
        await rotation.take("add")
        await node.until(lambda: trusted(node).count(b"BEGIN") == 2, "both roots")
        with pytest.raises(NotYet, match="1 nodes have not acknowledged the new root yet: node-a; 1 nodes are away"):
            await rotation.take("sign")
        node.ack = True
        await node.send(Ack(node.updates[-1].revision))
        with trio.fail_after(60):
            while any("acknowledged" in text for text in rotation.progress().waiting):
                await trio.sleep(0.02)
        assert controller.daemon.home.register.forget("node-away")
        await step(controller, "sign")


async def test_a_step_out_of_turn_is_refused_and_a_rotation_survives_a_restart(controller: Running) -> None:
    rotation, folder = controller.daemon.rotation, controller.daemon.config.state_dir
    with pytest.raises(NotYet, match="the next step is 'add', not 'drop'"):
        await rotation.take("drop")
    assert (await rotation.take("add")).next == "sign"
    before = controller.daemon.authority
    again = type(before).at(folder, "cluster.local", controller.daemon.clock())
    assert (again.bundle, again.material.phase) == (before.bundle, "added")
    await rotation.take("sign", force=True)
    again = type(before).at(folder, "cluster.local", controller.daemon.clock())
    assert (again.bundle, again.signer, again.material.phase) == (before.bundle, before.signer, "signing")
    await rotation.take("drop", force=True)
    assert type(before).at(folder, "cluster.local", controller.daemon.clock()).bundle == before.bundle
    assert sorted(path.name for path in folder.glob("*.pem")) == ["ca.pem", "roots.pem"]
