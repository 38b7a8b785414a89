"""Suites: one YAML file says which plug-ins of each kind, access levels and seeds make up a run."""

import hashlib
import json
import unicodedata
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from stealthmark import __version__, layout
from stealthmark.access import LEVELS
from stealthmark.errors import UserError
from stealthmark.layout import CLEAN, INDEPENDENT, NULL, UNTRAINED, Cell, Place
from stealthmark.plugin import describe_error, make
from stealthmark.plugin_code import code_of
from stealthmark.seeds import derive
from stealthmark.settings import ClaimPlan, ExplanationPlan, Marking, Schedule

#: Raised whenever the same suite would give other numbers, or other columns.
BENCHMARK_VERSION = __version__
#: The kinds of plug-in that a suite lists.
KINDS = ("dataset", "architecture", "method", "attack", "scanner")
#: More values than this are in no suite.
LARGEST = 10**5


class Entry(BaseModel):
    """A plug-in as a suite asks for it: its name, its options, and the label that rows carry (default: the name)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    label: Annotated[str, Field(pattern=f"^{layout.LABEL}$", max_length=100)]

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        if isinstance(value, list):  # of attacks
            names = [step.get("name") if isinstance(step, dict) else step for step in value]
            for name, step in zip(names, value, strict=True):
                if not isinstance(name, str):
                    raise ValueError(f"the step {step!r} has no name; allowed: a name, or a mapping with one")
            value = {"name": "stack", "label": "-".join(names), "steps": value}
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
    if level not in LEVELS:
        raise ValueError(f"allowed: {', '.join(LEVELS)}")
    return level


def _printable(title: str) -> str:
    if any(unicodedata.category(character) == "Cc" and not character.isspace() for character in title):
        raise ValueError("it has control characters, which no page can print")
    return title


Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Entries = Annotated[list[Entry], AfterValidator(_unique)]


class Nulls(BaseModel):
    """The pool of null models of every dataset, architecture and seed, shared by all methods: `count` models that were never
    marked, each trained from its own weights on its own `fraction` of the groups, by turns of the given `architectures`
    (default: the cell's own); the models that the suite's other methods marked; and `other_keys` models that another owner
    marked with the same method on the attacker's share.

    The never marked ones see none of the owner's cases, as a model that was trained independently: they are trained on the
    attacker's share. With `owner_share: every-second` those of odd numbers are trained on the owner's.

    `training` is their schedule. By default they are trained as long as what they stand for: the suite's `training`, with the
    epochs (or steps) of its `marking` added where one of its methods embeds a mark. A method that has `epochs` of its own may
    train longer; then give the schedule.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    count: int = Field(ge=1, le=999, strict=True)
    fraction: float = Field(default=0.7, gt=0, le=1)
    training: Schedule | None = None
    architectures: Entries = []
    other_keys: int = Field(default=0, ge=0, le=99, strict=True)
    owner_share: Literal["none", "every-second"] = "none"

    def share(self, number: int) -> str:
        """The share of the data that the null model with this number is trained on."""
        return "owner" if self.owner_share == "every-second" and number % 2 else "attacker"


class Suite(BaseModel):
    """A suite. `seed` is the root of all randomness; `seeds` are the replicates; `size` is in px."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    suite: Annotated[str, Field(pattern=r"^[a-z0-9-]+$", max_length=100)]
    title: Annotated[str, AfterValidator(_printable)]
    seed: Seed
    seeds: Annotated[list[Seed], AfterValidator(_once)] = Field(min_length=1)
    size: int = Field(ge=32, le=1024, strict=True)
    datasets: Entries = Field(min_length=1)
    architectures: Entries = Field(min_length=1)
    methods: Entries = Field(min_length=1)
    attacks: Entries = []
    scanners: Entries = []
    access: Annotated[list[Annotated[str, AfterValidator(_access)]], AfterValidator(_once)] = Field(
        default=["probabilities"], min_length=1
    )
    training: Schedule = Schedule()
    marking: Marking = Marking()
    nulls: Nulls | None = None
    claims: ClaimPlan | None = None
    explanations: ExplanationPlan | None = None

    @property
    def marks(self) -> list[str]:
        """The labels of all methods but `clean`."""
        return [entry.label for entry in self.methods if entry.name != CLEAN]

    @property
    def null_training(self) -> Schedule:
        """The schedule of models that were never marked (see `Nulls`)."""
        if self.nulls and self.nulls.training:
            return self.nulls.training
        if not self.embeds:
            return self.training
        unit = "steps" if self.training.steps else "epochs"
        return self.training.model_copy(update={unit: getattr(self.training, unit) + getattr(self.marking, unit)})

    @property
    def embeds(self) -> bool:
        """Whether a method of the suite embeds a mark."""
        return any(self.facts("method", label)["embeds"] for label in self.marks)

    def cells(self) -> list[Cell]:
        """All cells, clean first within each dataset."""
        labels = ([entry.label for entry in entries] for entries in (self.datasets, self.architectures, self.methods))
        datasets, architectures, methods = labels
        return [Cell(*cell) for cell in product(datasets, architectures, self.seeds, methods)]

    def entry(self, kind: str, label: str) -> Entry:
        """The entry of a kind (`dataset`, `architecture`, `method`, `attack`, `scanner`) by its label."""
        return next(entry for entry in getattr(self, f"{kind}s") if entry.label == label)

    def facts(self, kind: str, label: str) -> dict[str, Any]:
        """What a method, an attack or a scanner says of itself."""
        return _facts(kind, json.dumps(self.entry(kind, label).options()))

    def code_of(self, kind: str, label: str) -> list[Path]:
        """The files with the code of a plug-in: whoever edits one gets its jobs run again."""
        options = self.entry(kind, label).options()
        names = [options["name"], *(step if isinstance(step, str) else step["name"] for step in options.get("steps", ()))]
        return list(dict.fromkeys(file for name in names for file in code_of(kind, name)))

    def line_up(self, cell: Cell) -> list[Place]:
        """Where the suspects stand that are examined with a cell's key, a place a folder. A clean model is alone, and so is a
        control's: only its quality is measured."""
        if self.facts("method", cell.method)["kind"] in ("none", "control"):
            return [Place()]
        attacked = [Place(attack=entry.label) for entry in self.attacks]
        return [Place(), *attacked, Place(INDEPENDENT), *(Place(NULL, member) for member in self.pool(cell.method))]

    def pool(self, method: str) -> list[str]:
        """The members of the null pool of a method: models that were never marked; those that the suite's other methods
        marked; and those that other owners marked with this one.

        A control has no pool. For a fingerprint only models count that do not come from the owner's: other marks do.
        """
        kind = self.facts("method", method)["kind"]
        if not self.nulls or kind in ("none", "control"):
            return []
        never_marked = [str(number) for number in range(self.nulls.count)]
        if kind == "fingerprint":
            return never_marked
        others = [other for other in self.marks if other != method and self.facts("method", other)["kind"] != "fingerprint"]
        return [*never_marked, *others, *(layout.other_key(number) for number in range(self.nulls.other_keys))]

    def never_marked(self, method: str) -> list[str]:
        """The members of the null pool of a method that carry no mark at all: those that were never marked, and controls."""
        return [
            member
            for member in self.pool(method)
            if layout.null_kind(member) == layout.NEVER_MARKED
            or (member in self.marks and self.facts("method", member)["kind"] == "control")
        ]

    def explained(self, cell: Cell) -> list[Place]:
        """Where the suspects stand that are explained with a cell's key: of marks with a trigger what has not been attacked,
        and where the mark carries a code also what attacks made of it."""
        facts = self.facts("method", cell.method)
        if not self.explanations or facts["kind"] != "embedded":
            return []
        attacked = [Place(attack=entry.label) for entry in self.attacks] if facts["carries_code"] else []
        return [Place(), *attacked, Place(INDEPENDENT), Place(UNTRAINED)]

    def scanned(self, cell: Cell) -> list[Place]:
        """Where the models of a cell stand that scanners look at: a mark's own; in the cell of `clean`, all that were never
        marked."""
        if cell.method != CLEAN:
            return [Place()] if self.facts("method", cell.method)["embeds"] else []
        count = self.nulls.count if self.nulls else 0
        return [Place(), Place(INDEPENDENT), *(Place(NULL, str(number)) for number in range(count))]

    def derive(self, *components: str | int) -> int:
        """A stage's seed from its named components."""
        return derive(self.seed, *components)

    def digest(self) -> str:
        """SHA-256 of the suite as it was understood, defaults included."""
        understood = self.model_dump(mode="json")
        for optional in ("nulls", "claims", "explanations", "scanners"):
            if not understood[optional]:  # asking for none changes nothing
                del understood[optional]
        # What every suite did before there was a choice.
        if self.nulls and self.nulls.owner_share == "every-second":
            del understood["nulls"]["owner_share"]
        if self.marking.settled == 0:
            del understood["marking"]["settled"]
        return hashlib.sha256(json.dumps(understood, sort_keys=True).encode()).hexdigest()


@cache
def _facts(kind: str, options: str) -> dict[str, Any]:
    return make(kind, json.loads(options)).facts()


def parse(content: dict, source: str = "the suite") -> Suite:
    """A suite from its mapping. Raises UserError naming the field, the value found and what is allowed."""
    try:
        suite = Suite.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {describe_error(error, Suite)}") from None
    for kind in KINDS:
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
    if [entry.label for entry in suite.methods if entry.name == CLEAN] != [CLEAN] or suite.methods[0].name != CLEAN:
        raise UserError(f"{source}: field 'methods' starts with {suite.methods[0].label!r}: the first must be 'clean', once")
    if suite.claims and not suite.nulls:
        raise UserError(f"{source}: field 'claims' needs the field 'nulls': a claim is ranked among null models")
    if suite.nulls and not suite.nulls.training and suite.embeds and bool(suite.training.steps) != bool(suite.marking.steps):
        raise UserError(
            f"{source}: field 'nulls' has no 'training', and 'training' and 'marking' cannot be added: one has steps, the "
            "other epochs; give the null models a schedule, or both the same unit"
        )
    for kind in KINDS:
        try:
            layout.check_labels(kind, [entry.label for entry in getattr(suite, f"{kind}s")])
        except ValueError as error:
            raise UserError(f"{source}: {error}") from None
    return suite


class _Loader(yaml.SafeLoader):
    """Reads YAML as `yaml.safe_load` does, but for a field that is there twice, of which that takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names: set[str] = set()
        for name, _ in node.value:
            if name.value == "<<" or not isinstance(name, yaml.ScalarNode):
                continue
            if name.value in names:
                raise yaml.MarkedYAMLError(problem=f"the field {name.value!r} is there twice", problem_mark=name.start_mark)
            names.add(name.value)
        return super().construct_mapping(node, deep)


def _size(value: object, sizes: dict[int, int]) -> int:
    """How many values there are in a mapping or a list, those that an anchor repeats counted as often as they are repeated.

    Raises ValueError where it holds itself.
    """
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = -1
        parts = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_size(part, sizes) for part in parts)
    if sizes[id(value)] < 0:
        raise ValueError("an anchor holds itself")
    return sizes[id(value)]


def read(path: Path) -> Suite:
    """A suite from its file."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if _size(content, {}) > LARGEST:
            raise ValueError(f"it holds more than {LARGEST} values")
        json.dumps(content, default=str, ensure_ascii=False).encode()  # YAML can spell characters that UTF-8 has not
    except FileNotFoundError:
        raise UserError(f"there is no suite at {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not YAML: it is not text in UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {_problem(error)}") from None
    except RecursionError:
        raise UserError(f"{path} is not YAML: it is nested too deep") from None
    except (ValueError, TypeError, OverflowError) as error:  # of dates and numbers that there are none of, of odd field names
        raise UserError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a mapping of fields")
    return parse(content, str(path))


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return str(error).splitlines()[0]
