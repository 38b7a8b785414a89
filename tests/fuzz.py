"""Damaged input of every kind, many times: each must end in one sentence, or be read as if nothing had happened.

    python tests/fuzz.py --inputs 1000 --seed 0

Every input is damaged and read in a process of its own, with a deadline and a limit on memory. The table counts how reading
ended: in a sentence; accepted, and equal to what is honest (of files without seal or checksum, which may say anything:
accepted); silently damaged, that is accepted and not equal; in a traceback; not within the deadline; with too much memory.
The exit status is 1 where one of the last four is not 0. An input depends on the seed and its number alone: `--only NUMBER`
reads a single one again and shows its traceback.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # no thread may exist before a fork
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from damage import BYTES, damage, forget_seals
from kinds import KINDS, OURS, SEALED, Silent, study
from tiny import known_plugins

from stealthmark.errors import UserError

SENTENCE, ACCEPTED, SILENT, TRACEBACK, HANG, MEMORY = OUTCOMES = (
    *("sentence", "accepted", "silently damaged", "traceback", "hang", "memory"),
)
BAD = (SILENT, TRACEBACK, HANG, MEMORY)
DEADLINE_S = 60.0
#: What an input may take beyond what the process has when it starts, in bytes.
LARGEST = 2 * 2**30


class Outcome(NamedTuple):
    """How reading a damaged input ended; `text`: the sentence, or what went wrong; `done`: to which file what was done."""

    outcome: str
    text: str
    done: str = ""


def honest(folder: Path) -> dict[str, object]:
    """Honest files of every kind, in `folder/KIND`, and in `folder/KIND-unsealed`; what is read of each."""
    results = study(folder / "study")
    read = {}
    for name, kind in KINDS.items():
        (folder / name).mkdir()
        kind.make(results, folder / name)
        if name in SEALED:
            shutil.copytree(folder / name, folder / f"{name}-unsealed")
            forget_seals(folder / f"{name}-unsealed")
        with tempfile.TemporaryDirectory() as copy:
            read[name] = kind.read(Path(shutil.copytree(folder / name, Path(copy) / "input")))
    return read


def fuzz_one(folder: Path, name: str, sealed: bool, expected: object, seed: int, number: int, shows: bool = False) -> Outcome:
    """Damage one input of a kind, and read it, in a process of its own."""
    with tempfile.TemporaryDirectory() as copy:
        source, ends = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(source)
            _child(
                folder / (name if sealed else f"{name}-unsealed"),
                Path(copy),
                name,
                sealed,
                expected,
                (seed, number),
                ends,
                shows,
            )
        os.close(ends)
        return _watch(pid, source)


def _child(source: Path, copy: Path, name: str, sealed: bool, expected: object, seed: tuple, pipe: int, shows: bool) -> None:
    """Never returns; what came of it goes into the pipe, first what was done, then how reading ended."""
    os.setsid()
    kind, rng = KINDS[name], np.random.default_rng(seed)
    if not shows:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
    with suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + LARGEST, used + LARGEST))

    def tell(*words: str) -> None:
        os.write(pipe, (json.dumps(words) + "\n").encode())

    try:
        folder = Path(shutil.copytree(source, copy / "input", copy_function=shutil.copyfile))
        files = sorted(file for pattern in kind.files for file in folder.glob(pattern) if file.is_file())
        file = files[int(rng.integers(len(files)))]
        done = damage(file, rng)
        tell(f"{file.relative_to(folder)}: {done}"[:300])
        read = kind.read(folder)
        told = sealed and file.suffix in kind.kept and (file.suffix in OURS or done in BYTES)
        tell(SILENT if told and read != expected else ACCEPTED, "")
    except UserError as error:
        text = str(error)
        tell(TRACEBACK if "\n" in text or not text else SENTENCE, text[:300])
    except Silent as error:
        tell(SILENT, str(error)[:300])
    except BaseException as error:
        if shows:
            traceback.print_exc()
        no_memory = isinstance(error, MemoryError) or "allocate" in str(error)
        where = traceback.extract_tb(error.__traceback__)[-1]
        tell(
            MEMORY if no_memory else TRACEBACK,
            f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"[:300],
        )
    finally:
        os._exit(0)


def _watch(pid: int, source: int) -> Outcome:
    """Wait for a child, until the deadline, and read what it told."""
    end = time.monotonic() + DEADLINE_S
    ended, usage = 0, None
    while not ended and time.monotonic() < end:
        ended, _, usage = os.wait4(pid, os.WNOHANG)
        if not ended:
            time.sleep(0.005)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # and whatever it started
    if not ended:
        os.waitpid(pid, 0)
    with os.fdopen(source, "rb") as pipe:
        lines = [json.loads(line) for line in pipe.read().decode().splitlines()]
    done = lines[0][0] if lines and len(lines[0]) == 1 else ""
    if not ended:
        return Outcome(HANG, f"more than {DEADLINE_S:g} s", done)
    if usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) > LARGEST:
        return Outcome(MEMORY, f"{usage.ru_maxrss} at most", done)
    return Outcome(*lines[-1], done) if lines and len(lines[-1]) == 2 else Outcome(TRACEBACK, "the process died", done)


def fuzz(inputs: int, seed: int, folder: Path, only: int | None = None, kinds: list[str] | None = None) -> dict[str, Counter]:
    """Kind -> how often reading ended how; what ended badly is printed."""
    counted: dict[str, Counter] = {}
    with known_plugins():
        with redirect_stdout(sys.stderr):  # what stages say of themselves
            expected = honest(folder)
        names = [name for name in KINDS if not kinds or name in kinds]
        for number in range(inputs) if only is None else [only]:
            name = names[number % len(names)]
            sealed = name not in SEALED or number // len(names) % 2 == 0
            outcome = fuzz_one(folder, name, sealed, expected[name], seed, number, shows=only is not None)
            label = name if sealed else f"{name}, unsealed"
            counted.setdefault(label, Counter())[outcome.outcome] += 1
            if outcome.outcome in BAD or only is not None:
                print(f"{number} {label}: {outcome.outcome}: {outcome.done}: {outcome.text}", flush=True)
    return counted


def table(counted: dict[str, Counter]) -> str:
    """The counts as text, a line a kind."""
    lines = [("kind", "inputs", *OUTCOMES)]
    total: Counter = sum(counted.values(), Counter())
    for label, counts in [*sorted(counted.items()), ("all", total)]:
        lines.append((label, str(counts.total()), *(str(counts[outcome]) for outcome in OUTCOMES)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main(argv: list[str] | None = None) -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--inputs", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", type=int, help="the number of a single input")
    arguments.add_argument("--kinds", nargs="+", choices=list(KINDS), help="default: all (numbers depend on this)")
    args = arguments.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        counted = fuzz(args.inputs, args.seed, Path(folder), args.only, args.kinds)
    print(table(counted))
    return int(any(counts[outcome] for counts in counted.values() for outcome in BAD))


if __name__ == "__main__":
    sys.exit(main())
