"""Attack: marked model -> a thief's suspects, each a model or a wrapper around one."""

import os
from pathlib import Path

import torch

from stealthmark import architecture as architectures
from stealthmark import dataset
from stealthmark.attack import AttackContract, Theft, Wrap, attack_options
from stealthmark.files import write_json
from stealthmark.layout import INDEX, WEIGHTS
from stealthmark.plugin import make
from stealthmark.seeds import derive
from stealthmark.stages import digest
from stealthmark.stages.train import byte_tensors, load_network


def attack(data: Path, model: Path, attack: dict | list, seed: int, out: Path, device: torch.device) -> None:
    """All suspects of one attack on one marked model, listed in `index.json`: a checkpoint folder a strength; of a wrapper the
    stolen model's own folder, and what is around it. A list of attacks is an attack: see `attack.Stack`."""
    thief: AttackContract = make("attack", attack_options(attack))
    arrays = dataset.load(data).share("attacker")
    stolen, card = load_network(model, arrays.images.shape[1], device)
    images, masks = byte_tensors(arrays, device)
    out.mkdir(parents=True, exist_ok=True)
    suspects = []

    def keep(strength: float, suspect: torch.nn.Module | None, wraps: tuple[Wrap, ...]) -> None:
        folder = out / f"{strength:g}"
        if suspect is None:
            place = os.path.relpath(model, out)
        else:
            architectures.save(suspect, card, folder)
            place = folder.name
        suspects.append({"strength": strength, "model": place, "wraps": [wrap._asdict() for wrap in wraps]})

    def fresh() -> torch.nn.Module:
        torch.manual_seed(derive(seed, "fresh"))
        network = make("architecture", card["architecture"])
        return network.build(card["channels"], pretrained=True, size=card["size"]).to(device)

    run = digest(str(model), (model / WEIGHTS).stat().st_mtime_ns, thief.options(), seed)
    thief.run(Theft(stolen, images, masks, seed, out / "state", run, fresh, keep))
    write_json(out / INDEX, {"attack": thief.options(), "unit": thief.facts()["unit"], "suspects": suspects})
