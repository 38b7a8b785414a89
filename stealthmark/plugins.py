"""Discovery of plug-ins: a file in a folder is its own registration.

The name is the file's stem with `-` for `_`: `stealthmark/datasets/kvasir_seg.py` is the dataset `kvasir-seg`.
A plug-in file defines one public class named after its kind (`Dataset`, `Architecture`, `Method`, `Attack`).
"""

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from stealthmark.errors import UserError

LIBRARY = Path(__file__).parent
ROOT = LIBRARY.parent
FOLDERS = {
    "dataset": [LIBRARY / "datasets"],
    "architecture": [LIBRARY / "architectures"],
    "method": [LIBRARY / "methods", ROOT / "baselines"],
    "attack": [LIBRARY / "attacks"],
}


def known(kind: str) -> dict[str, Path]:
    """The plug-ins of a kind: name -> file, sorted by name. Nothing is imported.

    Raises UserError when two files claim one name.
    """
    found: dict[str, Path] = {}
    for folder in FOLDERS[kind]:
        for path in sorted(folder.glob("[!_]*.py")):
            name = path.stem.replace("_", "-")
            if name in found:
                raise UserError(f"two files claim the {kind} {name!r}: {found[name]} and {path}")
            found[name] = path
    return dict(sorted(found.items()))


def load(kind: str, name: str) -> type:
    """The plug-in class called `name`. Raises UserError, listing the known names, when there is none."""
    files = known(kind)
    if name not in files:
        raise UserError(f"unknown {kind} {name!r}; known: {', '.join(files)}")
    module = _import(files[name])
    plugin = getattr(module, kind.capitalize(), None)
    if plugin is None:
        raise UserError(f"{files[name]} defines no class {kind.capitalize()}, which a {kind} plug-in must")
    plugin.name = name
    return plugin


@cache
def _import(path: Path) -> ModuleType:
    if path.is_relative_to(LIBRARY):
        return importlib.import_module(f"stealthmark.{path.parent.name}.{path.stem}")
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
