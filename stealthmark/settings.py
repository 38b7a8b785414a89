"""What a suite sets: the schedule of a training, the plan of claims, the plan of explanations. No torch here."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from stealthmark import codes
from stealthmark.layout import CLAIMS

#: YAML's `yes` and `true` are no number.
Whole = Annotated[int, Field(strict=True)]


class Schedule(BaseModel):
    """How long and how fast to train: AdamW, linear warm-up over the first tenth, then `decay`.

    With `steps` instead of `epochs` the training is as many whole epochs as have at least that many steps. So sets of any
    size are trained alike. With the `precision` bfloat16 the network's matrix products and convolutions are computed in
    that format (mixed precision, Micikevicius et al. 2018). Weights, optimiser and loss stay float32, and so does everything
    that is ever measured of the trained model.

    Batch-norm learns the statistics of a mark's batches and of ordinary ones together. A thief's first epochs on ordinary
    images take the former away again. In the last share `settled` of the epochs batch-norm therefore normalises by statistics
    of ordinary images, measured when that part begins, and the mark is learned on those. That part is a training of its own,
    with a fresh optimiser and warm-up, at half the rate: going on at full speed on other statistics undoes what was learned.
    """

    #: Options that came later, and the values that are not written down: a run that has these is the run it was.
    USUAL: ClassVar[dict[str, object]] = {"precision": "float32", "settled": 0}

    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: Whole = Field(default=16, ge=1)
    steps: Whole | None = Field(default=None, ge=1)
    batch: Whole = Field(default=16, ge=2)
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=1e-2, ge=0, allow_inf_nan=False)
    decay: Literal["cosine", "constant"] = "cosine"
    precision: Literal["float32", "bfloat16"] = "float32"
    settled: float = Field(default=0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _check_length(cls, content: object) -> object:
        if isinstance(content, dict) and content.get("steps") and "epochs" in content:
            raise ValueError("give 'epochs' or 'steps', not both")
        return content

    def epochs_of(self, steps: int) -> int:
        """How many epochs of so many steps the training has."""
        return math.ceil(self.steps / steps) if self.steps else self.epochs

    def rate(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1) of the training."""
        if self.decay == "constant":
            return self.lr
        return self.lr * min(1.0, progress / 0.1 + 0.01) * (0.005 + 0.995 * (1 + math.cos(math.pi * progress)) / 2)

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict:
        """Without the one of `epochs` and `steps` that does not count, and without an option that has its value of `USUAL`."""
        usual = {name for name, value in self.USUAL.items() if getattr(self, name) == value}
        unused = {"epochs" if self.steps else "steps"} | usual
        return {name: value for name, value in dump(self).items() if name not in unused}


class Marking(Schedule):
    """How long and how fast to mark. A mark is settled where nothing else is said, ours and rivals' alike."""

    USUAL: ClassVar[dict[str, object]] = {"precision": "float32"}

    settled: float = Field(default=0.25, ge=0, lt=1)


class ClaimPlan(BaseModel):
    """How hard a malicious claimant tries: `keys` tried in the search; a universal perturbation of at most `epsilon` a
    pixel, found in `steps` steps on a surrogate. `images`: how many of the owner's images a claim is queried with. `climb`:
    how many queries a stranger spends who climbs to a key (`climb.climb`); 0: nobody does."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    keys: Whole = Field(default=20, ge=1)
    epsilon: float = Field(default=8 / 255, gt=0, le=1)
    steps: Whole = Field(default=100, ge=1)
    images: Whole = Field(default=100, ge=1)
    climb: Whole = Field(default=0, ge=0)

    @property
    def claims(self) -> tuple[str, ...]:
        """The claims that are made, in the order of `layout.CLAIMS`."""
        return tuple(claim for claim in CLAIMS if claim != "climb" or self.climb)

    @model_serializer(mode="wrap")
    def _without_a_climb(self, dump: SerializerFunctionWrapHandler) -> dict:
        """Without `climb` where nobody climbs."""
        return {name: value for name, value in dump(self).items() if (name, value) != ("climb", 0)}


class ExplanationPlan(BaseModel):
    """What a suite explains: `images` test images of every suspect, `queries` queries each, against the QR code `code`.

    A code that the mark itself carries is read from those images together. Of the model as it was stolen it is read in
    `tries` tries, each with images of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    code: str = "OWNER1"
    kind: Literal["micro", "qr"] = "micro"
    images: Whole = Field(default=3, ge=1)
    queries: Whole = Field(default=512, ge=2)
    tries: Whole = Field(default=1, ge=1)
    quantity: Literal["background-level", "foreground-mean", "foreground-fraction"] = "foreground-mean"

    @model_validator(mode="after")
    def _check_code(self) -> "ExplanationPlan":
        codes.encode(self.code, self.kind)
        return self

    @model_serializer(mode="wrap")
    def _without_one_try(self, dump: SerializerFunctionWrapHandler) -> dict:
        """Without `tries` where it is one: most marks carry no code."""
        return {name: value for name, value in dump(self).items() if (name, value) != ("tries", 1)}
