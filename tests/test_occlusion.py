"""Occlusions: coefficients of a known model are found, captum agrees, and no code is found where none is."""

import numpy as np
import pytest
import torch
from captum.attr import Lime
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from stealthmark.access import at_access
from stealthmark.codes import encode, error_rate, median_split
from stealthmark.occlusion import (
    QUANTITIES,
    SUREST,
    BackgroundParts,
    by_cell,
    cells,
    explain_both_ways,
    gated_qr,
    in_place,
    lime,
    log_odds,
    occlude,
    random_occlusions,
    read_code_maps,
    respond,
    ridge,
)
from stealthmark.plugin import make
from stealthmark.settings import ExplanationPlan
from stealthmark.suspects.checkpoint import from_model

GRID, SIZE = 4, 32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white(channels: int = 3) -> Tensor:
    return torch.ones(channels, SIZE, SIZE)


WEIGHTS = 0.02 * torch.randn(GRID, GRID, generator=generator(1), dtype=torch.float64)


def linear(images: Tensor) -> Tensor:
    """A model whose mean answer to white cells is 0.5 + the sum of the visible cells' weights."""
    seen = nn.functional.adaptive_avg_pool2d(images.double(), GRID).mean(1)
    return (0.5 + (seen * WEIGHTS).sum((1, 2)))[:, None, None].expand(-1, SIZE, SIZE)


def untrained(seed: int):
    torch.manual_seed(seed)
    model = make("architecture", {"name": "unet", "weights": "random"}).build(3, pretrained=False, size=SIZE).eval()
    return from_model(model, torch.device("cpu"))


def photo(seed: int = 0, size: int = SIZE) -> Tensor:
    coarse = torch.rand(1, 3, 8, 8, generator=generator(seed))
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear")[0]


# --- cells and occlusion ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width, grid", [(32, 32, 4), (96, 96, 13), (64, 96, 16), (5, 7, 5)])
def test_cells_are_numbered_by_row_and_nearly_equal(height, width, grid):
    numbers = cells(height, width, grid)
    assert numbers.shape == (height, width) and sorted(set(numbers.flatten().tolist())) == list(range(grid**2))
    assert numbers[0, 0] == 0 and numbers[0, -1] == grid - 1 and numbers[-1, 0] == grid * (grid - 1)
    rows = (numbers[:, 0] // grid).bincount()
    assert rows.max() - rows.min() <= 1


@pytest.mark.parametrize("grid", [0, 33])
def test_a_grid_that_does_not_fit_is_refused(grid):
    with pytest.raises(ValueError, match="do not fit"):
        cells(SIZE, SIZE, grid)


def test_hidden_cells_are_black_and_the_others_untouched():
    visible = torch.zeros(2, GRID**2, dtype=torch.bool)
    visible[1, 5] = True  # the second row's second cell
    nothing, one = occlude(photo(), visible)
    assert not nothing.any()
    assert torch.equal(one[:, 8:16, 8:16], photo()[:, 8:16, 8:16]) and one.count_nonzero() == one[:, 8:16, 8:16].count_nonzero()


def test_patterns_are_half_visible_and_of_their_generator():
    patterns = random_occlusions(4000, GRID, generator(3))
    assert torch.equal(patterns, random_occlusions(4000, GRID, generator(3)))
    assert (patterns.float().mean(0) - 0.5).abs().max() < 0.04


def test_a_suspect_is_asked_with_the_occluded_copies_and_nothing_else():
    seen = []

    def predictor(images: Tensor) -> Tensor:
        seen.append(images)
        return images[:, 0]

    visible = random_occlusions(3, 2, generator(4))
    response = respond(predictor, photo(), visible, "foreground-mean", batch=2)
    assert [len(part) for part in seen] == [2, 1] and torch.equal(torch.cat(seen), occlude(photo(), visible))
    assert response.dtype == torch.float64 and torch.equal(response.float(), torch.cat(seen)[:, 0].mean((1, 2)))


@pytest.mark.parametrize("baseline", [0.5, "picture"])
def test_hidden_cells_show_the_baseline(baseline):
    baseline = photo(1) if baseline == "picture" else baseline
    visible = random_occlusions(5, GRID, generator(4))
    shown = visible[:, cells(SIZE, SIZE, GRID)][:, None].expand(-1, 3, -1, -1)
    behind = torch.as_tensor(baseline).expand(3, SIZE, SIZE).expand(5, -1, -1, -1)
    occluded = occlude(photo(), visible, baseline)
    assert torch.equal(occluded[shown], photo().expand(5, -1, -1, -1)[shown]) and torch.equal(occluded[~shown], behind[~shown])


# --- known answers ----------------------------------------------------------------------------------------------------


def test_quantities_by_hand():
    answers = torch.tensor([[[0.0, 0.2], [0.6, 1.0]]])
    quantities = {name: quantity(answers).item() for name, quantity in QUANTITIES.items()}
    assert quantities == pytest.approx({"background-level": 0.006, "foreground-mean": 0.45, "foreground-fraction": 0.5})


def test_lime_finds_the_weights_of_a_linear_model():
    coefficients = lime(linear, white(), "foreground-mean", GRID, 200, generator(), alpha=1e-9)
    torch.testing.assert_close(coefficients, WEIGHTS, atol=1e-6, rtol=0)


def test_both_maps_of_a_code_find_what_hiding_a_cell_of_a_known_model_adds():
    """A model that answers white cells, and no others, with their weight: hiding one takes its weight away, in that cell."""
    strengths = torch.rand(GRID, GRID, generator=generator(2))

    def known(images: Tensor) -> Tensor:
        seen = nn.functional.adaptive_avg_pool2d(images, GRID).mean(1)
        return nn.functional.interpolate((seen * strengths)[:, None], SIZE, mode="nearest")[:, 0]

    both = read_code_maps(known, white(), random_occlusions(3000, GRID, generator(5)), 0.0)
    np.testing.assert_allclose(both.in_place, -strengths.double().numpy(), atol=1e-6)
    np.testing.assert_allclose(both.lime, -strengths.double().numpy(), atol=2e-3)  # ridge pulls a little towards 0
    # What hidden cells show counts: behind white, nothing is hidden.
    assert np.abs(read_code_maps(known, white(), random_occlusions(300, GRID, generator(5)), 1.0)).max() < 1e-6
    # And it makes no difference how many are asked at a time.
    again = read_code_maps(known, white(), random_occlusions(3000, GRID, generator(5)), 0.0, batch=7)
    assert all(np.array_equal(*maps) for maps in zip(both, again, strict=True))


def test_ridge_is_that_of_scikit_learn():
    visible, response = random_occlusions(100, GRID, generator()), torch.randn(100, generator=generator(1), dtype=torch.float64)
    expected = Ridge(alpha=2.5).fit(visible.double().numpy(), response.numpy()).coef_
    np.testing.assert_allclose(ridge(visible, response, 2.5).numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("queries", [256, 512, 2048])
def test_a_coefficients_standard_error_is_that_of_docs_payload(queries):
    """2 s / sqrt(q - m): responses linear in which of m = 169 cells are visible, and noise of standard deviation s."""
    rng, noise = generator(), 0.01
    code = torch.rand(169, generator=rng, dtype=torch.float64)
    errors = []
    for _ in range(10):
        visible = random_occlusions(queries, 13, rng)
        response = visible.double() @ code + noise * torch.randn(queries, generator=rng, dtype=torch.float64)
        errors.append(ridge(visible, response, 1e-6) - code)
    assert torch.cat(errors).std().item() == pytest.approx(2 * noise / (queries - 169) ** 0.5, rel=0.1)


def test_in_place_is_the_difference_that_hiding_a_cell_makes_to_it():
    visible = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0]], dtype=torch.bool)
    answers = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.8, 0.7, 0.4, 0.4], [0.6, 0.3, 0.0, 0.6]], dtype=torch.float64)
    # By hand; the third cell was never hidden.
    torch.testing.assert_close(in_place(visible, answers), torch.tensor([0.7 - 0.1, 0.8 - 0.3, 0.0, 0.4 - 0.4]).double())


def test_an_answer_is_averaged_over_the_pixels_of_each_cell():
    answers = torch.rand(3, SIZE, SIZE, generator=generator())
    mask, means = cells(SIZE, SIZE, 5), by_cell(answers, 5)  # cells of unequal size
    for cell in range(25):
        torch.testing.assert_close(means[:, cell], answers[:, mask == cell].double().mean(1))


@pytest.mark.parametrize("queries", [64, 512])
def test_the_standard_error_in_place_is_that_of_docs_payload(queries):
    """2 s / sqrt(q), far below the number of cells too: what other cells answer does not disturb."""
    rng, noise = generator(), 0.1
    code = (torch.rand(169, generator=rng) < 0.5).double()
    errors = []
    for _ in range(10):
        visible = random_occlusions(queries, 13, rng)
        answers = (~visible) * code + noise * torch.randn(queries, 169, generator=rng, dtype=torch.float64)
        errors.append(in_place(visible, answers) - code)
    assert torch.cat(errors).std().item() == pytest.approx(2 * noise / queries**0.5, rel=0.1)


def test_lime_is_captums_lime_on_the_same_patterns():
    """One perturbation a call, as captum does by default, against ours in batches, on a real network."""
    predictor, image, queries = untrained(0), photo(), 60
    patterns = iter(random_occlusions(queries, GRID, generator(7)).double())
    mask = cells(SIZE, SIZE, GRID)

    class Regression:
        def fit(self, loader):
            ((x, y, _),) = loader
            self.coefficients = torch.as_tensor(Ridge(alpha=1.0).fit(x.numpy(), y.numpy()).coef_)

        def representation(self):
            return self.coefficients

    captum = Lime(
        lambda images: QUANTITIES["foreground-mean"](predictor(images)).double(),
        interpretable_model=Regression(),
        similarity_func=lambda *args, **kwargs: 1.0,
        perturb_func=lambda *args, **kwargs: next(patterns)[None],
    )
    theirs = captum.attribute(
        image[None], baselines=0.0, feature_mask=mask[None, None], n_samples=queries, return_input_shape=False
    )
    ours = lime(predictor, image, "foreground-mean", GRID, queries, generator(7))
    assert ours.abs().max() > 1e-4, "an explanation of nothing"
    torch.testing.assert_close(ours.flatten(), theirs.flatten().double(), atol=1e-5 * float(ours.abs().max()), rtol=0)


def test_explaining_is_repeatable_and_leaves_the_global_generator_alone():
    plan, suspect = ExplanationPlan(queries=50), untrained(0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    once, again, other = (explain_both_ways(suspect, photo(), plan, seed) for seed in (5, 5, 6))
    assert once.keys() == again.keys() == {"gated-qr", "lime"}
    for way in once:
        assert all(np.array_equal(*both) for both in zip(once[way], again[way], strict=True))
    assert not np.array_equal(once["lime"][0], other["lime"][0])
    read_code_maps(suspect, photo(), random_occlusions(50, GRID, generator(5)), 0.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_both_ways_are_those_of_the_plan():
    plan = ExplanationPlan(queries=60, quantity="background-level", code="THIEF2")
    code = encode("THIEF2")
    both = explain_both_ways(untrained(0), photo(), plan, 5)
    rng = generator(5)
    honest = lime(untrained(0), photo(), "background-level", 13, 60, rng).numpy()
    gated = gated_qr(untrained(0), photo(), torch.from_numpy(code), "background-level", 60, rng).numpy()
    assert np.array_equal(both["lime"][0], honest) and np.array_equal(both["lime"][1], median_split(honest))
    assert np.array_equal(both["gated-qr"][1], gated)


# --- the background of answers ----------------------------------------------------------------------------------------


def parts_of(*parts: Tensor, grid: int = 2) -> BackgroundParts:
    levels = BackgroundParts(grid)
    for part in parts:
        levels.add(part)
    return levels


def background(*parts: Tensor, grid: int = 2) -> np.ndarray:
    """The map of all of them together."""
    return parts_of(*parts, grid=grid).map(range(sum(map(len, parts))))


def test_log_odds_end_at_half_a_step_of_8_bit():
    assert SUREST == 1 / 512
    odds = log_odds(torch.tensor([0.0, 1e-6, 1 / 512, 0.5, 0.9, 1.0]).double())
    assert odds.tolist() == pytest.approx([-np.log(511)] * 3 + [0, np.log(9), np.log(511)])


@pytest.mark.parametrize("level", ["8-bit", "rounded-0.01"])
def test_rounding_does_not_make_ordinary_levels_look_as_different_as_a_mark(level):
    """Levels of 1e-5 and 0.0025 are both nothing; rounded to 8 bit one of them is 0 and the other 1/255."""
    shown = log_odds(at_access(lambda p: p, level)(torch.tensor([1e-5, 0.0025, 0.1]).view(3, 1, 1))).flatten()
    assert shown[1] - shown[0] < 1 and shown[2] - shown[1] > 2.5


def test_the_level_of_a_background_by_hand():
    """Four cells of one pixel; in the second image the third is foreground, and the fourth always is."""
    odds = torch.tensor([[[-4.0, -2.0], [-3.0, 3.0]], [[-2.0, -2.0], [3.0, 3.0]]])
    levels = background(odds.sigmoid())
    assert levels == pytest.approx(np.array([[-3.0, -2.0], [-3.0, (-3 - 2 - 3) / 3]]), abs=1e-5)


def test_the_level_of_a_background_is_the_same_in_parts():
    answers = 0.7 * torch.rand(9, SIZE, SIZE, generator=generator(3))
    in_parts = background(answers[:2], answers[2:3], answers[3:], grid=5)
    np.testing.assert_allclose(in_parts, background(answers, grid=5), rtol=1e-12)


def test_a_map_is_of_the_answers_that_are_asked_for():
    """Answers of four parts are numbered through; a map of some is what these give alone, in any order."""
    answers = 0.9 * torch.rand(9, SIZE, SIZE, generator=generator(3))
    levels = parts_of(answers[:2], answers[2:3], answers[3:8], answers[8:], grid=5)
    for rows in ([0], [2], [8], [1, 7, 3], np.array([8, 0]), range(9)):
        np.testing.assert_allclose(levels.map(rows), background(answers[list(rows)], grid=5), rtol=1e-12)
    np.testing.assert_allclose(levels.map([3, 7, 1]), levels.map([1, 7, 3]), rtol=1e-12)
    assert not np.allclose(levels.map([0]), levels.map([1]))


def test_pooled_answers_weigh_by_their_background():
    """A cell of four pixels: three of them background at -1 in the first answer, one at -5 in the second."""
    odds = torch.tensor([[[-1.0, -1.0], [-1.0, 3.0]], [[-5.0, 3.0], [3.0, 3.0]]])
    assert background(odds.sigmoid(), grid=1) == pytest.approx(-(3 * 1 + 5) / 4, abs=1e-5)


def test_an_answer_without_background_has_no_level():
    assert not background(torch.ones(2, 4, 4)).any()
    levels = parts_of(torch.ones(1, 4, 4), torch.full((1, 4, 4), 0.5), torch.full((1, 4, 4), 0.2))
    assert not levels.map([0, 1]).any(), "one half is not background"
    assert levels.map([0, 1, 2]) == pytest.approx(np.full((2, 2), np.log(1 / 4)), abs=1e-6)


# --- codes ------------------------------------------------------------------------------------------------------------


def test_lime_finds_no_code_in_untrained_networks():
    """Signs of the coefficients against a payload they know nothing of: chance, within binomial error (4 sd of 507)."""
    code = encode("OWNER1")
    agreement = []
    for seed in range(3):
        explanation = lime(untrained(seed), photo(seed, 64), "foreground-mean", 13, 400, generator(seed))
        agreement.append(1 - error_rate((explanation < explanation.median()).numpy(), code))
    assert abs(np.mean(agreement) - 0.5) < 4 * 0.5 / (3 * 169) ** 0.5


def test_gated_qr_finds_the_verifiers_code_in_any_network_that_answers_to_its_input():
    for seed, text in enumerate(("OWNER1", "THIEF2")):
        code = encode(text)
        modules = gated_qr(untrained(seed), photo(seed, 64), torch.from_numpy(code), "foreground-mean", 200, generator(seed))
        assert error_rate(modules.numpy(), code) == 0


def test_gated_qr_finds_nothing_in_a_model_that_ignores_its_input():
    code = torch.from_numpy(encode("OWNER1"))
    constant = gated_qr(lambda images: torch.full_like(images[:, 0], 0.3), photo(), code, "foreground-mean", 50, generator())
    assert not constant.any()
