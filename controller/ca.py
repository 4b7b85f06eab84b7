"""The certificate authority and the certificates under it; what it is made of is in `controller.trust`.

Each certificate has an empty subject and one URI SAN, the SPIFFE id (X.509-SVID specification, sections 2 and 4). Of a
signing request nothing but the public key is used. Peers trust a *bundle*, so that roots can overlap in a
rotation: the root in use first, then any others.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, replace
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
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from controller.trust import (
    BACKDATE,
    CaError,
    FolderCa,
    Material,
    checked,
    key_usage,
    new_material,
    pem_of,
)
from mesh.identity import controller_identity

__all__ = ["Authority", "CaError", "CsrError", "Issued", "key_hash", "public_key_of", "signer_of"]

_MAX_CSR = 16 * 1024


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


def signer_of(certificate: x509.Certificate) -> str:
    """The `Authority.signer` that issued it; `""` if it doesn't say."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return ""
    return found.hex() if found else ""


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
    """What signs, and the roots to trust. Of no use before `adopt`."""

    def __init__(self, trust_domain: str) -> None:
        self.trust_domain = trust_domain
        self.roots: tuple[x509.Certificate, ...] = ()
        """The one in use first."""
        self.issued = 0
        """How many certificates were signed since the start."""
        self.generation = 0
        """Grows with each `adopt` of something else."""
        self.signing_since = 0.0
        """When what signs now was adopted here, Unix seconds."""
        self.material: Material
        self._key: ec.EllipticCurvePrivateKey
        self._chain: tuple[x509.Certificate, ...] = ()
        self._bundle = b""

    @classmethod
    def at(cls, folder: Path, trust_domain: str, now: float) -> Authority:
        """One that is kept in a folder. Raises `CaError`."""
        authority = cls(trust_domain)
        authority.open(folder, now)
        return authority

    def open(self, folder: Path, now: float) -> None:
        """Adopt what is in the folder, or make a root there. Raises `CaError`."""
        store = FolderCa(folder)
        kept, others = store.read(), folder / "roots.pem"
        if kept is None:
            made = new_material(self.trust_domain, now)
            if others.exists():  # roots that the user wants trusted as well
                made = replace(made, roots=made.roots + others.read_bytes())
            store.write(made, None)
            kept = made, store.version(made)
        self.adopt(kept[0], store.where, now)
        if not others.exists() or others.read_bytes() != kept[0].roots:
            store.write(*kept)

    def adopt(self, material: Material, where: str, now: float) -> bool:
        """Sign with this from now on; whether it is something else than before. Raises `CaError`, and stays as it was.

        `where` names the place that it comes from, for the error.
        """
        if self.generation and material == self.material:
            return False
        key, chain, roots = checked(material, self.trust_domain, where)
        if chain[:1] != self._chain[:1]:
            self.signing_since = now
        self.material, self._key, self._chain, self.roots = material, key, chain, roots
        self._bundle = pem_of(*roots)
        self.generation += 1
        return True

    @property
    def signer(self) -> str:
        """Which key signs now: its identifier (RFC 5280, section 4.2.1.2), hex."""
        return x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()).digest.hex()

    @property
    def bundle(self) -> bytes:
        """PEM of all roots to trust."""
        return self._bundle

    @property
    def root_sha256(self) -> str:
        """SHA-256 of the DER of the root in use, hex, as a join token carries it."""
        return hashlib.sha256(self.roots[0].public_bytes(Encoding.DER)).hexdigest()

    def issue(
        self, uri: str, key: ec.EllipticCurvePublicKey, life: timedelta, now: float, names: Iterable[str] = ()
    ) -> Issued:
        """Sign a certificate for the SPIFFE id `uri`; `names` are DNS names and IP addresses for further SANs."""
        start = datetime.fromtimestamp(int(now), UTC) - BACKDATE
        end = datetime.fromtimestamp(int(now), UTC) + life
        end = min(end, *(upper.not_valid_after_utc for upper in (*self._chain, self.roots[0])))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._chain[0].subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri), *map(_san, names)]), critical=True
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(leaf=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.issued += 1
        between = [upper for upper in self._chain if upper.issuer != upper.subject]
        return Issued(
            pem_of(certificate, *between),
            f"{certificate.serial_number:x}",
            start.timestamp(),
            end.timestamp(),
        )

    def server_credential(self, names: Iterable[str], life: timedelta, now: float) -> tuple[Issued, bytes]:
        """The controller's own certificate, its chain ending in the root for nodes that join by its hash, and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        uri = controller_identity(self.trust_domain).uri
        leaf = self.issue(uri, key.public_key(), life, now, names)
        chain = leaf.chain + pem_of(self.roots[0])
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Issued(chain, leaf.serial, leaf.not_before, leaf.not_after), private


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
