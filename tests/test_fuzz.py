"""A short run of the fuzz: no traceback, no hang, nothing damaged that is accepted, no memory eaten."""

import subprocess
import sys
from pathlib import Path

import damage
import numpy as np
import pytest
from fuzz import BAD, DEADLINE_S, OUTCOMES, SEALED
from kinds import KINDS

FUZZ = Path(__file__).parent / "fuzz.py"


def test_sixty_damaged_inputs_end_in_a_sentence_or_do_no_harm():
    done = subprocess.run([sys.executable, FUZZ, "--inputs", "60", "--seed", "0"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    counts = done.stdout.splitlines()[-1].split()
    assert counts[:2] == ["all", "60"] and counts[4:] == ["0"] * len(BAD)
    assert int(counts[2]) > 20, "most damage is noticed"


def test_every_kind_is_fuzzed_and_every_bad_end_is_counted():
    assert {"prepared", "folder", "nifti", "suite", "key", "model", "attack", "rows", "arrays", "evidence"} < KINDS.keys()
    assert {"certificate", "onnx", "http"} < KINDS.keys() and set(SEALED) < KINDS.keys()
    assert set(BAD) < set(OUTCOMES) and DEADLINE_S > 0


@pytest.mark.parametrize("name", damage.BYTES)
def test_damage_changes_bytes_and_depends_on_the_seed_alone(name):
    content = bytes(range(256)) * 4
    first, again = (damage.BYTES[name](content, np.random.default_rng(1)) for _ in range(2))
    assert first == again != content
