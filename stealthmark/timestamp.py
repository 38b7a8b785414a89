"""Time stamps of a commitment (RFC 3161): the request that goes to an authority of the owner's choice, and the check of the
token that comes back. Nothing is sent from here."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from asn1crypto import cms, tsp
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ObjectIdentifier
from rfc3161_client import (
    HashAlgorithm,
    TimestampRequestBuilder,
    TimeStampResponse,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from stealthmark.certificate_facts import Stamp
from stealthmark.errors import UserError
from stealthmark.files import whole

#: SHA-256 by its object identifier (RFC 5754).
SHA_256 = ObjectIdentifier("2.16.840.1.101.3.4.2.1")


class Stamped(NamedTuple):
    """A file, and the token beside it: what was stamped, and the answer of the authority."""

    file: Path
    token: Path


def token_of(file: Path) -> Path:
    """The token beside a file: the authority's answer, as it came."""
    return file.with_suffix(".tsr")


def request_of(file: Path) -> Path:
    """The request beside a file."""
    return file.with_suffix(".tsq")


def request(file: Path, out: Path) -> None:
    """Write a time-stamp request (TimeStampReq, DER) for the SHA-256 of `file`, to be sent to any time-stamping authority.

    It asks for the authority's certificates in the answer, and holds nothing of the file but the digest. Raises UserError
    where a file cannot be read or written, or is empty.
    """
    content = _bytes(file)
    if not content:
        raise UserError(f"{file} is empty; allowed: the file of a commitment")
    asked = TimestampRequestBuilder().data(content).hash_algorithm(HashAlgorithm.SHA256).build()
    with whole(out) as partial:
        partial.write_bytes(asked.as_bytes())


def check(content: bytes, token: Path, roots: Iterable[Path]) -> Stamp:
    """The time stamp in `token`, which must be of `content`.

    Checked are: that it was granted; that its message imprint is the SHA-256 of `content`; that it is signed, and the signer's
    certificate is one for time stamps alone; that this was issued, through certificates in the token, by one in the PEM files
    `roots`; and that all of these were valid at the time that it states. Whether a certificate was revoked is not looked up.

    Raises UserError for what does not hold, and for files that are no such things.
    """
    trusted = read_roots(roots)
    if not trusted:
        raise UserError(f"{token} is a time stamp, whose authority must be trusted; give its root certificate (--tsa-root)")
    try:
        response = decode_timestamp_response(_ordered(_bytes(token)))
        if response.tst_info.message_imprint.hash_algorithm != SHA_256:
            raise VerificationError("it is of another digest than SHA-256")
        _verify(response, hashlib.sha256(content).digest(), trusted)
        authority = _signer(response)
        return Stamp(
            time=response.tst_info.gen_time,
            authority=authority.subject.rfc4514_string()[:300],
            authority_sha256=authority.fingerprint(SHA256()).hex(),
        )
    except VerificationError as error:
        said = re.search(r"Verify error: ?([^\"]+)", str(error))  # of a whole stack of errors, what openssl says of the chain
        raise UserError(f"{token} is not a valid time stamp of the commitment: {said[1] if said else error}") from None
    except (ValueError, TypeError, LookupError) as error:  # of the parsers; a refused request has no token in its answer
        raise UserError(f"{token} is not a time-stamp response (RFC 3161) that grants one: {error}") from None


def _ordered(token: bytes) -> bytes:
    """The token with its certificates in the order that DER has for a set. Authorities that run openssl send them in another,
    as CMS allows (RFC 5652, section 5.1), which the parser refuses. No signature is over that order."""
    response = tsp.TimeStampResp.load(token, strict=True)
    if response["status"]["status"].native != "granted":
        raise ValueError(f"the request was answered by {response['status'].native}")
    signed = response["time_stamp_token"]["content"]
    if isinstance(signed["certificates"], cms.CertificateSet):
        signed["certificates"] = cms.CertificateSet(sorted(signed["certificates"], key=lambda one: one.dump()))
    return response.dump()


def _verify(response: TimeStampResponse, digest: bytes, trusted: list[x509.Certificate]) -> None:
    """Raises VerificationError where no choice of the trusted certificates verifies the response: of two with one name openssl
    tries the first alone, so each is also tried by itself."""
    refused = None
    for roots in (trusted, *([one] for one in trusted)):
        try:
            VerifierBuilder(roots=roots).build().verify(response, digest)
            return
        except VerificationError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def find(files: Iterable[Path]) -> Stamped | None:
    """The first of some files that has a token beside it."""
    return next((Stamped(file, token_of(file)) for file in files if token_of(file).is_file()), None)


def _signer(response: TimeStampResponse) -> x509.Certificate:
    """The certificate in a token that has been verified, by which it was signed."""
    signer = next(iter(response.signed_data.signer_infos))
    certificates = map(x509.load_der_x509_certificate, response.signed_data.certificates)
    return next(one for one in certificates if (one.issuer, one.serial_number) == (signer.issuer, signer.serial_number))


def read_roots(files: Iterable[Path]) -> list[x509.Certificate]:
    """All certificates in some PEM files. Raises UserError for a file that holds none."""
    certificates = []
    for file in files:
        try:
            certificates += x509.load_pem_x509_certificates(_bytes(file))
        except ValueError:
            raise UserError(f"{file} holds no certificates; allowed: PEM, as authorities publish their roots") from None
    return certificates


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
