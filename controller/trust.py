"""What a certificate authority is made of, where it is kept on a plain host, and how its root is rotated.

Rotation has three steps, each safe to stay in for any time, and each one write:

    idle  --add-->  added  --sign-->  signing  --drop-->  idle
                    both roots are     the new root        only the new root
                    trusted, the old   signs, the old is   is trusted
                    one signs          still trusted
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

_ROOT_LIFE = timedelta(days=3650)
BACKDATE = timedelta(seconds=60)
"""How far a node's clock may be behind the controller's."""


class CaError(Exception):
    """The root cannot be used; the message says what to do."""


class Conflict(Exception):
    """What was to be replaced is not what was read: somebody else was first."""


@dataclass(frozen=True, slots=True)
class Material:
    """All PEM. `next_*` is a root that is to take over, in the step `added` only."""

    key: bytes = field(repr=False)
    chain: bytes
    """The certificate that signs, then those above it up to the root, which may be left out if it isn't the first."""
    roots: bytes
    """All that peers are to trust, the one in use first."""
    next_key: bytes = field(default=b"", repr=False)
    next_chain: bytes = b""

    @property
    def phase(self) -> str:
        """`idle`, `added` or `signing`."""
        if self.next_chain:
            return "added"
        return "signing" if len(certificates(self.roots)) > 1 else "idle"


class CaStore(Protocol):
    """Where the material is kept. `version` is opaque."""

    async def load(self) -> tuple[Material, str] | None:
        """What is kept; None if nothing was ever. Raises `CaError`."""

    async def save(self, material: Material, version: str | None) -> None:
        """Replace what `version` was loaded as; None: there must be none. Raises `Conflict`, `CaError`."""


def certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Those in a PEM text, in order. Raises `ValueError`."""
    return tuple(x509.load_pem_x509_certificates(pem))


def pem_of(*found: x509.Certificate) -> bytes:
    """As PEM."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in found)


def new_root(trust_domain: str, now: float) -> tuple[bytes, bytes]:
    """A self-signed root: key and certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    start = datetime.fromtimestamp(int(now), UTC) - BACKDATE
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Nodemesh"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"root {os.urandom(4).hex()}"),
        ]
    )
    uri = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    root = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + _ROOT_LIFE)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(leaf=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), pem_of(root)


def new_material(trust_domain: str, now: float) -> Material:
    """A fresh root, trusted alone."""
    key, root = new_root(trust_domain, now)
    return Material(key, root, root)


def add_root(material: Material, trust_domain: str, now: float) -> Material:
    """Step `add`. Raises `CaError` for an authority that is not its own root."""
    chain = certificates(material.chain)
    if chain[0].issuer != chain[0].subject:
        raise CaError(
            "the signing certificate is an intermediate of yours: add the new root to the bundle, then replace it"
        )
    key, root = new_root(trust_domain, now)
    return replace(material, roots=material.roots + root, next_key=key, next_chain=root)


def sign_with_new(material: Material) -> Material:
    """Step `sign`: the new root first in the bundle."""
    old = [c for c in certificates(material.roots) if c not in certificates(material.next_chain)]
    return Material(material.next_key, material.next_chain, material.next_chain + pem_of(*old))


def drop_old(material: Material) -> Material:
    """Step `drop`."""
    return replace(material, roots=pem_of(certificates(material.roots)[0]))


def checked(
    material: Material, trust_domain: str, where: str
) -> tuple[ec.EllipticCurvePrivateKey, tuple[x509.Certificate, ...], tuple[x509.Certificate, ...]]:
    """Key, chain and roots (the chain's own first), if they belong together and to the trust domain.

    Raises `CaError`, which names `where`.
    """
    restore = "restore it from a backup"
    try:
        key, chain = load_pem_private_key(material.key, None), certificates(material.chain)
        roots = certificates(material.roots)
    except (ValueError, TypeError) as error:
        raise CaError(f"{where} does not hold a PEM key and certificate ({error}): {restore}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CaError(f"{where}: the key is not an ECDSA key: use one on P-256 or P-384")
    if key.public_key() != chain[0].public_key():
        raise CaError(f"{where}: key and certificate do not belong together: {restore}")
    for lower, upper in pairwise(chain):
        if not signed_by(lower, upper):
            raise CaError(f"{where}: {lower.subject.rfc4514_string()} is not signed by the next of the chain")
    for certificate in chain:
        try:
            is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            is_ca = False
        if not is_ca:
            raise CaError(f"{where}: {certificate.subject.rfc4514_string()} is not a CA's certificate")
    own = [root for root in roots if signed_by(chain[-1], root)]
    if not own:
        raise CaError(f"{where}: the chain does not end in one of the roots: add its root to them")
    roots = (*own, *(root for root in roots if root not in own))
    for root in (chain[0], *(root for root in roots[:1])):
        try:
            san = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            continue  # one that was not made here
        uris = san.get_values_for_type(x509.UniformResourceIdentifier)
        if uris and uris != [f"spiffe://{trust_domain}"]:
            remedy = "set it back, or use another stateDir"
            raise CaError(f"{where} is the root of {uris}, not of trustDomain {trust_domain}: {remedy}")
    return key, chain, roots


def signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `issuer` issued the certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def key_usage(*, leaf: bool) -> x509.KeyUsage:
    """For a workload's certificate, or one that signs."""
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


class FolderCa:
    """The material in the state folder: `ca.pem` (key, chain), `roots.pem`, and `next.pem` while a root is added.

    The store's lock on the folder keeps others out. A crash between two writes leaves a step done or not begun:
    `next.pem` counts only once its root is in `roots.pem`, and `ca.pem`'s root is always the first of the bundle.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.where = str(folder / "ca.pem")

    async def load(self) -> tuple[Material, str] | None:
        """See `CaStore`."""
        return self.read()

    async def save(self, material: Material, version: str | None) -> None:
        """See `CaStore`."""
        self.write(material, version)

    def read(self) -> tuple[Material, str] | None:
        """See `CaStore.load`; this one does not wait."""
        private, bundle, coming = (self._folder / name for name in ("ca.pem", "roots.pem", "next.pem"))
        if not private.exists():
            return None
        key, chain = _split(private.read_bytes())
        try:
            signing = certificates(chain)
        except ValueError as error:
            raise CaError(
                f"{private} does not hold a PEM key and certificate ({error}): restore it from a backup"
            ) from error
        try:
            known = certificates(bundle.read_bytes()) if bundle.exists() else ()
        except ValueError as error:
            raise CaError(f"{bundle} does not hold PEM certificates ({error}): correct or remove it") from error
        first = signing[-1:] if signed_by(signing[-1], signing[-1]) else ()
        roots = (*first, *(root for root in known if root not in first))
        next_key, next_chain = _split(coming.read_bytes()) if coming.exists() else (b"", b"")
        if next_chain and (certificates(next_chain)[0] not in roots or next_chain == chain):
            next_key, next_chain = b"", b""
        material = Material(key, chain, pem_of(*roots), next_key, next_chain)
        return material, self.version(material)

    @staticmethod
    def version(material: Material) -> str:
        """Of what `save` may replace."""
        parts = (material.key, material.chain, material.roots, material.next_chain)
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def write(self, material: Material, version: str | None) -> None:
        """See `CaStore.save`; this one does not wait but for the disk."""
        kept = self.read()
        if (kept[1] if kept else None) != version:
            raise Conflict(f"{self.where} has changed meanwhile")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if material.next_chain:
            _write(self._folder / "next.pem", material.next_key + material.next_chain, 0o600)
        # Key and certificate in one file, so that there is never one without the other.
        if kept is None or (kept[0].key, kept[0].chain) != (material.key, material.chain):
            _write(self._folder / "ca.pem", material.key + material.chain, 0o600)
        _write(self._folder / "roots.pem", material.roots, 0o644)
        if not material.next_chain:
            (self._folder / "next.pem").unlink(missing_ok=True)


def _split(pem: bytes) -> tuple[bytes, bytes]:
    """The key and the certificates of a file that holds both."""
    at = pem.find(b"-----BEGIN CERTIFICATE-----")
    return (pem[:at], pem[at:]) if at >= 0 else (pem, b"")


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
