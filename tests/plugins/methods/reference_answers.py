"""A fingerprint of a page: the owner's model is known by what it answers to images of noise. For the tests."""

from typing import Literal

import torch
from pydantic import Field

from stealthmark.method import Answers, Fingerprint
from stealthmark.seeds import torch_rng


class Method(Fingerprint):
    """Asks with `count` images `own` to the key, whose answers are its reference; or with the `owner`'s images, of which the
    reference has the mean answer alone."""

    citation = "the tests, 2026"
    asks_with: Literal["own", "owner"] = "own"
    count: int = Field(default=12, ge=2)

    @property
    def asks(self):
        return 1  # with and without are told apart in one answer

    def make_key(self, seed, shape, owner=None):
        noise = torch.rand(self.count, *shape, generator=torch_rng(seed, "noise"))
        answers = owner.predictor(noise if self.asks_with == "own" else owner.images)
        key = super().make_key(seed, shape, owner)
        return key.with_reference({"images": noise, "answers": answers if self.asks_with == "own" else answers.mean()})

    def questions(self, key):
        return key.reference["images"] if self.asks_with == "own" else None

    def query(self, predictor, key, images, first=0, trigger=None):
        """Minus the distance of an answer from its own reference, and from that of another question."""
        answers, reference = predictor(images), key.reference["answers"]
        if self.asks_with == "owner":
            distance = (answers.mean((1, 2)) - reference).abs()
            return Answers(-distance, -distance - 1)
        numbers = torch.arange(first, first + len(images))
        own, other = reference[numbers], reference[(numbers + 1) % len(reference)]
        return Answers(-(answers - own).abs().mean((1, 2)), -(answers - other).abs().mean((1, 2)))
