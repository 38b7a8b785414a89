"""Suites: one YAML file says which datasets, architectures, methods, attacks, access levels and seeds make up a run."""

import hashlib
import json
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from stealthmark.claims import Plan as ClaimsPlan
from stealthmark.errors import UserError
from stealthmark.explain import Plan
from stealthmark.plugin import explain, make
from stealthmark.predictor import ACCESS
from stealthmark.seeds import derive
from stealthmark.training import Schedule

#: Raised whenever the same suite would give other numbers.
BENCHMARK_VERSION = "0.4.0"


class Entry(BaseModel):
    """A plug-in as a suite asks for it: its name, its options, and the label that rows carry (default: the name)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    label: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        if isinstance(value, str):
            value = {"name": value}
        return {"label": value.get("name"), **value} if isinstance(value, dict) else value

    def options(self) -> dict:
        """`{"name": ..., option: value}`: what a stage is given."""
        return {"name": self.name, **(self.model_extra or {})}


def _unique(entries: list[Entry]) -> list[Entry]:
    labels = [entry.label for entry in entries]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"the label {twice[0]!r} is used twice; give one of them another with 'label'")
    return entries


def _once(values: list) -> list:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is listed twice")
    return values


def _access(level: str) -> str:
    if level not in ACCESS:
        raise ValueError(f"allowed: {', '.join(ACCESS)}")
    return level


Entries = Annotated[list[Entry], AfterValidator(_unique)]


class Nulls(BaseModel):
    """The pool of null models of every dataset, architecture and seed, shared by all methods: `count` models that were never
    marked, each trained from its own weights on its own `fraction` of the groups, every second one on the owner's share, by
    turns of the given `architectures` (default: the cell's own); the models that the suite's other methods marked; and
    `other_keys` models that another owner marked with the same method on the attacker's share."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    count: int = Field(ge=1, le=999)
    fraction: float = Field(default=0.7, gt=0, le=1)
    training: Schedule | None = None
    architectures: Entries = []
    other_keys: int = Field(default=0, ge=0, le=99)


class Cell(NamedTuple):
    """One combination of a suite, by labels: what one line of the main table is made of."""

    dataset: str
    architecture: str
    seed: int
    method: str


class Suite(BaseModel):
    """A suite. `seed` is the root of all randomness; `seeds` are the replicates; `size` is in px."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    suite: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    title: str
    seed: int = Field(ge=0)
    seeds: Annotated[list[int], AfterValidator(_once)] = Field(min_length=1)
    size: int = Field(ge=32, le=1024)
    datasets: Entries = Field(min_length=1)
    architectures: Entries = Field(min_length=1)
    methods: Entries = Field(min_length=1)
    attacks: Entries = []
    access: Annotated[list[Annotated[str, AfterValidator(_access)]], AfterValidator(_once)] = Field(
        default=["probabilities"], min_length=1
    )
    training: Schedule = Schedule()
    marking: Schedule = Schedule()
    nulls: Nulls | None = None
    claims: ClaimsPlan | None = None
    explanations: Plan | None = None

    def cells(self) -> list[Cell]:
        """All cells, clean first within each dataset."""
        labels = ([entry.label for entry in group] for group in (self.datasets, self.architectures))
        datasets, architectures = labels
        methods = [entry.label for entry in self.methods]
        return [Cell(*cell) for cell in product(datasets, architectures, self.seeds, methods)]

    def entry(self, kind: str, label: str) -> Entry:
        """The entry of a kind (`dataset`, `architecture`, `method`, `attack`) by its label."""
        return next(entry for entry in getattr(self, f"{kind}s") if entry.label == label)

    def derive(self, *components: str | int) -> int:
        """A stage's seed from its named components."""
        return derive(self.seed, *components)

    def digest(self) -> str:
        """SHA-256 of the suite as it was understood, defaults included."""
        understood = self.model_dump(mode="json")
        for optional in ("nulls", "claims", "explanations"):
            if understood[optional] is None:  # asking for none changes nothing
                del understood[optional]
        return hashlib.sha256(json.dumps(understood, sort_keys=True).encode()).hexdigest()


def parse(content: dict, source: str = "the suite") -> Suite:
    """A suite from its mapping. Raises UserError naming the field, the value found and what is allowed."""
    try:
        suite = Suite.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error, Suite)}") from None
    for kind in ("dataset", "architecture", "method", "attack"):
        pool = suite.nulls.architectures if suite.nulls and kind == "architecture" else []
        for entry in [*getattr(suite, f"{kind}s"), *pool]:
            try:
                plugin = make(kind, entry.options())
            except UserError as error:
                raise UserError(f"{source}: {kind}s: {error}") from None
            if kind == "architecture":
                try:
                    plugin.check_size(suite.size)
                except UserError as error:
                    raise UserError(f"{source}: field 'size' has the value {suite.size}: {error}") from None
    if [entry.label for entry in suite.methods if entry.name == "clean"] != ["clean"] or suite.methods[0].name != "clean":
        raise UserError(f"{source}: field 'methods' starts with {suite.methods[0].label!r}: the first must be 'clean', once")
    if suite.claims and not suite.nulls:
        raise UserError(f"{source}: field 'claims' needs the field 'nulls': a claim is ranked among null models")
    for kept in ("independent", "nulls", "other-keys"):
        if kept in (entry.label for entry in suite.methods):
            raise UserError(f"{source}: field 'methods' has the label {kept!r}, which is kept for models of that name")
    if "none" in (entry.label for entry in suite.attacks):
        raise UserError(f"{source}: field 'attacks' has the label 'none', which is kept for the model as it was stolen")
    return suite


def read(path: Path) -> Suite:
    """A suite from its file."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"there is no suite at {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not YAML: it is not text in UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a mapping of fields")
    return parse(content, str(path))
