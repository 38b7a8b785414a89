"""Prepare: source -> arrays."""

from pathlib import Path

from stealthmark import dataset as datasets
from stealthmark.plugin import make


def prepare(dataset: dict, size: int, seed: int, out: Path) -> None:
    """The dataset with the options `dataset`, at `size` px, into the folder `out`."""
    datasets.prepare(make("dataset", dataset), size, seed, out)
