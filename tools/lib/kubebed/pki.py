"""A cluster's certificates and kubeconfigs."""

from __future__ import annotations

import base64
import ipaddress
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID

from kubebed.spec import API_SERVICE_ADDRESS, CONTROL_ADDRESS, Spec

_API_NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
)


class Authority:
    """The cluster's CA, writing `<folder>/NAME.crt`, `.key` and `.kubeconfig`; keys are for root alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubebed")])
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self._certificate = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self._write("ca", self._certificate, self._key)

    def server(self, name: str, names: tuple[str, ...], addresses: tuple[str, ...]) -> None:
        """A server's certificate and key."""
        self._issue(name, [(NameOID.COMMON_NAME, name)], [Usage.SERVER_AUTH], names, addresses)

    def client(self, name: str, user: str, group: str, server: str) -> None:
        """A client's certificate and key, and a kubeconfig that holds both."""
        subject = [(NameOID.ORGANIZATION_NAME, group)] if group else []
        self._issue(name, [*subject, (NameOID.COMMON_NAME, user)], [Usage.CLIENT_AUTH], (), ())
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "kubebed",
            "clusters": [
                {"name": "kubebed", "cluster": {"server": server, "certificate-authority-data": self._text("ca.crt")}}
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate-data": self._text(f"{name}.crt"),
                        "client-key-data": self._text(f"{name}.key"),
                    },
                }
            ],
            "contexts": [{"name": "kubebed", "context": {"cluster": "kubebed", "user": user}}],
        }
        self._file(f"{name}.kubeconfig", json.dumps(config, indent=2).encode())

    def service_account_key(self) -> None:
        """`sa.key` and `sa.pub`, which sign and check service accounts' tokens."""
        key = rsa.generate_private_key(65537, 2048)
        self._file("sa.key", _private(key))
        public = serialization.PublicFormat.SubjectPublicKeyInfo
        self._file("sa.pub", key.public_key().public_bytes(serialization.Encoding.PEM, public))

    def _issue(
        self,
        name: str,
        subject: list[tuple[x509.ObjectIdentifier, str]],
        usages: list[x509.ObjectIdentifier],
        names: tuple[str, ...],
        addresses: tuple[str, ...],
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([x509.NameAttribute(*part) for part in subject]), key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        alternatives: list[x509.GeneralName] = [x509.DNSName(dns) for dns in names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        self._write(name, builder.sign(self._key, hashes.SHA256()), key)

    def _builder(self, subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(public)
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=365))

    def _write(self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._file(f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM))
        self._file(f"{name}.key", _private(key))

    def _file(self, name: str, content: bytes) -> None:
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)

    def _text(self, name: str) -> str:
        return base64.b64encode((self._folder / name).read_bytes()).decode()


def _private(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def create(folder: Path, spec: Spec) -> None:
    """Everything that the components and nodes of this cluster, and its administrator, show each other."""
    inside, outside = f"https://{CONTROL_ADDRESS}:6443", f"https://{spec.api_address}:6443"
    authority = Authority(folder)
    authority.service_account_key()
    authority.server(
        "kube-apiserver", _API_NAMES, ("127.0.0.1", API_SERVICE_ADDRESS, CONTROL_ADDRESS, spec.api_address)
    )
    authority.client("admin", "admin", "system:masters", outside)
    for component in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
        authority.client(component, f"system:{component}", "", inside)
    for node in spec.nodes:
        authority.server(f"{node.name}-server", (node.name,), (node.address,))
        authority.client(node.name, f"system:node:{node.name}", "system:nodes", inside)
