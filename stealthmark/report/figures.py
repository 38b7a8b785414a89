"""Rows and per-case scores -> the figures about numbers, each with a caption that says what is seen."""

from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from stealthmark.layout import CLEAN, INDEPENDENT, STOLEN, Place
from stealthmark.report import style
from stealthmark.report.drawing import Drawing, grid, legend_width, remove_empty
from stealthmark.report.results import AS_STOLEN, TAKES, THIEF_MARGIN, Panel, Results, Value
from stealthmark.report.style import INK, Look

DASHED = (0, (2, 1.5))


def scores(results: Results) -> Drawing | None:
    """The detector's score on marked and unmarked models, relative to its threshold; None where no case has a score."""
    cases = results.cases
    needed = {"score_triggered", "score_benign", "threshold"}
    if not needed <= set(cases.columns) or cases.score_triggered.isna().all():
        return None
    marks, panels = results.marks, results.panels
    look = style.looks(results.methods, results.controls)
    rows, wide, at = grid(panels)
    height = 1.3 + (1.35 * len(marks) + 0.3 * (rows > 1)) * rows
    figure = Figure(figsize=(1.9 + 4.0 * wide, height), layout="constrained")
    axes = figure.subplots(rows * len(marks), wide, squeeze=False)
    wrong = []
    for panel, (row, j) in zip(panels, at, strict=True):
        column = axes[row * len(marks) : (row + 1) * len(marks), j]
        column[0].set_title(results.title(panel))
        for ax, method in zip(column, marks, strict=True):
            share = _score_panel(ax, results, panel, method, look[method])
            wrong.append((share, results.name(method), results.title(panel)))
            if j == 0:
                ax.set_ylabel(results.name(method), rotation=0, ha="right", va="center", fontsize=12, visible=True)
    remove_empty(axes)
    figure.supxlabel("detector's score minus its threshold (called marked from 0 on)", fontsize=11)
    handles = [
        Patch(facecolor="#666666", alpha=0.75, label="marked model, triggered"),
        Line2D([], [], color=INK, linewidth=1.6, label="marked model, untriggered"),
        Line2D([], [], color=INK, linewidth=1.6, linestyle=DASHED, label="independent model, triggered"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3 if len(panels) > 1 else 1)
    wrong = [entry for entry in wrong if np.isfinite(entry[0])]
    caption = (
        "Scores of single queries, before any attack; heights are shares of queries, each distribution scaled to its "
        "peak. A mark that can be told apart has its filled distribution right of the line and both outlines left."
    )
    if wrong:
        share, method, where = max(wrong)
        most = f"The largest share of triggered queries on the wrong side is {share:.2f} ({method}, {where})."
        caption += f" {most}" if share else " No triggered query of a marked model is on the wrong side."
    return Drawing("scores", "What the detector sees", figure, caption)


def _score_panel(ax: Axes, results: Results, panel: Panel, method: str, look: Look) -> float:
    """Draw one panel; the share of triggered queries on the marked model that stay below the threshold."""
    cases = results.cases_of(panel, method, results.levels(method)[0])
    stolen, independent = cases[cases.role == STOLEN], cases[cases.role == INDEPENDENT]
    marked, benign = _relative(stolen, "score_triggered"), _relative(stolen, "score_benign")
    unmarked = _relative(independent, "score_triggered")
    every_score = np.concatenate([marked, benign, unmarked])
    ax.spines["left"].set_visible(False)
    ax.set_yticks([])
    if len(every_score) == 0:
        ax.text(0.5, 0.5, "no scores", transform=ax.transAxes, ha="center", va="center", color="#777777")
        ax.set_xticks([])
        return np.nan
    low, high = min(every_score.min(), 0), max(every_score.max(), 0)
    pad = 0.04 * (high - low) or 0.5
    edges = np.linspace(low - pad, high + pad, 45)
    _distribution(ax, marked, edges, color=look.color, alpha=0.75, linewidth=0)
    _distribution(ax, benign, edges, fill=False, color=INK, linewidth=1.6)
    _distribution(ax, unmarked, edges, fill=False, color=INK, linewidth=1.6, linestyle=DASHED)
    ax.axvline(0, color="#c0392b", linewidth=1.6)
    ax.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.1), ylabel="")
    ax.locator_params(axis="x", nbins=5)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}".replace("-", "\N{MINUS SIGN}")))
    ax.tick_params(axis="x", labelsize=10)
    return float(np.mean(marked < 0)) if len(marked) else np.nan


def _relative(cases: pd.DataFrame, column: str) -> np.ndarray:
    values = (cases[column] - cases.threshold).to_numpy(dtype=float)
    return values[np.isfinite(values)]


def _distribution(ax: Axes, values: np.ndarray, edges: np.ndarray, **look) -> None:
    """A histogram between these edges, as high as 1."""
    if len(values):
        highest = np.histogram(values, edges)[0].max()
        weights = np.full(len(values), 1 / highest)
        sns.histplot(x=values, weights=weights, bins=edges.tolist(), element="step", ax=ax, **look)


def mark_vs_dice(results: Results) -> Drawing:
    """ASR against what the model lost, one point for each mark and each strength of each attack."""
    panels, look = results.panels, style.looks(results.methods, results.controls)
    rows, wide, at = grid(panels)
    high = 5.2 if rows == 1 else 3.8 * rows
    figure = Figure(figsize=(1.0 + 4.4 * wide + legend_width(results), high), layout="constrained")
    axes = figure.subplots(rows, wide, squeeze=False, sharey=True)
    markers = dict(zip(results.attacks, cycle("s^DvP*Xph<>"), strict=False))
    ruined, kept, zero = 0, 0, results.controls[0] if results.controls else CLEAN
    for panel, place in zip(panels, at, strict=True):
        ax = axes[place]
        lowest, highest = -THIEF_MARGIN, 0.8
        for method in results.marks:
            (start,) = _trade(results, panel, method, [AS_STOLEN])
            for attack in results.attacks:
                points = _trade(results, panel, method, results.curve(attack))
                ax.plot(*zip(*points, strict=True), color=look[method].color, linewidth=1.2, alpha=0.7, zorder=2)
                for change, asr in points[1:]:
                    ax.plot(change, asr, markers[attack], color=look[method].color, markersize=5.5, zorder=3)
                    ruined += asr < TAKES and change < -THIEF_MARGIN
                    kept += asr >= TAKES and change >= -THIEF_MARGIN
                changes = [change for change, _ in points]
                lowest, highest = np.nanmin([lowest, *changes]), np.nanmax([highest, *changes])
            lowest, highest = np.nanmin([lowest, start[0]]), np.nanmax([highest, start[0]])
            ax.plot(*start, "o", color=look[method].color, markersize=11, zorder=4, markeredgecolor="white")
        _trade_axes(ax, results.title(panel), lowest, highest, f"change of Dice against {zero} (points)")
    for ax in axes[:, 0]:
        ax.set_ylabel("ASR")
    remove_empty(axes)
    handles = [Line2D([], [], color=look[method].color, linewidth=4, label=results.name(method)) for method in results.marks]
    shapes = [("o", 11, "no attack"), *((markers[a], 6, results.facts.attack(a).title) for a in results.attacks)]
    handles.append(Patch(color="#ececec", label=f"costs the thief more\nthan {THIEF_MARGIN:g} points"))
    grey = {"color": "#555555", "linestyle": ""}
    handles += [Line2D([], [], **grey, marker=marker, markersize=size, label=name) for marker, size, name in shapes]
    figure.legend(handles=handles, loc="outside right center")
    caption = (
        "Each line starts at the marked model as it is (large dot) and follows an attack as it grows stronger. Marks "
        "that are harmless and survive stay at the top right; in the shaded area the attack costs the thief more than "
        f"{THIEF_MARGIN:g} points of Dice, measured against {results.against}. The axis is linear to {THIEF_MARGIN:g} points, "
        f"then logarithmic. Of the attacked models, {kept} keep ASR at {TAKES:g} or more at a Dice worth stealing; {ruined} "
        "lost the mark but also the Dice."
    )
    return Drawing("mark_vs_dice", "The mark against what the model is worth", figure, caption)


def _trade(results: Results, panel: Panel, method: str, places: list[Place]) -> list[tuple[float, float]]:
    """(change of Dice, ASR) at each place; NaN, which breaks a line, for a cell that failed."""
    cells = [[results.value(metric, panel, method, place) for metric in ("dice", "asr")] for place in places]
    return [(dice.change, asr.mean) for dice, asr in cells]


def _trade_axes(ax: Axes, title: str, lowest: float, highest: float, xlabel: str) -> None:
    left = min(-4 * THIEF_MARGIN, lowest * 1.3)
    ax.set_xscale("symlog", linthresh=THIEF_MARGIN, linscale=1.8)
    ax.axvspan(left, -THIEF_MARGIN, color="#ececec", zorder=0, linewidth=0)
    ax.set(xlim=(left, 1.3 * highest), ylim=(-0.04, 1.06), title=title, xlabel=xlabel)
    ticks = [t for t in (-50, -20, -10, -5, -3, -2, -1, 0, 1, 2, 5) if left <= t <= 1.3 * highest]
    ax.set_xticks(ticks, [f"{t:+d}".replace("-", "\N{MINUS SIGN}") if t else "0" for t in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(True)


def attack_curves(results: Results, attack: str) -> Drawing:
    """ASR with its band, AUROC and Dice over the strength of one attack, one below the other; a column for each dataset."""
    panels, look, plugin = results.panels, style.looks(results.methods, results.controls), results.facts.attack(attack)
    rows, wide, at = grid(panels)
    figure = Figure(figsize=(1.0 + 4.0 * wide + legend_width(results), 8.0 * rows), layout="constrained")
    axes = figure.subplots(3 * rows, wide, squeeze=False, sharex=True, sharey="row")
    unmarked = [CLEAN, *results.controls[:1]]
    places = results.curve(attack)
    x = [plugin.in_unit(place.strength) for place in places]
    for panel, (row, j) in zip(panels, at, strict=True):
        above, middle, below = axes[3 * row : 3 * row + 3, j]
        for method in results.marks:
            for ax, metric in ((above, "asr"), (middle, "auroc"), (below, "dice")):
                _curve(ax, x, [results.value(metric, panel, method, place) for place in places], look[method])
        middle.axhline(0.5, color=style.GREY, linewidth=1.0, linestyle=":")
        for method in unmarked:
            start = results.value("dice", panel, method)
            if start.status == "ok":
                below.axhline(start.mean, color=look[method].color, linewidth=1.4, linestyle="--")
        above.set(title=results.title(panel), ylim=(-0.04, 1.06))
        middle.set(ylim=(-0.04, 1.06))
        below.set(xlabel=plugin.axis)
        below.tick_params(labelbottom=True)
        if len(x) <= 10:
            below.set_xticks(x)
    remove_empty(axes)
    for ax in figure.axes:
        ax.grid(True)
    for above, middle, below in zip(axes[::3, 0], axes[1::3, 0], axes[2::3, 0], strict=True):
        # At least a tenth of Dice is drawn, so that a change of a point does not look like a collapse.
        low, high = below.get_ylim()
        below.set_ylim(max(0, min(low, high - 0.1)), min(1, high))
        above.set_ylabel("ASR")
        middle.set_ylabel("AUROC")
        below.set_ylabel("Dice, benign images")
    handles = [Line2D([], [], **_line_style(look[method]), label=results.name(method)) for method in results.marks]
    handles += [Line2D([], [], color=look[m].color, linestyle="--", label=f"{m}, not attacked") for m in unmarked]
    figure.legend(handles=handles, loc="outside right center")
    return Drawing(f"attack-{attack}", f"Attack: {plugin.title}", figure, _attack_caption(results, places[-1]), "attacks")


def _curve(ax: Axes, x: list[float], values: list[Value], look: Look) -> None:
    """A line with its band. A cell that failed or was never asked for is a gap: nothing is drawn across it."""
    ax.plot(x, [value.mean for value in values], **_line_style(look), markersize=5.5)
    low, high = [value.low for value in values], [value.high for value in values]
    ax.fill_between(x, low, high, color=look.color, alpha=0.13, linewidth=0)


def _line_style(look: Look) -> dict:
    return {"color": look.color, "marker": look.marker, "linestyle": look.line}


def _attack_caption(results: Results, strongest: Place) -> str:
    band = "lowest and highest seed" if len(results.seeds) > 1 else "95 % interval over cases"
    text = results.facts.attack(strongest.attack).strength(strongest.strength)
    left = [
        (asr.mean, results.name(method), results.title(panel))
        for panel in results.panels
        for method in results.marks
        if np.isfinite((asr := results.value("asr", panel, method, strongest)).mean)
    ]
    caption = (
        f"Lines: mean; bands: {band}. Strength 0 is the stolen model as it is. ASR: at the frozen threshold; AUROC: triggered "
        "against ordinary queries of the same model, 0.5 is chance (dotted): a mark can be present where its calibration is "
        "gone."
    )
    if left:
        standing = sum(asr >= TAKES for asr, _, _ in left)
        asr, method, where = min(left)
        caption += (
            f" At the strongest ({text}) {standing} of {len(left)} marked models keep ASR at {TAKES:g} or more; the "
            f"lowest is {asr:.2f} ({method}, {where})."
        )
    return caption
