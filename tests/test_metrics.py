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
    assert metrics.segmentation(none, none > 0).shape == (0, 6)


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


def test_one_case_a_group_is_plain_clopper_pearson():
    hits = np.arange(20) < 7
    assert metrics.clustered_rate(hits, np.arange(20)) == pytest.approx((0.35, *metrics.clopper_pearson(7, 20)))


def test_a_group_that_always_agrees_counts_about_once():
    hits, groups = np.repeat([1, 0, 1, 1, 0, 1, 1, 0], 25), np.repeat(np.arange(8), 25)
    n_eff = metrics.effective_size(hits.astype(float), groups)
    assert 4 < n_eff < 8  # eight groups, less the price of having only eight
    rate, low, high = metrics.clustered_rate(hits, groups)
    assert rate == 0.625 and low < 0.3 and high > 0.88


def test_effective_size_by_hand():
    hits, groups = np.array([1, 1, 1, 0, 0, 0.0]), np.array(list("aabbcc"))
    # residuals a 1, b 0, c -1: variance 3/2 * 2/36 = 1/12; independent 1/4/5 = 1/20; deff 5/3
    few = (stats.t.ppf(0.975, 5) / stats.t.ppf(0.975, 2)) ** 2
    assert metrics.effective_size(hits, groups) == pytest.approx(6 * 3 / 5 * few)


def test_rates_of_zero_and_one_count_groups():
    groups = np.repeat(np.arange(12), 5)
    assert metrics.clustered_rate(np.ones(60, bool), groups) == pytest.approx((1, *metrics.clopper_pearson(12, 12)))
    assert metrics.clustered_rate(np.zeros(60, bool), groups) == pytest.approx((0, *metrics.clopper_pearson(0, 12)))


@given(arrays(bool, 30), arrays(np.int8, 30, elements=st.integers(0, 9)))
def test_effective_size_is_between_zero_and_n(hits, groups):
    assert 0 < metrics.effective_size(hits.astype(float), groups) <= 30
    rate, low, high = metrics.clustered_rate(hits, groups)
    assert 0 <= low <= rate <= high <= 1


def test_no_hits_at_all_is_no_rate():
    rate, low, high = metrics.clustered_rate(np.array([], bool), np.array([]))
    assert np.isnan(rate) and (low, high) == (0, 1)


def test_clustered_mean_covers_the_normal_interval():
    values = np.random.default_rng(1).normal(5, 2, 400)
    mean, low, high = metrics.clustered_mean(values, np.arange(400), seed=3)
    half = 1.96 * values.std() / 20
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.05)


def test_clustered_mean_resamples_groups_leaves_out_nan_and_repeats():
    values, groups = np.array([0.0, 0, 1, 1, np.nan, np.nan]), np.array(list("aabbcc"))
    assert metrics.clustered_mean(values, groups, seed=0) == (0.5, 0.0, 1.0)  # two groups: both ends are drawn
    assert metrics.clustered_mean(values, groups, seed=7) == metrics.clustered_mean(values, groups, seed=7)
    assert np.isnan(metrics.clustered_mean(values[4:], groups[4:], seed=0)).all()


# --- non-inferiority --------------------------------------------------------------------------------------------------


def test_noninferiority_by_hand():
    groups = np.repeat(np.arange(8), 2)
    # every patient loses half a point: no resample reaches one point; eight patients can show no less than 2^-8
    assert metrics.noninferior(np.full(16, -0.5), groups, 1, seed=0) == (-0.5, 2**-8, "yes")
    assert metrics.noninferior(np.full(16, -2.0), groups, 1, seed=0) == (-2.0, 1.0, "no")
    assert metrics.noninferior(np.tile([-5.0, 5.0], 4).repeat(2), groups, 1, seed=0).answer == "undecided"


def test_four_patients_decide_nothing_and_none_have_no_verdict():
    assert metrics.noninferior(np.zeros(40), np.repeat(np.arange(4), 10), 1, seed=0) == (0, 1 / 16, "undecided")
    assert metrics.noninferior(np.full(5, np.nan), np.arange(5), 1, seed=0) is None


def test_seeds_of_one_patient_stay_together():
    change = np.random.default_rng(0).normal(-0.7, 1, 30)
    once = metrics.noninferior(change, np.arange(30), 1, seed=0)
    thrice = metrics.noninferior(np.repeat(change, 3), np.repeat(np.arange(30), 3), 1, seed=0)
    assert thrice[:2] == pytest.approx(once[:2]) and thrice.answer == once.answer
    apart = metrics.noninferior(np.repeat(change, 3), np.arange(90), 1, seed=0)
    assert apart.p < once.p  # what resampling lines instead of patients would claim


def test_noninferiority_agrees_with_the_t_test():
    change = np.random.default_rng(2).normal(-0.8, 1.0, 200)
    verdict = metrics.noninferior(change, np.arange(200), 1, seed=0)
    assert verdict.p == pytest.approx(stats.ttest_1samp(change, -1, alternative="greater").pvalue, abs=0.003)


@settings(max_examples=50)
@given(st.floats(-2, 0), st.integers(0, 99))
def test_the_verdict_is_yes_exactly_when_the_one_sided_interval_stays_above_the_margin(mean, seed):
    change = np.random.default_rng(seed).normal(mean, 3, 60)
    verdict = metrics.noninferior(change, np.arange(60), 1, seed)
    assert (verdict.answer == "yes") == (verdict.bound > -1) == (verdict.p < 0.05)


# --- the paper's p ----------------------------------------------------------------------------------------------------


def test_chi_square_by_hand():
    # expected 15 everywhere, each cell off by 5: 4 * 25 / 15 = 6.667, one degree of freedom
    assert metrics.chi_square([[20, 10], [10, 20]]) == pytest.approx(stats.chi2.sf(20 / 3, 1))


@pytest.mark.parametrize("table", [[[0, 0], [10, 20]], [[10, 0], [20, 0]], [[0, 0], [0, 0]]])
def test_chi_square_without_a_margin_is_one(table):
    assert metrics.chi_square(table) == 1
