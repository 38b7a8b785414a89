"""Known answers by hand, cross-checks against sklearn and scipy, and properties of the metrics and intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from stealthmark import metrics

EMPTY, FULL = np.zeros((1, 2, 2), bool), np.ones((1, 2, 2), bool)
masks = arrays(bool, (3, 6, 5))


def grid(*rows: str) -> np.ndarray:
    """A mask (1, H, W) drawn with # and . ."""
    return np.array([[[pixel == "#" for pixel in row] for row in rows]])


# --- counts, Dice, VS -------------------------------------------------------------------------------------------------


def test_counts_by_hand():
    pred, mask = grid("##", "#."), grid("#.", "##")
    assert [c.tolist() for c in metrics.counts(pred, mask)] == [[2], [1], [1], [0]]


def test_dice_and_vs_by_hand():
    pred = np.concatenate([grid("##", ".."), grid("##", "##"), grid("#.", "..")])
    mask = np.concatenate([grid("#.", "#."), grid("#.", ".."), grid("..", ".#")])
    c = metrics.counts(pred, mask)
    assert metrics.dice(c).tolist() == [2 / 4, 2 / 5, 0]
    assert metrics.volumetric_similarity(c) == pytest.approx([1, 1 - 3 / 5, 1])


def test_counting_is_per_case_not_per_image_column():
    """The released code summed over the wrong axes: an empty prediction scored 0.77. It scores 0."""
    mask = grid("....", ".#..", ".#..", "....")
    table = metrics.segmentation(np.zeros(mask.shape, np.float32), mask)
    assert table.dice.tolist() == [0] and table.vs.tolist() == [0]


@pytest.mark.parametrize(
    "pred, mask, dice, vs", [(EMPTY, EMPTY, 1, 1), (FULL, EMPTY, 0, 0), (EMPTY, FULL, 0, 0), (FULL, FULL, 1, 1)]
)
def test_empty_mask_rule(pred, mask, dice, vs):
    c = metrics.counts(pred, mask)
    assert metrics.dice(c).tolist() == [dice] and metrics.volumetric_similarity(c).tolist() == [vs]


def test_no_cases_give_no_lines():
    none = np.zeros((0, 4, 4), np.float32)
    assert metrics.segmentation(none, none > 0).shape == (0, 7)


@given(masks, masks)
def test_dice_is_symmetric_bounded_and_one_only_when_equal(a, b):
    ab, ba = metrics.dice(metrics.counts(a, b)), metrics.dice(metrics.counts(b, a))
    assert (ab == ba).all() and (ab >= 0).all() and (ab <= 1).all()
    assert ((ab == 1) == (a == b).all(axis=(1, 2))).all()


@given(masks, masks)
def test_counts_sum_to_the_pixels_and_vs_is_at_least_dice(a, b):
    c = metrics.counts(a, b)
    assert (sum(c) == 30).all()
    assert (metrics.volumetric_similarity(c) >= metrics.dice(c) - 1e-12).all()


# --- Dice over thresholds ---------------------------------------------------------------------------------------------


def by_naive_loop(prob: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Dice at 255 thresholds, one after the other."""
    thresholds = np.arange(255, dtype=prob.dtype) / prob.dtype.type(255)
    return np.mean([metrics.dice(metrics.counts(prob > threshold, mask)) for threshold in thresholds], axis=0)


def test_threshold_dice_by_hand():
    """51 of 255 thresholds lie below 0.2, 204 below 0.8: until 51 all four pixels are foreground (Dice 2/3), until 204 the two
    right ones (Dice 1), above that none (Dice 0)."""
    prob = np.array([[[0.8, 0.8], [0.2, 0.2]]])
    expected = (51 * 2 / 3 + (204 - 51) * 1 + 51 * 0) / 255
    assert metrics.threshold_dice(prob, grid("##", "..")) == pytest.approx([expected])


def test_threshold_dice_of_maps_of_zeros_and_ones_is_dice():
    pred, mask = np.concatenate([grid("##", ".."), EMPTY, FULL, EMPTY]), np.concatenate([grid("#.", "#."), EMPTY, EMPTY, FULL])
    assert metrics.threshold_dice(pred.astype(np.float32), mask).tolist() == metrics.dice(metrics.counts(pred, mask)).tolist()


def test_threshold_dice_keeps_the_empty_mask_rule_at_every_threshold():
    """Nothing is there, and 0.5 is above 128 thresholds (0 to 127): Dice 0 at these, 1 at the other 127."""
    assert metrics.threshold_dice(np.full((1, 2, 2), 0.5), EMPTY) == pytest.approx([127 / 255])


def test_a_value_of_an_8_bit_map_is_not_above_its_own_threshold():
    """Level 3 of 255 passes the thresholds 0, 1 and 2, in whatever precision it was divided."""
    for kind in (np.float32, np.float64):
        levels = np.arange(256, dtype=kind)[:, None, None] / kind(255)
        assert (metrics.threshold_dice(levels, np.ones((256, 1, 1), bool)) * 255).round(6).tolist() == [*range(256)]


@settings(deadline=None)
@given(arrays(np.float32, (3, 6, 5), elements=st.floats(0, 1, width=32)), masks)
def test_threshold_dice_is_that_of_the_naive_loop(prob, mask):
    assert metrics.threshold_dice(prob, mask) == pytest.approx(by_naive_loop(prob, mask), abs=1e-12)
    eight_bit = (prob * 255).round() / np.float32(255)
    assert metrics.threshold_dice(eight_bit, mask) == pytest.approx(by_naive_loop(eight_bit, mask), abs=1e-12)


def test_threshold_dice_sees_what_dice_does_not():
    """A background raised to 0.1 stays below one half: Dice is as before, a tenth of the thresholds sees it."""
    mask = grid("##", "..")
    flat, raised = mask.astype(float), np.where(mask, 1.0, 0.1)
    before, after = metrics.segmentation(flat, mask), metrics.segmentation(raised, mask)
    assert before.dice.item() == after.dice.item() == 1 and before.threshold_dice.item() == 1
    assert after.threshold_dice.item() == pytest.approx((26 * 2 / 3 + 229) / 255), "thresholds 0 to 25 lie below 0.1"


@pytest.mark.parametrize(
    "pred, mask, says",
    [
        (np.zeros((1, 2, 2)), EMPTY, "pred must be bool"),
        (EMPTY, EMPTY[0], "mask must be bool"),
        (EMPTY, np.zeros((1, 2, 3), bool), "one shape"),
    ],
)
def test_wrong_arrays_are_named(pred, mask, says):
    with pytest.raises(ValueError, match=says):
        metrics.counts(pred, mask)


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.5])
def test_probabilities_outside_their_range_are_refused(bad):
    prob = np.full((1, 2, 2), bad, np.float32)
    with pytest.raises(ValueError, match="must lie in"):
        metrics.segmentation(prob, EMPTY)


# --- AUC --------------------------------------------------------------------------------------------------------------


def test_auroc_by_hand():
    # pairs: 3>1, 3>2, 2>1 won, 2=2 tied: 3.5 of 4
    assert metrics.auroc(np.array([3, 2]), np.array([1, 2])) == 3.5 / 4
    assert np.isnan(metrics.auroc(np.array([]), np.array([1.0])))


@pytest.mark.parametrize("levels", [2, 10, 10**6])  # from nearly all ties to hardly any
def test_pixelwise_auc_equals_sklearn(levels):
    rng = np.random.default_rng(0)
    prob = (rng.integers(0, levels, (4, 32, 32)) / levels).astype(np.float32)
    mask = rng.random((4, 32, 32)) < 0.2
    expected = [roc_auc_score(m.ravel(), p.ravel()) for p, m in zip(prob, mask, strict=True)]
    assert metrics.auc(prob, mask) == pytest.approx(expected, abs=1e-12)


def test_auc_is_undefined_on_empty_and_full_masks():
    prob = np.full((1, 2, 2), 0.3, np.float32)
    assert np.isnan(metrics.auc(prob, EMPTY)).all() and np.isnan(metrics.auc(prob, FULL)).all()


# --- HD95 -------------------------------------------------------------------------------------------------------------


def test_hd95_by_hand():
    a = grid("#....", ".....", ".....", ".....")
    b = grid(".....", ".....", ".....", "....#")
    assert metrics.hd95(a, b).tolist() == [5.0]  # 3 down, 4 right
    assert metrics.hd95(a, a).tolist() == [0.0]


def test_hd95_measures_from_surfaces():
    full, ring = grid(*["#####"] * 5), grid("#####", "#...#", "#...#", "#...#", "#####")
    assert metrics.hd95(full, ring).tolist() == [0.0]  # one surface: the filling does not count


def test_hd95_takes_the_worse_direction():
    dot, bar = grid("#..........."), grid("############")
    # from the bar: 0, 1, ..., 11 px, of which the 95th percentile is 10.45; from the dot: 0
    assert metrics.hd95(dot, bar) == pytest.approx([10.45])
    assert metrics.hd95(bar, dot) == pytest.approx([10.45])


def test_hd95_empty_rule():
    assert metrics.hd95(EMPTY, EMPTY).tolist() == [0.0]
    assert np.isnan(metrics.hd95(EMPTY, FULL)).all() and np.isnan(metrics.hd95(FULL, EMPTY)).all()


@settings(max_examples=50)
@given(masks, masks)
def test_hd95_equals_all_pairwise_distances(a, b):
    def surface(region):
        padded = np.pad(region, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(region & ~inner)

    for got, p, m in zip(metrics.hd95(a, b), a, b, strict=True):
        if p.any() and m.any():
            distance = cdist(surface(p), surface(m))
            expected = max(np.percentile(distance.min(axis=0), 95), np.percentile(distance.min(axis=1), 95))
            assert got == pytest.approx(expected)


# --- calibration ------------------------------------------------------------------------------------------------------


def test_ece_and_brier_by_hand():
    prob, mask = np.array([[[0.1, 0.12], [0.9, 0.6]]]), grid("#.", "#.")
    # bin 1 holds 0.1 and 0.12, bin 9 holds 0.6, bin 13 holds 0.9: |0.22 - 1| + |0.6 - 0| + |0.9 - 1| over four pixels
    table = metrics.segmentation(prob, mask)
    assert table.ece.item() == pytest.approx((0.78 + 0.6 + 0.1) / 4)
    assert table.brier.item() == pytest.approx((0.9**2 + 0.12**2 + 0.1**2 + 0.6**2) / 4)


def test_a_floor_of_a_tenth_on_an_empty_background_is_an_error_of_a_tenth():
    table = metrics.segmentation(np.full((1, 8, 8), 0.1, np.float32), np.zeros((1, 8, 8), bool))
    assert table.ece.item() == pytest.approx(0.1) and table.brier.item() == pytest.approx(0.01)


def test_a_calibrated_map_has_no_ece_and_a_known_brier():
    share = np.repeat([0.1, 0.5, 0.9], 1000)  # of 1000 pixels called p, 1000 p are foreground
    foreground = np.concatenate([np.arange(1000) < 1000 * p for p in (0.1, 0.5, 0.9)])
    table = metrics.segmentation(share.reshape(1, 60, 50), foreground.reshape(1, 60, 50))
    assert table.ece.item() == pytest.approx(0, abs=1e-12)
    assert table.brier.item() == pytest.approx((0.1 * 0.9 + 0.5 * 0.5 + 0.9 * 0.1) / 3)  # the mean of p (1 - p)


def test_over_and_under_confidence_of_two_images_do_not_cancel():
    prob, mask = np.full((2, 2, 2), 0.5), np.concatenate([EMPTY, FULL])
    assert metrics.segmentation(prob, mask).ece.tolist() == [0.5, 0.5]


def test_a_bin_holds_its_lower_edge_and_the_last_one_holds_one():
    r = metrics.reliability(np.array([[[0.0, 0.5], [0.4999, 1.0]]]), grid("..", ".#"), edges=np.array([0, 0.5, 1]))
    assert [part.tolist() for part in r] == [[[2, 2]], [[0.4999, 1.5]], [[0, 1]]]


@given(arrays(np.float32, (3, 6, 5), elements=st.floats(0, 1, width=32)), masks)
def test_no_pixel_is_lost_and_a_sure_map_errs_where_it_is_wrong(prob, mask):
    assert metrics.reliability(prob, mask).pixels.sum(axis=1).tolist() == [30, 30, 30]
    table, sure = metrics.segmentation(prob, mask), metrics.segmentation((prob >= 0.5).astype(float), mask)
    assert ((table.ece >= 0) & (table.ece <= 1) & (table.brier <= 1)).all()
    assert sure.brier.to_numpy() == pytest.approx(((prob >= 0.5) != mask).mean(axis=(1, 2)))


# --- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k, n", [(0, 10), (3, 10), (10, 10), (59, 60)])
def test_clopper_pearson_equals_scipy(k, n):
    expected = stats.binomtest(k, n).proportion_ci(method="exact")
    assert metrics.clopper_pearson(k, n) == pytest.approx(tuple(expected))


def test_clopper_pearson_of_no_hits_and_of_no_data():
    assert metrics.clopper_pearson(0, 59)[1] == pytest.approx(1 - 0.025 ** (1 / 59)) == pytest.approx(0.0606, abs=1e-4)
    assert metrics.clopper_pearson(0, 0) == (0, 1)


def in_groups(hits: list[int], sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """So many hits of so many cases a group: hits bool (N,), groups int (N,)."""
    each = [np.arange(size) < hit for hit, size in zip(hits, sizes, strict=True)]
    return np.concatenate(each), np.repeat(np.arange(len(sizes)), sizes)


def test_one_case_a_group_is_half_way_between_jeffreys_and_clopper_pearson():
    """How groups resemble themselves plays no part: the posterior is Beta(7 + 1/4, 13 + 3/4), and Beta(7 + 3/4, 13 + 1/4)."""
    rate, low, high = metrics.clustered_rate(np.arange(20) < 7, np.arange(20))
    expected = stats.beta.ppf(0.025, 7.25, 13.75), stats.beta.ppf(0.975, 7.75, 13.25)
    assert rate == 0.35 and (low, high) == pytest.approx(expected, abs=1e-3)
    assert metrics.clopper_pearson(7, 20)[0] < low and high < metrics.clopper_pearson(7, 20)[1]


def test_the_interval_is_that_of_the_beta_binomial_distribution():
    """By summing scipy's probabilities over a finer grid of rates."""
    hits, sizes = [3, 0, 5, 1, 2], [4, 2, 5, 6, 2]
    rates = stats.beta(0.5, 0.5).ppf((np.arange(4000) + 0.5) / 4000)
    likelihood = np.zeros(4000)
    for correlation in np.geomspace(0.02, 0.8, 12):
        both = (1 - correlation) / correlation
        each = [stats.betabinom.pmf(k, n, rates * both, (1 - rates) * both) for k, n in zip(hits, sizes, strict=True)]
        likelihood += np.prod(each, axis=0)
    below, above = (np.cumsum(likelihood * (1 / rates - 1) ** power) for power in (0.25, -0.25))
    expected = rates[np.searchsorted(below, 0.025 * below[-1])], rates[np.searchsorted(above, 0.975 * above[-1])]
    assert metrics.clustered_rate(*in_groups(hits, sizes))[1:] == pytest.approx(expected, abs=2e-3)


def test_a_group_that_always_agrees_counts_about_once():
    hits, groups = in_groups([25, 0, 25, 25, 0, 25, 25, 0], [25] * 8)
    rate, low, high = metrics.clustered_rate(hits, groups)
    once = metrics.clopper_pearson(5, 8)
    assert rate == 0.625 and (low, high) == pytest.approx(once, abs=0.1)
    assert metrics.clustered_rate(hits, np.arange(200))[1] > 0.55, "as so many patients"


def test_of_none_and_of_all():
    """Of twelve groups of five, all hit: less sure than of 60 patients, surer than of twelve."""
    rate, low, high = metrics.clustered_rate(*in_groups([5] * 12, [5] * 12))
    assert (rate, high) == (1, 1) and metrics.clopper_pearson(12, 12)[0] < low < metrics.clopper_pearson(60, 60)[0]
    assert metrics.clustered_rate(*in_groups([0] * 12, [5] * 12)) == pytest.approx((0, 0, 1 - low))


@settings(deadline=None)
@given(arrays(bool, 30), arrays(np.int8, 30, elements=st.integers(0, 9)))
def test_an_interval_of_a_rate_holds_it_and_turns_round_with_it(hits, groups):
    rate, low, high = metrics.clustered_rate(hits, groups)
    assert 0 <= low <= rate <= high <= 1
    assert metrics.clustered_rate(~hits, groups) == pytest.approx((1 - rate, 1 - high, 1 - low))


@pytest.mark.parametrize("groups, size", [(30, 4), (12, 5), (25, 1), (6, 2)])
@pytest.mark.parametrize("whole", [True, False], ids=["group after group", "one in each group"])
def test_one_hit_more_never_lowers_an_interval(groups, size, whole):
    cases = np.arange(groups * size)
    names = cases // size if whole else cases % groups
    ends = np.array([metrics.clustered_rate(cases < hits, names)[1:] for hits in range(groups * size + 1)])
    assert (np.diff(ends, axis=0) > -1e-9).all()


@pytest.mark.parametrize("sizes", [[17] * 25, [1, 20, 3, 7, 11, 2, 5, 5, 16, 4, 9, 12], [200, 1, 1]], ids=str)
def test_the_last_hit_never_lowers_an_interval(sizes):
    all_low = metrics.clustered_rate(*in_groups(sizes, sizes))[1]
    for group in range(len(sizes)):
        assert metrics.clustered_rate(*in_groups([size - (i == group) for i, size in enumerate(sizes)], sizes))[1] < all_low


@pytest.mark.parametrize(
    "groups, size, correlation, rate",
    [(25, 17, 0.5, 0.9), (25, 17, 0.3, 0.7), (12, 5, 0.5, 0.3), (12, 20, 0.1, 0.5), (50, 4, 0.3, 0.1), (50, 1, 0, 0.05)],
)
def test_intervals_of_rates_cover(groups, size, correlation, rate):
    """Rates of groups drawn from a beta distribution. Of 600 intervals 0.95 cover, within three standard errors, or more."""
    rng, covered = np.random.default_rng(0), []
    both = (1 - correlation) / max(correlation, 1e-9)
    names = np.repeat(np.arange(groups), size)
    for _ in range(600):
        own = rng.beta(rate * both, (1 - rate) * both, groups)
        _, low, high = metrics.clustered_rate(rng.random(len(names)) < own[names], names)
        covered.append(low <= rate <= high)
    assert 0.95 - 3 * 0.009 < np.mean(covered) < 0.985


def test_no_case_is_no_rate():
    rate, low, high = metrics.clustered_rate(np.array([], bool), np.array([]))
    assert np.isnan(rate) and (low, high) == (0, 1)


# --- means ------------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_symmetric_mean_is_students():
    values = np.arange(1.0, 10)
    expected = stats.t.interval(0.95, 8, loc=5, scale=stats.sem(values))
    assert metrics.clustered_mean(values, np.arange(9)) == pytest.approx((5, *expected))
    assert metrics.clustered_mean(np.repeat(values, 3), np.repeat(np.arange(9), 3)) == pytest.approx((5, *expected)), "groups"


def test_the_error_of_a_mean_is_the_jackknifes():
    """Means without a, b and c: 3, 1 and 1, so (2/3 * 24/9) ** (1/2). Sizes 2, 1, 1 are worth 16/6 groups of one size."""
    mean = metrics.mean_over_groups(np.array([0, np.nan, 0, 3, 3]), np.array(list("aaabc")))
    assert (mean.value, mean.error, mean.freedom, mean.groups) == pytest.approx((1.5, 4 / 3, 16 / 6 - 1, 3))
    assert mean.skewness == pytest.approx(-((4 / 3) ** 3) * 0.75 * np.sqrt(3) / (8 / 3) ** 1.5), "a is alone on its side"


def test_a_long_tail_lengthens_the_interval_on_its_side_only():
    values = np.array([0.9] * 8 + [0.8, 0.6, 0.3])
    value, low, high = metrics.clustered_mean(values, np.arange(11))
    half = stats.t.ppf(0.975, 10) * stats.sem(values)
    assert value - low > 1.2 * half and high == pytest.approx(min(value + half, 0.9))


def test_means_of_one_group_and_of_nothing():
    assert metrics.clustered_mean([0.2, 0.4, np.nan], ["a", "a", "b"]) == pytest.approx((0.3, 0.2, 0.4)), "all that there is"
    assert np.isnan(metrics.clustered_mean([np.nan], ["a"])).all()
    assert metrics.clustered_mean([0.5] * 4, list("aabb")) == (0.5, 0.5, 0.5)


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(0, 99), st.floats(0.001, 0.499))
def test_a_p_value_is_the_share_whose_end_is_at_the_limit(groups, seed, share):
    rng = np.random.default_rng(seed)
    mean = metrics.mean_over_groups(rng.exponential(size=60) * rng.choice([-1, 1]), rng.integers(0, groups, 60))
    end = mean.end(share)
    assert mean.p_below(end) == pytest.approx(share)
    assert end < mean.value or share > 0.3, "skewness may move the middle of the distribution, not its ends"


def draw_change(rng: np.random.Generator, kind: str, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Values around zero and their groups, of 1 to 7 cases."""
    names = np.repeat(np.arange(groups), rng.integers(1, 8, groups))
    own = {
        "Dice": lambda: rng.beta(9, 1.2, groups) - 9 / 10.2,
        "difference": lambda: rng.beta(9, 1.2, groups) - rng.beta(6, 1.2, groups) - 9 / 10.2 + 6 / 7.2,
        "heavy tails": lambda: 0.05 * rng.standard_t(3, groups),
    }[kind]()
    return own[names] + rng.normal(0, 0.02, len(names)), names


@pytest.mark.parametrize("groups", [12, 25, 50])
@pytest.mark.parametrize("kind", ["Dice", "difference", "heavy tails"])
def test_intervals_of_means_cover(kind, groups):
    rng = np.random.default_rng(0)
    ends = [metrics.clustered_mean(*draw_change(rng, kind, groups))[1:] for _ in range(600)]
    least = 0.93 if (kind, groups) == ("Dice", 12) else 0.95
    assert least - 3 * 0.009 < np.mean([low <= 0 <= high for low, high in ends]) < 0.975


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_three_seeds_that_disagree_show_nothing():
    """Every patient changes by as much as the seed does: Student's t over three seeds, two degrees of freedom."""
    seeds, groups = np.repeat([0, 1, 2], 20), np.tile(np.arange(20), 3)
    change = np.array([-1.7, -1.9, 2.0])[seeds]
    half = stats.t.ppf(0.975, 2) * np.std([-1.7, -1.9, 2.0], ddof=1) / np.sqrt(3)
    assert half > 5 and metrics.harm_interval(change, groups, seeds) == pytest.approx(
        (-1.6 / 3, -1.6 / 3 - half, -1.6 / 3 + half)
    )
    assert metrics.clustered_mean(change, groups)[1:] == pytest.approx((-1.6 / 3, -1.6 / 3)), "patients agree"


def test_seeds_that_agree_are_no_surer_than_one():
    change, groups = np.random.default_rng(0).normal(size=30), np.arange(30)
    one = metrics.harm_interval(change, groups, np.zeros(30))
    assert one == metrics.clustered_mean(change, groups)
    five = metrics.harm_interval(np.tile(change, 5), np.tile(groups, 5), np.repeat(np.arange(5), 30))
    assert five == pytest.approx(one)
    gone = np.r_[change, np.full(30, np.nan)]
    assert metrics.harm_interval(gone, np.tile(groups, 2), np.repeat([0, 1], 30)) == one, "nothing is known of a second seed"


def test_intervals_over_seeds_cover():
    """Three seeds of the same 20 patients, of three images each; seeds differ as much as patients do."""
    rng, seeds, groups = np.random.default_rng(0), np.repeat([0, 1, 2], 60), np.tile(np.repeat(np.arange(20), 3), 3)
    covered = []
    for _ in range(600):
        change = rng.normal(size=20)[groups] + rng.normal(size=3)[seeds] + rng.normal(0, 0.3, 180)
        ends = metrics.harm_interval(change, groups, seeds)[1:], metrics.clustered_mean(change, groups)[1:]
        covered.append([low <= 0 <= high for low, high in ends])
    ours, patients_only = np.mean(covered, axis=0)
    assert 0.95 - 3 * 0.009 < ours < 0.985 and patients_only < 0.7


# --- non-inferiority --------------------------------------------------------------------------------------------------


def test_noninferiority_by_hand():
    groups = np.repeat(np.arange(8), 2)
    # every patient loses half a point: eight patients can show no less than 2^-8
    assert metrics.noninferior(np.full(16, -0.5), groups, 1) == (-0.5, 2**-8, "yes")
    assert metrics.noninferior(np.full(16, -2.0), groups, 1) == (-2.0, 1.0, "no")
    assert metrics.noninferior(np.tile([-5.0, 5.0], 4).repeat(2), groups, 1).answer == "undecided"


def test_four_patients_decide_nothing_and_none_have_no_verdict():
    assert metrics.noninferior(np.zeros(40), np.repeat(np.arange(4), 10), 1) == (0, 1 / 16, "undecided")
    assert metrics.noninferior(np.zeros(9), np.zeros(9), 1).answer == "undecided"
    assert metrics.noninferior(np.full(5, np.nan), np.arange(5), 1) is None


def test_cases_of_one_patient_stay_together():
    change = np.random.default_rng(0).normal(-0.7, 1, 30)
    once = metrics.noninferior(change, np.arange(30), 1)
    thrice = metrics.noninferior(np.repeat(change, 3), np.repeat(np.arange(30), 3), 1)
    assert thrice[:2] == pytest.approx(once[:2]) and thrice.answer == once.answer
    apart = metrics.noninferior(np.repeat(change, 3), np.arange(90), 1)
    assert apart.p < once.p  # what cases instead of patients would claim


def test_noninferiority_agrees_with_the_t_test():
    change = np.random.default_rng(2).normal(-0.8, 1.0, 200)
    change = np.r_[change, -1.6 - change]  # symmetric
    expected = stats.ttest_1samp(change, -1, alternative="greater").pvalue
    assert metrics.noninferior(change, np.arange(400), 1).p == pytest.approx(expected)


@settings(max_examples=50)
@given(st.floats(-2, 0), st.integers(0, 99))
def test_the_verdict_is_yes_exactly_when_the_one_sided_interval_stays_above_the_margin(mean, seed):
    change = np.random.default_rng(seed).normal(mean, 3, 60)
    verdict = metrics.noninferior(change, np.arange(60), 1)
    assert (verdict.answer == "yes") == (verdict.bound > -1) == (verdict.p < 0.05)


@pytest.mark.parametrize("tail", [-1, 1])
@given(st.integers(0, 199))
def test_the_verdict_is_no_exactly_when_the_opposite_interval_stays_below_the_margin(tail, seed):
    change = tail * np.random.default_rng(seed).exponential(size=20) - 1 - 1.5 * tail
    upper = metrics.mean_over_groups(change, np.arange(20)).end(0.95)
    assert (metrics.noninferior(change, np.arange(20), 1).answer == "no") == (upper < -1)


@pytest.mark.parametrize("groups", [12, 25, 50])
@pytest.mark.parametrize("kind", ["difference", "heavy tails"])
def test_a_change_at_the_margin_passes_one_time_in_twenty_at_most(kind, groups):
    rng, answers = np.random.default_rng(0), []
    for _ in range(600):
        change, names = draw_change(rng, kind, groups)
        answers.append(metrics.noninferior(change - 1, names, 1).answer)
    yes, no = (np.mean([answer == which for answer in answers]) for which in ("yes", "no"))
    assert max(yes, no) < 0.05 + 2 * 0.009 and min(yes, no) > 0


# --- the paper's p ----------------------------------------------------------------------------------------------------


def test_chi_square_by_hand():
    # expected 15 everywhere, each cell off by 5: 4 * 25 / 15 = 6.667, one degree of freedom
    assert metrics.chi_square([[20, 10], [10, 20]]) == pytest.approx(stats.chi2.sf(20 / 3, 1))


@pytest.mark.parametrize("table", [[[0, 0], [10, 20]], [[10, 0], [20, 0]], [[0, 0], [0, 0]]])
def test_chi_square_without_a_margin_is_one(table):
    assert metrics.chi_square(table) == 1
