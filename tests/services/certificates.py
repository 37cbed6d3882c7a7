"""A certificate authority of a test, and the certificates of servers and clients on loopback."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificates:
    """Files in PEM; `other_ca` signed none of them."""

    ca: Path
    other_ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def make_certificates(folder: Path, client_name: str = "urza", days: int = 30) -> Certificates:
    """An authority and what it signed, in `folder`; with negative `days` all of it has expired."""
    folder.mkdir(parents=True, exist_ok=True)
    ca_key, ca = _authority("esper tests", days)
    _, other = _authority("somebody else", days)
    files = Certificates(
        *(folder / name for name in ("ca.pem", "other.pem", "server.pem", "server.key", "client.pem", "client.key"))
    )
    files.ca.write_bytes(_pem(ca))
    files.other_ca.write_bytes(_pem(other))
    for name, certificate, key in (
        ("localhost", files.server, files.server_key),
        (client_name, files.client, files.client_key),
    ):
        own = ec.generate_private_key(ec.SECP256R1())
        certificate.write_bytes(_pem(_signed(name, own, ca, ca_key, days)))
        key.write_bytes(_key_pem(own))
        key.chmod(0o600)
    return files


def _authority(name: str, days: int) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    builder = _builder(name, name, key, days).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    return key, builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())


def _signed(
    name: str, key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, days: int
) -> x509.Certificate:
    issuer = ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = _builder(name, str(issuer), key, days).add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    return builder.sign(ca_key, hashes.SHA256())


def _builder(name: str, issuer: str, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=60))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
