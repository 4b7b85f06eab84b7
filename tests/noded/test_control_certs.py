import stat
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from controller.ca import Authority, public_key_of
from mesh.sync import Signed
from noded.control import keystore
from noded.control.certs import Certificates
from noded.control.credential import CredentialError, certify, new_request, parse
from noded.control.failure import CannotRun, ControllerAway, Failure
from noded.control.keystore import KeyStore
from noded.link import Certificate

WEB = "spiffe://cluster.local/ns/shop/sa/web"
HOUR = 3600.0


class Signer:
    """The controller's part, with a clock that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.now = 1_800_000_000.0
        self.authority = Authority.at(folder, "cluster.local", self.now)
        self.identity = WEB
        self.away = False
        self.asked = 0
        self.published: list[Certificate] = []

    async def sign(self, uid: str, csr: bytes) -> Signed:
        self.asked += 1
        if self.away:
            raise ControllerAway("away", "wait")
        issued = self.authority.issue(self.identity, public_key_of(csr), timedelta(hours=24), self.now)
        return Signed(0, issued.chain, issued.not_before, issued.not_after)


@pytest.fixture
def keys() -> Iterator[KeyStore]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield KeyStore(Path(folder))


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path)


def manager(keys: KeyStore, signer: Signer) -> Certificates:
    certs = Certificates(keys, signer.sign, signer.published.append, lambda: signer.now)
    certs.trust(signer.authority.bundle)
    return certs


async def let_it_run(certs: Certificates, seconds: float = 61.0) -> None:
    with trio.move_on_after(seconds):
        await certs.run()


async def test_a_certificate_is_published_and_kept_for_root_only(keys: KeyStore, signer: Signer) -> None:
    certs = manager(keys, signer)
    assert certs.adopt("shop/web", WEB) is None
    held = await certs.fetch("shop/web")
    assert signer.published == [Certificate("shop/web", held.chain, held.key, signer.authority.bundle, held.not_after)]
    assert stat.S_IMODE(keys.path("shop/web").stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.directory.stat().st_mode) == 0o700
    assert parse(keys.path("shop/web").read_bytes()) == held
    assert "PRIVATE" not in repr(held)


async def test_after_a_restart_it_is_taken_from_the_folder(keys: KeyStore, signer: Signer) -> None:
    first = manager(keys, signer)
    first.adopt("shop/web", WEB)
    held = await first.fetch("shop/web")
    signer.away = True
    assert manager(keys, signer).adopt("shop/web", WEB) == held


@pytest.mark.parametrize("why", ["expired", "for another identity", "damaged"])
async def test_a_stored_one_that_is_no_good_is_not_used(keys: KeyStore, signer: Signer, why: str) -> None:
    first = manager(keys, signer)
    first.adopt("shop/web", WEB)
    await first.fetch("shop/web")
    if why == "expired":
        signer.now += 25 * HOUR
    if why == "damaged":
        keys.write("shop/web", keys.path("shop/web").read_bytes()[:-400])
    identity = WEB + "2" if why == "for another identity" else WEB
    assert manager(keys, signer).adopt("shop/web", identity) is None


async def test_it_is_renewed_at_about_half_its_life(
    keys: KeyStore, signer: Signer, autojump_clock: trio.testing.MockClock
) -> None:
    certs = manager(keys, signer)
    certs.adopt("shop/web", WEB)
    held = await certs.fetch("shop/web")
    signer.now = held.not_before + 9 * HOUR
    await let_it_run(certs)
    assert signer.asked == 1
    signer.now = held.not_before + 12.1 * HOUR
    await let_it_run(certs)
    renewed = certs.get("shop/web")
    assert signer.asked == 2
    assert renewed is not None
    assert renewed.serial != held.serial
    assert renewed.key != held.key
    assert certs.state("shop/web") == "valid"


async def test_a_failed_renewal_keeps_the_valid_one_and_backs_off(
    keys: KeyStore, signer: Signer, autojump_clock: trio.testing.MockClock
) -> None:
    certs = manager(keys, signer)
    certs.adopt("shop/web", WEB)
    held = await certs.fetch("shop/web")
    signer.away = True
    signer.now = held.not_before + 13 * HOUR
    waits = []
    for _ in range(5):
        await let_it_run(certs)
        waits.append(certs.rows()[0]["renew_at"] - signer.now)
        signer.now = certs.rows()[0]["renew_at"]
    assert signer.asked == 6
    assert waits[4] > 4 * waits[0]
    assert certs.get("shop/web") == held
    assert certs.state("shop/web") == "expiring"
    signer.away = False
    certs.retry_now()
    await let_it_run(certs)
    assert certs.state("shop/web") == "valid"


async def test_an_expired_one_is_not_handed_out(keys: KeyStore, signer: Signer) -> None:
    certs = manager(keys, signer)
    certs.adopt("shop/web", WEB)
    held = await certs.fetch("shop/web")
    signer.now = held.not_after
    assert certs.get("shop/web") is None
    assert certs.state("shop/web") == "expired"


async def test_a_certificate_for_somebody_else_is_refused(keys: KeyStore, signer: Signer) -> None:
    certs = manager(keys, signer)
    certs.adopt("shop/web", WEB)
    signer.identity = "spiffe://cluster.local/ns/shop/sa/admin"
    with pytest.raises(Failure, match=r"/sa/admin, not for spiffe://"):
        await certs.fetch("shop/web")
    assert keys.read("shop/web") is None
    assert signer.published == []


async def test_a_certificate_for_another_key_is_refused(signer: Signer) -> None:
    key, _ = new_request()
    _, other = new_request()
    signed = await signer.sign("", other)
    with pytest.raises(CredentialError, match="another key"):
        certify(key, signed.chain, WEB)


async def test_new_roots_reach_all_workloads_again(keys: KeyStore, signer: Signer) -> None:
    certs = manager(keys, signer)
    certs.adopt("shop/web", WEB)
    await certs.fetch("shop/web")
    certs.trust(signer.authority.bundle * 2)
    assert [message.roots for message in signer.published] == [signer.authority.bundle, signer.authority.bundle * 2]
    assert keys.roots == signer.authority.bundle * 2


async def test_a_certificate_that_the_new_roots_did_not_sign_is_renewed_at_once(
    keys: KeyStore, signer: Signer, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    certs = manager(keys, signer)
    certs.adopt("shop/web", WEB)
    old = await certs.fetch("shop/web")
    overlap = signer.authority.bundle
    (tmp_path / "anew").mkdir()
    signer.authority = Authority.at(tmp_path / "anew", "cluster.local", signer.now)
    certs.trust(overlap + signer.authority.bundle)
    await let_it_run(certs)
    assert certs.get("shop/web") == old  # a root that is only trusted changes nothing
    certs.trust(signer.authority.bundle + overlap)
    await let_it_run(certs)
    renewed = certs.get("shop/web")
    assert renewed is not None  # the one in use comes first
    certs.trust(signer.authority.bundle)
    await let_it_run(certs)
    assert certs.get("shop/web") == renewed
    assert renewed.under(signer.authority.bundle)

    keys.write("shop/web", old.pem)
    restarted = manager(keys, signer)
    restarted.adopt("shop/web", WEB)
    await let_it_run(restarted)
    taken = restarted.get("shop/web")
    assert taken is not None
    assert taken.under(signer.authority.bundle)


async def test_a_workload_s_key_is_deleted_with_it(keys: KeyStore, signer: Signer) -> None:
    certs = manager(keys, signer)
    for uid in ("shop/web", "shop/old"):
        certs.adopt(uid, WEB)
        await certs.fetch(uid)
    certs.forget("shop/web")
    assert keys.uids() == ["shop/old"]
    manager(keys, signer).forget_all_but(set())
    assert keys.uids() == []


def test_keys_are_not_put_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystore, "filesystem_magic", lambda path: 0xEF53)  # ext4
    with pytest.raises(CannotRun, match="is not on tmpfs or ramfs"):
        KeyStore(tmp_path / "keys")


def test_the_kind_of_a_filesystem_is_what_the_kernel_says() -> None:
    assert keystore.filesystem_magic(Path("/proc")) == 0x9FA0
    assert keystore.filesystem_magic(Path("/dev/shm")) == 0x01021994
