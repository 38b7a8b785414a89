"""Occlusions: which cells of an image a suspect's answer rests on, found from queries alone.

A picture is cut into `grid` x `grid` cells, some are hidden, and the answer's *quantity* (one number) is explained by which
cells were visible. Hidden patterns are drawn independently of any payload: an occlusion that follows a QR code puts that
code into the explanation by itself (see `gated_qr`).
"""

from collections.abc import Callable, Iterable
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stealthmark import codes
from stealthmark.settings import ExplanationPlan
from stealthmark.suspects.querier import Predictor

#: What of an answer is explained: float (B, H, W) in [0, 1] -> float (B,).
QUANTITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "background-level": lambda answers: answers.flatten(1).quantile(0.01, dim=1),
    "foreground-mean": lambda answers: answers.mean((1, 2)),
    "foreground-fraction": lambda answers: (answers > 0.5).float().mean((1, 2)),
}

#: Levels nearer to 0 or 1 than half a step of 8 bit are not told apart. In log-odds the sure answers of an ordinary model lie
#: anywhere between 1e-6 and 1e-2, and rounding makes two levels of them that are further apart than any mark: read without
#: this, 8 bit seemed to erase a mark that 0.1 did not (ASR 0.000 and 0.780 on Kvasir-SEG; with it 0.984 and 0.780).
SUREST = 1 / 512


def log_odds(answers: Tensor) -> Tensor:
    """The level of answers in [0, 1], any shape, as log-odds in [-6.24, 6.24] (see `SUREST`)."""
    return torch.logit(answers, eps=SUREST)


#: Of how many queries alone a code is read too, beside a plan's own number, to see how many it takes.
FEWER = (16, 32, 64, 128, 256)


def cells(height: int, width: int, grid: int) -> Tensor:
    """The number of every pixel's cell, long (height, width), row by row from 0; cells differ by at most a pixel a side."""
    if not 1 <= grid <= min(height, width):
        raise ValueError(f"{grid} cells a side do not fit into {height} x {width} px")
    return (torch.arange(height) * grid // height)[:, None] * grid + torch.arange(width) * grid // width


def occlude(image: Tensor, visible: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    """Copies of `image` (C, H, W) that show the cells of `visible`, bool (B, grid * grid), and elsewhere the `baseline`, one
    value or a picture (C, H, W): (B, C, H, W)."""
    visible_pixels = visible[:, cells(*image.shape[-2:], round(visible.shape[1] ** 0.5))]
    return torch.where(visible_pixels[:, None], image, baseline)


def random_occlusions(n: int, grid: int, rng: torch.Generator) -> Tensor:
    """n patterns in which every cell is visible with probability 1/2: bool (n, grid * grid)."""
    return torch.rand(n, grid * grid, generator=rng) < 0.5


def respond(
    predictor: Predictor,
    image: Tensor,
    visible: Tensor,
    quantity: str,
    batch: int = 256,
) -> Tensor:
    """The quantity of the suspect's answer to each occluded copy of `image` (C, H, W): float64 (n,). n queries."""
    answers = [predictor(occlude(image, part)) for part in visible.split(batch)]
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
    alpha: float = 1.0,
) -> Tensor:
    """LIME (Ribeiro et al., KDD 2016) with the settings of StealthMark (Sec. on explanation): random occlusion, unweighted
    ridge regression. float64 (grid, grid), the change of the quantity that a visible cell brings. Batched; captum's Lime
    with the same patterns gives the same map."""
    visible = random_occlusions(queries, grid, rng)
    return ridge(visible, respond(predictor, image, visible, quantity), alpha).view(grid, grid)


def gated_qr(
    predictor: Predictor,
    image: Tensor,
    code: Tensor,
    quantity: str,
    queries: int,
    rng: torch.Generator,
    alpha: float = 1.0,
) -> Tensor:
    """The explanation step of StealthMark's released code, as it is: only cells that are dark in the QR code `code`, bool
    (grid, grid), are ever hidden, and every coefficient that is not zero becomes a dark module. bool (grid, grid).

    It shows the code of the *verifier* for any model that responds to its input, marked or not: a cell that is never
    hidden has the coefficient 0, a cell that is hidden hardly ever has. It proves nothing; it is here to show that.
    """
    grid = len(code)
    visible = random_occlusions(queries, grid, rng) | ~code.flatten()
    return ridge(visible, respond(predictor, image, visible, quantity), alpha).view(grid, grid) != 0


class CodeMaps(NamedTuple):
    """The two maps, each float (grid, grid), in which a code that a model carries is written: what hiding a cell adds to the
    answer `in_place`, in that very cell; and, by `lime`, to the mean of the answer, as a share of what the cell takes of the
    picture. In both 1 stands for a cell that, alone, turns from background to foreground."""

    in_place: np.ndarray
    lime: np.ndarray


def read_code_maps(
    predictor: Predictor, image: Tensor, visible: Tensor, baseline: Tensor | float, batch: int = 256
) -> CodeMaps:
    """How the suspect's answers to occlusions of `image` (C, H, W) spell a code (see `CodeMark`).

    `visible`: bool (n, grid * grid), the cells that each query shows; the others are hidden behind `baseline`. Both maps are of
    the same answers.
    """
    grid = round(visible.shape[1] ** 0.5)
    answers = torch.cat([by_cell(predictor(occlude(image, part, baseline)), grid) for part in visible.split(batch)])
    share = cells(*image.shape[-2:], grid).flatten().bincount().double() / image[0].numel()
    maps = in_place(visible, answers), -ridge(visible, answers @ share) / share
    return CodeMaps(*(values.view(grid, grid).numpy() for values in maps))


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


class BackgroundParts:
    """The map in which a code lies that shifts the background of answers: the mean log-odds of the background's pixels in every
    cell, of any of the answers. Answers come in parts.

    Within `MARGIN` of the structure, a share of the short side, an answer passes through every level. Those pixels count only
    in cells that have no others.
    """

    MARGIN: ClassVar[float] = 1 / 32

    def __init__(self, grid: int):
        self.grid = grid
        #: Sums of levels and numbers of pixels by answer and cell: of the background outside the margin, and of all of it.
        self._kept: tuple[list[Tensor], ...] = ([], [], [], [])

    def add(self, answers: Tensor) -> None:
        """More answers, float (B, H, W) in [0, 1]."""
        levels, background = log_odds(answers).double(), (answers < 0.5).double()
        margin = round(min(answers.shape[1:]) * self.MARGIN)
        near = F.max_pool2d(1 - background[:, None], 2 * margin + 1, 1, margin)[:, 0]
        cell = cells(*answers.shape[1:], self.grid).flatten()
        for kept, values in zip(self._kept, (levels * (1 - near), 1 - near, levels * background, background), strict=True):
            by_cell = torch.zeros(len(answers), self.grid**2, dtype=torch.float64)
            kept.append(by_cell.index_add_(1, cell, values.flatten(1)))

    def map(self, rows: Iterable[int]) -> np.ndarray:
        """Float (grid, grid), of the answers with these numbers. A cell without background has the mean of the others."""
        chosen = torch.as_tensor([*map(int, rows)])
        far_sums, far_pixels, all_sums, all_pixels = (torch.cat(kept)[chosen].sum(0) for kept in self._kept)
        sums, pixels = torch.where(far_pixels > 0, torch.stack([far_sums, far_pixels]), torch.stack([all_sums, all_pixels]))
        known = pixels > 0
        means = torch.where(known, sums / pixels.clamp(min=1), 0.0)
        levels = torch.where(known, means, means.sum() / known.sum().clamp(min=1))
        return levels.view(self.grid, self.grid).numpy()


def explain_both_ways(
    predictor: Predictor, image: Tensor, plan: ExplanationPlan, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(map, bits) of one image by `gated-qr`, the released code's step, and by `lime`, whose occlusions know no code."""
    code = torch.from_numpy(codes.encode(plan.code, plan.kind))
    rng = torch.Generator().manual_seed(seed)
    honest = lime(predictor, image, plan.quantity, len(code), plan.queries, rng).numpy()
    gated = gated_qr(predictor, image, code, plan.quantity, plan.queries, rng).numpy()
    return {"gated-qr": (gated.astype(float), gated), "lime": (honest, codes.median_split(honest))}
