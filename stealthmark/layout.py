"""Where everything of a study lies and what it is called. The only module that builds or parses these names.

No torch here: collating and reporting read names alone.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# Files of a folder.
CARD, WEIGHTS, RUN = "card.json", "model.safetensors", "run.json"
MANIFEST, INDEX = "manifest.json", "index.json"
EVIDENCE, CASES, POOL, EXAMPLES, RELIABILITY = (
    *("evidence.json", "cases.parquet", "pool.parquet"),
    *("examples.npz", "reliability.npz"),
)
EXPLANATIONS, TRIES, MAPS, SCAN = "explanations.json", "explanations.parquet", "maps.npz", "scan.json"
ROWS, PROVENANCE, SUITE, REPORT, CAPTIONS = "rows.csv", "provenance.json", "suite.yaml", "report.html", "captions.json"

#: What a label is: part of the name of a folder, and of a place.
LABEL = "[a-z0-9][a-z0-9.-]*"
#: The method that every suite starts with, and the attack that stands for none.
CLEAN, NO_ATTACK = "clean", "none"

# What a suspect is to the key that it is examined with.
STOLEN, INDEPENDENT, NULL, UNTRAINED = "stolen", "independent", "null", "untrained"
#: Claims of somebody else against the model as it was stolen.
CLAIMS = ("wrong-trigger", "wrong-key", "natural", "search", "climb", "adversarial")
ROLES = (STOLEN, INDEPENDENT, NULL, UNTRAINED, *CLAIMS)

# Members of the null pool.
NEVER_MARKED, OTHER_KEY, OTHER_METHOD = "never marked", "another owner's key", "another method's mark"


class Cell(NamedTuple):
    """One combination of a suite, by labels: what one line of the main table is made of."""

    dataset: str
    architecture: str
    seed: int
    method: str


class Place(NamedTuple):
    """Where a suspect stands in a cell: what it is (`role`; `member` tells those of one role apart), what was done to it
    (`attack`, `strength`), and through which interface it is seen (`access`)."""

    role: str = STOLEN
    member: str = ""
    attack: str = NO_ATTACK
    strength: float = 0.0
    access: str = ""

    @property
    def as_stolen(self) -> bool:
        """The stolen model, not attacked."""
        return (self.role, self.attack) == (STOLEN, NO_ATTACK)

    @property
    def text(self) -> str:
        """`stolen/prune`, `null.3/none`: how a command names the suspects of one folder. `parse_place` reads it."""
        return f"{self.role}{'.' * bool(self.member)}{self.member}/{self.attack}"


def parse_place(text: str) -> Place:
    """The place that `Place.text` names. Raises ValueError, one sentence, for anything else."""
    named = re.fullmatch(rf"([a-z-]+)(?:\.({LABEL}))?/({LABEL})", text)
    if not named or named[1] not in ROLES:
        raise ValueError(f"{text!r} is not of the form ROLE[.MEMBER]/ATTACK with the role one of {', '.join(ROLES)}")
    return Place(named[1], named[2] or "", named[3])


def other_key(number: int | str) -> str:
    """The member of the null pool that carries another owner's key."""
    return f"key-{number}"


def null_kind(member: str) -> str:
    """What a member of the null pool is: `NEVER_MARKED` (a number), `OTHER_KEY` or `OTHER_METHOD` (that method's label)."""
    if member.isdigit():
        return NEVER_MARKED
    return OTHER_KEY if re.fullmatch(r"key-\d+", member) else OTHER_METHOD


def check_labels(kind: str, labels: list[str]) -> None:
    """Raises ValueError, one sentence, where a label of `kind` is one that the layout keeps for something else."""
    kept = {"method": ("independent", "twin", "nulls", "other-keys", "claims"), "attack": (NO_ATTACK,)}.get(kind, ())
    for label in labels:
        if label in kept:
            raise ValueError(f"field '{kind}s' has the label {label!r}, which is kept for what has that name in every suite")
        if kind == "method" and null_kind(label) != OTHER_METHOD:
            raise ValueError(f"field 'methods' has the label {label!r}, which is kept for members of the null pool")


@dataclass(frozen=True)
class Study:
    """The folder of one suite's results. Labels may be patterns such as `{dataset}`, which Snakemake fills in."""

    root: Path

    def data(self, dataset: str) -> Path:
        return self.root / "data" / dataset

    def _of(self, kind: str, cell: Cell) -> Path:
        return self.root / kind / cell.dataset / cell.architecture / str(cell.seed)

    def model(self, cell: Cell) -> Path:
        """A method's model: the clean one, or the marked one."""
        return self._of("models", cell) / cell.method

    def independent(self, cell: Cell) -> Path:
        """The model that somebody else trained on other data."""
        return self._of("models", cell) / "independent"

    def twin(self, cell: Cell) -> Path:
        """A second clean model of the owner's: what a fingerprint tells their own one from."""
        return self._of("models", cell) / "twin"

    def null(self, cell: Cell, member: str) -> Path:
        """A member of the null pool of `cell`'s method."""
        if member.startswith("{") or null_kind(member) == NEVER_MARKED:
            return self._of("models", cell) / "nulls" / member
        if null_kind(member) == OTHER_KEY:
            return self.other_key(cell, member.removeprefix("key-"))
        return self._of("models", cell) / member

    def other_key(self, cell: Cell, number: str) -> Path:
        """A model that another owner marked with `cell`'s method."""
        return self._of("models", cell) / "other-keys" / cell.method / number

    def key(self, cell: Cell) -> Path:
        return self._of("keys", cell) / f"{cell.method}.json"

    def key_of_other(self, cell: Cell, number: str) -> Path:
        return self._of("keys", cell) / "other-keys" / cell.method / f"{number}.json"

    def attacked(self, cell: Cell, attack: str) -> Path:
        """The suspects of one attack on `cell`'s model."""
        return self._of("suspects", cell) / cell.method / attack

    def evidence(self, cell: Cell) -> Path:
        """All evidence of a cell; `suspect_folder` finds that of one suspect in it."""
        return self._of("evidence", cell) / cell.method

    def explanations(self, cell: Cell) -> Path:
        return self._of("explanations", cell) / cell.method

    def scan(self, cell: Cell, role: str, member: str, scanner: str) -> Path:
        """What a scanner says of a model: of a cell's own, or (cell `clean`) of the independent one or a null model."""
        return self._of("scans", cell) / cell.method / role / (member or "none") / scanner


def job_folder(folder: Path, role: str, attack: str) -> Path:
    """Where, in a cell's folder of evidence or explanations, one job writes: the suspects of one role and attack."""
    return folder / role / attack


def suspect_folder(folder: Path, place: Place) -> Path:
    """Where, in a cell's folder of evidence or explanations, that of one suspect lies: `stolen/prune`, `null/none/3`."""
    return job_folder(folder, place.role, place.attack) / place.member


def claims_folder(folder: Path) -> Path:
    """Where, in a cell's folder of evidence, others' claims lie."""
    return folder / "claims"
