"""The command line: one sub-command a stage, each a thin shell around one function of `stages`."""

import argparse
import contextlib
import errno
import json
import math
import resource
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import yaml

from stealthmark.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status. A UserError is one sentence on standard error and status 1."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: no disk space left{f' for {error.filename}' if error.filename else ''}", file=sys.stderr)
        return 1
    return 0


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
    sub.add_argument("--method", type=_plugin, required=True)
    sub.add_argument("--schedule", type=_mapping, default={})
    sub.add_argument("--access", nargs="+", default=["probabilities"], help="access levels to fit a detector for")
    sub.add_argument("--seed", type=int, default=0)

    sub = command("attack", _attack, "marked model + attacker's data -> suspects")
    computing(sub)
    sub.add_argument("--model", type=Path, required=True)
    sub.add_argument("--attack", type=_plugin, required=True)
    sub.add_argument("--seed", type=int, default=0)

    def examined(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--suspect",
            dest="suspects",
            action="append",
            required=True,
            type=_suspect,
            metavar="SITUATION/ATTACK=FOLDER",
            help="e.g. stolen/none=models/x or stolen/prune=suspects/x/prune; may be repeated",
        )

    sub = command("examine", _examine, "predictor + key + images -> evidence and segmentation quality")
    computing(sub)
    sub.add_argument("--key", type=Path, help="the owner's key; without it only the quality is measured")
    examined(sub)

    sub = command("explain", _explain, "predictor + key + images -> which QR code explanations show, of anybody's model")
    computing(sub)
    sub.add_argument("--key", type=Path, required=True, help="the owner's key")
    sub.add_argument("--plan", type=_mapping, default={}, help="e.g. '{code: OWNER1, images: 3, queries: 512}'")
    sub.add_argument("--seed", type=int, default=0)
    examined(sub)

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
    _computing(
        args,
        stages.CARD,
        [args.clean / stages.CARD],
        lambda device: stages.mark(args.data, args.clean, args.method, schedule, args.access, args.seed, args.out, device),
    )


def _attack(args: argparse.Namespace) -> None:
    from stealthmark import stages

    _computing(
        args,
        stages.INDEX,
        [args.model / stages.CARD],
        lambda device: stages.attack(args.data, args.model, args.attack, args.seed, args.out, device),
    )


def _examine(args: argparse.Namespace) -> None:
    from stealthmark import stages

    needs = [args.key.with_name(stages.CARD)] if args.key and args.key.with_name(stages.CARD).exists() else []
    _computing(
        args,
        stages.EVIDENCE,
        needs,
        lambda device: stages.examine(args.data, args.key, args.suspects, args.out, device),
    )


def _explain(args: argparse.Namespace) -> None:
    from stealthmark import stages
    from stealthmark.explain import Plan

    plan = _checked(Plan, args.plan, "--plan")
    needs = [args.key.with_name(stages.CARD)] if args.key.with_name(stages.CARD).exists() else []
    _computing(
        args,
        stages.EXPLANATIONS,
        needs,
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
