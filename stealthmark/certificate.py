"""The certificate that examining a suspect yields: its facts (`certificate_facts`), the sentences made from them
(`certificate_text`), a seal, and signatures. `certificate_page` writes it."""

import math
import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Self

import numpy as np
from pydantic import ModelWrapValidatorHandler, computed_field, model_validator

import stealthmark
from stealthmark import certificate_text as text
from stealthmark import signature
from stealthmark.certificate_facts import Facts, Role, Signature
from stealthmark.certificate_text import Reason
from stealthmark.evidence import conformal_p
from stealthmark.files import seal_of
from stealthmark.pages import many
from stealthmark.signature import PrivateKey


class Certificate(Facts):
    """What one examination of one suspect with one key found, and what it does not show.

    `p_model` is the suspect's rank among the null models (the unit is the model), None exactly where there are none;
    `p_inside` the one-sided test (the unit is the patient) that the trigger raises the share of queries called marked by
    more than `margin`, None where it was not made.
    The sentences (`heading`, `claim`, `summary`, `reasons`, `warnings`, `limits`) are made from these facts, and stand in the
    JSON beside them.

    Raises ValueError for a `verdict` that the facts do not carry, a `p_model` that is not the rank among `nulls`, a time stamp
    that is younger than the examination, a signature that is not of these facts, and, when a certificate is read, for sentences
    that are not those of its facts.
    """

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
        stamp = self.commitment.stamp
        if stamp and stamp.time > self.created:
            raise ValueError(f"the time stamp of the commitment is of {stamp.time}, after the examination on {self.created}")
        return self

    @model_validator(mode="after")
    def _signatures_are_of_these_facts(self) -> Self:
        for one in self.signatures:
            if not signature.holds(one.public_key, one.signature, self._signed_text(one.role)):
                raise ValueError(f"the signature of the {one.role} with the public key {one.public_key} is not of these facts")
        return self

    def signed(self, keys: Iterable[tuple[Role, PrivateKey]]) -> Self:
        """The certificate with further signatures, one a key; one that is there of the same role and key is replaced."""
        new = []
        for role, key in keys:
            public = signature.public_of(key)
            new.append(Signature(role=role, public_key=public, signature=signature.sign(key, self._signed_text(role))))
        again = {(one.role, one.public_key) for one in new}
        kept = [one for one in self.signatures if (one.role, one.public_key) not in again]
        facts = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**facts | {"signatures": (*kept, *new)})

    def _signed_text(self, role: Role) -> bytes:
        """What is signed: the seal of all facts, and as whom. Read aloud, it says what it is, and can be nothing else."""
        return f"certificate of examination of stealthmark, format {self.format}, signed as {role}: {self.seal}".encode()

    @computed_field
    @property
    def seal(self) -> str:
        """SHA-256 of all facts but the signatures."""
        return seal_of(self.model_dump(mode="json", exclude={*type(self).model_computed_fields, "signatures"}))

    @computed_field
    @property
    def heading(self) -> str:
        return text.heading(self)

    @computed_field
    @property
    def claim(self) -> str:
        return text.claim(self)

    @computed_field
    @property
    def smallest_p(self) -> float | None:
        """The smallest `p_model` that the pool allows, 1 / (1 + number of nulls); None without a pool."""
        return 1 / (1 + len(self.nulls)) if self.nulls else None

    @computed_field
    @property
    def summary(self) -> str:
        return text.summary(self)

    @computed_field
    @property
    def reasons(self) -> tuple[Reason, ...]:
        return text.reasons(self)

    @computed_field
    @property
    def warnings(self) -> tuple[str, ...]:
        return text.warnings(self)

    @computed_field
    @property
    def limits(self) -> tuple[str, ...]:
        return text.limits(self)


def software() -> dict[str, str]:
    """The versions that a certificate names: stealthmark, torch, numpy, python."""
    packages = {name: version(name) for name in ("torch", "numpy")}
    return {"stealthmark": stealthmark.__version__, **packages, "python": platform.python_version()}
