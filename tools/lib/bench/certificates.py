"""A throw-away certificate authority for proxies that no controller gives certificates: Envoy's, here."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


@dataclass(frozen=True)
class Credentials:
    """PEM files: a chain with one SPIFFE URI SAN, its key, and the roots to check peers against."""

    chain: Path
    key: Path
    roots: Path


class Authority:
    """An ECDSA P-256 root that issues leaves of one day, as PEM files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.oid.NameOID.ORGANIZATION_NAME, "bench")])
        root = self._sign(self._key, self._name, x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.roots = folder / "roots.pem"
        self.roots.write_bytes(root)

    def issue(self, name: str, uri: str) -> Credentials:
        """A certificate whose one SAN is `uri`, and whose common name is `name`, as its files' is."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
        issued = Credentials(self._folder / f"{name}.pem", self._folder / f"{name}.key", self.roots)
        issued.chain.write_bytes(self._sign(key, subject, names, critical=True))
        issued.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return issued

    def _sign(
        self, key: ec.EllipticCurvePrivateKey, subject: x509.Name, extension: x509.ExtensionType, *, critical: bool
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        unsigned = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical)
        )
        return unsigned.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
