"""A small time-stamping authority (RFC 3161), with a certification authority of its own, for the tests. No network."""

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

from asn1crypto import algos, cms, core, tsp
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ISSUED, EXPIRES = datetime(2025, 1, 1, tzinfo=UTC), datetime(2035, 1, 1, tzinfo=UTC)
#: When the authority says that it saw what it stamps.
SEEN = datetime(2025, 6, 1, 12, 30, 15, tzinfo=UTC)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(subject: str, key, issuer: str, issuer_key, authority: bool, usage=None) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(ISSUED)
        .not_valid_after(EXPIRES)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
    return builder.sign(issuer_key, SHA256())


class Authority:
    """A root of its own, and under it a certificate for time stamps (or, with `usage`, for something else)."""

    def __init__(self, name: str = "Time", usage=ExtendedKeyUsageOID.TIME_STAMPING):
        self._key, root_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self._root = _certificate(f"{name} Root", root_key, f"{name} Root", root_key, authority=True)
        self.certificate = _certificate(f"{name} Stamps", self._key, f"{name} Root", root_key, False, usage)

    def root(self, file: Path) -> Path:
        """The root's certificate, PEM, as an authority publishes it."""
        file.write_bytes(self._root.public_bytes(Encoding.PEM))
        return file

    def answer(self, request: bytes, seen: datetime = SEEN) -> bytes:
        """The response (TimeStampResp, DER) to a request (TimeStampReq, DER)."""
        asked = tsp.TimeStampReq.load(request)
        stated = tsp.TSTInfo(
            {
                "version": "v1",
                "policy": "1.2.3.4.1",
                "message_imprint": asked["message_imprint"],
                "serial_number": 7,
                "gen_time": seen,
                "nonce": asked["nonce"].native,
            }
        )
        return tsp.TimeStampResp(
            {"status": {"status": "granted"}, "time_stamp_token": self._signed(stated.dump(), seen)}
        ).dump()

    def _signed(self, content: bytes, seen: datetime) -> cms.ContentInfo:
        certificate = asn1_x509.Certificate.load(self.certificate.public_bytes(Encoding.DER))
        ess = tsp.SigningCertificateV2({"certs": [{"cert_hash": hashlib.sha256(certificate.dump()).digest()}]})
        attributes = cms.CMSAttributes(
            [
                {"type": "content_type", "values": ["tst_info"]},
                {"type": "message_digest", "values": [hashlib.sha256(content).digest()]},
                {"type": "signing_certificate_v2", "values": [ess]},
            ]
        )
        sha256 = algos.DigestAlgorithm({"algorithm": "sha256"})
        signer = cms.SignerInfo(
            {
                "version": "v1",
                "sid": cms.SignerIdentifier(
                    "issuer_and_serial_number",
                    {"issuer": certificate.issuer, "serial_number": certificate.serial_number},
                ),
                "digest_algorithm": sha256,
                "signed_attrs": attributes,
                "signature_algorithm": {"algorithm": "sha256_ecdsa"},
                "signature": self._key.sign(attributes.untag().dump(), ec.ECDSA(SHA256())),
            }
        )
        signed = cms.SignedData(
            {
                "version": "v3",
                "digest_algorithms": [sha256],
                "encap_content_info": {"content_type": "tst_info", "content": core.ParsableOctetString(content)},
                "certificates": [certificate, asn1_x509.Certificate.load(self._root.public_bytes(Encoding.DER))],
                "signer_infos": [signer],
            }
        )
        return cms.ContentInfo({"content_type": "signed_data", "content": signed})


def later(days: int) -> datetime:
    return SEEN + timedelta(days=days)
