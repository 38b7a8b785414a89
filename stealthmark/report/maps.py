"""The maps that explaining left: one file a suspect's role and attack, brought together for the sheets that draw them."""

from pathlib import Path

import numpy as np

from stealthmark.layout import INDEPENDENT, MAPS, NO_ATTACK, STOLEN, UNTRAINED, Cell, Place, Study, suspect_folder
from stealthmark.report.results import AS_STOLEN

#: A cell's files: (role, attack) -> `maps.npz`.
Files = dict[tuple[str, str], Path]


class Maps:
    """What a cell's files hold.

    All suspects share `code` bool (n, n) and `image` uint8 (C, H, W); those of a mark that carries a code also `payload` bool
    (n, n), that code, and `asked` uint8 (C, H, W), a query. Each has an `answer` to that query, float (H, W), and at every
    access level maps float (n, n) by what was asked (`gated-qr`, `lime`, `key`, `key-lime`, `wrong-key`, ...).
    """

    def __init__(self, files: Files):
        self._arrays: dict[str, np.ndarray] = {}
        for (role, attack), path in files.items():
            with np.load(path, allow_pickle=False) as arrays:
                self._arrays |= {f"{role}/{attack}/{name}": arrays[name] for name in arrays.files}

    def common(self, name: str) -> np.ndarray | None:
        """An array that all suspects share."""
        return self._arrays.get(f"{AS_STOLEN.role}/{AS_STOLEN.attack}/{name}")

    def of(self, place: Place, name: str) -> np.ndarray | None:
        """An array of one suspect, seen at the place's access level where it has one."""
        parts = [place.role, place.attack, f"{place.strength:g}", *([place.access] if place.access else []), name]
        return self._arrays.get("/".join(parts))


def find(study: Study, cell: Cell, attacks: list[str]) -> Files:
    """The files of a cell that there are."""
    suspects = [(STOLEN, NO_ATTACK), *((STOLEN, attack) for attack in attacks)]
    suspects += [(INDEPENDENT, NO_ATTACK), (UNTRAINED, NO_ATTACK)]
    folder = study.explanations(cell)
    files = {(role, attack): suspect_folder(folder, Place(role, attack=attack)) / MAPS for role, attack in suspects}
    return {suspect: path for suspect, path in files.items() if path.exists()}
