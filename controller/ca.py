"""The certificate authority: one ECDSA P-256 root, made once, and the certificates under it.

Each certificate has an empty subject and one URI SAN, the SPIFFE id (X.509-SVID specification, sections 2 and 4). Of a
signing request nothing but the public key is used. Peers trust a *bundle*, so that roots can overlap in a rotation:
`roots.pem` in the state folder holds the root in use first, then any others.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.identity import controller_identity

_ROOT_LIFE = timedelta(days=3650)
_BACKDATE = timedelta(seconds=60)
"""How far a node's clock may be behind the controller's."""
_MAX_CSR = 16 * 1024


class CaError(Exception):
    """The root cannot be used; the message says what to do."""


class CsrError(ValueError):
    """A signing request is not acceptable."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate: PEM chain with the leaf first, without the root; life in Unix seconds."""

    chain: bytes
    serial: str
    """Hex."""
    not_before: float
    not_after: float


def public_key_of(csr: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a PEM signing request whose signature proves possession; raise `CsrError`."""
    if len(csr) > _MAX_CSR:
        raise CsrError(f"the signing request has {len(csr)} bytes, more than {_MAX_CSR}")
    try:
        request = x509.load_pem_x509_csr(csr)
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            raise CsrError("the signing request's key must be ECDSA on P-256 or P-384")
        if not request.is_signature_valid:
            raise CsrError("the signing request's signature is wrong")
    except (ValueError, UnsupportedAlgorithm) as error:
        if isinstance(error, CsrError):
            raise
        raise CsrError("the signing request is not a PEM CSR with a supported key") from error
    return key


def key_hash(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo, hex."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


class Authority:
    """The root and what it signs. Use `open`."""

    def __init__(self, trust_domain: str, key: ec.EllipticCurvePrivateKey, roots: tuple[x509.Certificate, ...]) -> None:
        self.trust_domain = trust_domain
        self.roots = roots
        """The one in use first."""
        self.issued = 0
        """How many certificates were signed since the start."""
        self._key = key

    @classmethod
    def open(cls, folder: Path, trust_domain: str, now: float) -> Authority:
        """Load the root from `folder`, or make it there. Raises `CaError`."""
        private = folder / "ca.pem"
        if not private.exists():
            key, root = _make_root(trust_domain, now)
            # Key and certificate in one file, so that there is never one without the other.
            secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            _write(private, secret + root.public_bytes(Encoding.PEM), 0o600)
        key, root = _load_root(private, trust_domain)
        bundle = folder / "roots.pem"
        try:
            known = x509.load_pem_x509_certificates(bundle.read_bytes()) if bundle.exists() else []
        except ValueError as error:
            raise CaError(f"{bundle} does not hold PEM certificates ({error}): correct or remove it") from error
        roots = (root, *(other for other in known if other != root))
        if list(roots) != known:
            _write(bundle, b"".join(r.public_bytes(Encoding.PEM) for r in roots), 0o644)
        return cls(trust_domain, key, roots)

    @property
    def bundle(self) -> bytes:
        """PEM of all roots to trust."""
        return b"".join(root.public_bytes(Encoding.PEM) for root in self.roots)

    @property
    def root_sha256(self) -> str:
        """SHA-256 of the DER of the root in use, hex, as a join token carries it."""
        return hashlib.sha256(self.roots[0].public_bytes(Encoding.DER)).hexdigest()

    def issue(
        self, uri: str, key: ec.EllipticCurvePublicKey, life: timedelta, now: float, names: Iterable[str] = ()
    ) -> Issued:
        """Sign a certificate for the SPIFFE id `uri`; `names` are DNS names and IP addresses for further SANs."""
        root = self.roots[0]
        start = datetime.fromtimestamp(int(now), UTC) - _BACKDATE
        end = min(datetime.fromtimestamp(int(now), UTC) + life, root.not_valid_after_utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(root.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri), *map(_san, names)]), critical=True
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(leaf=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.issued += 1
        return Issued(
            certificate.public_bytes(Encoding.PEM),
            f"{certificate.serial_number:x}",
            start.timestamp(),
            end.timestamp(),
        )

    def server_credential(self, names: Iterable[str], life: timedelta, now: float) -> tuple[Issued, bytes]:
        """The controller's own certificate, its chain ending in the root for nodes that join by its hash, and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        uri = controller_identity(self.trust_domain).uri
        leaf = self.issue(uri, key.public_key(), life, now, names)
        chain = leaf.chain + self.roots[0].public_bytes(Encoding.PEM)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Issued(chain, leaf.serial, leaf.not_before, leaf.not_after), private


def _make_root(trust_domain: str, now: float) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    start = datetime.fromtimestamp(int(now), UTC) - _BACKDATE
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Nodemesh"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"root {os.urandom(4).hex()}"),
        ]
    )
    root = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + _ROOT_LIFE)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(leaf=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, root


def _load_root(path: Path, trust_domain: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    pem = path.read_bytes()
    try:
        key, root = load_pem_private_key(pem, None), x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise CaError(f"{path} does not hold a PEM key and certificate ({error}): restore it from a backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != root.public_key():
        raise CaError(f"{path}: key and certificate do not belong together: restore it from a backup")
    san = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = san.get_values_for_type(x509.UniformResourceIdentifier)
    if uris != [f"spiffe://{trust_domain}"]:
        raise CaError(
            f"{path} is the root of {uris}, not of trustDomain {trust_domain}: set it back, or use another stateDir"
        )
    return key, root


def _key_usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=leaf,
        key_cert_sign=not leaf,
        crl_sign=not leaf,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a file that is whole or absent after a crash, never readable by more than `mode` says."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
