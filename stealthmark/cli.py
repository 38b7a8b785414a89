"""The command line: one sub-command a stage. Only the parser is here; `commands` holds what it runs.

Errors end in `main`, in ten lines. Click and Typer need as many, and want errors that derive from theirs: then the library
could not be used without a command line.
"""

import argparse
import errno
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import yaml

from stealthmark import commands, commands_claim, layout
from stealthmark.errors import UserError
from stealthmark.seeds import SECRET_BITS

NOT_WINDOWS = "stealthmark runs on Linux and macOS; on Windows, run it in the Windows Subsystem for Linux"
Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status. A UserError is one sentence on standard error and status 1."""
    if sys.platform == "win32":
        print(f"error: {NOT_WINDOWS}", file=sys.stderr)
        return 1
    words = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(words)
    args.typed = words
    try:
        return args.run(args) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: no disk space left{f' for {error.filename}' if error.filename else ''}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stealthmark",
        description="Ownership watermarks for medical image segmentation: mark a model, attack the mark, examine a suspect.",
        epilog="Plug-ins are given by name or with options: --method badnets, --method '{name: badnets, wrong: empty}'.",
    )
    add = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_study(add)
    _add_owner(add)
    _add_claim(add)
    _add_tables(add)
    return parser


def _command(
    add: Subcommands, name: str, run: Callable[[argparse.Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    sub = add.add_parser(name, help=text, description=text)
    sub.set_defaults(run=run)
    return sub


def _add_study(add: Subcommands) -> None:
    """The datasets, and one command a stage that computes."""
    sub = _command(add, "datasets", commands.datasets, "list every dataset: licence, address, and whether it is here")
    sub.add_argument("--data-root", type=Path, default=Path("data"), help="folder that holds the datasets")

    sub = _command(add, "prepare", commands.prepare, "source -> arrays")
    sub.add_argument("--dataset", type=_plugin, required=True)
    sub.add_argument("--size", type=int, required=True, help="side of the square images in px")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", type=Path, required=True)

    sub = _command(add, "train", commands.train, "prepared dataset -> clean model")
    _add_stage(sub)
    _add_training(sub)
    sub.add_argument("--fraction", type=_fraction, default=1.0, help="of the share's groups, drawn from the seed")
    sub.add_argument("--architecture", type=_plugin, default={"name": "unet"})
    sub.add_argument("--seed", type=int, default=0)

    sub = _command(add, "mark", commands.mark, "clean model -> marked model + key")
    _add_stage(sub)
    _add_training(sub)
    sub.add_argument("--clean", type=Path, required=True, help="the owner's clean model")
    sub.add_argument("--null", type=Path, help="a model that is not stolen, to fit detectors with (default: the clean one)")
    sub.add_argument("--key", type=Path, required=True, help="file to write the owner's key to, outside of --out")
    sub.add_argument("--method", type=_plugin, required=True)
    sub.add_argument("--access", nargs="+", default=["probabilities"], help="access levels to fit a detector for")
    sub.add_argument("--seed", type=_secret, help="what the key is drawn from, for studies alone (default: 256 secret bits)")
    sub.add_argument("--replace-key", action="store_true", help="write over a key that is there, for studies alone: it is lost")

    sub = _command(add, "attack", commands.attack, "marked model + attacker's data -> suspects")
    _add_stage(sub)
    sub.add_argument("--model", type=Path, required=True)
    sub.add_argument("--attack", type=_attack, required=True, help="one, or a list, each of which goes on from the one before")
    sub.add_argument("--seed", type=int, default=0)

    sub = _command(add, "examine", commands.examine, "suspects of a study + key + images -> evidence")
    _add_stage(sub)
    sub.add_argument("--key", type=Path, help="the owner's key; without it only the quality of segmentation is measured")
    _add_suspects(sub)
    sub.add_argument("--claims", type=_mapping, help="what others may claim, e.g. '{keys: 20, epsilon: 0.03, steps: 100}'")
    sub.add_argument("--seed", type=int, default=0, help="what the claims are drawn from")

    sub = _command(add, "explain", commands.explain, "suspects of a study + key + images -> which code explanations show")
    _add_stage(sub)
    sub.add_argument("--key", type=Path, required=True, help="the owner's key")
    _add_suspects(sub)
    sub.add_argument("--plan", type=_mapping, default={}, help="e.g. '{code: OWNER1, images: 3, queries: 512}'")
    sub.add_argument("--seed", type=int, default=0)

    sub = _command(add, "scan", commands.scan, "model -> how backdoored it looks to a scanner")
    _add_stage(sub)
    sub.add_argument("--model", type=Path, required=True)
    sub.add_argument("--scanner", type=_plugin, required=True)
    sub.add_argument("--seed", type=int, default=0)


def _add_owner(add: Subcommands) -> None:
    """The commands of somebody who has one model, and one suspect."""
    sub = _command(add, "certify", commands_claim.certify, "one suspect + key + images -> certificate")
    _add_data(sub)
    _add_device(sub)
    sub.add_argument("--key", type=Path, required=True, help="the owner's key")
    sub.add_argument(
        "--suspect",
        action=_Once,
        required=True,
        help="a model's folder, an nnU-Net results folder, an .onnx file, an http address; "
        f"exit status {commands.NOT_SHOWN} where ownership is not shown",
    )
    sub.add_argument(
        "--null",
        dest="nulls",
        action="append",
        default=[],
        metavar="[KIND=]FOLDER",
        type=_null,
        help="an independent model, or a folder of such, to rank the suspect among; may be repeated",
    )
    sub.add_argument("--access", default="probabilities", help="what the suspect's answers are, e.g. label")
    sub.add_argument("--claimant", default="The holder of the key", help="who claims the suspect")
    sub.add_argument("--commitment", metavar="FILE", type=Path, help="the commitment as it was published, to be compared with")
    sub.add_argument("--own", metavar="FOLDER", type=Path, help="the owner's model: its Dice stands beside the suspect's")
    _add_roots(sub)
    _add_sign(sub)
    sub.add_argument(
        "--interface",
        type=_mapping,
        default={},
        help="what an .onnx file or a service takes and gives, e.g. '{layout: nhwc, scale: 255}': see docs/http.md",
    )
    sub.add_argument("--limits", type=_mapping, default={}, help="e.g. '{budget: 500, batch: 16, timeout: 30, retries: 3}'")
    sub.add_argument(
        "--code-queries", type=int, default=512, help="queries for the code, where the mark carries one (default: 512)"
    )

    sub = _command(add, "export", commands.export, "model -> ONNX file")
    sub.add_argument("--model", type=Path, required=True, help="folder of a model")
    sub.add_argument("--out", type=Path, required=True, help="the .onnx file to write")

    sub = _command(add, "serve", commands.serve, "model -> HTTP service, as docs/http.md describes")
    sub.add_argument("--model", type=Path, required=True, help="folder of a model")
    sub.add_argument("--access", default="probabilities", help="what is shown of the probabilities")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on; by default only this machine is answered")
    sub.add_argument("--port", type=int, default=8000, help="0: any free one")
    _add_device(sub)


def _add_claim(add: Subcommands) -> None:
    """What makes a certificate one that others can rely on: a date, signatures, and checking it."""
    sub = _command(add, "timestamp", commands_claim.timestamp, "a commitment's time stamp (RFC 3161): its request, its check")
    sub.add_argument("action", choices=["request", "check"], help="write what to send to an authority; check what came back")
    sub.add_argument("commitment", type=Path, help="the file of the commitment; the authority's answer lies beside it, as .tsr")
    sub.add_argument("--out", type=Path, help="the request to write (default: beside the commitment, as .tsq)")
    _add_roots(sub)

    sub = _command(add, "signing-key", commands_claim.signing_key, "a new Ed25519 key to sign certificates with")
    sub.add_argument("--out", type=Path, required=True, help="the private key to write (PEM); the public one lies beside it")

    sub = _command(add, "sign", commands_claim.sign, "certificate -> the same, with one signature more")
    sub.add_argument("claim", type=Path, help="folder of the certificate")
    _add_sign(sub, required=True)

    sub = _command(
        add, "verify", commands_claim.verify, "certificate -> what of it holds; exit status 1 where something does not"
    )
    sub.add_argument("claim", type=Path, help="folder of the certificate, or its certificate.json")
    sub.add_argument("--key", type=Path, help="the owner's key, under seal: its queries are made again")
    sub.add_argument("--data", type=Path, help="with --key: folder of the prepared dataset that the suspect was asked with")
    sub.add_argument("--suspect", help="with --key and --data: the suspect, which is asked once more")
    sub.add_argument(
        "--signed-by", metavar="FILE", action="append", default=[], type=Path, help="a public key (PEM) that must have signed"
    )
    _add_roots(sub)


def _add_tables(add: Subcommands) -> None:
    """The commands that read what others computed. They need no torch."""
    sub = _command(add, "collate", commands.collate, "evidence of all runs -> rows")
    sub.add_argument("--suite", type=Path, required=True)
    sub.add_argument("--results", type=Path, required=True, help="folder of the suite's results")

    sub = _command(add, "report", commands.report, "rows -> tables, figures, HTML")
    sub.add_argument("--suite", type=Path, required=True)
    sub.add_argument("--results", type=Path, required=True)

    sub = _command(add, "check", commands.check, "validate a suite without running anything")
    sub.add_argument("suite", type=Path)


# --- what several commands take ---------------------------------------------------------------------------------------


def _add_data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", type=Path, required=True, help="folder of a prepared dataset")
    sub.add_argument("--out", type=Path, required=True, help="folder to write")


def _add_device(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    sub.add_argument("--threads", type=int, default=1, help="CPU threads")


def _add_stage(sub: argparse.ArgumentParser) -> None:
    _add_data(sub)
    _add_device(sub)
    sub.add_argument(
        "--record-failure", action="store_true", help="write a failure into the card and exit 0, so that others go on"
    )


def _add_training(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--share", default="owner", choices=["owner", "attacker"], help="whose cases to train on")
    sub.add_argument("--schedule", type=_mapping, default={}, help="e.g. '{epochs: 16, lr: 0.001}'")


def _add_roots(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--tsa-root",
        dest="tsa_roots",
        metavar="FILE",
        action="append",
        default=[],
        type=Path,
        help="root certificate (PEM) of a time-stamping authority that you trust; may be repeated",
    )


def _add_sign(sub: argparse.ArgumentParser, required: bool = False) -> None:
    sub.add_argument(
        "--sign",
        metavar="[ROLE=]FILE",
        action="append",
        default=[],
        required=required,
        type=_signer,
        help="a private key (PEM) to sign with, as claimant or examiner (default: claimant); may be repeated",
    )


def _add_suspects(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--suspect",
        dest="suspects",
        action="append",
        required=True,
        type=_suspect,
        metavar="ROLE[.MEMBER]/ATTACK=FOLDER",
        help="e.g. stolen/none=models/x, stolen/prune=suspects/x/prune or null.3/none=models/nulls/3; may be repeated",
    )
    sub.add_argument("--marked", type=Path, help="folder of the model that the key is of: where making it failed, so does this")


# --- types of arguments -----------------------------------------------------------------------------------------------


class _Once(argparse.Action):
    """An argument that may be given only once: of several suspects all but the last would be passed over."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:  # type: ignore[no-untyped-def]
        if getattr(namespace, self.dest) is not None:
            parser.error(f"argument {option_string}: given twice; a certificate is about one suspect")
        setattr(namespace, self.dest, values)


def _plugin(text: str) -> dict:
    value = _yaml(text)
    return {"name": value} if isinstance(value, str) else _mapping(text)


def _attack(text: str) -> dict | list[dict]:
    """One attack, or a list of attacks: each by name or with options."""
    value = _yaml(text)
    if not isinstance(value, list):
        return _plugin(text)
    steps = [{"name": step} if isinstance(step, str) else step for step in value]
    if not steps or not all(isinstance(step, dict) for step in steps):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names or mappings such as '[{{name: value}}, name]'")
    return steps


def _yaml(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not YAML: {str(error).splitlines()[0]}") from None


def _mapping(text: str) -> dict:
    value = _yaml(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name or a mapping such as '{{name: value}}'")
    return value


def _secret(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**SECRET_BITS):
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not a seed: a whole number from 0 to 2**{SECRET_BITS} - 1")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction: above 0, at most 1")
    return value


def _suspect(text: str) -> tuple[layout.Place, Path]:
    place, equals, folder = text.partition("=")
    if not (equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ROLE[.MEMBER]/ATTACK=FOLDER")
    try:
        return layout.parse_place(place), Path(folder)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _null(text: str) -> tuple[str, Path]:
    kind, equals, folder = text.rpartition("=")
    return (kind if equals else layout.NEVER_MARKED), Path(folder)


def _signer(text: str) -> tuple[str, Path]:
    role, equals, file = text.rpartition("=")
    if equals and role not in ("claimant", "examiner"):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form [ROLE=]FILE with the role claimant or examiner")
    return role or "claimant", Path(file)
