"""The certificate that examining a suspect yields: its facts, and sentences made from them. `certificate_page` writes it."""

import math
import platform
from collections import Counter
from importlib.metadata import version
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    computed_field,
    model_validator,
)

import stealthmark
from stealthmark import codes
from stealthmark.evidence import conformal_p, detect
from stealthmark.files import seal_of
from stealthmark.method import Key
from stealthmark.metrics import clustered_rate
from stealthmark.pages import many, p_text
from stealthmark.suspects.querier import Kind

#: Options of a method that a certificate never shows. The owner's code has a place of its own, where it was asked for.
SECRETS = {"seed", "secret", "key", "code", "payload"}
#: What an access level shows, in words; every other level is its own name.
ACCESS = {"label": "label map only"}
#: What the claimant says to have done with the method, by the method's kind.
DEEDS = {
    "embedded": "was made from a model that {claimant} marked with the method {method}",
    "fingerprint": "was made from a model of which {claimant} took a fingerprint with the method {method}",
    "control": "was made from a model that {claimant} trained with the control {method}, which leaves no mark",
}


def _printable(text: str) -> str:
    """Refuse what would change how a page reads: control characters, line breaks, reversed writing (joiners are letters)."""
    if not text.replace("\u200c", "").replace("\u200d", "").isprintable():
        raise ValueError("must be printable text on one line")
    return text


Name = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_printable)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Scalar = str | int | float | bool | None
Bits = Annotated[str, Field(pattern="^[01]+$")]


class Part(BaseModel):
    """Base of a certificate and its parts: nothing unknown, nothing changed later, no number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Commitment(Part):
    """SHA-256 of the key (`Key.commitment`). `published`: the name of the source that held the same one earlier, where the
    two were compared and agree; None where none was compared with."""

    sha256: Digest
    published: Name | None = None


class Mark(Part):
    """The method that the owner marked with, and the kind that it is of (`MethodContract.family`). `options` are without what
    is secret; ValueError for one that `SECRETS` names."""

    name: Name
    kind: Literal["embedded", "fingerprint", "control"] = "embedded"
    citation: str = ""
    options: dict[str, Scalar | tuple[Scalar, ...]] = {}

    @model_validator(mode="after")
    def _tells_no_secret(self) -> Self:
        if secrets := SECRETS & self.options.keys():
            raise ValueError(f"options of a certificate must not hold {', '.join(sorted(secrets))}")
        return self

    @classmethod
    def of(cls, key: Key, citation: str = "", kind: str = "embedded") -> Self:
        """What may be told of a key's method."""
        options = {name: value for name, value in key.method.items() if name not in SECRETS | {"name"}}
        return cls(name=key.method["name"], kind=kind, citation=citation, options=options)


class Suspect(Part):
    """`name` is printed as given (so no address with a password in it); `sha256` of its file, where there is one.
    `interface`: how the claimant described its input and output, where that is not the usual."""

    name: Name
    kind: Kind
    sha256: Digest | None = None
    interface: dict[str, Scalar | tuple[Scalar, ...]] = {}


class Queries(Part):
    """`images` of `patients` (groups: patients, videos), each asked with and without the trigger; `sent`: queries in all."""

    images: int = Field(ge=1)
    patients: int = Field(ge=1)
    sent: int = Field(ge=1)


class Rate(Part):
    """The share of queries called marked, with its 95 % interval (Clopper-Pearson at the effective sample size)."""

    share: Share
    low: Share
    high: Share


class Scores(Part):
    """The suspect's: mean score of the queries with the trigger and without, and how many of them are above `threshold`."""

    triggered: float
    benign: float
    threshold: float
    marked_triggered: Rate
    marked_benign: Rate

    @classmethod
    def of(cls, triggered: np.ndarray, benign: np.ndarray, threshold: float, groups: np.ndarray) -> Self:
        """From one score a query, float (N,) each; groups: any (N,), what is not independent (patients)."""
        estimates = [clustered_rate(detect(scores, threshold), groups) for scores in (triggered, benign)]
        rates = [Rate(share=share, low=low, high=high) for share, low, high in estimates]
        return cls(
            triggered=float(triggered.mean()),
            benign=float(benign.mean()),
            threshold=threshold,
            marked_triggered=rates[0],
            marked_benign=rates[1],
        )


class Null(Part):
    """A model known to be independent of the owner's, asked as the suspect was: its mean score over the triggered queries,
    and the share of them called marked. `kind` says how it was made, "never marked" or "marked by another method", say."""

    name: Name
    score: float
    rate: Share
    kind: Annotated[Name, Field(max_length=80)] = "never marked"


class Payload(Part):
    """A code that the mark carries: the owner's `text` and its modules, the modules found in the suspect (rows of 0 and 1, 1
    where dark), what they `decoded` to (None: nothing), and how many `queries` they took. Build it with `of`."""

    text: Name
    decoded: str | None
    bit_error: Share
    queries: int = Field(ge=1)
    code: tuple[Bits, ...]
    found: tuple[Bits, ...]

    @model_validator(mode="after")
    def _square(self) -> Self:
        for name, rows in (("code", self.code), ("found", self.found)):
            if len(rows) != len(self.code) or any(len(row) != len(self.code) for row in rows):
                raise ValueError(f"{name} must be as many rows as columns, and as many as code has")
        return self

    @property
    def chance(self) -> float | None:
        """`codes.chance` of a keyed hash; None of a QR code."""
        return codes.chance(self.bit_error, len(self.code))

    @classmethod
    def of(cls, text: str, code: np.ndarray, found: np.ndarray, queries: int) -> Self:
        """code, found: bool (n, n), True where dark (`codes.encode`)."""
        rows = [tuple("".join("01"[bit] for bit in row) for row in modules.astype(int)) for modules in (code, found)]
        error = codes.error_rate(found, code)
        return cls(
            text=text, decoded=codes.read(found, code, text), bit_error=error, queries=queries, code=rows[0], found=rows[1]
        )


class Reason(Part):
    """A condition of the verdict and whether it is met; `open`: it cannot be judged from here."""

    state: Literal["met", "not met", "open"]
    text: str


class Certificate(Part):
    """What one examination of one suspect with one key found, and what it does not show.

    `p_model` is the suspect's rank among the null models (the unit is the model), None exactly where there are none;
    `p_inside` the one-sided test (the unit is the patient) that the trigger raises the share of queries called marked by
    more than `margin`, None where it was not made.
    The sentences (`claim`, `summary`, `reasons`, `limits`) are made from these facts, and stand in the JSON beside them.

    Raises ValueError for a `verdict` that the facts do not carry, a `p_model` that is not the rank among `nulls`, and, when a
    certificate is read, for sentences that are not those of its facts.
    """

    format: Literal[2] = 2
    claimant: Name
    created: AwareDatetime
    commitment: Commitment
    method: Mark
    suspect: Suspect
    access: Name
    queries: Queries
    scores: Scores
    nulls: tuple[Null, ...] = ()
    p_model: float | None = Field(default=None, gt=0, le=1)
    p_inside: float | None = Field(default=None, ge=0, le=1)
    alpha: float = Field(gt=0, lt=1)
    margin: float = Field(ge=0, lt=1)
    verdict: Literal["shown", "not shown"]
    payload: Payload | None = None
    software: dict[str, str]

    @model_validator(mode="wrap")
    @classmethod
    def _sentences_are_those_of_the_facts(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        written = {}
        if isinstance(data, dict):
            written = {name: data[name] for name in cls.model_computed_fields if name in data}
            data = {name: value for name, value in data.items() if name not in written}
        certificate = handler(data)
        own = certificate.model_dump(mode="json", include=set(written))
        for name in written:
            if written[name] != own[name]:
                raise ValueError(f"{name} is not what stealthmark {stealthmark.__version__} says of these facts: {own[name]}")
        return certificate

    @model_validator(mode="after")
    def _facts_agree(self) -> Self:
        if (self.p_model is None) != (not self.nulls):
            raise ValueError(f"p_model is {self.p_model} with {many(len(self.nulls), 'null model')}: it is their rank")
        if self.p_model is not None:
            rank = conformal_p(self.scores.triggered, np.array([null.score for null in self.nulls]))
            if not math.isclose(self.p_model, rank):
                raise ValueError(f"p_model is {self.p_model}, but the suspect’s rank among the null models gives {rank}")
        carried = "not shown" if any(reason.state == "not met" for reason in self.reasons) else "shown"
        if self.verdict != carried:
            raise ValueError(f"the verdict is {self.verdict!r}, but the facts carry {carried!r}: {self.reasons}")
        return self

    @computed_field
    @property
    def seal(self) -> str:
        return seal_of(self.model_dump(mode="json", exclude=set(type(self).model_computed_fields)))

    @computed_field
    @property
    def claim(self) -> str:
        deed = DEEDS[self.method.kind].format(claimant=self.claimant, method=self.method.name)
        return f"{self.claimant} claims that the model “{self.suspect.name}” {deed}."

    @computed_field
    @property
    def smallest_p(self) -> float | None:
        """The smallest `p_model` that the pool allows, 1 / (1 + number of nulls); None without a pool."""
        return 1 / (1 + len(self.nulls)) if self.nulls else None

    @property
    def at_or_above(self) -> int:
        """How many null models score at least as high as the suspect."""
        return sum(null.score >= self.scores.triggered for null in self.nulls)

    @computed_field
    @property
    def summary(self) -> str:
        """The verdict in one sentence, with p and the pool's size."""
        if self.p_model is None:
            return f"There is no null model to compare “{self.suspect.name}” with, so there is no p-value."
        n, p = len(self.nulls), p_text(self.p_model)
        above = f"all {n} null models" if not self.at_or_above else f"{n - self.at_or_above} of {n} null models"
        least = ", the smallest that this pool allows" if not self.at_or_above else ""
        if self.verdict == "shown":
            end = "." if self.commitment.published else ". Open: whether the key was fixed before the suspect was seen."
        elif self.p_model > self.alpha:
            end = f"{', but' if least else ', which is'} above the level of {self.alpha:g}."
        else:
            end = ", but not every condition is met."
        return f"Asked with the trigger, “{self.suspect.name}” scores above {above}: p = {p}{least}{end}"

    @computed_field
    @property
    def reasons(self) -> tuple[Reason, ...]:
        """The conditions of the verdict, each with whether it is met. It is "shown" where none is "not met"."""
        return self._among_models(), self._inside(), self._committed()

    def _among_models(self) -> Reason:
        if self.p_model is None:
            return Reason(state="not met", text="No null model was asked, so the suspect has no rank and no p-value.")
        n, k = len(self.nulls), self.at_or_above
        rank = "none scores" if k == 0 else f"{k} score{'s' if k == 1 else ''}"
        text = f"Of {many(n, 'null model')}, {rank} as high as the suspect: p = {p_text(self.p_model)}"
        if self.p_model <= self.alpha:
            return Reason(state="met", text=f"{text}, not above the level of {self.alpha:g}.")
        text += f", above the level of {self.alpha:g}."
        if 1 / (1 + n) > self.alpha:
            needed = math.ceil(round(1 / self.alpha, 9)) - 1
            text += f" The pool is too small for that level: it takes at least {many(needed, 'null model')}."
        return Reason(state="not met", text=text)

    def _inside(self) -> Reason:
        raises = f"raise the share of queries called marked by more than {100 * self.margin:g} percentage points"
        if self.p_inside is None:
            return Reason(state="not met", text=f"It was not tested whether, inside the suspect, the trigger does {raises}.")
        test = f"one-sided test over {many(self.queries.patients, 'patient')}: p {p_text(self.p_inside, '= ')}"
        if self.p_inside <= self.alpha:
            return Reason(state="met", text=f"Inside the suspect, the trigger does {raises} ({test}).")
        text = f"Inside the suspect, the trigger is not shown to {raises} ({test}, above the level of {self.alpha:g})."
        return Reason(state="not met", text=text)

    def _committed(self) -> Reason:
        if self.commitment.published:
            return Reason(state="met", text=f"The key’s commitment agrees with the one in “{self.commitment.published}”.")
        return Reason(
            state="open",
            text="The key’s commitment was compared with none published earlier: nothing here shows that the key was fixed "
            "before the suspect was seen.",
        )

    @computed_field
    @property
    def limits(self) -> tuple[str, ...]:
        """What the numbers rest on and what they do not show, one point each."""
        return (*self._limits_of_p(), *self._limits_of_the_key(), *self._limits_of_the_suspect())

    def _limits_of_p(self) -> list[str]:
        if self.smallest_p is None:
            return [
                "Without null models nobody can say how often a model that has nothing to do with the owner’s would answer "
                "like this: no p-value can be given, not even a smallest one.",
            ]
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(null.kind for null in self.nulls).items())
        return [
            f"p is valid only if the suspect, were it independent of the owner’s model, would be exchangeable with the null "
            f"models: of the same task, and trained as they were. The pool: {kinds}.",
            f"The smallest p that {many(len(self.nulls), 'null model')} allow{'s' * (len(self.nulls) == 1)} is "
            f"{p_text(self.smallest_p)}. A smaller one would take a larger pool.",
            "p bounds how often an independent model would rank as high as the suspect. It is not the probability that the "
            "suspect is independent.",
        ]

    def _limits_of_the_key(self) -> list[str]:
        published = self.commitment.published
        date = f"When the commitment was published is for “{published}” to prove, not for this file."
        if not published:
            date = (
                "The commitment was compared with none published earlier, so a key that was made to fit the suspect is not "
                "excluded. When a commitment was made must be proven outside this file."
            )
        return [
            date,
            "The p-values are those of one key and one trigger. Others that were tried on this suspect must be reported with "
            "it, and the p-values adjusted for their number (Holm).",
            "The claimant’s name is as given, and the file is not signed.",
        ]

    def _limits_of_the_suspect(self) -> list[str]:
        limits = []
        if self.access == "label":
            limits.append(
                "The suspect was seen through its label maps only. A mark in the probabilities leaves next to nothing there, "
                "so that little can be concluded from not finding it."
            )
        else:
            limits.append(
                f"The result holds for what the suspect showed ({access_name(self.access)}), not for an "
                "interface that shows less."
            )
        if self.suspect.kind == "http":
            limits.append("A service was asked. Nothing fixes which model answered, or that the same one answers tomorrow.")
        elif self.suspect.kind in ("function", "network"):
            limits.append("A model inside of a running program was asked. Nothing fixes which one it was.")
        elif self.suspect.sha256 is None:
            limits.append("The suspect’s file has no SHA-256 here, so nothing fixes which file was examined.")
        if self.payload:
            limits.append(
                "The code is no part of the verdict. It is evidence only as far as independent models, asked in the same "
                "way, do not show it; about half of the modules are right by chance."
            )
        if self.verdict == "not shown":
            limits.append("Not shown does not mean independent: a copy whose mark was removed would answer in the same way.")
        limits.append("It is not proven who copied the owner’s model, when, or how; only how the suspect answers.")
        return limits


def software() -> dict[str, str]:
    """The versions that a certificate names: stealthmark, torch, numpy, python."""
    packages = {name: version(name) for name in ("torch", "numpy")}
    return {"stealthmark": stealthmark.__version__, **packages, "python": platform.python_version()}


def access_name(access: str) -> str:
    return ACCESS.get(access, access)
