"""Ed25519 signatures: the test vectors of RFC 8032, keys on disk, and who signed a certificate."""

import json
import stat
from datetime import timedelta

import pytest
import test_certificate
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from pydantic import ValidationError

from stealthmark import cli, signature
from stealthmark.certificate import Certificate
from stealthmark.certificate_page import page, write
from stealthmark.errors import UserError

# RFC 8032, section 7.1, test 2: the message is the one byte 0x72.
SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
KEY = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SECRET))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


def test_the_vector_of_the_standard():
    assert signature.public_of(KEY) == PUBLIC
    assert signature.sign(KEY, b"\x72") == SIGNATURE
    assert signature.holds(PUBLIC, SIGNATURE, b"\x72")
    assert not signature.holds(PUBLIC, SIGNATURE, b"\x73")
    assert not signature.holds(signature.public_of(OTHER), SIGNATURE, b"\x72")


def test_a_new_key_is_for_its_owner_and_its_public_half_for_others(tmp_path):
    file = tmp_path / "keys/me.pem"
    public = signature.new_key(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert signature.public_of(signature.read_key(file)) == signature.read_public_key(signature.public_file(file)) == public
    with pytest.raises(UserError, match="there is a key at"):
        signature.new_key(file)


def test_what_is_no_key_of_the_kind_is_refused(tmp_path):
    file = tmp_path / "key.pem"
    form = (Encoding.PEM, PrivateFormat.PKCS8)
    contents = {
        "behind a password": KEY.private_bytes(*form, BestAvailableEncryption(b"secret")),
        "another kind": rsa.generate_private_key(65537, 1024).private_bytes(*form, NoEncryption()),
        "no private key": b"-----BEGIN PRIVATE KEY-----",
    }
    for said, content in contents.items():
        file.write_bytes(content)
        with pytest.raises(UserError, match=said):
            signature.read_key(file)
        with pytest.raises(UserError, match="no public key"):
            signature.read_public_key(file)
    with pytest.raises(UserError, match="cannot read"):
        signature.read_key(tmp_path / "nothing.pem")


def test_claimant_and_examiner_sign_the_same_facts():
    made = test_certificate.certificate()
    signed = made.signed([("claimant", KEY)]).signed([("examiner", OTHER)])
    assert [(one.role, one.public_key) for one in signed.signatures] == [
        ("claimant", PUBLIC),
        ("examiner", signature.public_of(OTHER)),
    ]
    assert signed.seal == made.seal
    assert Certificate.model_validate_json(signed.model_dump_json()) == signed
    assert signed.signed([("claimant", KEY)]).signatures[::-1] == signed.signatures, "a key signs once"
    assert "the file is not signed" in " ".join(made.limits)
    assert "signed by the claimant and examiner" in " ".join(signed.limits) and PUBLIC in page(signed)


@pytest.mark.parametrize(
    "change",
    [
        lambda made, one: {"claimant": "Another Hospital"},
        lambda made, one: {"created": made.created + timedelta(days=1)},
        lambda made, one: {"signatures": (one.model_copy(update={"role": "examiner"}),)},
        lambda made, one: {"signatures": (one.model_copy(update={"public_key": signature.public_of(OTHER)}),)},
        lambda made, one: {"signatures": (one.model_copy(update={"signature": "0" * 128}),)},
    ],
)
def test_a_signature_is_of_all_facts_and_of_one_role(change):
    made = test_certificate.certificate().signed([("claimant", KEY)])
    facts = {name: getattr(made, name) for name in Certificate.model_fields}
    with pytest.raises(ValidationError, match="is not of these facts"):
        Certificate(**facts | change(made, made.signatures[0]))


def test_an_examiner_signs_later_on_another_machine(tmp_path, capsys):
    write(test_certificate.certificate().signed([("claimant", KEY)]), tmp_path)
    assert cli.main(["signing-key", "--out", str(tmp_path / "lab.pem")]) == 0
    public = signature.read_public_key(tmp_path / "lab.pub.pem")
    assert public in capsys.readouterr().out
    assert cli.main(["sign", str(tmp_path), "--sign", f"examiner={tmp_path / 'lab.pem'}"]) == 0
    assert "is signed by the claimant and the examiner" in capsys.readouterr().out
    told = json.loads((tmp_path / "certificate.json").read_text())
    assert [one["public_key"] for one in told["signatures"]] == [PUBLIC, public]
    assert public in (tmp_path / "certificate.html").read_text()
    (tmp_path / "certificate.json").write_text("{}")
    assert cli.main(["sign", str(tmp_path), "--sign", str(tmp_path / "lab.pem")]) == 1
    assert "is no certificate to sign" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["sign", str(tmp_path), "--sign", "notary=x.pem"])
    assert "with the role claimant or examiner" in capsys.readouterr().err
