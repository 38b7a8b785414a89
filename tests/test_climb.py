"""The climber: what answers bit by bit is climbed, what answers all or nothing is not, and the budget is kept."""

from typing import ClassVar

import pytest
import torch
from pydantic import PrivateAttr

from stealthmark.claims import all_claims
from stealthmark.climb import IMAGES, Guess, climb
from stealthmark.method import Answers, BlackBoxMethod, EmbeddedMark, Key
from stealthmark.plugin import make
from stealthmark.settings import ClaimPlan
from stealthmark.triggers import letters

SHAPE = (1, 8, 8)
IMAGES_OF_THE_STRANGER = torch.zeros(40, *SHAPE)
WORD = "MARK"


class Written(EmbeddedMark):
    """The trigger writes a word of the key into the first row, a pixel a letter, its value the letter's number of 25."""

    family: ClassVar = "embedded"

    def trigger(self, images, key):
        word = letters(key.uniform((len(WORD),), "word"))
        out = images.clone()
        out[..., 0, : len(word)] = torch.tensor([ord(letter) - ord("A") for letter in word]) / 25
        return out

    def score(self, answers, benign, key):
        return answers.mean((1, 2))


class Suspect:
    """Answers with what `answer` makes of the share of the word's letters that an image has; counts queries."""

    def __init__(self, answer):
        self.answer, self.asked = answer, 0
        self.word = torch.tensor([ord(letter) - ord("A") for letter in WORD]) / 25

    def __call__(self, images):
        self.asked += len(images)
        right = ((images[:, 0, 0, : len(WORD)] - self.word).abs() < 1e-6).float().mean(1)
        return self.answer(right)[:, None, None].expand(-1, *images.shape[-2:])


def climbed(answer, queries: int, seed: int = 1) -> tuple[str, int]:
    method, suspect = Written(), Suspect(answer)
    forged = climb(method, Key(method={}, seed=99, shape=SHAPE), suspect, IMAGES_OF_THE_STRANGER, queries, seed)
    return letters(forged.uniform((len(WORD),), "word")), suspect.asked


def bit_by_bit(right):
    return right


def all_or_nothing(right):
    return (right == 1).float()


@pytest.mark.parametrize("seed", range(5))
def test_a_word_that_is_answered_letter_by_letter_is_found(seed):
    """26 letters at four places are 100 guesses. The stranger's images are all alike, so a guess is one query."""
    word, asked = climbed(bit_by_bit, 1000, seed)
    assert word == WORD and asked <= 1000


@pytest.mark.parametrize("seed", range(5))
def test_a_word_that_is_answered_as_a_whole_is_not_found(seed):
    """Of 456,976 words at most 1000 are tried: five strangers find one with a probability of 0.011."""
    assert climbed(all_or_nothing, 1000, seed)[0] != WORD


def test_what_one_stranger_finds_depends_on_the_seed_alone():
    assert climbed(all_or_nothing, 200, 3) == climbed(all_or_nothing, 200, 3) != climbed(all_or_nothing, 200, 4)


@pytest.mark.parametrize("queries", [0, 1, 16, 17, 100, 333])
def test_no_query_is_spent_beyond_the_budget_and_nearly_all_are_spent(queries):
    """Images that differ: a guess takes `IMAGES` queries, and the ordinary images as many, once."""
    images = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0))
    suspect = Suspect(all_or_nothing)
    climb(Written(), Key(method={}, seed=99, shape=SHAPE), suspect, images, queries, 1)
    assert suspect.asked <= queries
    assert suspect.asked > queries - 2 * IMAGES, "what is left is less than a guess costs at most"


def test_a_method_that_draws_nothing_is_not_climbed():
    class Public(Written):
        def trigger(self, images, key):
            return images + 0.5

    suspect, key = Suspect(bit_by_bit), Key(method={}, seed=99, shape=SHAPE)
    assert climb(Public(), key, suspect, IMAGES_OF_THE_STRANGER, 1000, 1) is key and suspect.asked == 0


def test_a_secret_that_is_only_read_from_the_answers_is_climbed_offline():
    """BadNets' trigger is public, and its wrong square shows in the first answer: two queries an image tell the place."""
    method, size = make("method", {"name": "badnets"}), 32
    square = torch.zeros(size, size)
    square[3:19, 11:27] = 1
    asked = []

    def suspect(images):
        asked.append(len(images))
        return square.expand(len(images), -1, -1)

    images = torch.rand(20, 3, size, size, generator=torch.Generator().manual_seed(0))
    forged = climb(method, method.make_key(99, (3, size, size)), suspect, images, 1000, 1)
    assert torch.equal(method.target(torch.zeros(1, size, size), forged)[0], square)
    assert sum(asked) == 2 * IMAGES


def test_the_stranger_knows_nothing_of_the_owners_secret():
    """The same stranger makes the same first guess, whoever the owner is; and what is guessed is none of the key's numbers."""
    for seed in (1, 2):
        key = Key(method={}, seed=seed, shape=SHAPE)
        guess = Guess(torch.Generator().manual_seed(0))
        assert torch.equal(key.guessing(guess).uniform((4,), "word"), torch.rand(4, generator=torch.Generator().manual_seed(0)))
        assert not torch.equal(key.guessing(guess).uniform((4,), "word"), key.uniform((4,), "word"))
        assert key.guessing(guess).model_dump() == key.model_dump()


def test_a_change_of_a_guess_leaves_the_guess_as_it_was():
    guess = Guess(torch.Generator().manual_seed(0))
    before = guess((2, 3), "a").clone()
    changed = guess.changed("a", 4, 0.5)
    assert torch.equal(guess((2, 3), "a"), before)
    assert (changed((2, 3), "a") != before).nonzero().tolist() == [[1, 1]] and changed((2, 3), "a")[1, 1] == 0.5
    assert torch.equal(guess.mutated(0.0)((2, 3), "a"), before) and (guess.mutated(1.0)((2, 3), "a") != before).all()


class Asking(BlackBoxMethod):
    """No mark and no trigger: each image is asked `each` times, at places that are drawn."""

    family: ClassVar = "fingerprint"
    each: int = 12
    _sizes: set = PrivateAttr(default_factory=set)

    @property
    def asks(self) -> int:
        return self.each

    def query(self, predictor, key, images, first=0, trigger=None):
        self._sizes.add(len(images))
        places = key.uniform((self.each,), "places")
        answers = torch.stack([predictor((images + place).clamp(0, 1)).mean((1, 2)) for place in places])
        return Answers(answers.mean(0), answers.mean(0))


@pytest.mark.parametrize("each, images", [(1, 8), (3, 8), (6, 4), (12, 2), (30, 2)])
def test_where_an_image_takes_many_queries_a_guess_is_tried_with_fewer_images(each, images):
    method = Asking(each=each)
    climb(method, Key(method={}, seed=99, shape=SHAPE), Suspect(bit_by_bit), IMAGES_OF_THE_STRANGER, 500, 1)
    assert method._sizes == {images}


def test_nobody_climbs_where_the_plan_has_no_queries_for_it():
    made = [
        all_claims(
            Asking(),
            Key(method={}, seed=7, shape=SHAPE),
            Suspect(bit_by_bit),
            torch.nn.Conv2d(1, 1, 1),
            IMAGES_OF_THE_STRANGER,
            torch.zeros(40, 8, 8),
            ClaimPlan(keys=1, climb=queries),
            1,
        )
        for queries in (0, 50)
    ]
    assert [[claim.name for claim in claims] for claims in made] == [["wrong-key", "search"], ["wrong-key", "search", "climb"]]
    assert not made[1][-1].malicious
