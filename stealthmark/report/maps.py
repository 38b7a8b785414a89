"""The maps that explaining left: one file a suspect's role and attack, brought together for the sheets that draw them."""

from pathlib import Path

import numpy as np

from stealthmark.errors import UserError
from stealthmark.files import REMEDY, read_arrays
from stealthmark.layout import INDEPENDENT, MAPS, NO_ATTACK, STOLEN, UNTRAINED, Cell, Place, Study, suspect_folder
from stealthmark.report.results import AS_STOLEN

#: A cell's files: (role, attack) -> `maps.npz`.
Files = dict[tuple[str, str], Path]
#: The arrays of a file that are codes, and those that are pictures. All others are maps of a code's cells.
CODES, PICTURES = ("code", "payload"), ("image", "asked", "answer", "mask")


class Maps:
    """What a cell's files hold.

    All suspects share `code` bool (n, n) and `image` uint8 (C, H, W); those of a mark that carries a code also `payload` bool
    (n, n), that code, and `asked` uint8 (C, H, W), a query; where answers show it by themselves `mask` uint8 (H, W) too, what
    is true of that query. Each has an `answer` to that query, float (H, W), and at every
    access level maps float (n, n) by what was asked (`gated-qr`, `lime`, `key`, `key-lime`, `wrong-key`, ...).
    """

    def __init__(self, files: Files):
        self._arrays: dict[str, np.ndarray] = {}
        for (role, attack), path in files.items():
            self._arrays |= {f"{role}/{attack}/{name}": array for name, array in read_arrays(path).items()}
        _check(files, self._arrays)

    def common(self, name: str) -> np.ndarray | None:
        """An array that all suspects share."""
        return self._arrays.get(f"{AS_STOLEN.role}/{AS_STOLEN.attack}/{name}")

    def of(self, place: Place, name: str) -> np.ndarray | None:
        """An array of one suspect, seen at the place's access level where it has one."""
        parts = [place.role, place.attack, f"{place.strength:g}", *([place.access] if place.access else []), name]
        return self._arrays.get("/".join(parts))


def _check(files: Files, arrays: dict[str, np.ndarray]) -> None:
    """Raises UserError for an array that is neither a picture nor as large as a code."""
    codes = {(len(array), len(array)) for name, array in arrays.items() if name.endswith(CODES) and array.ndim}
    for place, array in arrays.items():
        role, attack, name = place.split("/", 2)
        fits = (
            array.ndim in (2, 3)
            if name.endswith(PICTURES)
            else array.ndim == 2 and array.shape in (codes or {array.shape[::-1]})
        )
        if array.dtype.kind not in "biuf" or not array.size or not fits:
            raise UserError(f"{files[role, attack]}: {name} is {array.dtype} of the shape {array.shape}; {REMEDY}")


def find(study: Study, cell: Cell, attacks: list[str]) -> Files:
    """The files of a cell that there are."""
    suspects = [(STOLEN, NO_ATTACK), *((STOLEN, attack) for attack in attacks)]
    suspects += [(INDEPENDENT, NO_ATTACK), (UNTRAINED, NO_ATTACK)]
    folder = study.explanations(cell)
    files = {(role, attack): suspect_folder(folder, Place(role, attack=attack)) / MAPS for role, attack in suspects}
    return {suspect: path for suspect, path in files.items() if path.exists()}
