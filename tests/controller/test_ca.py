from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from controller.ca import Authority, CaError, CsrError, public_key_of
from controller.trust import Material, add_root, new_material
from tests.controller.client import csr_for, new_key

NOW = 1_800_000_000.0
DAY = timedelta(hours=24)


def test_the_root_is_made_once(tmp_path: Path) -> None:
    first = Authority.at(tmp_path, "cluster.local", NOW)
    second = Authority.at(tmp_path, "cluster.local", NOW + 1e6)
    assert first.bundle == second.bundle
    assert (tmp_path / "ca.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "roots.pem").read_bytes() == first.bundle


def test_a_root_of_another_trust_domain_is_refused(tmp_path: Path) -> None:
    Authority.at(tmp_path, "cluster.local", NOW)
    with pytest.raises(CaError, match="not of trustDomain other"):
        Authority.at(tmp_path, "other", NOW)


@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_a_damaged_root_is_not_silently_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ca.pem").write_bytes(content)
    with pytest.raises(CaError, match="restore it"):
        Authority.at(tmp_path, "cluster.local", NOW)
    assert (tmp_path / "ca.pem").read_bytes() == content


def test_other_roots_in_the_bundle_stay_trusted(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    old = Authority.at(tmp_path / "old", "cluster.local", NOW)
    (tmp_path / "roots.pem").write_bytes(old.bundle)
    new = Authority.at(tmp_path, "cluster.local", NOW)
    assert new.roots == (new.roots[0], old.roots[0])
    assert Authority.at(tmp_path, "cluster.local", NOW).roots == new.roots


def test_a_certificate_has_one_uri_and_nothing_of_the_csr_but_the_key(tmp_path: Path) -> None:
    authority, key = Authority.at(tmp_path, "cluster.local", NOW), new_key()
    csr = csr_for(key, uri="spiffe://cluster.local/ns/kube-system/sa/admin", name="admin")
    uri = "spiffe://cluster.local/ns/shop/sa/web"
    issued = authority.issue(uri, public_key_of(csr), DAY, NOW)
    certificate = x509.load_pem_x509_certificate(issued.chain)
    certificate.verify_directly_issued_by(authority.roots[0])
    extensions = certificate.extensions
    san = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.critical
    assert list(san.value) == [x509.UniformResourceIdentifier(uri)]
    assert len(certificate.subject) == 0
    assert certificate.public_key() == key.public_key()
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert issued.serial == f"{certificate.serial_number:x}"
    assert (issued.not_before, issued.not_after) == (NOW - 60, NOW + 86400)
    assert certificate.not_valid_after_utc.timestamp() == issued.not_after


def test_a_certificate_never_outlives_the_root(tmp_path: Path) -> None:
    authority = Authority.at(tmp_path, "cluster.local", NOW)
    issued = authority.issue("spiffe://cluster.local/node/a", new_key().public_key(), timedelta(days=36500), NOW)
    assert issued.not_after == authority.roots[0].not_valid_after_utc.timestamp()


def _with_key(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("bits", [1024, 2048])
def test_an_rsa_key_is_refused(bits: int) -> None:
    with pytest.raises(CsrError, match="ECDSA"):
        public_key_of(_with_key(rsa.generate_private_key(65537, bits)))


def test_a_curve_that_peers_may_not_know_is_refused() -> None:
    with pytest.raises(CsrError, match="P-256 or P-384"):
        public_key_of(_with_key(ec.generate_private_key(ec.SECP521R1())))


def test_a_csr_signed_by_another_key_is_refused() -> None:
    pem = csr_for(new_key())
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER))
    der[-1] ^= 1
    tampered = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    with pytest.raises(CsrError, match="signature is wrong"):
        public_key_of(tampered)


@pytest.mark.parametrize("pem", [b"", b"rubbish", b"x" * 20_000, csr_for(new_key())[:100]])
def test_what_is_no_csr_is_refused(pem: bytes) -> None:
    with pytest.raises(CsrError):
        public_key_of(pem)


def an_intermediate(authority: Authority) -> Material:
    """The user's own: signed by `authority`'s root, without the SPIFFE names that ours have."""
    key = new_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mesh intermediate")])
    root = authority.roots[0]
    issuer = load_pem_private_key(authority.material.key, None)
    assert isinstance(issuer, ec.EllipticCurvePrivateKey)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(root.not_valid_before_utc)
        .not_valid_after(root.not_valid_after_utc - timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(issuer, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Material(pem, certificate.public_bytes(Encoding.PEM), authority.bundle)


def test_a_users_intermediate_signs_and_goes_with_each_certificate(tmp_path: Path) -> None:
    upper = Authority.at(tmp_path, "cluster.local", NOW)
    authority = Authority("cluster.local")
    assert authority.adopt(an_intermediate(upper), "a Secret", NOW)
    issued = authority.issue("spiffe://cluster.local/ns/a/sa/b", new_key().public_key(), DAY, NOW)
    leaf, between = x509.load_pem_x509_certificates(issued.chain)
    leaf.verify_directly_issued_by(between)
    between.verify_directly_issued_by(upper.roots[0])
    chain = x509.load_pem_x509_certificates(authority.server_credential(["127.0.0.1"], DAY, NOW)[0].chain)
    assert chain[1:] == [between, upper.roots[0]]  # a node that joins by the root's hash finds it there
    with pytest.raises(CaError, match="intermediate of yours"):
        add_root(authority.material, "cluster.local", NOW)


def test_what_does_not_belong_together_is_not_adopted(tmp_path: Path) -> None:
    upper = Authority.at(tmp_path, "cluster.local", NOW)
    authority, good = Authority("cluster.local"), an_intermediate(upper)
    authority.adopt(good, "a Secret", NOW)
    other = new_material("cluster.local", NOW)
    for bad, why in (
        (replace(good, key=other.key), "do not belong together"),
        (replace(good, roots=other.roots), "does not end in one of the roots"),
        (replace(good, chain=good.chain + other.chain), "not signed by the next"),
        (replace(good, key=b"rubbish"), "does not hold a PEM key"),
        (new_material("other.domain", NOW), "not of trustDomain cluster.local"),
    ):
        with pytest.raises(CaError, match=why):
            authority.adopt(bad, "a Secret", NOW)
        assert authority.material == good
