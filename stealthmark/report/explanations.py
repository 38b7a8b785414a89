"""The explanations sheet: what two ways to explain show of a marked, an independent and an untrained model."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from stealthmark import codes
from stealthmark.explain import modules
from stealthmark.report import style
from stealthmark.report.figures import Drawing
from stealthmark.report.results import Results

ROWS = {"stolen": "marked", "independent": "never marked", "untrained": "never trained"}
TITLES = ("what is asked", "LIME: map", "LIME: bits", "gated-qr: bits")


def sheets(results: Results, files: dict[tuple[str, str, int, str], Path]) -> list[Drawing]:
    """One sheet a dataset, of the first mark that has maps: `maps.npz` with `code` bool (n, n), `image` uint8 (C, H, W) and,
    under `situation/access/way`, maps float (n, n)."""
    drawings = []
    for dataset in results.datasets:
        here = [(cell, file) for cell, file in files.items() if cell[0] == dataset]
        if here:
            (_, _, _, method), file = here[0]
            with np.load(file, allow_pickle=False) as maps:
                drawings.append(_sheet(results, dataset, method, dict(maps)))
    return drawings


def _sheet(results: Results, dataset: str, method: str, maps: dict[str, np.ndarray]) -> Drawing:
    level, code = results.accesses[0], maps["code"]
    figure = Figure(figsize=(9.2, 7.6))
    axes = figure.subplots(len(ROWS), 4, gridspec_kw={"wspace": 0.12, "hspace": 0.2, "left": 0.13, "right": 0.97})
    figure.subplots_adjust(top=0.93, bottom=0.04)
    for line, (situation, name) in zip(axes, ROWS.items(), strict=True):
        lime, gated = (maps[f"{situation}/{level}/{way}"] for way in ("lime", "gated-qr"))
        bits = modules(lime)
        style.picture(line[0], maps["image"])
        style.attribution(line[1], lime)
        for ax, shown in ((line[2], bits), (line[3], gated != 0)):
            style.modules(ax, shown)
            read = codes.decode(shown)
            told = f"{100 * codes.error_rate(shown, code):.0f} % wrong" + (f"; reads {read}" if read else "")
            ax.set_xlabel(told, fontsize=10, labelpad=5)
        line[0].set_ylabel(name, fontsize=12, fontweight="bold", labelpad=8)
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
    return Drawing(f"explanations-{dataset}", "Whose models show the owner's QR code", figure, caption)
