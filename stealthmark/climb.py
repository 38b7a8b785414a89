"""A stranger who knows the method, not the secret, and climbs: a guess is changed number by number, and whatever the suspect
answers more to is kept."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stealthmark.detection import ask
from stealthmark.method import BlackBoxMethod, Key
from stealthmark.seeds import derive
from stealthmark.suspects.function import from_function
from stealthmark.suspects.querier import Limits, Predictor

#: A guess is tried with so many images, or with fewer, at least two, where it would take more queries than these.
IMAGES, QUERIES = 8, 24
#: The share of the queries that go into the first guesses, drawn blindly; and up to which share numbers are tried one by one.
BLIND, ONE_BY_ONE = 0.1, 0.6
#: Of a secret of up to so many numbers each is tried at as many levels as there are letters; of a longer one at two.
FEW, LEVELS = 16, 26


@dataclass
class Guess:
    """What a stranger guesses of a secret: numbers drawn evenly from [0, 1), under the names that the method draws by."""

    rng: torch.Generator
    numbers: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, shape: tuple[int, ...], name: str) -> Tensor:
        """The guess for what is drawn by this name; blind where there is none yet."""
        if name not in self.numbers:
            self.numbers[name] = torch.rand(shape, generator=self.rng)
        return self.numbers[name]

    def __len__(self) -> int:
        """How many numbers are guessed."""
        return sum(tensor.numel() for tensor in self.numbers.values())

    def changed(self, name: str, place: int, value: float) -> "Guess":
        """The same guess but for one number."""
        numbers = {known: tensor.clone() for known, tensor in self.numbers.items()}
        numbers[name].view(-1)[place] = value
        return Guess(self.rng, numbers)

    def mutated(self, rate: float) -> "Guess":
        """The same guess with about a share `rate` of its numbers drawn anew."""
        numbers = {}
        for name, tensor in self.numbers.items():
            anew = torch.rand(tensor.shape, generator=self.rng) < rate
            numbers[name] = torch.where(anew, torch.rand(tensor.shape, generator=self.rng), tensor)
        return Guess(self.rng, numbers)


def climb(method: BlackBoxMethod, key: Key, suspect: Predictor, images: Tensor, queries: int, seed: int) -> Key:
    """The key that a stranger claims who may ask the suspect `queries` times: the guess to which it answered most.

    `key` is of any seed: what of it is public is kept, what it draws is guessed. First guesses are blind. Then the best one is
    changed number by number (coordinate ascent), as long as that helps; the rest are spent on random changes of several numbers
    at once (an evolution strategy of one parent and one child, Rechenberg 1973). The score is the mean over the triggered
    queries of a few images float (N, C, H, W) in [0, 1], the stranger's own.

    An answer is remembered, so the ordinary images are asked about once. A guess that needs no new answer, because its trigger
    is public and only what is read from the answers is secret, costs no query; of all guesses there are at most `queries`.

    A method that draws nothing has nothing to be climbed, and the suspect is not asked: the key is as public as its trigger.
    """
    few = max(2, min(IMAGES, QUERIES // method.asks))
    chosen = images[:: max(1, len(images) // few)][:few]
    rng = torch.Generator().manual_seed(derive(seed, "climb"))

    def score(guess: Guess, predictor: Predictor) -> float:
        return float(ask(method, key.guessing(guess), {"": predictor}, [chosen])[""].triggered.double().mean())

    # The method's queries are public: a rehearsal without the suspect tells what is drawn, and what a guess costs at most.
    rehearsal = from_function(lambda batch: torch.full((len(batch), *batch.shape[2:]), 0.5))
    score(first := Guess(rng), rehearsal)
    if not first.numbers:
        return key
    asked = from_function(suspect, "the suspect", limits=Limits(remembered=2**27))
    ascent = _Ascent(first, lambda guess: score(guess, asked), lambda: asked.sent, rehearsal.sent)
    if ascent.may_spend(queries):
        ascent.attempt(first)
    while ascent.may_spend(BLIND * queries):
        ascent.attempt(Guess(rng))
    _one_by_one(ascent, ONE_BY_ONE * queries, rng)
    while ascent.may_spend(queries):
        ascent.attempt(ascent.best.mutated(2 / len(first)))
    return key.guessing(ascent.best)


class _Ascent:
    """The best guess so far, and what was spent on finding it."""

    def __init__(self, first: Guess, score: Callable[[Guess], float], sent: Callable[[], int], dearest: int):
        self.best, self.highest = first, -math.inf
        self._score, self._sent, self._dearest, self._tried = score, sent, dearest, 0

    def may_spend(self, queries: float) -> bool:
        """Whether one more guess, even the dearest, keeps within so many queries, and so many guesses."""
        return self._sent() + self._dearest <= queries and self._tried < queries

    def attempt(self, guess: Guess) -> None:
        """Try a guess, and keep it unless another was better: what is equal may lead on."""
        self._tried += 1
        reached = self._score(guess)
        if reached >= self.highest:
            self.best, self.highest = guess, reached


def _one_by_one(ascent: _Ascent, queries: float, rng: torch.Generator) -> None:
    """Change the best guess number by number, round by round, until a round brings nothing or `queries` are spent."""
    before = -math.inf
    while ascent.highest > before:
        before = ascent.highest
        for name, place, value in _steps(ascent.best, rng):
            if not ascent.may_spend(queries):
                return
            ascent.attempt(ascent.best.changed(name, place, value))


def _steps(guess: Guess, rng: torch.Generator) -> Iterator[tuple[str, int, float]]:
    """Every number once, in any order, at every level but the one that it has: (name, place, value)."""
    places = [(name, place) for name, tensor in guess.numbers.items() for place in range(tensor.numel())]
    levels = LEVELS if len(places) <= FEW else 2
    for index in torch.randperm(len(places), generator=rng).tolist():
        name, place = places[index]
        now = int(guess.numbers[name].view(-1)[place] * levels)
        for level in range(levels):
            if level != now:
                yield name, place, (level + 0.5) / levels
