"""The command line: one sub-command a stage, each a thin shell around one function of `stages`."""

import argparse
import contextlib
import errno
import json
import math
import re
import resource
import secrets
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import yaml

from stealthmark.errors import UserError

#: The exit status where a suspect was examined and ownership is not shown.
NOT_SHOWN = 3


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status. A UserError is one sentence on standard error and status 1."""
    args = _parser().parse_args(argv)
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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def computing(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--data", type=Path, required=True, help="folder of a prepared dataset")
        sub.add_argument("--out", type=Path, required=True, help="folder to write")
        sub.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
        sub.add_argument("--threads", type=int, default=1, help="CPU threads")
        sub.add_argument(
            "--record-failure",
            action="store_true",
            help="write a failure into the card and exit 0, so that others go on",
        )

    sub = command("datasets", _datasets, "list every dataset: licence, address, and whether it is here")
    sub.add_argument("--data-root", type=Path, default=Path("data"), help="folder that holds the datasets")

    sub = command("prepare", _prepare, "source -> arrays")
    sub.add_argument("--dataset", type=_plugin, required=True)
    sub.add_argument("--size", type=int, required=True, help="side of the square images in px")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", type=Path, required=True)

    sub = command("train", _train, "prepared dataset -> clean model")
    computing(sub)
    sub.add_argument("--share", default="owner", choices=["owner", "attacker"], help="whose cases to train on")
    sub.add_argument("--fraction", type=_fraction, default=1.0, help="of the share's groups, drawn from the seed")
    sub.add_argument("--architecture", type=_plugin, default={"name": "unet"})
    sub.add_argument("--schedule", type=_mapping, default={}, help="e.g. '{epochs: 16, lr: 0.001}'")
    sub.add_argument("--seed", type=int, default=0)

    sub = command("mark", _mark, "clean model -> marked model + key")
    computing(sub)
    sub.add_argument("--clean", type=Path, required=True, help="the owner's clean model")
    sub.add_argument("--key", type=Path, required=True, help="file to write the owner's key to, outside of --out")
    sub.add_argument("--share", default="owner", choices=["owner", "attacker"], help="whose cases to train on")
    sub.add_argument("--method", type=_plugin, required=True)
    sub.add_argument("--schedule", type=_mapping, default={})
    sub.add_argument("--access", nargs="+", default=["probabilities"], help="access levels to fit a detector for")
    sub.add_argument("--seed", type=int, help="what the key is drawn from (default: a secret one)")

    sub = command("attack", _attack, "marked model + attacker's data -> suspects")
    computing(sub)
    sub.add_argument("--model", type=Path, required=True)
    sub.add_argument("--attack", type=_plugin, required=True)
    sub.add_argument("--seed", type=int, default=0)

    def examined(sub: argparse.ArgumentParser, kind: Callable, alone: str = "") -> None:
        sub.add_argument(
            "--suspect",
            dest="suspects",
            action="append",
            required=True,
            type=kind,
            metavar="SITUATION/ATTACK=FOLDER",
            help=f"{alone}e.g. stolen/none=models/x or stolen/prune=suspects/x/prune; may be repeated",
        )

    sub = command("examine", _examine, "predictor + key + images -> evidence: of one suspect a certificate, of many a table")
    computing(sub)
    sub.add_argument("--key", type=Path, help="the owner's key; without it only the quality of many is measured")
    alone = "one alone for a certificate (a model's folder, an .onnx file, an http address; exit status 3 where ownership is "
    examined(sub, _target, alone + "not shown); or, of a study, ")
    one = sub.add_argument_group("one suspect")
    one.add_argument(
        "--null",
        dest="nulls",
        action="append",
        default=[],
        metavar="[KIND=]FOLDER",
        type=_null,
        help="an independent model, or a folder of such, to rank the suspect among; may be repeated",
    )
    one.add_argument("--access", default="probabilities", help="what the suspect's answers are, e.g. label")
    one.add_argument("--claimant", default="The holder of the key", help="who claims the suspect")
    one.add_argument("--commitment", metavar="FILE", type=Path, help="the commitment as it was published, to be compared with")
    one.add_argument(
        "--code-queries", type=int, default=512, help="queries for the code, where the mark carries one (default: 512)"
    )
    one.add_argument("--limits", type=_mapping, default={}, help="e.g. '{budget: 500, batch: 16, timeout: 30, retries: 3}'")
    many = sub.add_argument_group("many suspects, of a study")
    many.add_argument("--claims", type=_mapping, help="what others may claim, e.g. '{keys: 20, epsilon: 0.03, steps: 100}'")
    many.add_argument("--seed", type=int, default=0, help="what the claims are drawn from")

    sub = command("explain", _explain, "predictor + key + images -> which QR code explanations show, of anybody's model")
    computing(sub)
    sub.add_argument("--key", type=Path, required=True, help="the owner's key")
    sub.add_argument("--plan", type=_mapping, default={}, help="e.g. '{code: OWNER1, images: 3, queries: 512}'")
    sub.add_argument("--seed", type=int, default=0)
    examined(sub, _suspect)

    sub = command("collate", _collate, "evidence of all runs -> rows")
    sub.add_argument("--suite", type=Path, required=True)
    sub.add_argument("--results", type=Path, required=True, help="folder of the suite's results")

    sub = command("report", _report, "rows -> tables, figures, HTML")
    sub.add_argument("--suite", type=Path, required=True)
    sub.add_argument("--results", type=Path, required=True)

    sub = command("export", _export, "model -> ONNX file")
    sub.add_argument("--model", type=Path, required=True, help="folder of a model")
    sub.add_argument("--out", type=Path, required=True, help="the .onnx file to write")

    sub = command("serve", _serve, "model -> HTTP service, as docs/http.md describes")
    sub.add_argument("--model", type=Path, required=True, help="folder of a model")
    sub.add_argument("--access", default="probabilities", help="what is shown of the probabilities")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on; by default only this machine is answered")
    sub.add_argument("--port", type=int, default=8000, help="0: any free one")
    sub.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    sub.add_argument("--threads", type=int, default=1, help="CPU threads")

    sub = command("check", _check, "validate a suite without running anything")
    sub.add_argument("suite", type=Path)
    return parser


def _plugin(text: str) -> dict:
    value = _yaml(text)
    return {"name": value} if isinstance(value, str) else _mapping(text)


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


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction: above 0, at most 1")
    return value


def _suspect(text: str) -> tuple[str, str, Path]:
    place, _, folder = text.partition("=")
    situation, _, attack = place.partition("/")
    if not (situation and attack and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form SITUATION/ATTACK=FOLDER")
    return situation, attack, Path(folder)


def _target(text: str) -> tuple[str, str, Path] | str:
    """A suspect of a study, or one that is to be examined alone: whatever is not of the form of the first."""
    return _suspect(text) if re.match(r"[a-z0-9.-]+/[a-z0-9.-]+=", text) else text


def _null(text: str) -> tuple[str, Path]:
    kind, equals, folder = text.rpartition("=")
    return (kind if equals else "never marked"), Path(folder)


def _computing(args: argparse.Namespace, card: str, needs: list[Path], run: Callable) -> None:
    """Run a stage on its device. A failure of its input is handed on; its own is recorded where that is asked for."""
    from stealthmark.architecture import write_json
    from stealthmark.device import choose
    from stealthmark.stages import status_of

    started = time.monotonic()
    status = next((status for need in needs if (status := status_of(need)) != "ok"), "ok")
    if status == "ok":
        try:
            run(choose(args.device, args.threads))
        except UserError:
            raise
        except Exception as error:
            if not args.record_failure or getattr(error, "errno", None) == errno.ENOSPC:
                raise
            traceback.print_exc()
            status = f"failed: {(str(error) or type(error).__name__).splitlines()[0]}"
    if status != "ok":
        print(status, file=sys.stderr)
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / card, {"status": status})
    _note_run(args.out, started, status)


def _note_run(folder: Path, started: float, status: str = "ok") -> None:
    """`run.json` beside a stage's card: what was run, how it ended, for how long and with how much memory."""
    from stealthmark.architecture import write_json

    spent = {
        "command": shlex.join(["python", "-m", "stealthmark", *sys.argv[1:]]),
        "status": status,
        "seconds": round(time.monotonic() - started, 2),
        # kilobytes on Linux, bytes on macOS
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)),
    }
    write_json(folder / "run.json", spent)


def _schedule(options: dict):
    from stealthmark.training import Schedule

    return _checked(Schedule, options, "--schedule")


def _checked(kind, options: dict, argument: str):
    from pydantic import ValidationError

    from stealthmark.plugin import explain

    try:
        return kind(**options)
    except ValidationError as error:
        raise UserError(f"{argument}: {explain(error, kind)}") from None


def _datasets(args: argparse.Namespace) -> None:
    from stealthmark.dataset import listing

    print(listing(args.data_root))


def _prepare(args: argparse.Namespace) -> None:
    from stealthmark import stages

    started = time.monotonic()
    stages.prepare(args.dataset, args.size, args.seed, args.out)
    _note_run(args.out, started)


def _train(args: argparse.Namespace) -> None:
    from stealthmark import stages

    schedule = _schedule(args.schedule)
    _computing(
        args,
        stages.CARD,
        [],
        lambda device: stages.train(
            args.data, args.share, args.architecture, schedule, args.seed, args.out, device, args.fraction
        ),
    )


def _mark(args: argparse.Namespace) -> None:
    from stealthmark import stages

    schedule = _schedule(args.schedule)
    if args.key.resolve().is_relative_to(args.out.resolve()):
        raise UserError(f"--key: {args.key} lies inside the model's folder {args.out}, which others will get")
    seed = secrets.randbits(62) if args.seed is None else args.seed
    _computing(
        args,
        stages.CARD,
        [args.clean / stages.CARD],
        lambda device: stages.mark(
            args.data, args.clean, args.method, schedule, args.access, seed, args.out, args.key, device, args.share
        ),
    )


def _attack(args: argparse.Namespace) -> None:
    from stealthmark import stages

    _computing(
        args,
        stages.INDEX,
        [args.model / stages.CARD],
        lambda device: stages.attack(args.data, args.model, args.attack, args.seed, args.out, device),
    )


def _examine(args: argparse.Namespace) -> int | None:
    from stealthmark import stages
    from stealthmark.claims import Plan

    alone = [suspect for suspect in args.suspects if isinstance(suspect, str)]
    if alone:
        if len(args.suspects) > 1:
            raise UserError(f"--suspect: {alone[0]!r} is examined alone; of a study it is SITUATION/ATTACK=FOLDER")
        return _certify(args, alone[0])
    plan = None if args.claims is None else _checked(Plan, args.claims, "--claims")
    _computing(
        args,
        stages.EVIDENCE,
        _stolen(args.suspects),
        lambda device: stages.examine(args.data, args.key, args.suspects, args.out, device, plan, args.seed),
    )


def _certify(args: argparse.Namespace, suspect: str) -> int:
    from stealthmark import stages
    from stealthmark.architecture import read_json
    from stealthmark.certificate import HTML
    from stealthmark.device import choose
    from stealthmark.predictor import Limits

    if args.key is None:
        raise UserError("--key is needed to examine a suspect")
    limits = _checked(Limits, args.limits, "--limits")
    published = None
    if args.commitment:
        try:
            published = args.commitment.name, str(read_json(args.commitment).get("commitment"))
        except OSError as error:
            raise UserError(f"cannot read {args.commitment}: {error.strerror}") from None
    nulls = []
    for kind, folder in args.nulls:
        found = sorted(card.parent for card in folder.rglob(stages.CARD))
        if not found:
            raise UserError(f"--null: there is no model in {folder}")
        nulls += [(kind, null) for null in found]
    now = datetime.now(UTC).replace(microsecond=0)
    device = choose(args.device, args.threads)
    made = stages.certify(
        args.data,
        args.key,
        suspect,
        nulls,
        args.access,
        args.claimant,
        published,
        now,
        args.out,
        device,
        limits,
        args.code_queries,
    )
    print(f"Ownership is {made.verdict}. {made.summary}")
    for reason in made.reasons:
        print(f"  {reason.state}: {reason.text}")
    print(f"The certificate: {args.out / HTML}")
    return 0 if made.verdict == "shown" else NOT_SHOWN


def _stolen(suspects: list[tuple[str, str, Path]]) -> list[Path]:
    """The cards of the models as they were stolen: where marking failed there is no key to examine anything with."""
    from stealthmark.stages import CARD

    cards = [folder / CARD for situation, attack, folder in suspects if (situation, attack) == ("stolen", "none")]
    return [card for card in cards if card.exists()]


def _explain(args: argparse.Namespace) -> None:
    from stealthmark import stages
    from stealthmark.explain import Plan

    plan = _checked(Plan, args.plan, "--plan")
    _computing(
        args,
        stages.EXPLANATIONS,
        _stolen(args.suspects),
        lambda device: stages.explain(args.data, args.key, args.suspects, plan, args.seed, args.out, device),
    )


def _collate(args: argparse.Namespace) -> None:
    from stealthmark.collate import collate
    from stealthmark.suite import read

    collate(read(args.suite), args.results)


def _report(args: argparse.Namespace) -> None:
    from stealthmark.report import study
    from stealthmark.suite import read

    study(read(args.suite), args.results)


def _export(args: argparse.Namespace) -> None:
    from stealthmark.onnxfile import export

    export(args.model, args.out)


def _serve(args: argparse.Namespace) -> None:
    from stealthmark import architecture
    from stealthmark.device import choose
    from stealthmark.predictor import at_access, from_model
    from stealthmark.server import address_of, server

    device = choose(args.device, args.threads)
    model, card = architecture.load(args.model, device)
    shown = at_access(from_model(model, device), args.access)
    shape = (card["channels"], card["size"], card["size"])
    with server(shown, shape, args.host, args.port) as serving, contextlib.suppress(KeyboardInterrupt):
        print(f"{args.model} at {address_of(serving)}, access {args.access}; Ctrl-C ends it", flush=True)
        serving.serve_forever()


def _check(args: argparse.Namespace) -> None:
    from stealthmark.suite import read

    suite = read(args.suite)
    print(json.dumps({"suite": suite.suite, "cells": len(suite.cells())}))
