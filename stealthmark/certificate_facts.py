"""The facts of a certificate, and the parts that they are made of. `certificate_text` makes sentences of them."""

from statistics import median
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from stealthmark import codes
from stealthmark.evidence import detect
from stealthmark.method import Key
from stealthmark.metrics import clustered_rate
from stealthmark.suspects.querier import Kind, Shows

#: Options of a method that a certificate never shows. The owner's code has a place of its own, where it was asked for.
SECRETS = {"seed", "secret", "key", "code", "payload"}
#: The distance from one half to the sigmoid of 1. Probabilities that are taken for logits go no further.
LIKE_PROBABILITIES = 0.2311
#: A suspect whose Dice on ordinary images is less, or by more than so much below that of other models of the task, does not do
#: the task as it was described. One that is at most so much below others segments as well as these, which may be little.
LEAST_DICE, FAR_BELOW, AS_WELL = 0.3, 0.2, 0.05


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
#: The name of a file beside a certificate: no folder, so that nothing else can be meant.
FileName = Annotated[str, Field(pattern=r"^[a-z]+\.[a-z]+$")]
#: Whose cases a model was trained on: a share of a prepared dataset.
TrainedOn = Literal["owner", "attacker"]
#: Who signs a certificate.
Role = Literal["claimant", "examiner"]


class Part(BaseModel):
    """Base of a certificate and its parts: nothing unknown, nothing changed later, no number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Stamp(Part):
    """A time stamp (RFC 3161) of the file of the commitment, which was checked (`timestamp.check`): when the `authority`, the
    subject of its certificate, saw that file's SHA-256."""

    time: AwareDatetime
    authority: Name
    authority_sha256: Digest


class Commitment(Part):
    """SHA-256 of the key (`Key.commitment`). `published`: the name of the file that held the same one, where the two were
    compared and agree; None where none was compared with. `stamp`: what proves its date, None where nothing does."""

    sha256: Digest
    published: Name | None = None
    stamp: Stamp | None = None


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
    `interface`: how the claimant described its input and output, where that is not the usual. `shows`: what the numbers in
    its answers were taken for."""

    name: Name
    kind: Kind
    sha256: Digest | None = None
    shows: Shows = "probabilities"
    interface: dict[str, Scalar | tuple[Scalar, ...]] = {}


class Queries(Part):
    """`images` of `patients` (groups: patients, videos), each asked with and without the trigger; `sent`: queries in all."""

    images: int = Field(ge=1)
    patients: int = Field(ge=1)
    sent: int = Field(ge=1)


class Rate(Part):
    """The share of queries called marked, with its 95 % interval, patients being the unit (`metrics.clustered_rate`)."""

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


class Task(Part):
    """How well the suspect does the task of the test masks. `dice`: its mean Dice on the ordinary images that it was asked
    with, `own`: that of the owner's own model; None where that was not asked. `low`, `high`: the least and the greatest of all
    its answers, as probabilities."""

    dice: Share | None = None
    own: Share | None = None
    low: Share
    high: Share


class Null(Part):
    """A model known to be independent of the owner's, asked as the suspect was: its mean score over the triggered queries,
    and the share of them called marked. `kind` says how it was made, "never marked" or "marked by another method", say.

    `sha256`: of its weights. `dice`: as of the suspect (`Task`). `share`: whose cases it was trained on, as the note of the
    run that made it says; None where there is no such note.
    """

    name: Name
    score: float
    rate: Share
    kind: Annotated[Name, Field(max_length=80)] = "never marked"
    sha256: Digest | None = None
    dice: Share | None = None
    share: TrainedOn | None = None


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


class Signature(Part):
    """An Ed25519 signature (RFC 8032) of a certificate's facts by the claimant or an examiner; both fields in hexadecimal."""

    role: Role
    public_key: Digest
    signature: Annotated[str, Field(pattern="^[0-9a-f]{128}$")]


class Facts(Part):
    """What a `Certificate` states, and what follows from it by arithmetic alone.

    `files`: name -> SHA-256 of the files beside the certificate. `signatures` sign all other facts.
    """

    format: Literal[3] = 3
    claimant: Name
    created: AwareDatetime
    commitment: Commitment
    method: Mark
    suspect: Suspect
    access: Name
    queries: Queries
    scores: Scores
    task: Task
    nulls: tuple[Null, ...] = ()
    p_model: float | None = Field(default=None, gt=0, le=1)
    p_inside: float | None = Field(default=None, ge=0, le=1)
    alpha: float = Field(gt=0, lt=1)
    margin: float = Field(ge=0, lt=1)
    verdict: Literal["shown", "not shown"]
    payload: Payload | None = None
    files: dict[FileName, Digest] = {}
    software: dict[str, str]
    signatures: tuple[Signature, ...] = ()

    @property
    def at_or_above(self) -> int:
        """How many null models score at least as high as the suspect."""
        return sum(null.score >= self.scores.triggered for null in self.nulls)

    @property
    def nulls_dice(self) -> float | None:
        """The median of the null models' Dice; None where none was measured."""
        measured = [null.dice for null in self.nulls if null.dice is not None]
        return median(measured) if measured else None

    @property
    def looks_like_probabilities(self) -> bool:
        """Whether the suspect's logits all lie between -1 and 1, as those of no sure model do, and as probabilities do that
        are taken for logits."""
        furthest = max(abs(self.task.low - 0.5), abs(self.task.high - 0.5))
        return self.suspect.shows == "logits" and furthest <= LIKE_PROBABILITIES

    @property
    def segments_badly(self) -> bool:
        """Whether the suspect's Dice is by more than `FAR_BELOW` below the null models' median (without these: below that of
        the owner's model), or below `LEAST_DICE` where the others do not segment as badly."""
        if self.task.dice is None:
            return False
        usual = self.task.own if self.nulls_dice is None else self.nulls_dice
        if usual is None:
            return self.task.dice < LEAST_DICE
        return usual - self.task.dice > (AS_WELL if self.task.dice < LEAST_DICE else FAR_BELOW)

    @property
    def does_the_task(self) -> bool:
        """Whether the suspect, as it was described and asked, does the task at all, as far as that was measured."""
        return not (self.looks_like_probabilities or self.segments_badly)
