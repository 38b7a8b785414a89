"""What a provenance file says of methods, attacks and scanners: all that tables and figures know of a plug-in."""

import json
from dataclasses import dataclass, field, fields
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from stealthmark.errors import UserError
from stealthmark.layout import CLEAN

NONE, CONTROL, EMBEDDED, FINGERPRINT, WHITE_BOX = "none", "control", "embedded", "fingerprint", "white-box"
#: Kinds of methods, as a reader is told of them.
KINDS = {
    NONE: "no mark",
    CONTROL: "control: ordinary training, no mark",
    EMBEDDED: "embedded mark",
    FINGERPRINT: "fingerprint: nothing is embedded",
    WHITE_BOX: "white box: sees the weights",
}
#: The fields of a provenance file that are mappings.
MAPPINGS = ("methods", "attacks", "scanners", "datasets", "commands", "hardware", "packages", "stages", "files")


@dataclass(frozen=True)
class MethodFacts:
    """A method under its label. `name`: of the plug-in, which several labels may share. `reported`: what its paper reports,
    each a mapping with `metric` and `text` (the figure, where in the paper, of which model)."""

    label: str
    name: str = ""
    title: str = ""
    kind: str = EMBEDDED
    carries_code: bool = False
    citation: str = ""
    reported: list[dict] = field(default_factory=list)

    @property
    def description(self) -> str:
        """Title, kind and citation, for the page."""
        return "; ".join(part for part in (self.title, KINDS[self.kind], self.citation) if part)


@dataclass(frozen=True)
class AttackFacts:
    """An attack under its label. `axis`: the label of the strength axis; `scale`: the factor from a strength to its unit;
    `text`: prints a strength in its unit; `strengths`: those that were asked for; `reported`: those that a paper reports."""

    label: str
    title: str = ""
    axis: str = ""
    scale: float = 1.0
    text: str = "{:g}"
    citation: str = ""
    strengths: list[float] = field(default_factory=list)
    reported: list[float] = field(default_factory=list)

    def in_unit(self, strength: float) -> float:
        return round(strength * self.scale, 6)

    def strength(self, strength: float) -> str:
        """`5 epochs`, `1 epoch`, `30 %`."""
        number = self.in_unit(strength)
        text = self.text.format(number)
        return text.removesuffix("s") if number == 1 and not text.endswith("ss") else text

    @property
    def description(self) -> str:
        """Title, axis and citation, for the page."""
        return "; ".join(part for part in (self.title, self.axis, self.citation) if part)


@dataclass(frozen=True)
class ScannerFacts:
    """A scanner under its label."""

    label: str
    title: str = ""
    citation: str = ""

    @property
    def description(self) -> str:
        """Title and citation, for the page."""
        return "; ".join(part for part in (self.title, self.citation) if part)


Kind = TypeVar("Kind", MethodFacts, AttackFacts, ScannerFacts)


@dataclass(frozen=True)
class Facts:
    """The plug-ins of a run by label. Of one that the provenance file does not name, there is its label and nothing else."""

    methods: dict[str, MethodFacts]
    attacks: dict[str, AttackFacts]
    scanners: dict[str, ScannerFacts]

    def method(self, label: str) -> MethodFacts:
        unknown = MethodFacts(label, title=label, kind=NONE if label == CLEAN else EMBEDDED)
        return self.methods.get(label, unknown)

    def attack(self, label: str) -> AttackFacts:
        return self.attacks.get(label, AttackFacts(label, title=label, axis=f"strength of {label}"))

    def scanner(self, label: str) -> ScannerFacts:
        return self.scanners.get(label, ScannerFacts(label, title=label))


def read(provenance: dict) -> Facts:
    """The facts in a provenance file's fields `methods`, `attacks` and `scanners`, each label -> mapping; all may be absent.

    Raises UserError where an entry is no mapping, a fact is of another type, the kind of a method is unknown, or what else the
    page prints is no mapping.
    """
    for name in MAPPINGS:
        if not isinstance(provenance.get(name, {}), dict):
            raise UserError(f"provenance: field {name!r} has the value {_short(provenance[name])}; it must be a mapping")
    for name, manifest in provenance.get("datasets", {}).items():
        if not isinstance(manifest, dict):
            raise UserError(f"provenance: field 'datasets' has of {name!r} the value {_short(manifest)}; it must be a mapping")
    methods = _entries(provenance, "methods", MethodFacts)
    for label, method in methods.items():
        if method.kind not in KINDS:
            raise UserError(
                f"provenance: the method {label!r} has the kind {method.kind!r}; allowed: {', '.join(map(repr, KINDS))}"
            )
        for claim in method.reported:
            if not all(isinstance(claim.get(name), str) for name in ("metric", "text")):
                raise UserError(f"provenance: the method {label!r} reports {_short(claim)}; it must have 'metric' and 'text'")
    return Facts(methods, _entries(provenance, "attacks", AttackFacts), _entries(provenance, "scanners", ScannerFacts))


def _entries(provenance: dict, name: str, kind: type[Kind]) -> dict[str, Kind]:
    known = [entry.name for entry in fields(kind)]
    entries = {}
    for label, content in provenance.get(name, {}).items():
        if not isinstance(content, dict):
            raise UserError(f"provenance: field {name!r} has of {label!r} the value {content!r}; it must be a mapping of facts")
        known_facts = {fact: value for fact, value in content.items() if fact in known}
        title = content.get("title") or content.get("name") or label
        as_json = json.dumps({**known_facts, "title": title, "label": label})  # in which a mapping may be a dataclass
        try:
            entry = TypeAdapter(kind).validate_json(as_json, strict=True)
            if isinstance(entry, AttackFacts):
                entry.strength(0.5)
        except ValidationError as error:
            problem = error.errors()[0]
            fact, value = ".".join(map(str, problem["loc"])), _short(problem["input"])
            raise UserError(
                f"provenance: field {name!r} has of {label!r} in {fact!r} the value {value}: {problem['msg']}"
            ) from None
        except (ValueError, LookupError, AttributeError, ArithmeticError):
            raise UserError(
                f"provenance: the attack {label!r} prints strengths by {_short(entry.text)}, which is no format"
            ) from None
        entries[label] = entry
    return entries


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
