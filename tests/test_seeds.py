"""Seeds and secrets: what depends on what, and that no bit of a secret is lost."""

import pytest
import torch

from stealthmark.method import Key
from stealthmark.plugin import make
from stealthmark.plugins import known
from stealthmark.seeds import SECRET_BITS, derive, secret, secret_rng, secret_uniform, torch_rng
from stealthmark.triggers import Trigger

IMAGES = torch.full((2, 3, 64, 64), 0.5)
#: Two secrets whose lower 32, and lower 64, bits are the same.
PAIRS = [(5, 5 + (1 << 32)), (5, 5 + (1 << 64)), (5, 5 + (1 << (SECRET_BITS - 1)))]


def test_a_secret_by_hand():
    """HMAC-SHA256 under the root's 32 bytes, of the components joined by the unit separator; RFC 2104."""
    import hashlib
    import hmac

    digest = hmac.new((7).to_bytes(32, "big"), b"key\x1f3", hashlib.sha256).hexdigest()
    assert secret(7, "key", 3) == int(digest, 16)


@pytest.mark.parametrize("one, other", PAIRS)
def test_every_bit_of_a_secret_counts(one, other):
    assert secret(one, "x") != secret(other, "x")
    assert not torch.equal(secret_uniform((8,), one, "x"), secret_uniform((8,), other, "x"))
    assert secret_rng(one).integers(2**63) != secret_rng(other).integers(2**63)


def test_torchs_generator_ignores_the_upper_half_of_a_seed_which_is_why_no_secret_goes_into_it():
    draws = [torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + (1 << 32))]
    assert torch.equal(*draws)


def test_draws_are_even_and_repeat():
    uniform = secret_uniform((100_000,), 3, "even")
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean().item() - 0.5) < 0.005
    assert torch.equal(uniform, secret_uniform((100_000,), 3, "even"))
    assert not torch.equal(uniform, secret_uniform((100_000,), 3, "odd"))


def test_components_are_not_run_together():
    assert derive(1, "a", "b") != derive(1, "ab") and secret(1, "a", "b") != secret(1, "ab")
    assert torch.equal(torch.rand(3, generator=torch_rng(1, "a")), torch.rand(3, generator=torch_rng(1, "a")))


@pytest.mark.parametrize("kind", ["noise", "word", "picture", "frame"])
@pytest.mark.parametrize("one, other", PAIRS)
def test_secret_triggers_differ_where_only_upper_bits_do(kind, one, other):
    assert not torch.equal(Trigger(kind=kind, seed=one)(IMAGES), Trigger(kind=kind, seed=other)(IMAGES))


#: Methods whose trigger, or whose target, is the same for everybody: they say so, and their papers too.
OPEN = {"badnets", "stealthmark", "continued"}


@pytest.mark.parametrize("name", [name for name in known("method") if name != "clean"])
def test_no_methods_secret_repeats_after_32_bits(name):
    """Of every method whose trigger depends on the key at all, it depends on the upper bits too."""
    method = make("method", {"name": name})
    keys = [Key(method=method.options(), seed=seed, shape=(3, 64, 64)) for seed in (5, 5 + (1 << 32), 6)]
    first, upper, lower = (method.trigger(IMAGES, key) for key in keys)
    depends = not torch.equal(first, lower)
    assert depends == (name not in OPEN)
    assert torch.equal(first, upper) == (not depends)
    masks = torch.zeros(2, 64, 64)
    targets = [method.target(masks, key) for key in keys]
    assert torch.equal(targets[0], targets[1]) == torch.equal(targets[0], targets[2])


def test_what_a_payload_marks_query_hides_depends_on_upper_bits():
    method = make("method", {"name": "stealthmark-payload", "queries": 4})
    seen = []
    for seed in PAIRS[0]:
        key = method.make_key(seed, (3, 64, 64))
        method.query(lambda images: seen.append(images) or images.mean(1), key, IMAGES[:1] / 2)
    plain, other_plain = seen[1], seen[3]
    assert not torch.equal(plain, other_plain)


def test_what_a_key_draws_is_drawn_from_its_seed_and_the_name():
    key = Key(method={"name": "stealthmark"}, seed=5, shape=(3, 64, 64))
    assert torch.equal(key.uniform((2, 3), "x"), secret_uniform((2, 3), 5, "x"))
    assert not torch.equal(key.uniform((2, 3), "x"), key.uniform((2, 3), "y"))


def test_a_guess_takes_the_place_of_what_is_drawn_and_of_nothing_else(tmp_path):
    """A forged key is the same key but for what it draws; the key it was made from stays as it is."""
    key, asked = Key(method={"name": "stealthmark", "trigger": "word"}, seed=5, shape=(3, 64, 64)), []

    def guess(shape, name):
        asked.append((shape, name))
        return torch.full(shape, 0.25)

    forged = key.guessing(guess)
    assert forged.uniform((2, 3), "x").tolist() == [[0.25] * 3] * 2 and asked == [((2, 3), "x")]
    assert torch.equal(key.uniform((2, 3), "x"), secret_uniform((2, 3), 5, "x"))
    assert forged.model_dump() == key.model_dump(), "a guess is no part of a key, and not written with it"
    method = make("method", key.method)
    of_guess = Trigger("word", draw=guess)(IMAGES)
    assert torch.equal(method.trigger(IMAGES, forged), of_guess) and not torch.equal(method.trigger(IMAGES, key), of_guess)
    assert torch.equal(forged.guessing(key.uniform).uniform((3,), "x"), key.uniform((3,), "x"))


def test_a_key_holds_256_bits():
    key = Key(method={"name": "stealthmark"}, seed=2**SECRET_BITS - 1, shape=(3, 64, 64))
    assert Key.model_validate_json(key.model_dump_json()).seed == 2**SECRET_BITS - 1
    with pytest.raises(ValueError, match="less than"):
        Key(method={"name": "stealthmark"}, seed=2**SECRET_BITS, shape=(3, 64, 64))
