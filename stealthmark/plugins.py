"""Discovery of plug-ins: a file in a folder is its own registration, and so is an entry point of an installed package.

A file's name is the plug-in's, with `-` for `_`: `stealthmark/datasets/kvasir_seg.py` is the dataset `kvasir-seg`. It defines
one public class named after its kind (`Dataset`, `Architecture`, `Method`, `Attack`, `Scanner`).
An entry point stands in a group such as `stealthmark.methods` and reads `name = "package.module:Class"`.
"""

import importlib
import importlib.util
import sys
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from stealthmark.errors import UserError

LIBRARY = Path(__file__).parent
ROOT = LIBRARY.parent
#: The distribution that this module belongs to. In a clone, files count, not what an installed copy of it says.
DISTRIBUTION = "stealthmark-benchmark"
FOLDERS = {
    "dataset": [LIBRARY / "datasets"],
    "architecture": [LIBRARY / "architectures"],
    "method": [LIBRARY / "methods"],
    "attack": [LIBRARY / "attacks"],
    "scanner": [LIBRARY / "scanners"],
}
if (ROOT / "Snakefile").exists():  # a clone; the folder beside an installed package is somebody else's
    FOLDERS["method"].append(ROOT / "baselines")

#: What a plug-in's class derives from.
CONTRACTS = {
    "dataset": "DatasetContract from stealthmark.dataset",
    "architecture": "ArchitectureContract from stealthmark.architecture",
    "method": "EmbeddedMark, ShownCode, ExplainedCode, Fingerprint or WhiteBoxMark from stealthmark.method",
    "attack": "ModelAttack or WrapperAttack from stealthmark.attack",
    "scanner": "ScannerContract from stealthmark.scanner",
}


def known(kind: str) -> dict[str, Path]:
    """The plug-ins of a kind: name -> file, sorted by name. Nothing is imported.

    Raises UserError when two files, or two packages, claim one name, or when an entry point leads nowhere.
    """
    return {name: owner if isinstance(owner, Path) else _file_of(owner) for name, owner in _owners(kind).items()}


def load(kind: str, name: str) -> type[Any]:
    """The plug-in class called `name`. Raises UserError, listing the known names, when there is none."""
    owners = _owners(kind)
    if name not in owners:
        raise UserError(f"unknown {kind} {name!r}; known: {', '.join(owners)}")
    owner = owners[name]
    if isinstance(owner, Path):
        module, attribute = _import(owner), kind.capitalize()
    else:
        _file_of(owner)  # one that leads nowhere ends in a sentence
        module, attribute = importlib.import_module(owner.module), owner.attr
    plugin = getattr(module, attribute, None)
    if not isinstance(plugin, type):
        raise UserError(
            f"{_named(owner)} defines no class {attribute}, which a {kind} plug-in must; "
            f"write `class {attribute}(...)` and derive it from {CONTRACTS[kind]}"
        )
    plugin.name = name  # type: ignore[attr-defined]  # a field of `Plugin`, which imports this module
    return plugin


def _owners(kind: str) -> dict[str, Path | EntryPoint]:
    """The file or the entry point that each plug-in of a kind comes from, by name, sorted."""
    owners: dict[str, Path | EntryPoint] = {}

    def claim(name: str, owner: Path | EntryPoint) -> None:
        if name in owners:
            raise UserError(f"two plug-ins claim the {kind} {name!r}: {_named(owners[name])} and {_named(owner)}")
        owners[name] = owner

    for folder in FOLDERS[kind]:
        for path in sorted(folder.glob("[!_]*.py")):
            claim(path.stem.replace("_", "-"), path)
    for entry in _entries(f"stealthmark.{kind}s"):
        if not (_package(entry) == DISTRIBUTION and isinstance(owners.get(entry.name), Path)):
            claim(entry.name, entry)
    return dict(sorted(owners.items()))


@cache
def _entries(group: str) -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=group), key=lambda entry: (entry.name, entry.value)))


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else ""


def _named(owner: Path | EntryPoint) -> str:
    if isinstance(owner, Path):
        return str(owner)
    return f"the entry point {owner.name!r} ({owner.value}) of the package {_package(owner)}"


@cache
def _file_of(entry: EntryPoint) -> Path:
    """The file of an entry point's module. Neither it nor the packages around it are imported."""
    package, *inner = entry.module.split(".")
    spec = importlib.util.find_spec(package)
    for part in inner:
        if spec:
            package = f"{package}.{part}"
            spec = PathFinder.find_spec(package, spec.submodule_search_locations or ())
    if not spec or not spec.origin:
        raise UserError(f"{_named(entry)} leads to no module; reinstall that package, or remove it")
    return Path(spec.origin)


@cache
def _import(path: Path) -> ModuleType:
    if path.is_relative_to(LIBRARY):
        return importlib.import_module(f"stealthmark.{path.parent.name}.{path.stem}")
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec and spec.loader, path  # a file that ends in .py has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
