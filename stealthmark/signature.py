"""Ed25519 signatures (RFC 8032): a key of one's own as a PEM file, and what is signed with it."""

from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from stealthmark.errors import UserError
from stealthmark.files import whole

PrivateKey: TypeAlias = Ed25519PrivateKey
PublicKey: TypeAlias = Ed25519PublicKey
REMEDY = "allowed: an Ed25519 key in PEM, as `signing-key` writes it"


def new_key(file: Path) -> str:
    """Write a new private key (PEM, PKCS #8) that only its owner may read, and beside it the public one (`public_file`). The
    public key in hexadecimal. Raises UserError where there is a key already: what it signed could not be signed again."""
    if file.exists():
        raise UserError(f"there is a key at {file}; give another name")
    key = PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(public_file(file)) as partial:
        partial.write_bytes(public)
    with whole(file, mode=0o600) as partial:
        partial.write_bytes(private)
    return public_of(key)


def public_file(file: Path) -> Path:
    """The public key beside a private one: for others, who check with it what was signed."""
    return file.with_suffix(".pub.pem")


def read_key(file: Path) -> PrivateKey:
    """Raises UserError for anything but an Ed25519 private key in PEM without a password."""
    try:
        key = load_pem_private_key(_bytes(file), password=None)
    except TypeError:
        raise UserError(f"{file} is behind a password; {REMEDY}, without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{file} is no private key; {REMEDY}") from None
    if not isinstance(key, PrivateKey):
        raise UserError(f"{file} is a key of another kind ({type(key).__name__}); {REMEDY}")
    return key


def read_public_key(file: Path) -> str:
    """A public key in hexadecimal. Raises UserError for anything but an Ed25519 public key in PEM."""
    try:
        key = load_pem_public_key(_bytes(file))
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{file} is no public key; {REMEDY} beside the private one") from None
    if not isinstance(key, PublicKey):
        raise UserError(f"{file} is a key of another kind ({type(key).__name__}); {REMEDY}")
    return key.public_bytes_raw().hex()


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


def public_of(key: PrivateKey) -> str:
    """The public key in hexadecimal, 64 digits."""
    return key.public_key().public_bytes_raw().hex()


def sign(key: PrivateKey, message: bytes) -> str:
    """The signature in hexadecimal, 128 digits."""
    return key.sign(message).hex()


def holds(public_key: str, signature: str, message: bytes) -> bool:
    """Whether a signature is of this message by this public key; both in hexadecimal."""
    try:
        PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True
