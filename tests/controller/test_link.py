from __future__ import annotations

import ssl
import struct
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509

import controller.link as link
from controller.ca import Authority
from mesh.model import EdgeCounts, EdgeKey, EdgeReport, Party
from mesh.sync import (
    MAX_FRAME_BEFORE_HELLO,
    PROTOCOL,
    Ack,
    Enrolled,
    FromController,
    FromNode,
    Hello,
    Nack,
    Reader,
    Refused,
    Report,
    Sign,
    Signed,
    Trust,
    Welcome,
    Withdraw,
    frame,
)
from tests.controller.client import (
    Credential,
    NodeClient,
    connected,
    csr_for,
    dial,
    join,
    new_key,
    pem_of,
    receive,
    tls_context,
    uris_of,
    workload,
)
from tests.controller.conftest import Running


async def dial_from(address: str, port: int) -> trio.SocketStream:
    """A connection from another address of this host, on which nothing is said."""
    sock = trio.socket.socket()
    await sock.bind((address, 0))
    await sock.connect(("127.0.0.1", port))
    return trio.SocketStream(sock)


async def first_update(node: NodeClient) -> None:
    await node.until(lambda: node.updates, "the first update")


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
        assert any(isinstance(message, Trust) for message in node.messages)


async def test_the_server_certificate_names_the_controller_and_where_it_is_reached(controller: Running) -> None:
    async with await dial(controller.port) as stream:
        der = stream.getpeercert(binary_form=True)
    assert der is not None
    san = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://cluster.local/ns/nodemesh-system/sa/controller"
    ]
    assert san.get_values_for_type(x509.DNSName) == ["controller.test"]
    assert [str(ip) for ip in san.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


async def test_a_client_that_checks_the_name_accepts_the_server(controller: Running) -> None:
    credential = await controller.join("node-a")
    context = tls_context(credential)
    context.check_hostname = True
    tcp = await trio.open_tcp_stream("127.0.0.1", controller.port)
    async with trio.SSLStream(tcp, context, server_hostname="127.0.0.1", https_compatible=True) as stream:
        await stream.do_handshake()


@pytest.mark.parametrize("error", [ValueError("of 70000000 bytes exceeds the frame limit"), LookupError("a bug")])
async def test_what_cannot_be_said_to_one_node_costs_that_node_s_connection_only(
    controller: Running, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    credential, other = await controller.join("node-a"), await controller.join("node-b")

    def too_much(*_: object) -> bytes:
        raise error

    async with connected(controller.port, other) as survivor:
        await first_update(survivor)
        with monkeypatch.context() as patched:
            patched.setattr("controller.session.frame", too_much)
            async with await dial(controller.port, credential) as stream:
                await stream.send_all(frame(Hello(PROTOCOL, "test", "", 0), FromNode))
                with suppress(trio.BrokenResourceError):  # or a bare end of the stream
                    assert await receive(stream, Reader(FromController)) == []
        assert isinstance(await survivor.enrol(workload("web-1", "10.77.1.2")), Enrolled | Refused)


async def test_of_workloads_that_have_left_no_signer_is_remembered(controller: Running) -> None:
    credential, csr = await controller.join("node-a", "shop/web"), csr_for(new_key())
    async with connected(controller.port, credential) as node:
        for number in (1, 2, 3):
            await node.enrol(workload(f"web-{number}", f"10.77.1.{number}"))
            await node.sign(f"shop/web-{number}", csr)
        await node.send(Withdraw("shop/web-1"))
        signers = controller.daemon.link.statuses["node-a"].signers
        await node.sign("shop/web-2", csr)
        assert set(signers) == {"", "shop/web-2", "shop/web-3"}
    async with connected(controller.port, credential, workloads=(workload("web-2", "10.77.1.2"),)) as node:
        await first_update(node)
        assert set(controller.daemon.link.statuses["node-a"].signers) == {"", "shop/web-2"}


async def test_tls_1_2_is_refused(controller: Running) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    tcp = await trio.open_tcp_stream("127.0.0.1", controller.port)
    with pytest.raises(trio.BrokenResourceError):
        await trio.SSLStream(tcp, context).do_handshake()


async def test_without_a_certificate_only_join_is_heard(controller: Running) -> None:
    async with await dial(controller.port) as stream:
        await stream.send_all(frame(Hello(PROTOCOL, "test", "", 0), FromNode))
        (answer,) = await receive(stream, Reader(FromController))
    assert isinstance(answer, Refused)
    assert "join first" in answer.reason
    assert controller.daemon.home.register.nodes == {}


async def test_a_certificate_of_another_root_is_not_accepted(controller: Running, tmp_path: Path) -> None:
    credential, key, now = await controller.join("node-a"), new_key(), controller.daemon.clock()
    (tmp_path / "other").mkdir()
    other = Authority.at(tmp_path / "other", "cluster.local", now)
    forged = other.issue("spiffe://cluster.local/node/node-a", key.public_key(), timedelta(1), now)
    answers: list[object] = []
    with suppress(trio.BrokenResourceError, ssl.SSLError):  # or a bare end of the stream
        async with await dial(controller.port, Credential(forged.chain, pem_of(key), credential.roots)) as stream:
            await stream.send_all(frame(Hello(PROTOCOL, "test", "", 0), FromNode))
            answers = await receive(stream, Reader(FromController))
    assert answers == []
    assert controller.daemon.link.statuses == {}


async def test_a_workloads_certificate_is_no_nodes(controller: Running) -> None:
    credential = await controller.join("node-a")
    key = new_key()
    async with connected(controller.port, credential) as node:
        await node.enrol(workload("web-1", "10.77.1.2"))
        signed = await node.sign("shop/web-1", csr_for(key))
    assert isinstance(signed, Signed)
    async with await dial(controller.port, Credential(signed.chain, pem_of(key), credential.roots)) as stream:
        (answer,) = await receive(stream, Reader(FromController))
    assert isinstance(answer, Refused)
    assert "not a node's" in answer.reason


async def test_a_big_frame_before_authentication_ends_the_connection(controller: Running) -> None:
    async with await dial(controller.port) as stream:
        await stream.send_all(struct.pack(">I", MAX_FRAME_BEFORE_HELLO + 1))
        assert await receive(stream, Reader(FromController)) == []


@pytest.mark.parametrize(
    "data", [b"\x00\x00\x00\x01\xc1", struct.pack(">I", 5) + b"GET /", frame(Ack(1), FromNode)[:4] + b"\xff" * 20]
)
async def test_garbage_ends_only_its_own_connection(controller: Running, data: bytes) -> None:
    credential = await controller.join("node-a")
    async with connected(controller.port, credential) as node:
        await first_update(node)
        async with await dial(controller.port) as stream:
            await stream.send_all(data)
            assert await receive(stream, Reader(FromController)) == []
        assert isinstance(await node.enrol(workload("web-1", "10.77.1.2")), Enrolled)


async def test_silence_before_hello_ends_the_connection(controller: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_HELLO_SECONDS", 0.05)
    async with await dial(controller.port) as stream:
        assert await receive(stream, Reader(FromController)) == []


async def test_too_many_strangers_are_turned_away(controller: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_MAX_STRANGERS", 1)
    credential = await controller.join("node-a")
    async with connected(controller.port, credential) as node:
        await first_update(node)
        async with await dial(controller.port):
            with pytest.raises((trio.BrokenResourceError, ssl.SSLError)):
                await dial(controller.port)
        assert isinstance(await node.enrol(workload("web-1", "10.77.1.2")), Enrolled)  # who is in stays in


async def test_a_host_full_of_strangers_keeps_no_other_host_out(
    controller: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_MAX_STRANGERS_EACH", 3)
    flood = [await dial_from("127.0.0.2", controller.port) for _ in range(10)]
    credential = await controller.join("node-a")
    async with connected(controller.port, credential) as node:
        await first_update(node)
    for stream in flood:
        await stream.aclose()


async def test_another_protocol_version_is_refused(controller: Running) -> None:
    credential = await controller.join("node-a")
    async with await dial(controller.port, credential) as stream:
        await stream.send_all(frame(Hello(PROTOCOL + 1, "test", "", 0), FromNode))
        (answer,) = await receive(stream, Reader(FromController))
    assert isinstance(answer, Refused)
    assert "protocol 2" in answer.reason


async def test_a_newer_connection_replaces_the_older(controller: Running) -> None:
    credential = await controller.join("node-a")
    async with connected(controller.port, credential) as older:
        await first_update(older)
        async with connected(controller.port, credential) as newer:
            await first_update(newer)
            with trio.fail_after(20):  # silence ends it after 30
                await older.closed.wait()
            assert controller.daemon.link.connected("node-a")
            assert controller.daemon.link.statuses["node-a"].connected
            assert isinstance(await newer.enrol(workload("web-1", "10.77.1.2")), Enrolled)


async def test_a_forgotten_node_is_disconnected_and_its_credential_refused(controller: Running) -> None:
    credential = await controller.join("node-a")
    async with connected(controller.port, credential) as node:
        await node.enrol(workload("web-1", "10.77.1.2"))
        assert controller.daemon.home.register.forget("node-a")
        controller.daemon.link.disconnect("node-a")
        with trio.fail_after(20):  # as above
            await node.closed.wait()
    async with await dial(controller.port, credential) as stream:
        (answer,) = await receive(stream, Reader(FromController))
    assert isinstance(answer, Refused)
    assert "join again" in answer.reason
    assert controller.daemon.home.register.enrolled == {}


async def test_a_renewed_node_certificate_works_and_so_does_the_old_one(controller: Running) -> None:
    credential = await controller.join("node-a")
    key = new_key()
    async with connected(controller.port, credential) as node:
        signed = await node.sign("", csr_for(key, uri="spiffe://cluster.local/node/node-b"))
    assert isinstance(signed, Signed)
    assert uris_of(signed.chain) == ["spiffe://cluster.local/node/node-a"]
    for each in (Credential(signed.chain, pem_of(key), credential.roots), credential):
        async with connected(controller.port, each) as node:
            await first_update(node)


async def test_a_node_gets_certificates_only_for_its_own_workloads(controller: Running) -> None:
    one, two = await controller.join("node-a"), await controller.join("node-b")
    async with connected(controller.port, one) as node_a, connected(controller.port, two) as node_b:
        await node_a.enrol(workload("web-1", "10.77.1.2"))
        for uid in ("shop/web-1", "shop/nothing"):
            answer = await node_b.sign(uid, csr_for(new_key()))
            assert isinstance(answer, Refused)
            assert "not enrolled on node 'node-b'" in answer.reason
        answer = await node_a.sign("shop/web-1", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n")
        assert isinstance(answer, Refused)


async def test_out_of_scope_enrolment_is_refused_and_the_rest_of_hello_taken(controller: Running) -> None:
    credential = await controller.join("node-a", "shop/web")
    mine, other = workload("web-1", "10.77.1.2"), workload("db-1", "10.77.1.3", account="db")
    async with connected(controller.port, credential, workloads=(mine, other)) as node:
        await first_update(node)
        (welcome,) = [message for message in node.messages if isinstance(message, Welcome)]
        assert list(welcome.refused) == ["shop/db-1"]
        assert "may not enrol shop/db" in welcome.refused["shop/db-1"]
        answer = await node.enrol(other)
        assert isinstance(answer, Refused)
    assert list(controller.daemon.home.register.enrolled) == ["shop/web-1"]


async def test_enrolled_is_answered_only_when_the_policies_were_acknowledged(controller: Running) -> None:
    """Otherwise there would be a moment in which the workload runs without them."""
    controller.daemon.home.resources.apply([("p", _DENY_ALL)])
    credential = await controller.join("node-a")
    async with connected(controller.port, credential, ack=lambda update: not update.workloads) as node:
        await first_update(node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.enrol, workload("web-1", "10.77.1.2"))
            update = await node.until(
                lambda: [u for u in node.updates if any(w.uid == "shop/web-1" for w in u.workloads)], "the workload"
            )
            assert [policy.key for policy in update[0].policies] == ["shop/nothing"]
            await trio.sleep(0.1)
            assert len(nursery.child_tasks) == 1
            await node.send(Ack(update[0].revision))


_SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""
_DENY_ALL = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nothing, namespace: shop}
spec: {}
"""


async def test_a_reconnecting_node_gets_only_what_changed(controller: Running) -> None:
    one, two = await controller.join("node-a"), await controller.join("node-b")
    web, db = workload("web-1", "10.77.1.2"), workload("db-1", "10.77.1.3")
    async with connected(controller.port, one) as node_a:
        await node_a.enrol(web)
        last = node_a.updates[-1]
    async with connected(controller.port, two) as node_b:
        await node_b.enrol(db)
    again: dict[str, Any] = {"workloads": (web,), "epoch": last.epoch, "revision": last.revision}
    async with connected(controller.port, one, **again) as node_a:
        await first_update(node_a)
    delta = node_a.updates[0]
    assert not delta.full
    assert delta.base == last.revision
    assert [w.uid for w in delta.workloads] == ["shop/db-1"]
    again["epoch"] = "another"
    async with connected(controller.port, one, **again) as node_a:
        await first_update(node_a)
    assert node_a.updates[0].full


async def test_a_workload_that_is_withdrawn_is_removed_everywhere(controller: Running) -> None:
    one, two = await controller.join("node-a"), await controller.join("node-b")
    async with connected(controller.port, one) as node_a, connected(controller.port, two) as node_b:
        await node_a.enrol(workload("web-1", "10.77.1.2"))
        await node_a.send(Withdraw("shop/web-1"))
        await node_b.until(lambda: any("w:shop/web-1" in u.removed for u in node_b.updates), "the removal")


async def test_a_change_that_does_not_concern_a_node_is_not_sent_and_counts_as_acknowledged(
    controller: Running,
) -> None:
    credential = await controller.join("node-a")
    async with connected(controller.port, credential) as node:
        await first_update(node)
        first = node.updates[0]
        controller.daemon.home.resources.apply([("p", _DENY_ALL)])
        publisher, status = controller.daemon.publisher, controller.daemon.link.statuses["node-a"]
        await publisher.settled()
        revision = publisher.revision
        assert revision > first.revision
        with trio.fail_after(60):
            while (status.acked or 0) < revision:
                await trio.sleep(0.01)
        controller.daemon.home.resources.apply([("s", _SERVICE)])
        second = await node.until(lambda: len(node.updates) > 1 and node.updates[1])
        assert (second.base, second.full, len(second.services)) == (first.revision, False, 1)


async def test_a_rejected_delta_is_followed_by_everything(controller: Running) -> None:
    credential = await controller.join("node-a")
    async with connected(controller.port, credential, ack=False) as node:
        await first_update(node)
        await node.send(Ack(node.updates[0].revision))
        controller.daemon.home.resources.apply([("s", _SERVICE)])
        delta = await node.until(lambda: len(node.updates) == 2 and node.updates[1])
        assert not delta.full
        await node.send(Nack(delta.revision, "does not fit"))
        everything = await node.until(lambda: len(node.updates) == 3 and node.updates[2])
        assert everything.full
        assert controller.daemon.link.statuses["node-a"].last_nack == "does not fit"
        await node.send(Ack(everything.revision))
        node.ack = True
        await node.enrol(workload("web-1", "10.77.1.2"))
        assert controller.daemon.link.statuses["node-a"].last_nack == ""


async def test_a_rejected_full_update_is_not_repeated_until_something_changes(controller: Running) -> None:
    credential = await controller.join("node-a")
    async with connected(controller.port, credential, ack=False) as node:
        await first_update(node)
        await node.send(Nack(node.updates[0].revision, "bad"))
        await trio.sleep(0.2)
        assert len(node.updates) == 1
        async with trio.open_nursery() as nursery:
            answers: list[object] = []

            async def enrol() -> None:
                answers.append(await node.enrol(workload("web-1", "10.77.1.2")))

            nursery.start_soon(enrol)
            update = await node.until(lambda: len(node.updates) == 2 and node.updates[1])
            assert update.full
            await node.send(Nack(update.revision, "still bad"))
        assert isinstance(answers[0], Refused)
        assert "still bad" in answers[0].reason


async def test_a_burst_of_changes_makes_few_updates(controller: Running) -> None:
    credential = await controller.join("node-a")
    async with connected(controller.port, credential) as node:
        await first_update(node)
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(node.enrol, workload(f"web-{number}", f"10.77.1.{number + 1}"))
        assert len(controller.daemon.home.register.enrolled) == 100
        assert len(node.updates) < 30


async def test_reports_become_edges(controller: Running) -> None:
    credential = await controller.join("node-a", "shop/*")
    web = Party("web-1", "shop", "cluster.local/ns/shop/sa/web", "web", "v1")
    db = Party("db-1", "data", "cluster.local/ns/data/sa/db", "db", "v1")
    key = EdgeKey("source", web, db, "db.data.svc.cluster.local", "mutual_tls", "-")
    lie = EdgeKey("destination", web, db, "db.data.svc.cluster.local", "mutual_tls", "-")
    async with connected(controller.port, credential) as node:
        for _ in range(2):
            await node.send(Report((EdgeReport(key, EdgeCounts(opened=2, closed=1)), EdgeReport(lie, EdgeCounts(9)))))
        await node.enrol(workload("web-1", "10.77.1.2"))
    ((found, edge),) = controller.daemon.telemetry.edges()
    assert found == key
    assert (edge.opened, edge.closed) == (4, 2)
    assert controller.daemon.telemetry.rejected == 2


async def test_a_token_spent_or_for_another_node_lets_nobody_in(controller: Running) -> None:
    once = controller.token("*/*", uses=1)
    assert isinstance(await join(controller.port, once, "node-a"), Credential)
    refused = await join(controller.port, once, "node-b")
    assert isinstance(refused, Refused)
    assert "used up" in refused.reason
    refused = await join(controller.port, controller.token(node="node-c"), "node-d")
    assert isinstance(refused, Refused)
    assert "is for node 'node-c'" in refused.reason


async def test_a_lost_answer_to_join_costs_no_use(controller: Running) -> None:
    once, key = controller.token(uses=1), new_key()
    assert isinstance(await join(controller.port, once, "node-a", key), Credential)
    assert isinstance(await join(controller.port, once, "node-a", key), Credential)
    assert isinstance(await join(controller.port, once, "node-a"), Refused)


async def test_requests_in_the_same_packet_as_hello_are_answered(controller: Running) -> None:
    credential = await controller.join("node-a")
    async with await dial(controller.port, credential) as stream:
        hello = frame(Hello(PROTOCOL, "test", "", 0), FromNode)
        await stream.send_all(hello + frame(Sign(7, "shop/none", b""), FromNode))
        reader, found = Reader(FromController), list[object]()
        with trio.fail_after(60):
            while not any(isinstance(message, Refused) for message in found):
                found += await receive(stream, reader)
