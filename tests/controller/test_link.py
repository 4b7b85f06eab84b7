from __future__ import annotations

from mesh.sync import Enrolled, Signed
from tests.controller.client import connected, csr_for, new_key, uris_of, workload
from tests.controller.conftest import Running


async def test_a_node_joins_is_updated_enrols_and_gets_a_certificate(controller: Running) -> None:
    credential = await controller.join("node-a", "shop/web")
    async with connected(controller.port, credential) as node:
        first = await node.until(lambda: node.updates and node.updates[0])
        assert first.full
        assert first.workloads == ()
        assert isinstance(await node.enrol(workload("web-1", "10.77.1.2", app="web")), Enrolled)
        assert [w.uid for w in node.updates[-1].workloads] == ["shop/web-1"]
        signed = await node.sign("shop/web-1", csr_for(new_key()))
        assert isinstance(signed, Signed)
        assert uris_of(signed.chain) == ["spiffe://cluster.local/ns/shop/sa/web"]
