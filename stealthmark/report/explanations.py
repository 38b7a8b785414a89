"""The explanations sheet: what two ways to explain show of a marked, an independent and an untrained model."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stealthmark import codes
from stealthmark.layout import INDEPENDENT, STOLEN, UNTRAINED, Cell, Place
from stealthmark.report import style
from stealthmark.report.drawing import Drawing
from stealthmark.report.maps import Maps
from stealthmark.report.results import Results

ROWS = {STOLEN: "marked", INDEPENDENT: "never marked", UNTRAINED: "never trained"}
TITLES = ("what is asked", "LIME: map", "LIME: bits", "gated-qr: bits")


def sheets(results: Results, maps: dict[Cell, Maps]) -> list[Drawing]:
    """One sheet a dataset, of the first mark whose model as it was stolen has maps."""
    drawings = []
    for dataset in results.datasets:
        there = (cell for cell in maps if cell.dataset == dataset and maps[cell].common("code") is not None)
        if cell := next(there, None):
            drawings.append(_sheet(results, dataset, cell.method, maps[cell]))
    return drawings


def _sheet(results: Results, dataset: str, method: str, maps: Maps) -> Drawing:
    level, code = results.levels(method)[0], maps.common("code")
    both = {role: [maps.of(Place(role, access=level), way) for way in ("lime", "gated-qr")] for role in ROWS}
    both = {role: pair for role, pair in both.items() if all(explanation is not None for explanation in pair)}
    figure = Figure(figsize=(9.2, 0.7 + 2.3 * len(both)))
    axes = figure.subplots(len(both), 4, squeeze=False, gridspec_kw={"wspace": 0.12, "hspace": 0.2, "left": 0.13})
    figure.subplots_adjust(right=0.97, top=1 - 0.532 / figure.get_figheight(), bottom=0.304 / figure.get_figheight())
    for line, (role, (lime, gated)) in zip(axes, both.items(), strict=True):
        style.picture(line[0], maps.common("image"))
        style.attribution(line[1], lime)
        for ax, bits in ((line[2], codes.median_split(lime)), (line[3], gated != 0)):
            _bits(ax, bits, code)
        line[0].set_ylabel(ROWS[role], fontsize=12, fontweight="bold", labelpad=8)
    for ax, title in zip(axes[0], TITLES, strict=True):
        ax.set_title(title, fontsize=12, pad=7)
    style.bare(axes)
    caption = (
        f"Whose models show the owner's QR code ({dataset}, mark: {method}, one triggered image)? Right: the explanation step "
        "of StealthMark's released code. It hides only cells that are dark in the owner's code and calls every coefficient "
        "that is not zero dark, so the code appears in whatever model responds to its input, trained or not: no evidence. "
        "Middle: the same regression with occlusions drawn at random. It shows what the answer rests on, and no code; half of "
        "the bits are wrong, which is chance."
    )
    title = "Whose models show the owner's QR code"
    return Drawing(f"explanations-{dataset}", title, figure, caption, "explanations", pictures=True)


def _bits(ax: Axes, bits: np.ndarray, code: np.ndarray) -> None:
    """Bits, and below them how many are wrong and what they read."""
    style.modules(ax, bits)
    text = codes.decode(bits)
    wrong = f"{100 * codes.error_rate(bits, code):.0f} % wrong"
    ax.set_xlabel(wrong + (f"; reads {text}" if text else ""), fontsize=10, labelpad=5)
