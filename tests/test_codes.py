"""QR codes: what is written is read back, errors are mended up to the code's own limit, noise is no code."""

import numpy as np
import pytest

from stealthmark.codes import KINDS, chance, decode, encode, error_rate, median_split, minimum_error_split, patterns


@pytest.mark.parametrize("kind, text", [("micro", "OWNER1"), ("micro", "A"), ("qr", "HOSPITAL 7 / 2026"), ("qr", "x")])
def test_what_is_written_is_read_back(kind, text):
    modules = encode(text, kind)
    assert modules.dtype == bool and modules.shape == (KINDS[kind][2],) * 2
    assert decode(modules) == text


@pytest.mark.parametrize("kind, text", [("micro", "TOOLONG"), ("qr", "X" * 26)])
def test_a_text_that_does_not_fit_is_refused(kind, text):
    with pytest.raises(ValueError, match="does not fit"):
        encode(text, kind)


def test_a_wrong_module_is_mended_and_half_of_them_are_not():
    modules = encode("OWNER1")
    damaged = modules.copy()
    damaged[12, 12] ^= True
    assert decode(damaged) == "OWNER1"
    rng = np.random.default_rng(0)
    assert all(decode(rng.random((13, 13)) < 0.5) is None for _ in range(200))


@pytest.mark.parametrize("kind, carrying", [("micro", 80 + 15), ("qr", 26 * 8 + 2 * 15)])
def test_function_patterns_are_what_all_codes_share_and_are_not_asked_for_the_text(kind, carrying):
    """M2 has 10 codewords, version 1 has 26, of 8 modules; format information is 15 modules, once and twice (ISO/IEC 18004)."""
    shared, drawn = patterns(kind)
    assert (~shared).sum() == carrying
    for text in ("OWNER1", "A", "12345", "ZZ-9 %"):
        code = encode(text, kind)
        assert np.array_equal(code[shared], drawn[shared])
        assert decode(np.where(shared, ~code, code)) == text


def test_noise_between_the_function_patterns_is_no_code():
    rng = np.random.default_rng(1)
    assert all(decode(rng.random((side, side)) < 0.5) is None for side in (13, 21) for _ in range(300))


def test_error_rate_by_hand():
    code = encode("OWNER1")
    assert error_rate(code, code) == 0 and error_rate(~code, code) == 1
    wrong = code.copy()
    wrong[0, :] ^= True
    assert error_rate(wrong, code) == pytest.approx(1 / 13)


def test_the_chance_of_a_hash_is_the_binomial_tail():
    """Of four coins: none wrong 1/16, one or less 5/16, all or less 1. A QR code's modules are no coins."""
    assert [chance(k / 4, 2) for k in (0, 1, 4)] == pytest.approx([1 / 16, 5 / 16, 1])
    assert chance(2 / 64, 8) == pytest.approx((1 + 64 + 64 * 63 / 2) / 2**64)
    assert chance(0.0, 13) is None and chance(0.0, 21) is None


# --- maps -> modules --------------------------------------------------------------------------------------------------


def test_the_median_splits_a_map_by_hand():
    """Dark above the median, which itself is light."""
    assert median_split(np.array([[3.0, 1.0, 2.0]])).tolist() == [[True, False, False]]
    assert median_split(np.array([[4.0, 1.0], [2.0, 3.0]])).tolist() == [[True, False], [False, True]]
    assert not median_split(np.full((13, 13), 0.25)).any()


def test_light_and_dark_are_told_apart_with_the_least_error_though_dark_ones_spread_more():
    rng = np.random.default_rng(0)
    for n_dark in (40, 85, 130):
        values = np.r_[rng.normal(0, 0.02, 169 - n_dark), rng.normal(0.4, 0.15, n_dark)].reshape(13, 13)
        costs = {}
        for t in np.sort(values, axis=None)[21:-22]:  # the paper's criterion, class by class
            classes = values[values <= t], values[values > t]
            shares = [len(c) / 169 for c in classes]
            costs[t] = 1 + 2 * sum(p * (np.log(c.std()) - np.log(p)) for p, c in zip(shares, classes, strict=True))
        modules = minimum_error_split(values)
        assert np.array_equal(modules, values > min(costs, key=costs.get))
        assert np.mean(modules.flatten() != (np.arange(169) >= 169 - n_dark)) < 0.03
    assert not minimum_error_split(np.full((13, 13), 0.25)).any(), "a model that answers every query alike spells nothing"
