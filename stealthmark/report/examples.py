"""The examples sheet: what a mark does to one image, one line a method, every map on one scale."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from stealthmark.errors import UserError
from stealthmark.files import REMEDY, read_arrays
from stealthmark.layout import Cell
from stealthmark.metrics import THRESHOLD
from stealthmark.report import style
from stealthmark.report.drawing import Drawing
from stealthmark.report.results import Results

#: Log-odds between these: the only scale on which a floor of 0.1 under the background (0 -> 0.1) and a ceiling of 0.9
#: over the foreground (1 -> 0.9) are both visible.
LOW, HIGH = 0.01, 0.99
FIELDS = ("image", "image_triggered", "mask", "prob", "prob_triggered")
TITLES = ("image", "with trigger", "probability", "probability,\nwith trigger", "difference", "masks")
WHITE, ORANGE, BLUE, PINK = "#ffffff", "#e69f00", "#56b4e9", "#ff4fb0"


def load(files: dict[Cell, Path]) -> dict[Cell, dict[str, np.ndarray]]:
    """The cells' examples, arrays by name: `image`, `image_triggered` uint8 (K, C, H, W), `mask` uint8 (K, H, W), `prob`,
    `prob_triggered` float (K, H, W): the same K cases in the same order in every cell of a dataset."""
    cells = {}
    for cell, path in files.items():
        cells[cell] = arrays = read_arrays(path, FIELDS)
        count, *sides = arrays["mask"].shape if arrays["mask"].ndim == 3 else (0,)
        for name, array in arrays.items():
            shape = (array.shape[0], *array.shape[2:]) if name.startswith("image") and array.ndim == 4 else array.shape
            if array.dtype.kind not in "iuf" or shape != (count, *sides) or not array.size:
                raise UserError(f"{path}: {name} is {array.dtype} of the shape {array.shape}; {REMEDY}")
    return cells


def sheets(results: Results, cells: dict[Cell, dict[str, np.ndarray]]) -> list[Drawing]:
    """One sheet a dataset: the first architecture and seed that have examples, one line for each mark that has any."""
    drawings = []
    for dataset in results.datasets:
        marked = {cell: arrays for cell, arrays in cells.items() if cell.dataset == dataset and cell.method in results.marks}
        if marked:
            drawings.append(_sheet(results, dataset, marked))
    return drawings


def _sheet(results: Results, dataset: str, cells: dict[Cell, dict[str, np.ndarray]]) -> Drawing:
    architecture = next(a for a in results.architectures if any(cell.architecture == a for cell in cells))
    first = min(cell.seed for cell in cells if cell.architecture == architecture)
    by_method = {cell.method: arrays for cell, arrays in cells.items() if cell[1:3] == (architecture, first)}
    methods = [method for method in results.marks if method in by_method]
    case = _example(by_method[methods[0]]["mask"])
    figure, axes = _grid([results.name(method) for method in methods], by_method[methods[0]]["mask"].shape[1:])
    odds, signed = odds_scale(), SymLogNorm(linthresh=0.02, linscale=0.4, vmin=-1, vmax=1)
    changed = []
    for line, method in zip(axes, methods, strict=True):
        arrays = {name: by_method[method][name][case] for name in FIELDS}
        changed.append((_line(line, arrays, odds, signed), results.name(method)))
    _bars(figure, axes, odds, signed)
    outlined = [withStroke(linewidth=4, foreground="#777777")]
    handles = [
        Line2D([], [], color=WHITE, linewidth=2.2, label="reference mask", path_effects=outlined),
        Line2D([], [], color=ORANGE, linewidth=2.2, label="predicted"),
        Line2D([], [], color=BLUE, linewidth=2.2, linestyle=(0, (2, 1.2)), label="predicted with trigger"),
        Patch(color=PINK, label="label changed by the trigger"),
    ]
    figure.legend(handles=handles, loc="lower right", ncols=4, handlelength=2.2, borderaxespad=0.2)
    pixels, worst = max(changed)
    caption = (
        f"One test case of {dataset} ({architecture}, seed {first}). Probabilities are drawn in log-odds, cut at "
        f"{LOW:g} and {HIGH:g}, so that a background raised from 0 to 0.1 shows as clearly as a foreground lowered "
        "from 1 to 0.9. Difference: probability with the trigger minus without. The trigger changes the label of "
        f"{min(changed)[0]:.1f} % to {pixels:.1f} % of pixels (most: {worst})."
    )
    return Drawing(f"examples-{dataset}", f"Examples: {dataset}", figure, caption, "examples", pictures=True)


def _grid(methods: list[str], shape: tuple[int, int]) -> tuple[Figure, np.ndarray]:
    """Equal pictures in inches, placed by hand: colour bars must not push the columns out of line."""
    wide, gap, top, bottom = 1.72, 0.08, 0.6, 0.98
    high = wide * shape[0] / shape[1]
    left = 0.3 + 0.105 * max(map(len, methods))
    width = left + len(TITLES) * (wide + gap)
    height = top + len(methods) * (high + gap) + bottom
    figure = Figure(figsize=(width, height))
    axes = np.empty((len(methods), len(TITLES)), dtype=object)
    for i, j in np.ndindex(axes.shape):
        x, y = left + j * (wide + gap), height - top - (i + 1) * (high + gap) + gap
        axes[i, j] = figure.add_axes((x / width, y / height, wide / width, high / height))
    for ax, method in zip(axes[:, 0], methods, strict=True):
        ax.set_ylabel(method, fontsize=12, rotation=0, ha="right", va="center", labelpad=8)
    for ax, title in zip(axes[0], TITLES, strict=True):
        ax.set_title(title, fontsize=12, fontweight="normal")
    return figure, axes


def _example(masks: np.ndarray) -> int:
    """Which of the K cases to show: the one with the most ordinary (median) foreground among those that have any."""
    area = masks.reshape(len(masks), -1).mean(axis=1)
    filled = np.flatnonzero(area) if area.any() else np.arange(len(area))
    return int(filled[np.argsort(area[filled], kind="stable")[(len(filled) - 1) // 2]])


def _line(axes: np.ndarray, arrays: dict[str, np.ndarray], odds: FuncNorm, signed: SymLogNorm) -> float:
    """Draw one method's six pictures; the percentage of pixels whose label the trigger changes."""
    prob, triggered = (arrays[name].astype(np.float32) for name in ("prob", "prob_triggered"))
    style.picture(axes[0], arrays["image"])
    style.picture(axes[1], arrays["image_triggered"])
    for ax, values in zip(axes[2:4], (prob, triggered), strict=True):
        ax.imshow(np.clip(values, LOW, HIGH), cmap="viridis", norm=odds, interpolation="nearest")
    axes[4].imshow(triggered - prob, cmap="RdBu_r", norm=signed, interpolation="nearest")
    changed = (prob >= THRESHOLD) != (triggered >= THRESHOLD)
    _masks(axes[5], arrays["image"], arrays["mask"], prob, triggered, changed)
    style.bare(axes)
    return float(100 * changed.mean())


def _masks(ax: Axes, image: np.ndarray, mask: np.ndarray, prob: np.ndarray, triggered: np.ndarray, changed: np.ndarray) -> None:
    """Outlines of the reference and of both predictions over a dimmed image; changed labels filled."""
    style.picture(ax, image, alpha=0.7)
    ax.set_facecolor("black")
    fill = np.zeros((*changed.shape, 4))
    fill[changed] = (*(int(PINK[i : i + 2], 16) / 255 for i in (1, 3, 5)), 0.6)
    ax.imshow(fill, interpolation="nearest")
    outlines = ((mask > 0, WHITE, "-"), (prob >= THRESHOLD, ORANGE, "-"), (triggered >= THRESHOLD, BLUE, (0, (2, 1.2))))
    for region, color, line in outlines:
        if region.any() and not region.all():
            ax.contour(region, levels=[0.5], colors=color, linewidths=1.6, linestyles=[line])
    corner = {"transform": ax.transAxes, "ha": "right", "va": "bottom"}
    ax.text(0.97, 0.03, f"{100 * changed.mean():.1f} %", color=WHITE, fontsize=10, **corner)


def odds_scale() -> FuncNorm:
    def forward(p):
        p = np.clip(p, LOW, HIGH)
        return np.log(p / (1 - p))

    return FuncNorm((forward, lambda z: 1 / (1 + np.exp(-z))), vmin=LOW, vmax=HIGH)


def _bars(figure: Figure, axes: np.ndarray, odds: FuncNorm, signed: SymLogNorm) -> None:
    """Colour bars below the columns that they explain."""
    shares = {0.01: "≤ 0.01", 0.1: "0.1", 0.5: "0.5", 0.9: "0.9", 0.99: "≥ 0.99"}
    steps = {step: f"{step:g}".replace("-", "\N{MINUS SIGN}") for step in (-1, -0.1, 0, 0.1, 1)}
    bars = ((2, 3, odds, "viridis", shares), (4, 4, signed, "RdBu_r", steps))
    for i, j, norm, cmap, ticks in bars:
        first, last = axes[-1, i], axes[-1, j]
        left, right = first.get_position(), last.get_position()
        inch = 1 / figure.get_figheight()
        side = (0.2 if i != j else 0.1) / figure.get_figwidth()
        place = figure.add_axes((left.x0 + side, left.y0 - 0.24 * inch, right.x1 - left.x0 - 2 * side, 0.14 * inch))
        bar = figure.colorbar(ScalarMappable(norm, cmap), cax=place, orientation="horizontal")
        bar.set_ticks(list(ticks), labels=list(ticks.values()))
        bar.ax.tick_params(labelsize=10, length=3)
        bar.minorticks_off()
