"""How every figure looks: one colour, marker and line a method, fixed sizes, files that are the same on every run."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stealthmark.access import WEIGHTS
from stealthmark.layout import CLEAN

GREY = "#8a8a8a"
INK = "#222222"
#: Seaborn's colour-blind-safe palette (`colorblind`) without its grey, which is clean's; the pale colours last.
PALETTE = ["#0173b2", "#de8f05", "#029e73", "#cc78bc", "#d55e00", "#56b4e9", "#ca9161", "#ece133", "#fbafe4"]
MARKERS = "os^DvPX<>ph*"
LINES = ("-", (0, (4, 1.5)))

METRICS = {"dice": "Dice", "auc": "AUC", "vs": "VS", "hd95": "HD95 (px)", "asr": "ASR", "fpr": "FPR", "auroc": "AUROC"}
METRICS |= {"ece": "ECE", "brier": "Brier", "threshold_dice": "Dice over thresholds"}

RC = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "svg.hashsalt": "stealthmark",
    "savefig.facecolor": "white",
}


class Look(NamedTuple):
    color: str
    marker: str
    line: str | tuple


def looks(methods: list[str], controls: Collection[str] = ()) -> dict[str, Look]:
    """A look for each method, by its place in the suite; clean is grey, controls are ink. Colours repeat after nine, dashed."""
    by_method = {CLEAN: Look(GREY, "o", "-")} | {control: Look(INK, "o", LINES[1]) for control in controls}
    for i, method in enumerate(m for m in methods if m not in by_method):
        turn, color = divmod(i, len(PALETTE))
        by_method[method] = Look(PALETTE[color], MARKERS[i % len(MARKERS)], LINES[turn % len(LINES)])
    return by_method


def access_name(access: str) -> str:
    """`rounded-0.1` -> `rounded to 0.1`; `clipped-0.1` -> `clipped at 0.1`; `label` -> `label map`."""
    if access.startswith("clipped-"):
        return f"clipped at {access.removeprefix('clipped-')}"
    if access.startswith("rounded-"):
        return f"rounded to {access.removeprefix('rounded-')}"
    return {"label": "label map", WEIGHTS: "weights (white box)"}.get(access, access)


def picture(ax: Axes, image: np.ndarray, **how) -> None:
    """Draw an image, uint8 (C, H, W) with 1 or 3 channels."""
    ax.imshow(image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255, interpolation="nearest", **how)


def attribution(ax: Axes, explanation: np.ndarray) -> None:
    """Draw a map, float (n, n): red where a cell adds, blue where it takes away, white at 0."""
    reach = np.abs(explanation).max() or 1.0
    ax.imshow(explanation, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")


def modules(ax: Axes, bits: np.ndarray) -> None:
    """Draw a code's modules, bool (n, n), True black."""
    ax.imshow(~bits, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def bare(axes: np.ndarray) -> None:
    """Take ticks and frame off pictures."""
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `<stem>.png` (150 dpi) and `<stem>.svg` without dates or versions: a re-run gives the same bytes."""
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    figure.savefig(png, dpi=150, metadata={"Software": None})
    figure.savefig(svg, dpi=150, metadata={"Date": None, "Creator": None})
    return [png, svg]
