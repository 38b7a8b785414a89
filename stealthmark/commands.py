"""What each command does with its arguments: a thin shell around one function of a stage.

Torch takes seconds to import, which checking a suite and collating its rows need not spend: the functions import what does.
"""

import argparse
import contextlib
import errno
import json
import secrets
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from stealthmark import layout
from stealthmark.errors import UserError
from stealthmark.files import FILES, sums, write_json
from stealthmark.plugin import describe_error
from stealthmark.progress import log
from stealthmark.seeds import SECRET_BITS
from stealthmark.settings import ClaimPlan, ExplanationPlan, Marking, Schedule

if TYPE_CHECKING:
    import torch

#: The exit status of `certify` where ownership is not shown.
NOT_SHOWN = 3

Model = TypeVar("Model", bound=BaseModel)


def datasets(args: argparse.Namespace) -> None:
    from stealthmark.dataset import listing

    print(listing(args.data_root))


def prepare(args: argparse.Namespace) -> None:
    from stealthmark.stages.prepare import prepare

    started = time.monotonic()
    prepare(args.dataset, args.size, args.seed, args.out)
    _note_run(args, started)


def train(args: argparse.Namespace) -> None:
    from stealthmark.stages.train import train

    schedule = checked(Schedule, args.schedule, "--schedule")

    def run(device: "torch.device") -> None:
        train(args.data, args.share, args.architecture, schedule, args.seed, args.out, device, args.fraction)

    _compute(args, layout.CARD, [], run)


def mark(args: argparse.Namespace) -> None:
    from stealthmark.stages.mark import mark

    schedule = checked(Marking, args.schedule, "--schedule")
    if args.key.resolve().is_relative_to(args.out.resolve()):
        raise UserError(f"--key: {args.key} lies inside the model's folder {args.out}, which others will get")
    seed = secrets.randbits(SECRET_BITS) if args.seed is None else args.seed
    if args.seed is not None:
        log(f"note: the key in {args.key} follows from --seed: whoever knows that has the key, so never claim a model with it")
    args.typed = _without(args.typed, "--seed", "--key")  # the note lies in the model's folder, which others will get

    def run(device: "torch.device") -> None:
        mark(
            data=args.data,
            clean=args.clean,
            method=args.method,
            schedule=schedule,
            access=args.access,
            seed=seed,
            out=args.out,
            key_file=args.key,
            device=device,
            share=args.share,
            null=args.null,
            replace_key=args.replace_key,
        )

    _compute(args, layout.CARD, [folder / layout.CARD for folder in (args.clean, args.null) if folder], run)


def attack(args: argparse.Namespace) -> None:
    from stealthmark.stages.attack import attack

    def run(device: "torch.device") -> None:
        attack(args.data, args.model, args.attack, args.seed, args.out, device)

    _compute(args, layout.INDEX, [args.model / layout.CARD], run)


def examine(args: argparse.Namespace) -> None:
    from stealthmark.stages.examine import examine, examine_claims

    plan = None if args.claims is None else checked(ClaimPlan, args.claims, "--claims")
    if plan and not args.key:
        raise UserError("--claims needs --key: a claim is made against a model that was marked with a key")

    def run(device: "torch.device") -> None:
        if plan:
            examine_claims(args.data, args.key, args.suspects, plan, args.seed, args.out, device)
        else:
            examine(args.data, args.key, args.suspects, args.out, device)

    _compute(args, layout.EVIDENCE, _cards_of_the_key(args), run)


def explain(args: argparse.Namespace) -> None:
    from stealthmark.stages.explain import explain

    plan = checked(ExplanationPlan, args.plan, "--plan")

    def run(device: "torch.device") -> None:
        explain(args.data, args.key, args.suspects, plan, args.seed, args.out, device)

    _compute(args, layout.EXPLANATIONS, _cards_of_the_key(args), run)


def scan(args: argparse.Namespace) -> None:
    from stealthmark.stages.scan import scan

    def run(device: "torch.device") -> None:
        scan(args.data, args.model, args.scanner, args.seed, args.out, device)

    _compute(args, layout.SCAN, [args.model / layout.CARD], run)


def collate(args: argparse.Namespace) -> None:
    from stealthmark.collate import collate
    from stealthmark.suite import read

    collate(read(args.suite), args.results)


def report(args: argparse.Namespace) -> None:
    from stealthmark.report import study
    from stealthmark.suite import read

    study(read(args.suite), args.results)


def export(args: argparse.Namespace) -> None:
    from stealthmark.suspects.onnx import export

    export(args.model, args.out)


def serve(args: argparse.Namespace) -> None:
    from stealthmark import architecture
    from stealthmark.access import at_access
    from stealthmark.device import choose
    from stealthmark.suspects.checkpoint import from_model
    from stealthmark.suspects.server import server

    device = choose(args.device, args.threads)
    model, card = architecture.load(args.model, device)
    predictor = at_access(from_model(model, device), args.access)
    shape = (card["channels"], card["size"], card["size"])
    with server(predictor, shape, args.host, args.port) as serving, contextlib.suppress(KeyboardInterrupt):
        print(f"{args.model} at {serving.address}, access {args.access}; Ctrl-C ends it", flush=True)
        serving.run()


def check(args: argparse.Namespace) -> None:
    from stealthmark.suite import read

    suite = read(args.suite)
    print(json.dumps({"suite": suite.suite, "cells": len(suite.cells())}))


def _cards_of_the_key(args: argparse.Namespace) -> list[Path]:
    """The cards of the model that was marked with the key: where marking failed, there is no key to examine anything with."""
    stolen = [folder / layout.CARD for place, folder in args.suspects if place.as_stolen]
    marked = [args.marked / layout.CARD] if args.marked else []
    return [*marked, *(card for card in stolen if card.exists())]


def _compute(args: argparse.Namespace, card: str, needs: list[Path], run: "Callable[[torch.device], None]") -> None:
    """Run a stage on its device. A failure of its input, in one of the cards `needs`, is handed on. Its own failure is written
    into its `card` where that is asked for."""
    from stealthmark.device import choose
    from stealthmark.stages import status_of

    started = time.monotonic()
    status = next((status for need in needs if (status := status_of(need)) != "ok"), "ok")
    note = args.out / layout.RUN
    before = note.read_bytes() if note.is_file() else None
    if status == "ok":
        try:
            note.unlink(missing_ok=True)  # what it lists is being replaced
            run(choose(args.device, args.threads))
        except UserError:
            if before is not None:
                note.write_bytes(before)
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
    _note_run(args, started, status, listed=True)


def _note_run(args: argparse.Namespace, started: float, status: str = "ok", listed: bool = False) -> None:
    """`run.json` beside a stage's card: what was run, how it ended, for how long and with how much memory; where `listed`, the
    SHA-256 of the tables, arrays and weights that it wrote."""
    import resource  # not at the top: Windows has none, and gets one sentence from `cli`

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux, bytes on macOS
    note = {
        "command": shlex.join(["python", "-m", "stealthmark", *args.typed]),
        "status": status,
        "seconds": round(time.monotonic() - started, 2),
        "core_seconds": round(time.process_time(), 2),  # which other jobs on the machine lengthen less
        "peak_mb": round(memory / (2**20 if sys.platform == "darwin" else 1024)),
    }
    write_json(args.out / layout.RUN, {**note, FILES: sums(args.out)} if listed else note)


def _without(words: list[str], *arguments: str) -> list[str]:
    """The words of a command, with `...` in place of what these arguments are."""
    kept = []
    for before, word in zip(["", *words], words, strict=False):
        argument, equals, _ = word.partition("=")
        kept.append("..." if before in arguments else f"{argument}=..." if equals and argument in arguments else word)
    return kept


def checked(model: type[Model], options: dict, argument: str) -> Model:
    """The options of an argument as a `model`. Raises UserError that names the argument, the field, and what is allowed."""
    try:
        return model(**options)
    except ValidationError as error:
        raise UserError(f"{argument}: {describe_error(error, model)}") from None
