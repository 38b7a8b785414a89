"""Explanations: coefficients of a known model are found, captum agrees, and no code is found where none is."""

import numpy as np
import pytest
import torch
from captum.attr import Lime
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from stealthmark import explain
from stealthmark.codes import encode, error_rate
from stealthmark.explain import (
    by_cell,
    cells,
    dark,
    drawn,
    gated_qr,
    in_place,
    kernel_shap,
    lime,
    occlude,
    occlusion,
    respond,
    ridge,
)
from stealthmark.plugin import make
from stealthmark.predictor import from_model

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
    patterns = drawn(4000, GRID, generator(3))
    assert torch.equal(patterns, drawn(4000, GRID, generator(3)))
    assert (patterns.float().mean(0) - 0.5).abs().max() < 0.04


def test_the_trigger_is_put_on_after_the_occlusion():
    """With every cell hidden, what `prepare` adds is all that the suspect sees."""
    seen = []

    def predictor(images: Tensor) -> Tensor:
        seen.append(images)
        return images[:, 0]

    respond(predictor, photo(), torch.zeros(3, 4, dtype=torch.bool), "foreground-mean", lambda images: images + 0.25, batch=2)
    assert [len(part) for part in seen] == [2, 1] and all((part == 0.25).all() for part in seen)


# --- known answers ----------------------------------------------------------------------------------------------------


def test_quantities_by_hand():
    answers = torch.tensor([[[0.0, 0.2], [0.6, 1.0]]])
    found = {name: quantity(answers).item() for name, quantity in explain.QUANTITIES.items()}
    assert found == pytest.approx({"background-level": 0.006, "foreground-mean": 0.45, "foreground-fraction": 0.5})


def test_every_explanation_finds_the_weights_of_a_linear_model():
    torch.testing.assert_close(occlusion(linear, white(), "foreground-mean", GRID), WEIGHTS, atol=1e-6, rtol=0)
    torch.testing.assert_close(kernel_shap(linear, white(), "foreground-mean", GRID, 200, 0), WEIGHTS, atol=1e-4, rtol=0)
    found = lime(linear, white(), "foreground-mean", GRID, 200, generator(), alpha=1e-9)
    torch.testing.assert_close(found, WEIGHTS, atol=1e-6, rtol=0)


def test_ridge_is_that_of_scikit_learn():
    visible, response = drawn(100, GRID, generator()), torch.randn(100, generator=generator(1), dtype=torch.float64)
    expected = Ridge(alpha=2.5).fit(visible.double().numpy(), response.numpy()).coef_
    np.testing.assert_allclose(ridge(visible, response, 2.5).numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("queries", [256, 512, 2048])
def test_a_coefficients_standard_error_is_that_of_docs_payload(queries):
    """2 s / sqrt(q - m): responses linear in which of m = 169 cells are visible, and noise of standard deviation s."""
    rng, noise = generator(), 0.01
    code = torch.rand(169, generator=rng, dtype=torch.float64)
    errors = []
    for _ in range(10):
        visible = drawn(queries, 13, rng)
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
    mask, found = cells(SIZE, SIZE, 5), by_cell(answers, 5)  # cells of unequal size
    for cell in range(25):
        torch.testing.assert_close(found[:, cell], answers[:, mask == cell].double().mean(1))


@pytest.mark.parametrize("queries", [64, 512])
def test_the_standard_error_in_place_is_that_of_docs_payload(queries):
    """2 s / sqrt(q), far below the number of cells too: what other cells answer does not disturb."""
    rng, noise = generator(), 0.1
    code = (torch.rand(169, generator=rng) < 0.5).double()
    errors = []
    for _ in range(10):
        visible = drawn(queries, 13, rng)
        answers = (~visible) * code + noise * torch.randn(queries, 169, generator=rng, dtype=torch.float64)
        errors.append(in_place(visible, answers) - code)
    assert torch.cat(errors).std().item() == pytest.approx(2 * noise / queries**0.5, rel=0.1)


def test_light_and_dark_are_told_apart_with_the_least_error_though_dark_ones_spread_more():
    rng = np.random.default_rng(0)
    for n_dark in (40, 85, 130):
        values = np.r_[rng.normal(0, 0.02, 169 - n_dark), rng.normal(0.4, 0.15, n_dark)].reshape(13, 13)
        costs = {}
        for t in np.sort(values, axis=None)[21:-22]:  # the paper's criterion, class by class
            classes = values[values <= t], values[values > t]
            shares = [len(c) / 169 for c in classes]
            costs[t] = 1 + 2 * sum(p * (np.log(c.std()) - np.log(p)) for p, c in zip(shares, classes, strict=True))
        assert np.array_equal(dark(values), values > min(costs, key=costs.get))
        assert np.mean(dark(values).flatten() != (np.arange(169) >= 169 - n_dark)) < 0.03
    assert not dark(np.full((13, 13), 0.25)).any(), "a model that answers every query alike spells nothing"


def test_lime_is_captums_lime_on_the_same_patterns():
    """One perturbation a call, as captum does by default, against ours in batches, on a real network."""
    predictor, image, queries = untrained(0), photo(), 60
    patterns = iter(drawn(queries, GRID, generator(7)).double())
    mask = cells(SIZE, SIZE, GRID)

    class Regression:
        def fit(self, loader):
            ((x, y, _),) = loader
            self.found = torch.as_tensor(Ridge(alpha=1.0).fit(x.numpy(), y.numpy()).coef_)

        def representation(self):
            return self.found

    captum = Lime(
        lambda images: explain.QUANTITIES["foreground-mean"](predictor(images)).double(),
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
    torch.manual_seed(3)
    before = torch.get_rng_state()
    once, again = (kernel_shap(linear, white(), "foreground-mean", GRID, 50, 5) for _ in range(2))
    assert torch.equal(once, again) and torch.equal(torch.get_rng_state(), before)


# --- codes ------------------------------------------------------------------------------------------------------------


def test_lime_finds_no_code_in_untrained_networks():
    """Signs of the coefficients against a payload they know nothing of: chance, within binomial error (4 sd of 507)."""
    code = encode("OWNER1")
    agreement = []
    for seed in range(3):
        found = lime(untrained(seed), photo(seed, 64), "foreground-mean", 13, 400, generator(seed))
        agreement.append(1 - error_rate((found < found.median()).numpy(), code))
    assert abs(np.mean(agreement) - 0.5) < 4 * 0.5 / (3 * 169) ** 0.5


def test_gated_qr_finds_the_verifiers_code_in_any_network_that_answers_to_its_input():
    for seed, text in enumerate(("OWNER1", "THIEF2")):
        code = encode(text)
        found = gated_qr(untrained(seed), photo(seed, 64), torch.from_numpy(code), "foreground-mean", 200, generator(seed))
        assert error_rate(found.numpy(), code) == 0


def test_gated_qr_finds_nothing_in_a_model_that_ignores_its_input():
    code = torch.from_numpy(encode("OWNER1"))
    constant = gated_qr(lambda images: torch.full_like(images[:, 0], 0.3), photo(), code, "foreground-mean", 50, generator())
    assert not constant.any()
