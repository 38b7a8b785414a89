"""A small study for the tests: plug-ins that the library has none of, a prepared dataset, networks that nobody trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from stealthmark import architecture, cli, layout, plugins, suite
from stealthmark.layout import Cell, Place, Study
from stealthmark.method import Detector, Key, Owner, digest_of
from stealthmark.plugin import make
from stealthmark.stages.prepare import prepare

CPU = torch.device("cpu")
SIZE = 32
NETWORK = {"name": "small-net"}
PHANTOM = {"name": "phantom-endoscopy", "groups": 12, "cases_per_group": 2}

PLUGINS = Path(__file__).parent / "plugins"
#: The marks in there, by the kind that they stand for.
FINGERPRINT, WHITE_BOX = {"name": "reference-answers"}, {"name": "weight-bits"}


@contextmanager
def known_plugins() -> Iterator[None]:
    """The plug-ins of `tests/plugins` are known as if they were in the library."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, folders in plugins.FOLDERS.items():
            patch.setitem(plugins.FOLDERS, kind, [*folders, PLUGINS / f"{kind}s"])
        yield


def pictures(n: int = 4, channels: int = 3, height: int = SIZE, width: int | None = None, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, height, width or height, generator=rng)


def data(folder: Path, seed: int = 1, **options) -> Path:
    """A prepared phantom: 12 patients of 2 cases, 3 of them in the test share."""
    prepare({**PHANTOM, **options}, SIZE, seed, folder)
    return folder


def network(seed: int, options: dict = NETWORK, channels: int = 3) -> torch.nn.Module:
    torch.manual_seed(seed)
    return make("architecture", options).build(channels, pretrained=False, size=SIZE).eval()


def checkpoint(folder: Path, seed: int, options: dict = NETWORK) -> Path:
    architecture.save(network(seed, options), architecture.card_for(options, 3, SIZE), folder)
    return folder


def key(file: Path, method: dict, images: np.ndarray, seed: int = 4, owner: Owner | None = None, **thresholds: float) -> Key:
    """A key that is committed to these images uint8 (N, C, H, W), with thresholds that nothing was fitted for."""
    detectors = {level: Detector(threshold=value, fitted_on={}) for level, value in thresholds.items()}
    key = make("method", method).make_key(seed, tuple(images.shape[1:]), owner)
    key = key.model_copy(update={"detectors": detectors, "images": digest_of(images)})
    key.write(file)
    return key


def run(*argv: object) -> int:
    """The exit status of a command."""
    return cli.main([str(word) for word in argv])


def study(content: dict, results: Path) -> suite.Suite:
    """A suite, run by the commands that the workflow orders, up to its evidence: what is left is to collate."""
    file = results / layout.SUITE
    file.write_text(yaml.safe_dump(content))
    read = suite.read(file)
    for entry in read.datasets:
        options = ["--dataset", flow(entry.options()), "--size", read.size, "--seed", 1]
        assert run("prepare", *options, "--out", Study(results).data(entry.label)) == 0
    for step in (_make, _examine):  # a mark's null models carry other marks
        for cell in read.cells():
            step(read, Study(results), cell)
    return read


def flow(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()


def folder_of(at: Study, cell: Cell, place: Place) -> Path:
    """Where the model, or the attack's suspects, at a place lie."""
    if place.role == layout.STOLEN:
        return at.model(cell) if place.attack == layout.NO_ATTACK else at.attacked(cell, place.attack)
    if place.role == layout.NULL:
        return at.null(cell, place.member)
    return at.independent(cell) if place.role == layout.INDEPENDENT else at.model(cell._replace(method=layout.CLEAN))


def _stage(data: Path, verb: str, *argv: object) -> None:
    assert run(verb, "--data", data, *argv) == 0


def _make(read: suite.Suite, at: Study, cell: Cell) -> None:
    stage, clean = partial(_stage, at.data(cell.dataset)), cell._replace(method=layout.CLEAN)

    if cell.method == layout.CLEAN:
        models = [(at.model(cell), "owner"), (at.twin(cell), "owner"), (at.independent(cell), "attacker")]
        models += [(at.null(cell, str(number)), "attacker") for number in range(read.nulls.count if read.nulls else 0)]
        made = ["--architecture", flow(read.entry("architecture", cell.architecture).options())]
        made += ["--schedule", flow(read.training.model_dump())]
        for seed, (out, share) in enumerate(models):
            stage("train", *made, "--share", share, "--seed", seed, "--out", out)
    else:
        null = at.twin(cell) if read.facts("method", cell.method)["kind"] == "fingerprint" else at.model(clean)
        owners = [(at.model(clean), null, "owner", at.key(cell), at.model(cell))]
        others = [member for member in read.pool(cell.method) if layout.null_kind(member) == layout.OTHER_KEY]
        for number in map(str, range(len(others))):
            other = at.independent(cell)
            owners.append((other, other, "attacker", at.key_of_other(cell, number), at.other_key(cell, number)))
        made = ["--method", flow(read.entry("method", cell.method).options()), "--access", *read.access]
        made += ["--schedule", flow(read.marking.model_dump())]
        for seed, (start, null, share, key, out) in enumerate(owners):
            made_by = [*made, "--clean", start, "--null", null, "--share", share, "--seed", seed]
            stage("mark", *made_by, "--replace-key", "--key", key, "--out", out)
        for entry in read.attacks:
            attack = flow(entry.options())
            stage("attack", "--model", at.model(cell), "--attack", attack, "--out", at.attacked(cell, entry.label))


def _examine(read: suite.Suite, at: Study, cell: Cell) -> None:
    stage, key = partial(_stage, at.data(cell.dataset)), [] if cell.method == layout.CLEAN else ["--key", at.key(cell)]

    def suspects(places: list[Place]) -> list[str]:
        return [f"--suspect={place.text}={folder_of(at, cell, place)}" for place in places]

    def jobs(places: list[Place]) -> Iterator[tuple[tuple[str, str], list[str]]]:
        for job in dict.fromkeys((place.role, place.attack) for place in places):
            yield job, suspects([place for place in places if (place.role, place.attack) == job])

    evidence = at.evidence(cell)
    for job, of_job in jobs(read.line_up(cell)):
        stage("examine", *key, *of_job, "--out", layout.job_folder(evidence, *job))
    if read.claims and read.pool(cell.method):
        plan = flow(read.claims.model_dump())
        unattacked = suspects([place for place in read.line_up(cell) if place.attack == layout.NO_ATTACK])
        stage("examine", *key, *unattacked, "--claims", plan, "--out", layout.claims_folder(evidence))
    for job, of_job in jobs(read.explained(cell)):
        plan = flow(read.explanations.model_dump())
        stage("explain", *key, *of_job, "--plan", plan, "--out", layout.job_folder(at.explanations(cell), *job))
    for place in read.scanned(cell):
        for entry in read.scanners:
            scanned = ["--model", folder_of(at, cell, place), "--scanner", flow(entry.options())]
            stage("scan", *scanned, "--out", at.scan(cell, place.role, place.member, entry.label))
