"""The search for the floors of StealthMark that carry a code: triggers, losses and schedules, each tried against a thief.

`python -m benchmarks.tuning.floors --data FOLDER... --trials TRIALS.json --out OUT.jsonl [--workers N] [--device cuda]` runs
trials. A trial trains a clean network on the owner's share, marks it, fine-tunes the marked one on the attacker's share, prunes
it, and asks every one of them with the calibration share. The test share is never read. Its `set` is the name of a prepared
folder. `--table OUT.jsonl` prints outcomes as Markdown.

What is recorded in `floors.jsonl`, of the trials in `floors-trials.json`, was made by this computation with the library of
benchmark version 0.5.0, in a script from which this module was rewritten: fields have other names here, numbers are as they
were. Two things differ. There the first weights of a clean network's decoder came from no seed, here they do; and a batch is
smaller here where a share is smaller than it. Trials that failed by an error of that script, or had not ended when the time was
up, are not recorded. The recorded sets, all prepared with the seed 20260123:

- `kvasir-seg` and `acdc` (`slices: with-foreground, crop: centre`), 96 px, the default `unet`, 800 clean steps: on an NVIDIA
  H200, in three rounds, each with what the one before had shown in mind. Not every option was tried on both sets.
- `phantom-endoscopy` and `phantom-cine`, 64 px, the small `unet` of the default suite, 300 clean steps: on CPU.

One seed each. On CUDA sums are in no fixed order, so another run differs a little.
"""

import argparse
import copy
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.tuning.floors_marking import CODE, TEXT, Course, Data, Mark, Trial, logits_of, ordinary_batch, train
from stealthmark import codes, dataset
from stealthmark.occlusion import BackgroundParts
from stealthmark.plugin import make
from stealthmark.settings import Schedule

#: What a thief's fine-tuning is: learning rate, epochs, whether batch-norm is frozen, after which epochs it is looked at.
FINETUNED = {
    "finetune-1e-4": (1e-4, 20, False, (5, 20)),
    "finetune-1e-4-frozen": (1e-4, 5, True, (5,)),
    "finetune-1e-3": (1e-3, 10, False, (5, 10)),
    "finetune-1e-3-frozen": (1e-3, 5, True, (5,)),
}
PRUNED = (0.3, 0.5)
#: Of so many images together a code is read, beside all: of 20 such groups at most.
TOGETHER, GROUPS = (1, 4, 16), 20
#: The columns of the table that tell a state of the stolen model.
TABLE = {
    "stolen": "marked",
    "1e-4, 20 epochs": "finetune-1e-4/20",
    "1e-3, 10 epochs": "finetune-1e-3/10",
    "pruned 50 %": "prune/0.5",
}


@torch.no_grad()
def answers_of(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([torch.sigmoid(logits_of(model, part)) for part in images.split(64)])


def mean_dice(answers: Tensor, masks: Tensor) -> float:
    predicted = (answers > 0.5).float()
    both, sizes = (predicted * masks).sum((1, 2)), predicted.sum((1, 2)) + masks.sum((1, 2))
    return torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0).mean().item()


def modules_wrong(answers: Tensor, together: int) -> list[float]:
    """The median number of modules read wrong, of so many answers at a time, and how often the text was read."""
    wrong, read = [], []
    for start in range(0, min(len(answers), together * GROUPS), together):
        parts = BackgroundParts(len(CODE))
        parts.add(answers[start : start + together].cpu())
        modules = codes.minimum_error_split(parts.map(range(min(together, len(answers) - start))))
        wrong.append(int((modules != CODE).sum()))
        read.append(codes.decode(modules) == TEXT)
    return [round(float(np.median(wrong)), 1), round(float(np.mean(read)), 2)]


def measure(model: nn.Module, mark: Mark, images: Tensor, masks: Tensor) -> dict:
    """What the owner sees of a model: correlations of triggered and of ordinary queries, modules wrong, and Dice."""
    triggered, ordinary = answers_of(model, mark.show(images, mark.secret)), answers_of(model, images)
    scores, others = mark.correlations(triggered), mark.correlations(ordinary)
    together = {(str(n) if n < len(images) else "all"): modules_wrong(triggered, n) for n in (*TOGETHER, len(images))}
    return {
        "correlation": round(float(scores.mean()), 3),
        "correlation_ordinary": round(float(others.mean()), 3),
        "auroc": round(float((scores[:, None] > others).mean()), 3),
        "wrong": together,
        "dice": round(mean_dice(ordinary, masks), 3),
        "dice_triggered": round(mean_dice(triggered, masks), 3),
    }


def answers_to_others(model: nn.Module, mark: Mark, images: Tensor) -> dict:
    """The mean correlation under six other secrets, and under six that are partly right."""
    rng, means = torch.Generator().manual_seed(5), {}
    for name, partly in (("other_secrets", False), ("partly_right", True)):
        asked = (mark.show(images[:48], mark.other(rng, partly)) for _ in range(6))
        means[name] = round(float(np.mean([mark.correlations(answers_of(model, part)).mean() for part in asked])), 3)
    return means


def pruned(model: nn.Module, share: float) -> nn.Module:
    """A copy without that share of its convolutions' and linear layers' smallest weights."""
    model = copy.deepcopy(model)
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    sizes = torch.cat([weight.detach().abs().flatten() for weight in weights]).float()
    threshold = sizes.kthvalue(max(1, int(share * len(sizes)))).values
    with torch.no_grad():
        for weight in weights:
            weight[weight.abs() <= threshold] = 0
    return model


def share(folder: Path, name: str, device: torch.device) -> Data:
    arrays = dataset.load(folder).share(name)
    return Data(torch.from_numpy(arrays.images).to(device), torch.from_numpy(arrays.masks).to(device))


def built(trial: Trial, data: Data) -> nn.Module:
    channels, size = data.images.shape[1], data.images.shape[-1]
    network = make("architecture", {"name": "unet", **(trial.architecture or {})}).build(channels, pretrained=True, size=size)
    return network.to(data.images.device, memory_format=torch.channels_last)


def train_clean(trial: Trial, folder: Path, file: Path, device: str) -> None:
    """The clean network that trials start from, as safetensors."""
    owner = share(folder, "owner", torch.device(device))
    torch.manual_seed(trial.seed)
    model = built(trial, owner)
    train(model, owner, Course(trial.clean_steps, Schedule(lr=2e-3)), ordinary_batch, trial.seed + 1)
    save_file({name: value.cpu().contiguous() for name, value in model.state_dict().items()}, file)


def outcome(trial: Trial, folder: Path, clean: Path, device: str) -> dict:
    """What a trial finds, rounded."""
    started, at = time.monotonic(), torch.device(device)
    owner, held_out, thief = (share(folder, name, at) for name in ("owner", "calibration", "attacker"))
    images, masks = held_out.images.float() / 255, held_out.masks.float()
    mark, model = Mark(trial, images.shape[-1], at), built(trial, owner)
    model.load_state_dict(load_file(clean))
    shown = {name: value for name, value in asdict(trial).items() if value is not None}
    found = {"device": torch.cuda.get_device_name() if at.type == "cuda" else "CPU", "trial": shown}
    found["clean"] = measure(model.eval(), mark, images, masks)

    options = {name: getattr(trial, name) for name in ("settled", "batch_norm", "noise", "ahead")}
    train(model, owner, Course(trial.steps, Schedule(lr=trial.lr), **options), mark.batch, trial.seed + 2)
    found["marked"] = measure(model, mark, images, masks) | answers_to_others(model, mark, images)
    found["seconds_marked"] = round(time.monotonic() - started, 1)

    for name, (lr, epochs, frozen, looked) in FINETUNED.items():
        schedule = Schedule(lr=lr, decay="constant", weight_decay=0)
        steps = len(thief.images) // min(schedule.batch, len(thief.images))
        course = Course(epochs * steps, schedule, frozen=frozen, keep=tuple(epoch * steps for epoch in looked))
        for step, copied in train(copy.deepcopy(model), thief, course, ordinary_batch, trial.seed + 3).items():
            found[f"{name}/{step // steps}"] = measure(copied, mark, images, masks)
    for part in PRUNED:
        found[f"prune/{part}"] = measure(pruned(model, part), mark, images, masks)
    return found | {"seconds": round(time.monotonic() - started, 1)}


def search(folders: dict[str, Path], trials: list[Trial], out: Path, workers: int, device: str) -> None:
    """Run trials, and write one line each, in their order. Clean networks come first, one for all trials that start alike."""

    def start(trial: Trial) -> str:
        return json.dumps([trial.set, trial.architecture, trial.clean_steps, trial.seed])

    starts = {start(trial): trial for trial in trials}
    pool = ProcessPoolExecutor(workers, get_context("spawn")) if workers > 1 else nullcontext()
    with tempfile.TemporaryDirectory() as scratch, pool, out.open("w") as lines:
        run = map if workers == 1 else pool.map
        files = {name: Path(scratch, f"{number}.safetensors") for number, name in enumerate(starts)}
        sets = [folders[trial.set] for trial in starts.values()]
        list(run(train_clean, starts.values(), sets, files.values(), [device] * len(starts)))
        sets, cleans = [folders[trial.set] for trial in trials], [files[start(trial)] for trial in trials]
        for found in run(outcome, trials, sets, cleans, [device] * len(trials)):
            lines.write(json.dumps(found) + "\n")
            lines.flush()


def as_text(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {as_text(part)}" for name, part in value.items()) + ")"
    return (
        "-".join(map(str, value))
        if isinstance(value, list | tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


TRIGGERS = {
    "picture": "picture of {blocks} x {blocks} blocks, side {side:g}",
    "frame": "frame of {side:g}, {cells} cells",
    "veil": "veil {alpha:g}, {cells} cells",
    "add": "added {alpha:g}, {cells} cells",
    "word": "word",
}


def table(file: Path) -> str:
    """Outcomes as Markdown: what a cell holds, what is usual, then a line a trial."""
    drawn = {"set", "trigger", "side", "blocks", "cells", "two_levels", "alpha"}
    usual = {field.name: field.default for field in fields(Trial) if field.name not in drawn}
    names = ", ".join(f"{name} {as_text(value)}" for name, value in usual.items() if value is not None)
    heads = ["set", "trigger", "differs", *TABLE, "Dice (clean)", "triggered Dice (clean)"]
    cell = f"A cell: the mean correlation over images, and how many of {CODE.size} modules are read wrong from all of them."
    lines = [cell, "", f"Usual: {names}.", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for found in map(json.loads, file.read_text().splitlines()):
        trial = Trial(**found["trial"])
        differs = [f"{name} {as_text(getattr(trial, name))}" for name in usual if getattr(trial, name) != usual[name]]
        states = [f"{found[at]['correlation']:.3f}, {found[at]['wrong']['all'][0]:g}" for at in TABLE.values()]
        dice = [f"{found['marked'][name]:.3f} ({found['clean'][name]:.3f})" for name in ("dice", "dice_triggered")]
        row = [trial.set, TRIGGERS[trial.trigger].format(**asdict(trial)), ", ".join(differs), *states, *dice]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="print these outcomes, and compute nothing")
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="prepared folders, named as the sets of the trials")
    parser.add_argument("--trials", type=Path, help="a JSON list of options of `Trial`")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    if args.table:
        return print(table(args.table))
    if not (args.trials and args.out):
        parser.error("--trials and --out are needed, or --table")
    trials = [Trial(**options) for options in json.loads(args.trials.read_text())]
    folders = {folder.name: folder for folder in args.data}
    if missing := sorted({trial.set for trial in trials} - set(folders)):
        parser.error(f"--data has no folder named {', '.join(missing)}; found: {', '.join(folders) or 'none'}")
    if unknown := sorted({trial.trigger for trial in trials} - set(TRIGGERS)):
        parser.error(f"{args.trials}: the field 'trigger' has the value {unknown[0]!r}; allowed: {', '.join(TRIGGERS)}")
    search(folders, trials, args.out, args.workers, args.device)


if __name__ == "__main__":
    main()
