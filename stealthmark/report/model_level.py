"""The model as the unit: its mean score beside those of models that nobody stole, and how many queries show whose it is."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stealthmark.layout import INDEPENDENT, NEVER_MARKED, NULL, STOLEN, Place
from stealthmark.report import style
from stealthmark.report.drawing import Drawing, wrap
from stealthmark.report.formatting import ABSENT, Table, head, lines, step_name, table, titled
from stealthmark.report.results import OTHERS_MODEL, Panel, Results

SCORE, QUERIES = "score", "queries_to_verdict"
UNMARKED, MARKED = "#6b6b6b", "#d55e00"


class Scores(NamedTuple):
    """Mean scores of models under one mark's key, a row a model and seed: `value`, `ci_low`, `ci_high`, `seed`, and the columns
    of a place."""

    nulls: pd.DataFrame
    suspects: pd.DataFrame


def tables(results: Results) -> list[Table]:
    """`queries`, where verdicts were sought query by query."""
    return [queries(results)] if results.has(metric=QUERIES) else []


def queries(results: Results) -> Table:
    """How many queries it takes until ownership is shown, by suspect and by what its interface shows."""
    rows = results.rows[(results.rows.metric == QUERIES) & (results.rows.status == "ok")]
    asked = set(rows[["attack", "strength"]].itertuples(index=False, name=None))
    data, text = [], []
    for panel, method in lines(results, marks_only=True):
        for place in (place for place in results.steps() if (place.attack, place.strength) in asked):
            line = dict.fromkeys(map(style.access_name, results.accesses), ABSENT)
            for level in results.levels(method):
                found = _at(rows, panel, method, place._replace(access=level)).sort_values("seed")
                where = {"attack": place.attack, "strength": place.strength, "access": level}
                data += [
                    {**head(panel, method), **where, "seed": seed, "queries": value, "nulls": n}
                    for seed, value, n in found[["seed", "value", "n"]].itertuples(index=False, name=None)
                ]
                if len(found) and level in results.accesses:  # a white box is not queried
                    each = [f"{value:.0f}" if np.isfinite(value) else "not reached" for value in found.value]
                    line[style.access_name(level)] = ", ".join(each)
            text.append({**titled(results, panel, method), "suspect": step_name(results, place), **line})
    notes = [
        "The fewest queries with which ownership is shown, and with every larger number too; one image of every patient first. "
        "The suspect's mean score over them is ranked among null models that were asked the same.",
        *(["Seeds in their order, each alone."] if len(results.seeds) > 1 else []),
        "Not reached: not with all test images either.",
    ]
    return table(results, "queries", "How many queries until ownership is shown", data, text, notes)


def _at(rows: pd.DataFrame, panel: Panel, method: str, place: Place) -> pd.DataFrame:
    """The rows of one suspect, of all seeds."""
    own = (rows.dataset == panel.dataset) & (rows.architecture == panel.architecture) & (rows.method == method)
    for name, value in place._asdict().items():
        own &= rows[name] == value
    return rows[own]


def scores_of(results: Results, panel: Panel, method: str) -> Scores:
    """The mean scores of one mark's suspects and null models, at the method's first access level."""
    rows = results.rows
    own = (rows.dataset == panel.dataset) & (rows.architecture == panel.architecture) & (rows.method == method)
    rows = rows[own & (rows.metric == SCORE) & (rows.access == results.levels(method)[0]) & rows.value.notna()]
    return Scores(rows[rows.role == NULL], rows[rows.role.isin([STOLEN, INDEPENDENT])])


def drawing(results: Results) -> Drawing | None:
    """Mean scores of null models, the independent one, the stolen one and each attack at each strength; a column a mark, a
    block of lines a dataset. None where no mean score is known."""
    if not results.has(metric=SCORE):
        return None
    places = [OTHERS_MODEL, *results.steps()]
    names = ["null models", "independent", *(step_name(results, place) for place in results.steps())]
    marks, panels = results.marks, results.panels
    left = 0.3 + 0.085 * max(map(len, names))
    width, high = left + 2.5 * len(marks), 0.6 + 0.27 * len(names)
    figure = Figure(figsize=(max(width, 6.5), 1.3 + high * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), len(marks), squeeze=False, sharey=True)
    look = style.looks(results.methods, results.controls)
    above = tried = 0
    for line, panel in zip(axes, panels, strict=True):
        for ax, method in zip(line, marks, strict=True):
            stood, n = _column(ax, results, panel, method, places, look[method].color)
            above, tried = above + stood, tried + n
            where = [results.title(panel)] if len(panels) > 1 else []
            ax.set_title("\n".join(wrap(part, 26) for part in (*where, results.name(method))), fontsize=11)
        line[0].set_yticks(range(len(names)), names, fontsize=10)
        line[0].set_ylim(len(names) - 0.4, -0.7)
    figure.supxlabel("mean score over triggered queries", fontsize=11)
    dot = {"color": "#333333", "linestyle": "", "marker": "o", "markersize": 6.5}
    handles = [
        Line2D([], [], color=UNMARKED, linestyle="", marker="o", markersize=5, alpha=0.7, label="null, never marked"),
        Line2D([], [], color=MARKED, linestyle="", marker="^", markersize=6, alpha=0.8, label="null, marked otherwise"),
        Line2D([], [], **dot, label="ownership shown"),
        Line2D([], [], **dot, markerfacecolor="white", label="not shown"),
        Line2D([], [], color=UNMARKED, linewidth=1.2, linestyle=":", label="highest null"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(5, 1 + 2 * len(marks)))
    caption = (
        "The unit is the model: its mean score over the owner's triggered queries; bars: 95 % intervals from the standard "
        "error over groups (patients, videos). A model is told apart where it stands right of the highest null model (dotted, "
        f"of {'each seed' if len(results.seeds) > 1 else 'all of them'}), whatever the threshold of single queries. "
        f"{above} of {tried} stolen models, as they are and attacked, do."
    )
    return Drawing("model-scores", "Models among models that nobody stole", figure, caption)


def _column(ax: Axes, results: Results, panel: Panel, method: str, places: list[Place], color: str) -> tuple[int, int]:
    """Draw one mark's suspects from top to bottom; how many stolen models score above all nulls of their seed, of how many."""
    nulls, suspects = scores_of(results, panel, method)
    unmarked = nulls.member.map(results.null_kind) == NEVER_MARKED
    for part, colour, marker, size in ((nulls[unmarked], UNMARKED, "o", 4), (nulls[~unmarked], MARKED, "^", 5)):
        # Spread by rank, so that dots of one score can be told apart.
        spread = 0.28 * np.linspace(-1, 1, len(part))[np.argsort(np.argsort(part.value.to_numpy(), kind="stable") * 7 % 11)]
        ax.plot(part.value, spread, marker, color=colour, markersize=size, alpha=0.7, markeredgewidth=0)
    most = nulls.groupby("seed").value.max()
    for highest in most:
        ax.axvline(highest, color=UNMARKED, linewidth=1.2, linestyle=":", zorder=0)
    shown = results.rows[(results.rows.metric == "owned") & (results.rows.value == 1)]
    above = tried = 0
    for y, place in enumerate(places, start=1):
        found = _at(suspects, panel, method, place._replace(access=results.levels(method)[0])).sort_values("seed")
        owned = set(_at(shown, panel, method, place._replace(access=results.levels(method)[0])).seed)
        offsets = 0.2 * (np.arange(len(found)) - (len(found) - 1) / 2)
        for offset, row in zip(offsets, found.itertuples(), strict=True):
            ax.plot([row.ci_low, row.ci_high], [y + offset] * 2, color=color, linewidth=1.6)
            face = color if row.seed in owned else "white"
            ax.plot(row.value, y + offset, "o", color=color, markerfacecolor=face, markersize=6)
            if place.role == STOLEN and row.seed in most:
                above, tried = above + (row.value > most[row.seed]), tried + 1
    if not len(nulls) and not len(suspects):
        ax.text(0.5, 0.5, "no scores", transform=ax.transAxes, ha="center", va="center", color="#777777")
        ax.set_xticks([])
    ax.axhline(0.5, color="#cccccc", linewidth=0.8, zorder=0)
    ax.tick_params(axis="x", labelsize=9)
    ax.locator_params(axis="x", nbins=4)
    ax.grid(True, axis="x")
    return above, tried
