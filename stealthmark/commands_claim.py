"""What the commands of a claim do with their arguments: time stamp, certificate, signatures, and checking all of it."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from stealthmark import layout
from stealthmark.commands import NOT_SHOWN, checked
from stealthmark.errors import UserError

if TYPE_CHECKING:
    from stealthmark.certificate_facts import Role
    from stealthmark.signature import PrivateKey


def timestamp(args: argparse.Namespace) -> None:
    from stealthmark import timestamp

    token = timestamp.token_of(args.commitment)
    if args.action == "request":
        out = args.out or timestamp.request_of(args.commitment)
        timestamp.request(args.commitment, out)
        print(f"The request: {out}. Send it to a time-stamping authority, and keep its answer as {token}:")
        print(f"  curl -H 'Content-Type: application/timestamp-query' --data-binary @{out} -o {token} ADDRESS")
        return
    try:
        content = args.commitment.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {args.commitment}: {error.strerror}") from None
    stamp = timestamp.check(content, token, args.tsa_roots)
    print(f"{args.commitment} existed on {stamp.time}, by the time stamp of {stamp.authority}.")


def certify(args: argparse.Namespace) -> int:
    from stealthmark.certificate_page import HTML
    from stealthmark.device import choose
    from stealthmark.stages.certify import certify
    from stealthmark.suspects.interface import Interface
    from stealthmark.suspects.querier import Limits

    certificate = certify(
        data=args.data,
        key_file=args.key,
        suspect=args.suspect,
        nulls=_null_models(args.nulls),
        access=args.access,
        claimant=args.claimant,
        published=args.commitment,
        created=datetime.now(UTC).replace(microsecond=0),
        out=args.out,
        device=choose(args.device, args.threads),
        limits=checked(Limits, args.limits, "--limits"),
        code_queries=args.code_queries,
        interface=checked(Interface, args.interface, "--interface"),
        own=args.own,
        tsa_roots=args.tsa_roots,
        sign=_keys(args.sign),
    )
    print(f"{certificate.heading}. {certificate.summary}")
    for reason in certificate.reasons:
        print(f"  {reason.state}: {reason.text}")
    print(f"The certificate: {args.out / HTML}")
    return 0 if certificate.verdict == "shown" else NOT_SHOWN


def _null_models(folders: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """(kind, folder) of every model in these folders, or in folders inside of them."""
    models = []
    for kind, folder in folders:
        cards = sorted(folder.rglob(layout.CARD))
        if not cards:
            raise UserError(f"--null: there is no model in {folder}")
        models += [(kind, card.parent) for card in cards]
    return models


def _keys(files: list[tuple["Role", Path]]) -> list[tuple["Role", "PrivateKey"]]:
    from stealthmark.signature import read_key

    return [(role, read_key(file)) for role, file in files]


def signing_key(args: argparse.Namespace) -> None:
    from stealthmark.signature import new_key, public_file

    public = new_key(args.out)
    print(f"The key: {args.out}, for you alone; {public_file(args.out)}, for others. The public key: {public}")


def sign(args: argparse.Namespace) -> None:
    from stealthmark.certificate import Certificate
    from stealthmark.certificate_page import HTML, JSON, write

    try:
        made = Certificate.model_validate_json((args.claim / JSON).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {args.claim / JSON}: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{args.claim / JSON} is no certificate to sign: {error.errors()[0]['msg']}") from None
    signed = made.signed(_keys(args.sign))
    write(signed, args.claim)
    print(f"{args.claim / HTML} is signed by the {' and the '.join(one.role for one in signed.signatures)}.")


def verify(args: argparse.Namespace) -> int:
    from stealthmark.signature import read_public_key
    from stealthmark.stages.verify import verify

    signers = [read_public_key(file) for file in args.signed_by]
    findings = verify(args.claim, args.key, args.data, args.tsa_roots, signers, args.suspect)
    for finding in findings:
        print(f"  {finding.state}: {finding.text}")
    if wrong := [finding for finding in findings if finding.state == "does not hold"]:
        print(f"The certificate does not hold: {wrong[0].text}", file=sys.stderr)
        return 1
    print("The certificate holds, as far as it was checked.")
    return 0
