"""Two runs in one folder: the second is refused while the first lives, and unlocks the folder when it is dead."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ALONE = Path(__file__).parents[1] / "workflow/alone.py"
#: Stands for Snakemake: locks the folder, works until its input ends, and says when it was asked to unlock.
STUDY = """#!/bin/sh
case "$*" in *--unlock*) rm .snakemake/locks/*; echo unlocked; exit 0;; esac
mkdir -p .snakemake/locks; touch .snakemake/locks/0.input.lock
echo at work; read line; rm .snakemake/locks/*; echo done
"""


@pytest.fixture
def start(tmp_path):
    study = tmp_path / "study"
    study.write_text(STUDY)
    study.chmod(0o755)
    runs = []

    def run(script: Path | None = ALONE) -> subprocess.Popen:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, str(script), str(study)] if script else [str(study)]
        runs.append(subprocess.Popen(command, cwd=tmp_path, text=True, **pipes))
        return runs[-1]

    yield run
    for process in runs:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_second_run_is_refused_while_the_first_lives(start, tmp_path):
    first = start()
    assert first.stdout.readline() == "at work\n"
    second = start()
    out, err = second.communicate()
    assert (second.returncode, out) == (1, "")
    assert err == f"error: another run is at work in this folder (process {first.pid}): wait for it, or stop it\n"
    assert (tmp_path / ".snakemake/locks/0.input.lock").exists()
    assert first.communicate("go on\n")[0] == "done\n" and first.returncode == 0
    third = start()
    assert third.stdout.readline() == "at work\n", "nothing was left to unlock"


def test_the_lock_of_a_killed_run_goes(start):
    first = start()
    assert first.stdout.readline() == "at work\n"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = start()
    assert [second.stdout.readline(), second.stdout.readline()] == ["unlocked\n", "at work\n"]


def test_the_lock_of_a_snakemake_that_somebody_started_by_hand_stays(start, tmp_path):
    (tmp_path / "snakemake").write_text(
        "import pathlib\npathlib.Path('.snakemake/locks').mkdir(parents=True)\n"
        "pathlib.Path('.snakemake/locks/0.input.lock').touch()\nprint('at work', flush=True)\ninput()\n"
    )
    by_hand = subprocess.Popen(
        [sys.executable, "snakemake"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert by_hand.stdout.readline() == "at work\n"
    second = start()
    assert f"process {by_hand.pid}" in second.communicate()[1] and second.returncode == 1
    by_hand.communicate("go on\n")
    assert start().stdout.readline() == "unlocked\n"
