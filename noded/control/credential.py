"""Keys, requests for certificates, and certificates: what the control process knows of X.509."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

_KEY = re.compile(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\n?", re.DOTALL)
_MAX_PEM = 64 * 1024


class CredentialError(ValueError):
    """A key and chain that can't be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A private key and the chain (leaf first) that certifies it, both PEM, and what the leaf says."""

    identity: str
    """The leaf's one URI SAN."""
    key: bytes
    chain: bytes
    serial: str
    not_before: float
    """Unix seconds, as `not_after`."""
    not_after: float

    @property
    def pem(self) -> bytes:
        """Key and chain in one file, as `ssl.SSLContext.load_cert_chain` takes it."""
        return self.key + self.chain

    def under(self, roots: bytes) -> bool:
        """Whether one of `roots` (PEM) has signed the last certificate of the chain."""
        last = x509.load_pem_x509_certificates(self.chain)[-1]
        return any(_signed(last, root) for root in x509.load_pem_x509_certificates(roots))

    def __repr__(self) -> str:
        """Without the key: this may end up in a log."""
        return f"Credential({self.identity}, serial {self.serial})"


def new_request() -> tuple[bytes, bytes]:
    """A fresh P-256 key and a request that proves possession of it, both PEM.

    The request names nobody: who the certificate is for is the controller's decision, not the requester's wish.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), csr.public_bytes(Encoding.PEM)


def certify(key: bytes, chain: bytes, identity: str) -> Credential:
    """Join `key` with the `chain` issued for it; raise `CredentialError` unless it names exactly `identity`."""
    credential = _examine(key, chain)
    if credential.identity != identity:
        raise CredentialError(f"the certificate is for {credential.identity}, not for {identity}")
    return credential


def parse(pem: bytes) -> Credential:
    """Read what `Credential.pem` wrote; raise `CredentialError`."""
    found = _KEY.search(pem)
    if found is None:
        raise CredentialError("no private key")
    return _examine(found[0], pem[: found.start()] + pem[found.end() :])


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _examine(key: bytes, chain: bytes) -> Credential:
    if len(chain) > _MAX_PEM:
        raise CredentialError(f"a chain of {len(chain)} bytes is too long")
    try:
        private = load_pem_private_key(key, None)
        leaf = x509.load_pem_x509_certificates(chain)[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise CredentialError(f"not a key and a certificate with a SPIFFE id: {error}") from error
    if len(uris) != 1:
        raise CredentialError(f"the certificate has {len(uris)} URI names, SPIFFE wants one")
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*spki) != leaf.public_key().public_bytes(*spki):
        raise CredentialError("the certificate is for another key")
    return Credential(
        identity=uris[0],
        key=key,
        chain=chain,
        serial=f"{leaf.serial_number:x}",
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )
