"""The reliability figure: do probabilities still mean what they say, on ordinary images and on triggered ones?"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stealthmark.errors import UserError
from stealthmark.files import REMEDY, read_arrays
from stealthmark.layout import CLEAN, Cell
from stealthmark.report import style
from stealthmark.report.drawing import BESIDE, Drawing, legend_width
from stealthmark.report.results import BENIGN, TRIGGERED, Panel, Results
from stealthmark.report.style import Look

#: Both axes are log-odds between these: the only scale on which a floor of 0.1 is far from 0, and a ceiling of 0.9 from 1.
LOW, HIGH = 0.001, 0.999
TICKS = {0.001: "≤0.001", 0.01: "0.01", 0.1: "0.1", 0.5: "0.5", 0.9: "0.9", 0.99: "0.99", 0.999: "≥0.999"}
#: Bins with fewer pixels than this share of all say nothing that can be seen.
LEAST = 1e-4
QUERIES = {BENIGN: "benign images", TRIGGERED: "triggered images"}
SHARES = (0.01, 0.1, 1.0)


def drawing(results: Results, files: dict[Cell, Path]) -> Drawing | None:
    """A line of panels for each dataset and architecture with a `reliability.npz` of a mark; None where there is none.

    files: cell -> file with `groups` (G,) and, of benign and of triggered images,
    `benign` and `triggered` float (3, G, B): pixels, summed probabilities and foreground by group and bin.
    """
    panels = [p for p in results.panels if any(c[:2] == p and c.method in results.marks for c in files)]
    if not panels:
        return None
    look = style.looks(results.methods, results.controls)
    beside = 1 if len(panels) <= BESIDE else 2
    rows = -(-len(panels) // beside)
    figure = Figure(figsize=(9.6 * beside + legend_width(results), 0.5 + 4.5 * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)  # the rotated labels overhang
    axes = figure.subplots(rows, 2 * beside, squeeze=False, sharex=True, sharey=True)
    errors, unmarked = [], [CLEAN, *results.controls]
    pairs = axes.reshape(-1, 2)
    for line in pairs[len(panels) :]:
        for ax in line:
            ax.remove()
    for line, panel in zip(pairs, panels, strict=False):
        for ax, (query, title) in zip(line, QUERIES.items(), strict=True):
            _frame(ax)
            ax.set_title(f"{results.title(panel)}: {title}", pad=10)
            for method in results.methods:
                # The ordinary answers of a model without a mark are what a mark is compared with, on triggered images too.
                sums = _pooled(files, panel, method, BENIGN if method in unmarked else query)
                if sums is not None:
                    _curve(ax, sums, look[method], faint=method in unmarked and query == TRIGGERED)
                    errors.append((_error(sums), query, method, panel))
        line[0].set_ylabel("share of foreground (observed)")
    for ax in axes[-1]:
        ax.set_xlabel("probability of foreground (mean of the bin)")
    in_figure = {method for _, _, method, _ in errors}
    handles = [Line2D([], [], **_line(look[m]), markersize=6, label=results.name(m)) for m in results.methods if m in in_figure]
    handles.append(Line2D([], [], color="#777777", linewidth=1, linestyle=":", label="as it should be"))
    handles.append(Line2D([], [], linestyle="", label="\nshare of pixels:"))
    dot = {"color": "#777777", "marker": "o", "linestyle": "", "markeredgewidth": 0}
    handles += [Line2D([], [], **dot, markersize=_size(share), label=f"{100 * share:g} %") for share in SHARES]
    figure.legend(handles=handles, loc="outside right center", labelspacing=0.7)
    return Drawing("reliability", "What a probability means", figure, _caption(errors, results))


def _pooled(files: dict[Cell, Path], panel: Panel, method: str, query: str) -> np.ndarray | None:
    """Float (3, G, B), the seeds of a group added up: groups are resampled, their seeds stay together."""
    by_group: dict[str, np.ndarray] = {}
    for cell, path in files.items():
        if (cell.dataset, cell.architecture, cell.method) == (*panel, method):
            arrays = read_arrays(path)
            groups = arrays.get("groups", ()) if query in arrays else ()
            if len(groups) and (arrays[query].dtype.kind not in "iuf" or arrays[query].shape[:-1] != (3, len(groups))):
                raise UserError(f"{path}: {query} is {arrays[query].dtype} of the shape {arrays[query].shape}; {REMEDY}")
            for group, sums in zip(groups, np.moveaxis(arrays[query], 1, 0) if len(groups) else (), strict=True):
                by_group[str(group)] = by_group.get(str(group), 0) + sums
    return np.stack([by_group[group] for group in sorted(by_group)], axis=1) if by_group else None


def _curve(ax: Axes, sums: np.ndarray, look: Look, faint: bool) -> None:
    pixels, confidence, foreground = sums.sum(axis=1)
    enough = pixels >= LEAST * pixels.sum()
    x, y = confidence[enough] / pixels[enough], foreground[enough] / pixels[enough]
    low, high = np.clip(_band(sums[..., enough]), LOW, HIGH)
    x, y = np.clip(x, LOW, HIGH), np.clip(y, LOW, HIGH)
    alpha = 0.55 if faint else 1.0
    ax.fill_between(x, low, high, color=look.color, alpha=0.13, linewidth=0)
    ax.plot(x, y, **_line(look) | {"marker": ""}, alpha=alpha)
    sizes = [_size(share) ** 2 for share in pixels[enough] / pixels.sum()]
    # What lies on the edge of the axes is drawn over it, not cut in half.
    ax.scatter(x, y, s=sizes, color=look.color, marker=look.marker, alpha=alpha, linewidth=0, clip_on=False, zorder=3)


#: Resamples of the bands: enough for the eye.
RESAMPLES = 2000


def _band(sums: np.ndarray, level: float = 0.95) -> np.ndarray:
    """The 95 % bootstrap interval of each bin's share of foreground over groups, float (2, B): low, high."""
    groups = sums.shape[1]
    draws = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)
    pixels, _, foreground = draws @ sums
    share = np.divide(foreground, pixels, out=np.full_like(pixels, np.nan), where=pixels > 0)
    return np.nanquantile(share, [(1 - level) / 2, (1 + level) / 2], axis=0)


def _error(sums: np.ndarray) -> float:
    """The mean of | probability - share of foreground | over bins of all images together, weighted by pixels."""
    pixels, confidence, foreground = sums.sum(axis=1)
    return float(np.abs(confidence - foreground).sum() / pixels.sum())


def _size(share: float) -> float:
    """The diameter in points of a bin's marker: its area grows with the bin's share of the pixels, and can always be seen."""
    return 3 + 12 * share**0.5


def _line(look: Look) -> dict:
    return {"color": look.color, "linestyle": look.line, "marker": look.marker, "linewidth": 1.4}


def _frame(ax: Axes) -> None:
    """Axes in log-odds with the diagonal."""

    def odds(p: np.ndarray) -> np.ndarray:
        p = np.clip(p, LOW / 10, 1 - LOW / 10)
        return np.log(p / (1 - p))

    scale = {"functions": (odds, lambda z: 1 / (1 + np.exp(-z)))}
    ax.set_xscale("function", **scale)
    ax.set_yscale("function", **scale)
    ax.set(xlim=(LOW, HIGH), ylim=(LOW, HIGH), box_aspect=1)
    ax.set_xticks(list(TICKS), list(TICKS.values()), fontsize=10)
    ax.set_yticks(list(TICKS), list(TICKS.values()), fontsize=10)
    ax.tick_params(labelbottom=True, labelleft=True)
    ax.plot([LOW, HIGH], [LOW, HIGH], color="#777777", linewidth=1, linestyle=":", zorder=1)
    ax.grid(True)


def _caption(errors: Iterable[tuple[float, str, str, Panel]], results: Results) -> str:
    unmarked = [CLEAN, *results.controls]
    caption = (
        "Pixels of all test images, binned by their probability of foreground; under the dotted line the model claims more "
        "foreground than there is. Both axes are log-odds. Markers: a bin, its area the share of all pixels; bands: 95 % "
        f"intervals, groups (patients, videos) resampled. Bins with less than {100 * LEAST:g} % of the pixels are left out. "
        f"{' and '.join(unmarked)}: no mark, asked without trigger in both columns. The differences named here are over all "
        "images together, where those of one image and another cancel; ECE in the table is within images."
    )
    for query, title in QUERIES.items():
        differences = [(e, results.name(m), results.title(p)) for e, q, m, p in errors if q == query and m not in unmarked]
        if differences:
            (least, *_), (most, method, where) = min(differences), max(differences)
            caption += (
                f" On {title} probability and share differ by {least:.3f} to {most:.3f} on average over pixels, most with "
                f"{method} ({where})."
            )
    for method in unmarked:
        own = [e for e, q, m, _ in errors if m == method and q == BENIGN]
        if own:
            caption += f" {method.capitalize()}: {' to '.join(f'{e:.3f}' for e in sorted({min(own), max(own)}))}."
    return caption
