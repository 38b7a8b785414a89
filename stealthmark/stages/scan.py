"""Scan: a model -> how backdoored it looks to somebody who knows no key."""

from pathlib import Path

import torch

from stealthmark import dataset
from stealthmark.files import write_json
from stealthmark.layout import SCAN
from stealthmark.plugin import make
from stealthmark.scanner import ScannerContract
from stealthmark.stages.train import float_images, float_masks, load_network

#: Images that a scanner is given at most, the first of the attacker's share: somebody else's, as a buyer's are.
IMAGES = 128


def scan(data: Path, model: Path, scanner: dict, seed: int, out: Path, device: torch.device) -> None:
    """The score of the checkpoint in the folder `model`, into `scan.json`."""
    looks: ScannerContract = make("scanner", scanner)
    arrays = dataset.load(data).lazy_share("attacker")
    network, _ = load_network(model, arrays.images.shape[1], device)
    rows = slice(0, IMAGES)
    score = looks.score(network, float_images(arrays.images[rows]), float_masks(arrays.masks[rows]), seed)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SCAN, {"status": "ok", "scanner": looks.options(), "score": score})
