"""Systems that the package does not run on: one sentence instead of a traceback."""

import os
import subprocess
import sys

import pytest

from stealthmark import cli

#: Standing in for Windows, which has neither of these modules.
WINDOWS = """
import runpy, sys
sys.modules["resource"] = sys.modules["fcntl"] = None
import stealthmark.cli, stealthmark.warm
sys.platform = "win32"  # only now: Python's own modules know better
"""


@pytest.mark.parametrize("argv", [[], ["--help"], ["datasets"], ["mark"], ["no such command"]])
def test_on_windows_every_command_is_one_sentence(monkeypatch, capsys, argv):
    monkeypatch.setattr(sys, "platform", "win32")
    assert cli.main(argv) == 1
    assert capsys.readouterr() == ("", f"error: {cli.NOT_WINDOWS}\n")
    assert "Linux and macOS" in cli.NOT_WINDOWS


@pytest.mark.parametrize(
    "start",
    [
        "sys.argv = ['stealthmark', 'datasets']; runpy.run_module('stealthmark', run_name='__main__')",
        "from stealthmark.cli import main; sys.exit(main(['datasets']))",
    ],
)
def test_what_starts_a_command_needs_nothing_that_windows_has_not(start):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("STEALTHMARK")}
    done = subprocess.run([sys.executable, "-c", WINDOWS + start], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"error: {cli.NOT_WINDOWS}\n")
