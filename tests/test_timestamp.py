"""Time stamps: a request that an authority can answer, and a token that is believed only where all of it holds."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
import tsa
from asn1crypto import tsp
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from stealthmark import cli, timestamp
from stealthmark.errors import UserError


@pytest.fixture(scope="module")
def authority() -> tsa.Authority:
    return tsa.Authority()


@pytest.fixture
def stamped(authority, tmp_path) -> tuple[Path, Path]:
    """The file of a commitment with a token beside it, and the authority's root."""
    file = tmp_path / "mine.commitment.json"
    file.write_text('{"commitment": "00"}')
    timestamp.request(file, timestamp.request_of(file))
    timestamp.token_of(file).write_bytes(authority.answer(timestamp.request_of(file).read_bytes()))
    return file, authority.root(tmp_path / "root.pem")


def check(file: Path, *roots: Path):
    return timestamp.check(file.read_bytes(), timestamp.token_of(file), roots)


def test_a_request_holds_the_digest_and_nothing_else_of_the_file(tmp_path):
    (tmp_path / "c.json").write_bytes(b"abc")
    timestamp.request(tmp_path / "c.json", tmp_path / "c.tsq")
    asked = tsp.TimeStampReq.load((tmp_path / "c.tsq").read_bytes())
    assert asked["message_imprint"]["hash_algorithm"]["algorithm"].native == "sha256"
    # SHA-256 of "abc": FIPS 180-2, appendix B.1
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert asked["message_imprint"]["hashed_message"].native.hex() == digest
    assert asked["cert_req"].native is True and asked["version"].native == "v1"


def test_a_stamp_tells_when_and_by_whom(authority, stamped):
    stamp = check(*stamped)
    assert (stamp.time, stamp.authority) == (tsa.SEEN, "CN=Time Stamps")
    assert stamp.time.tzinfo is not None
    assert stamp.authority_sha256 == hashlib.sha256(authority.certificate.public_bytes(tsa.Encoding.DER)).hexdigest()


@pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl here to check the tests' authority with")
def test_the_authority_of_the_tests_is_one(stamped):
    file, root = stamped
    words = ["openssl", "ts", "-verify", "-data", file, "-in", timestamp.token_of(file), "-CAfile", root]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "Verification: OK" in done.stdout + done.stderr


def test_a_stamp_of_other_content_is_refused(stamped):
    file, root = stamped
    file.write_text('{"commitment": "01"}')
    with pytest.raises(UserError, match="not a valid time stamp of the commitment: Mismatch"):
        check(file, root)


def test_a_stamp_of_an_authority_that_is_not_trusted_is_refused(stamped, tmp_path):
    other = tsa.Authority().root(tmp_path / "other.pem")  # of the same name, with another key
    with pytest.raises(UserError, match="not a valid time stamp"):
        check(stamped[0], other)
    with pytest.raises(UserError, match="--tsa-root"):
        check(stamped[0])
    check(stamped[0], other, stamped[1])


def test_a_certificate_that_is_not_for_time_stamps_is_refused(stamped, tmp_path):
    server = tsa.Authority("Server", ExtendedKeyUsageOID.SERVER_AUTH)
    file = stamped[0]
    timestamp.token_of(file).write_bytes(server.answer(timestamp.request_of(file).read_bytes()))
    with pytest.raises(UserError, match="not a valid time stamp"):
        check(file, server.root(tmp_path / "server.pem"))


def test_a_stamp_after_the_authoritys_certificate_has_expired_is_refused(authority, stamped):
    file, root = stamped
    timestamp.token_of(file).write_bytes(authority.answer(timestamp.request_of(file).read_bytes(), tsa.later(3700)))
    with pytest.raises(UserError, match="expired"):
        check(file, root)


def test_no_byte_of_a_token_that_states_the_time_or_the_digest_can_be_changed(stamped):
    """Wherever the stated time and the message imprint stand in the token, another byte there is found."""
    file, root = stamped
    token = timestamp.token_of(file)
    honest = token.read_bytes()
    for part in (b"20250601123015Z", hashlib.sha256(file.read_bytes()).digest()):
        start = honest.index(part)
        for place in range(start, start + len(part), 5):
            token.write_bytes(honest[:place] + bytes([honest[place] ^ 1]) + honest[place + 1 :])
            with pytest.raises(UserError, match="time stamp|time-stamp"):
                check(file, root)


def test_certificates_in_any_order_are_read(authority, stamped):
    """Authorities that run openssl do not sort them, as DER would have it."""
    file, root = stamped
    token = timestamp.token_of(file)
    honest = token.read_bytes()
    leaf = authority.certificate.public_bytes(tsa.Encoding.DER)
    pair = x509.load_pem_x509_certificate(root.read_bytes()).public_bytes(tsa.Encoding.DER)
    orders = {leaf + pair, pair + leaf}
    (found,) = (order for order in orders if order in honest)
    (turned,) = orders - {found}
    token.write_bytes(honest.replace(found, turned))
    assert check(file, root).time == tsa.SEEN


def test_a_damaged_token_ends_in_a_sentence_or_states_the_same(stamped):
    file, root = stamped
    token, stamp = timestamp.token_of(file), check(*stamped)
    honest = token.read_bytes()
    refused = 0
    for place in range(0, len(honest), 7):
        token.write_bytes(honest[:place] + bytes([honest[place] ^ 0x21]) + honest[place + 1 :])
        try:
            assert check(file, root) == stamp
        except UserError:
            refused += 1
    assert refused > len(honest) // 14, "most bytes matter"


def test_a_refusal_and_what_is_no_token_are_refused(stamped):
    file, root = stamped
    refusal = bytes.fromhex("3005 3003 020102")  # TimeStampResp of a PKIStatusInfo alone: rejection (2)
    for content in (refusal, b"", b"junk", b"\x30\x80"):
        timestamp.token_of(file).write_bytes(content)
        with pytest.raises(UserError, match="is not a time-stamp response"):
            check(file, root)


def test_a_root_that_is_no_certificate_is_named(stamped, tmp_path):
    (tmp_path / "no.pem").write_text("no")
    with pytest.raises(UserError, match=r"no\.pem holds no certificates"):
        check(stamped[0], tmp_path / "no.pem")


def test_commands_write_the_request_and_check_the_answer(authority, tmp_path, capsys):
    file = tmp_path / "mine.commitment.json"
    assert cli.main(["timestamp", "request", str(file)]) == 1 and "cannot read" in capsys.readouterr().err
    file.write_text("{}")
    assert cli.main(["timestamp", "request", str(file)]) == 0
    request, token = tmp_path / "mine.commitment.tsq", tmp_path / "mine.commitment.tsr"
    assert f"--data-binary @{request} -o {token}" in capsys.readouterr().out
    words = ["timestamp", "check", str(file), "--tsa-root", str(authority.root(tmp_path / "root.pem"))]
    assert cli.main(words) == 1 and f"cannot read {token}" in capsys.readouterr().err
    token.write_bytes(authority.answer(request.read_bytes()))
    assert cli.main(words) == 0
    assert "existed on 2025-06-01 12:30:15+00:00, by the time stamp of CN=Time Stamps" in capsys.readouterr().out
