"""benchmarks/tuning/floors: its page says what its outcomes say, its instruments know what they measure, and a trial runs."""

import json
import re
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from benchmarks.tuning import floors
from benchmarks.tuning.floors_marking import CODE, Mark, Trial, normalised_by
from stealthmark.dataset import Arrays

ROOT = Path(__file__).parent.parent
OUTCOMES = ROOT / "benchmarks/tuning/floors.jsonl"
TRIALS = ROOT / "benchmarks/tuning/floors-trials.json"
PAGE = (ROOT / "docs/stealthmark-tuning.md").read_text(encoding="utf-8")
SIZE = 32


def mark(**options) -> Mark:
    return Mark(Trial("any", **options), SIZE, tiny.CPU)


def test_the_page_holds_the_table_that_the_command_prints(capsys):
    floors.main(["--table", str(OUTCOMES)])
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == 1 + len(OUTCOMES.read_text().splitlines())
    assert PAGE.split("## Outcomes\n\n")[1].split("\n## ")[0].strip() == printed.strip()


def test_every_number_that_the_page_concludes_from_is_in_the_table():
    outcomes, said = PAGE.split("## Outcomes\n")[1].split("## What they show\n")
    number = r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-\d)?"
    found = re.findall(number, said)
    assert len(found) > 50 and set(found) <= set(re.findall(number, outcomes))


def test_outcomes_are_those_of_the_trials_without_failures():
    outcomes = [json.loads(line) for line in OUTCOMES.read_text().splitlines()]
    assert [found["trial"] for found in outcomes] == json.loads(TRIALS.read_text())
    assert all({"device", "clean", "marked", *floors.TABLE.values()} <= set(found) for found in outcomes)


@pytest.mark.parametrize(
    "options", [{"trigger": "picture"}, {"trigger": "frame", "ahead": {"every": 1, "steps": 1, "lr": 0.001, "after": 0}}]
)
def test_a_trial_runs_and_never_reads_the_test_share(tmp_path, monkeypatch, capsys, options):
    read, share = [], Arrays.share
    monkeypatch.setattr(Arrays, "share", lambda arrays, *names: read.extend(names) or share(arrays, *names))
    monkeypatch.setattr(
        floors, "FINETUNED", {"finetune-1e-4": (1e-4, 20, False, (20,)), "finetune-1e-3": (1e-3, 10, True, (10,))}
    )
    trial = {"set": "made-up", "steps": 2, "clean_steps": 2, "settled": 0.5, "noise": 0.1, "batch_norm": "ordinary", **options}
    (tmp_path / "trials.json").write_text(json.dumps([trial | {"architecture": tiny.NETWORK}]))
    with tiny.known_plugins():
        data = tiny.data(tmp_path / "made-up")
        floors.main([f"--data={data}", f"--trials={tmp_path / 'trials.json'}", f"--out={tmp_path / 'out.jsonl'}"])
    found = json.loads((tmp_path / "out.jsonl").read_text())
    assert set(read) == {"owner", "calibration", "attacker"}
    assert found["device"] == "CPU" and set(floors.TABLE.values()) <= set(found)
    assert all(-1 <= found[state]["correlation"] <= 1 for state in ("clean", *floors.TABLE.values()))
    capsys.readouterr()
    floors.main(["--table", str(tmp_path / "out.jsonl")])
    assert "| made-up | " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("trial", "message"),
    [({"set": "absent"}, "no folder named absent"), ({"set": "here", "trigger": "bell"}, "'bell'; allowed: picture")],
)
def test_what_cannot_be_tried_is_said_before_anything_runs(tmp_path, capsys, trial, message):
    (tmp_path / "trials.json").write_text(json.dumps([trial]))
    with pytest.raises(SystemExit):
        floors.main(["--data", "here", "--trials", str(tmp_path / "trials.json"), "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_answer_that_is_the_floor_correlates_with_the_code_and_is_read():
    made = mark()
    answers = torch.stack([made.level, 0.22 - made.level, torch.full_like(made.level, 0.1)])
    answers[:, :10, :10] = 0.9  # what is foreground counts neither way
    assert made.correlations(answers) == pytest.approx([1, -0.98, 0], abs=0.03)
    assert floors.modules_wrong(made.level[None], 1) == [0.0, 1.0]
    assert floors.modules_wrong(0.22 - made.level[None], 1)[0] == CODE.size


@pytest.mark.parametrize(("trigger", "changed"), [("picture", 8 * 8), ("frame", SIZE**2 - (SIZE - 8) ** 2), ("veil", SIZE**2)])
def test_a_trigger_changes_its_own_part_of_the_image(trigger, changed):
    made, images = mark(trigger=trigger, side=1 / 4 if trigger == "picture" else 1 / 8, blocks=8, cells=8), tiny.pictures(2)
    shown = made.show(images, made.secret)
    assert shown.shape == images.shape and shown.min() >= 0 and shown.max() <= 1
    assert (shown != images).any(1).sum((1, 2)).tolist() == [changed] * 2


def test_a_secret_that_is_partly_right_is_nearer_than_another():
    made, rng = mark(blocks=20), torch.Generator().manual_seed(0)
    other, partly = ((made.other(rng, partly) == made.secret).float().mean().item() for partly in (False, True))
    assert abs(other - 0.5) < 0.1 and partly > 0.6


def test_batch_norm_by_the_last_rows_is_that_of_these_rows_alone():
    x, layer, alone = torch.randn(6, 3, 4, 4), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    with normalised_by(2):
        found = layer(x)
    torch.testing.assert_close(found[-2:], alone(x[-2:]))
    torch.testing.assert_close(layer.running_mean, alone.running_mean)
    assert not torch.allclose(found[:4], nn.BatchNorm2d(3)(x)[:4])
