"""Explanations: which cells of an image a suspect's answer rests on, found from queries alone.

A picture is cut into `grid` x `grid` cells, some are hidden, and the answer's *quantity* (one number) is explained by which
cells were visible. Hidden patterns are drawn independently of any payload: an occlusion that follows a QR code puts that
code into the explanation by itself (see `gated_qr`).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor

from stealthmark import codes
from stealthmark.method import Predictor, log_odds

#: What of an answer is explained: float (B, H, W) in [0, 1] -> float (B,).
QUANTITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "background-level": lambda answers: answers.flatten(1).quantile(0.01, dim=1),
    "foreground-mean": lambda answers: answers.mean((1, 2)),
    "foreground-fraction": lambda answers: (answers > 0.5).float().mean((1, 2)),
}

#: Of how many queries alone a code is read too, beside a plan's own number, to see how many it takes.
FEWER = (16, 32, 64, 128, 256)

#: What is queried: images float (B, C, H, W) -> the same, after the occlusion (a key's trigger, say).
Prepare = Callable[[Tensor], Tensor]


class Plan(BaseModel):
    """What a suite explains: `images` test images of every suspect, `queries` queries each, against the QR code `code`.

    A code that the mark itself carries is read from those images together; of the model as it was stolen in `tries` tries,
    each with images of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    code: str = "OWNER1"
    kind: Literal["micro", "qr"] = "micro"
    images: int = Field(default=3, ge=1)
    queries: int = Field(default=512, ge=2)
    tries: int = Field(default=1, ge=1)
    quantity: Literal["background-level", "foreground-mean", "foreground-fraction"] = "foreground-mean"

    @model_validator(mode="after")
    def _fits(self) -> "Plan":
        codes.encode(self.code, self.kind)
        return self

    @model_serializer(mode="wrap")
    def _asked(self, dump: SerializerFunctionWrapHandler) -> dict:
        """Without `tries` where it is one: most marks carry no code."""
        return {name: value for name, value in dump(self).items() if (name, value) != ("tries", 1)}


def as_it_is(images: Tensor) -> Tensor:
    return images


def cells(height: int, width: int, grid: int) -> Tensor:
    """The number of every pixel's cell, long (height, width), row by row from 0; cells differ by at most a pixel a side."""
    if not 1 <= grid <= min(height, width):
        raise ValueError(f"{grid} cells a side do not fit into {height} x {width} px")
    return (torch.arange(height) * grid // height)[:, None] * grid + torch.arange(width) * grid // width


def occlude(image: Tensor, visible: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    """Copies of `image` (C, H, W) that show the cells of `visible`, bool (B, grid * grid), and elsewhere the `baseline`, one
    value or a picture (C, H, W): (B, C, H, W)."""
    shown = visible[:, cells(*image.shape[-2:], round(visible.shape[1] ** 0.5))]
    return torch.where(shown[:, None], image, baseline)


def drawn(n: int, grid: int, rng: torch.Generator) -> Tensor:
    """n patterns in which every cell is visible with probability 1/2: bool (n, grid * grid)."""
    return torch.rand(n, grid * grid, generator=rng) < 0.5


def respond(
    predictor: Predictor,
    image: Tensor,
    visible: Tensor,
    quantity: str,
    prepare: Prepare = as_it_is,
    batch: int = 256,
) -> Tensor:
    """The quantity of the suspect's answer to each occluded copy of `image` (C, H, W): float64 (n,). n queries."""
    answers = [predictor(prepare(occlude(image, part))) for part in visible.split(batch)]
    return torch.cat([QUANTITIES[quantity](part) for part in answers]).double()


def ridge(visible: Tensor, response: Tensor, alpha: float = 1.0) -> Tensor:
    """Coefficients of a ridge regression with intercept, float64 (m,): `response` (n,) on `visible` (n, m) of 0 and 1.

    A cell that was always, or never, visible has the coefficient 0.
    """
    x = visible.double()
    x, y = x - x.mean(0), response - response.mean()
    return torch.linalg.solve(x.T @ x + alpha * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


def lime(
    predictor: Predictor,
    image: Tensor,
    quantity: str,
    grid: int,
    queries: int,
    rng: torch.Generator,
    prepare: Prepare = as_it_is,
    alpha: float = 1.0,
) -> Tensor:
    """LIME (Ribeiro et al., KDD 2016) with the settings of StealthMark (Sec. on explanation): random occlusion, unweighted
    ridge regression. float64 (grid, grid), the change of the quantity that a visible cell brings. Batched; captum's Lime
    with the same patterns gives the same map."""
    visible = drawn(queries, grid, rng)
    return ridge(visible, respond(predictor, image, visible, quantity, prepare), alpha).view(grid, grid)


def occlusion(
    predictor: Predictor, image: Tensor, quantity: str, grid: int, prepare: Prepare = as_it_is, batch: int = 256
) -> Tensor:
    """What hiding one cell at a time takes away from the quantity (captum's FeatureAblation): float64 (grid, grid)."""
    from captum.attr import FeatureAblation  # takes a second, which checking a suite need not spend

    ablation = FeatureAblation(_forward(predictor, quantity, prepare))
    mask = cells(*image.shape[-2:], grid)
    maps = ablation.attribute(image[None], baselines=0.0, feature_mask=mask[None, None], perturbations_per_eval=batch)
    found = torch.zeros(grid * grid, dtype=torch.float64)
    found[mask.flatten()] = maps[0, 0].flatten().double()
    return found.view(grid, grid)


def kernel_shap(
    predictor: Predictor,
    image: Tensor,
    quantity: str,
    grid: int,
    queries: int,
    seed: int,
    prepare: Prepare = as_it_is,
    batch: int = 256,
) -> Tensor:
    """Shapley values of the cells (Lundberg and Lee, NeurIPS 2017; captum's KernelShap): float64 (grid, grid)."""
    from captum.attr import KernelShap

    shap = KernelShap(_forward(predictor, quantity, prepare))
    mask = cells(*image.shape[-2:], grid)
    with torch.random.fork_rng(devices=[]):  # captum draws from the global generator
        torch.manual_seed(seed)
        found = shap.attribute(
            image[None],
            baselines=0.0,
            feature_mask=mask[None, None],
            n_samples=queries,
            perturbations_per_eval=batch,
            return_input_shape=False,
        )
    return found.double().view(grid, grid)


def _forward(predictor: Predictor, quantity: str, prepare: Prepare) -> Callable[[Tensor], Tensor]:
    return lambda images: QUANTITIES[quantity](predictor(prepare(images))).double()


def gated_qr(
    predictor: Predictor,
    image: Tensor,
    code: Tensor,
    quantity: str,
    queries: int,
    rng: torch.Generator,
    prepare: Prepare = as_it_is,
    alpha: float = 1.0,
) -> Tensor:
    """The explanation step of StealthMark's released code, as it is: only cells that are dark in the QR code `code`, bool
    (grid, grid), are ever hidden, and every coefficient that is not zero becomes a dark module. bool (grid, grid).

    It shows the code of the *verifier* for any model that responds to its input, marked or not: a cell that is never
    hidden has the coefficient 0, a cell that is hidden hardly ever has. It proves nothing; it is here to show that.
    """
    grid = len(code)
    visible = drawn(queries, grid, rng) | ~code.flatten()
    return ridge(visible, respond(predictor, image, visible, quantity, prepare), alpha).view(grid, grid) != 0


def modules(explanation: np.ndarray) -> np.ndarray:
    """The bits that a map (grid, grid) spells: dark where a visible cell raises the quantity more than the median cell."""
    return explanation > np.median(explanation)


class Spelt(NamedTuple):
    """The two maps, each float (grid, grid), in which a code that a model carries is written: what hiding a cell adds to the
    answer `in_place`, in that very cell; and, by `lime`, to the mean of the answer, as a share of what the cell takes of the
    picture. In both 1 stands for a cell that, alone, turns from background to foreground."""

    in_place: np.ndarray
    lime: np.ndarray


def spelt(
    predictor: Predictor, image: Tensor, grid: int, queries: int, seed: int, baseline: Tensor | float, batch: int = 256
) -> Spelt:
    """How the suspect's answers to `queries` occlusions of `image` (C, H, W), drawn from `seed`, with hidden cells behind
    `baseline`, spell a code (see `MethodContract.carried`). Both maps are of the same answers."""
    visible = drawn(queries, grid, torch.Generator().manual_seed(seed))
    answers = torch.cat([by_cell(predictor(occlude(image, part, baseline)), grid) for part in visible.split(batch)])
    share = cells(*image.shape[-2:], grid).flatten().bincount().double() / image[0].numel()
    maps = in_place(visible, answers), -ridge(visible, answers @ share) / share
    return Spelt(*(found.view(grid, grid).numpy() for found in maps))


def by_cell(answers: Tensor, grid: int) -> Tensor:
    """The mean of each of `answers` (B, H, W) in every cell, float64 (B, grid * grid)."""
    cell = cells(*answers.shape[1:], grid).flatten()
    sums = torch.zeros(len(answers), grid * grid, dtype=torch.float64).index_add(1, cell, answers.flatten(1).double())
    return sums / cell.bincount()


def in_place(visible: Tensor, answers: Tensor) -> Tensor:
    """What hiding a cell adds to the answer in it, float64 (m,): the mean of `answers` (n, m), one number a cell, where the
    cell was hidden, less the mean where it was `visible`, bool (n, m). RISE (Petsiuk et al., BMVC 2018) averages one number
    an answer in this way; here every cell has its own. A cell that was always, or never, visible has 0."""
    hidden = ~visible
    n_hidden, n_visible = hidden.sum(0), visible.sum(0)
    means = [(answers * where).sum(0) / n.clamp(min=1) for where, n in ((hidden, n_hidden), (visible, n_visible))]
    return torch.where((n_hidden > 0) & (n_visible > 0), means[0] - means[1], 0.0)


def background_levels(answers: Tensor, grid: int) -> np.ndarray:
    """The map, float (grid, grid), in which a code lies that shifts the background of natural answers: the mean log-odds of the
    background's pixels in every cell over `answers`, float (B, H, W) in [0, 1]. A cell without background
    has the mean of the others."""
    levels, background = log_odds(answers).double(), (answers < 0.5).double()
    cell = cells(*answers.shape[1:], grid).flatten()
    total, n = (
        torch.zeros(grid * grid, dtype=torch.float64).index_add(0, cell, values.sum(0).flatten())
        for values in (levels * background, background)
    )
    seen = n > 0
    found = torch.where(seen, total / n.clamp(min=1), 0.0)
    return torch.where(seen, found, found.sum() / seen.sum().clamp(min=1)).view(grid, grid).numpy()


def dark(explanation: np.ndarray) -> np.ndarray:
    """The modules that a map of `spelt` shows, light and dark told apart by the threshold of minimum error (Kittler and
    Illingworth, Pattern Recognition 1986): the split into two normal classes, each with a spread of its own, that fits the
    values best. What an attack leaves of dark modules is uneven, light ones hardly move. No class has a spread of less than a
    hundredth of that of all values, or less than an eighth of the modules. All light where all are equal."""
    values = np.sort(explanation, axis=None).astype(float)
    spread = values.std()
    if spread == 0:
        return np.zeros(explanation.shape, dtype=bool)
    scaled = (values - values.mean()) / spread  # their sum is 0, that of their squares n
    n, lower = values.size, np.arange(1, values.size)
    sums, squares = np.cumsum(scaled)[:-1], np.cumsum(scaled**2)[:-1]
    cost = np.zeros(n - 1)
    for size, total, square in ((lower, sums, squares), (n - lower, -sums, n - squares)):
        variance = np.maximum(square / size - (total / size) ** 2, 1e-4)
        cost += size / n * (np.log(variance) / 2 - np.log(size / n))
    least = n // 8
    split = least + int(cost[least : n - 1 - least].argmin())
    return explanation > values[split : split + 2].mean()


def both_ways(predictor: Predictor, image: Tensor, plan: Plan, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(map, bits) of one image by `gated-qr`, the released code's step, and by `lime`, whose occlusions know no code."""
    code = torch.from_numpy(codes.encode(plan.code, plan.kind))
    rng = torch.Generator().manual_seed(seed)
    honest = lime(predictor, image, plan.quantity, len(code), plan.queries, rng).numpy()
    gated = gated_qr(predictor, image, code, plan.quantity, plan.queries, rng).numpy()
    return {"gated-qr": (gated.astype(float), gated), "lime": (honest, modules(honest))}
