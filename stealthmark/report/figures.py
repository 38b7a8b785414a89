"""Rows and per-case scores -> the figures about numbers, each with a caption that says what is seen."""

import textwrap
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator

from stealthmark.report import style
from stealthmark.report.results import CLEAN, TAKES, THIEF_MARGIN, Panel, Results, Value
from stealthmark.report.style import INK, Look


@dataclass(frozen=True)
class Drawing:
    """A figure under its file name, with its title and caption on the page."""

    name: str
    title: str
    figure: Figure
    caption: str


class Column(NamedTuple):
    """A column of the overview: where its ASR and Dice are looked up, and in which group it stands."""

    group: str
    title: str
    where: dict
    dice: bool


class Block(NamedTuple):
    """Lines of the overview under one title: what each is called, and the panel and the mark that it shows."""

    title: str
    note: str
    names: list[str]
    lines: list[tuple[Panel, str]]


# Light to dark in one hue each, so that print in grey keeps the order: dark blue is a mark that stands, dark orange a
# false claim. Most of each scale is spent where decisions are made: above 0.8, and below 0.3.
CAUGHT = LinearSegmentedColormap.from_list(
    "caught", [(0, "#f3f6f9"), (0.5, "#cfe0ec"), (0.8, "#8dbbd9"), (0.95, "#2f7fb5"), (1, "#084a78")]
)
FALSE = LinearSegmentedColormap.from_list("false", [(0, "#fbf7f4"), (0.05, "#f9e7da"), (0.3, "#eb9c67"), (1, "#8a2f06")])


#: With fewer columns than this the overview's titles need lines of their own.
NARROW = 5
#: Panels beside each other; more go below.
BESIDE = 5


def places(panels: list[Panel]) -> tuple[int, int, list[tuple[int, int]]]:
    """(rows, columns, the row and column of every panel) of a grid that is `BESIDE` panels wide at most, its rows as even as
    can be."""
    rows = -(-len(panels) // BESIDE)
    wide = -(-len(panels) // rows)
    return rows, wide, [divmod(i, wide) for i in range(len(panels))]


def overview(results: Results) -> Drawing:
    """The figure at the top, a table in colour: ASR as stolen, attacked, by access, and on an independent model."""
    columns = _columns(results)
    blocks = _blocks(results)
    third = 0.19 if any(column.title.count("\n") > 1 for column in columns) else 0.0  # a third line of column titles
    header, title, row = 1.2 + third, 0.75 if len(columns) < NARROW else 0.5, 0.6
    lines = [len(block.lines) for block in blocks]
    longest = max(len(line) for block in blocks for name in block.names for line in name.splitlines())
    width = 0.35 + 0.105 * longest + 1.12 * (_lefts(columns)[-1] + 1)
    height = header + len(blocks) * title + row * sum(lines) + (1.2 if len(columns) < NARROW else 0.55)
    figure = Figure(figsize=(width, height))
    left = 1 - (1.12 * (_lefts(columns)[-1] + 1) + 0.1) / width
    top = height - header
    for block in blocks:
        high = row * len(block.lines)
        ax = figure.add_axes((left, (top - title - high) / height, 1 - left - 0.1 / width, high / height))
        _heat_block(ax, results, block, columns)
        if block is blocks[0]:
            _header(ax, columns, title / high, third / high)
        top -= title + high
    note = "Large: ASR, the share of triggered queries detected. Small: change of Dice against the clean model, points."
    note = textwrap.fill(note, 17 * len(columns))
    figure.text(left + 0.02 / width, 0.16 / height, note, fontsize=10, color="#555555")
    return Drawing("overview", "Which marks take, and which survive", figure, _overview_caption(results, columns))


def _columns(results: Results) -> list[Column]:
    columns = [Column("stolen model", "as it is", {}, True)]
    for attack in results.attacks:
        for strength in results.shown_strengths(attack) if attack == "prune" else results.strengths[attack][-1:]:
            name = style.attack_name(attack).replace(" (", "\n(")
            title = f"{name}\n{style.strength_text(attack, strength)}"
            columns.append(Column("stolen model", title, {"attack": attack, "strength": strength}, True))
    for level in results.accesses[1:]:
        title = style.access_name(level).replace(" ", "\n", 1)
        columns.append(Column("stolen,\nless shown", title, {"access": level}, False))
    if (results.rows.situation == "independent").any():
        columns.append(Column("not\nstolen", "independent\nmodel", {"situation": "independent"}, False))
    return columns


def _blocks(results: Results) -> list[Block]:
    """A block a panel, a line a mark; where there is one mark in many panels, one block, a line a panel."""
    if len(results.marks) == 1 and len(results.panels) > BESIDE:
        (method,) = results.marks
        names = [f"{results.title(panel)}\n{_clean_dice(results, panel)}".rstrip() for panel in results.panels]
        return [Block(method, "", names, [(panel, method) for panel in results.panels])]
    return [
        Block(results.title(panel), _clean_dice(results, panel), results.marks, [(panel, mark) for mark in results.marks])
        for panel in results.panels
    ]


def _clean_dice(results: Results, panel: Panel) -> str:
    clean = results.value("dice", panel, CLEAN)
    return f"clean model: Dice {clean.mean:.3f}" if clean.status == "ok" else ""


def _heat_block(ax: Axes, results: Results, block: Block, columns: list[Column]) -> None:
    left = _lefts(columns)
    for y, (panel, method) in enumerate(block.lines):
        for x, column in zip(left, columns, strict=True):
            asr = results.value("asr", panel, method, **column.where)
            dice = results.value("dice", panel, method, **column.where) if column.dice else Value()
            _heat_cell(ax, x, y, asr, dice, FALSE if "situation" in column.where else CAUGHT)
    ax.set(xlim=(0, left[-1] + 1), ylim=(len(block.lines), 0), xticks=[])
    ax.set_yticks(np.arange(len(block.lines)) + 0.5, block.names, fontsize=12)
    ax.tick_params(length=0, colors=INK)
    ax.spines[:].set_visible(False)
    narrow = len(columns) < NARROW and block.note
    ax.set_title(block.title, loc="left", pad=22 if narrow else 7, fontsize=13)
    at, side = (0.0, "left") if narrow else (1.0, "right")
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": side}
    ax.annotate(block.note, (at, 1.0), (0, 7), fontsize=10, color="#555555", annotation_clip=False, **place)


def _lefts(columns: list[Column]) -> list[float]:
    """The left edge of each column: a gap before a new group."""
    gaps = np.cumsum([0] + [0.18 * (a.group != b.group) for a, b in pairwise(columns)])
    return [i + gap for i, gap in enumerate(gaps)]


def _header(ax: Axes, columns: list[Column], height: float, third: float) -> None:
    """Column titles and, over a line, the groups' names, above the first block's title. `height`: of that title, `third`:
    of a third line of column titles."""
    left, y = _lefts(columns), 1 + height
    at = {"transform": ax.get_xaxis_transform(), "clip_on": False}
    for x, column in zip(left, columns, strict=True):
        ax.text(x + 0.5, y, column.title, ha="center", va="bottom", fontsize=11, **at)
    for group in dict.fromkeys(c.group for c in columns):
        xs = [x for x, c in zip(left, columns, strict=True) if c.group == group]
        ax.plot([xs[0] + 0.03, xs[-1] + 0.97], [y + 0.9 * height + third] * 2, color="#777777", linewidth=1, **at)
        ax.text(xs[0] + 0.03, y + 0.97 * height + third, group, va="bottom", fontsize=11, fontweight="bold", **at)


def _heat_cell(ax: Axes, x: float, y: float, asr: Value, dice: Value, cmap: Colormap) -> None:
    known = asr.status == "ok"
    box = {"facecolor": cmap(asr.mean) if known else "white", "edgecolor": "white", "linewidth": 2}
    if asr.status == "failed":
        box |= {"hatch": "////", "edgecolor": "#cccccc", "linewidth": 0}
    ax.add_patch(Rectangle((x + 0.015, y + 0.03), 0.97, 0.94, **box))
    share = asr.mean if known else 0
    ink = "white" if share > (0.88 if cmap is CAUGHT else 0.5) else INK
    two = np.isfinite(dice.change)
    text = f"{asr.mean:.2f}" if known else {"failed": "failed", "absent": "–"}[asr.status]
    middle = {"ha": "center", "va": "center", "color": ink}
    ax.text(x + 0.5, y + (0.36 if two else 0.5), text, fontsize=14 if known else 10, **middle)
    if two:
        ax.text(x + 0.5, y + 0.75, f"Dice {signed(dice.change)}", fontsize=10, **middle)


def signed(change: float) -> str:
    """A change in points with a real minus, none for what rounds to zero."""
    if abs(change) < 0.05:
        return "0.0"
    return f"{change:+.1f}".replace("-", "\N{MINUS SIGN}")


def _overview_caption(results: Results, columns: list[Column]) -> str:
    def count(where: dict) -> int:
        return sum(
            all(results.value("asr", panel, method, **where).mean >= TAKES for panel in results.panels)
            for method in results.marks
        )

    every = " on every dataset" if len(results.panels) > 1 else ""
    taken = f"{count({})} take{every}"
    # A control has nothing to detect.
    looked_for = [
        m for m in results.marks if any(results.value("asr", panel, m).status != "absent" for panel in results.panels)
    ]
    parts = [f"Of {len(looked_for)} marks, {taken}: ASR at least {TAKES:g} on the stolen model as it is."]
    survived = [f"{count(c.where)} after {_phrase(c.title)}" for c in columns if c.where.get("attack")]
    if survived:
        parts.append(f"Still at that level: {', '.join(survived)}.")
    shown = [f"{count(c.where)} with {c.title.replace(chr(10), ' ')}" for c in columns if "access" in c.where]
    if shown:
        parts.append(f"When the interface shows less than probabilities: {', '.join(shown)}.")
    claims = [
        (results.value("asr", panel, method, situation="independent").mean, method, results.title(panel))
        for panel in results.panels
        for method in results.marks
    ]
    claims = [claim for claim in claims if np.isfinite(claim[0])]
    if claims:
        rate, method, where = max(claims)
        parts.append(f"The highest rate of false claims on an independent model is {rate:.2f} ({method}, {where}).")
    return " ".join(parts)


def _phrase(title: str) -> str:
    """A column's title in running text: `pruning` over `10 %` -> `pruning (10 %)`."""
    name, _, strength = title.partition("\n")
    return f"{name} ({strength})" if strength else name


def scores(results: Results) -> Drawing | None:
    """The detector's score on marked and unmarked models, relative to its threshold; None where no case has a score."""
    cases = results.cases
    needed = {"score_triggered", "score_benign", "threshold"}
    if not needed <= set(cases.columns) or cases.score_triggered.isna().all():
        return None
    marks, panels = results.marks, results.panels
    look = style.looks(results.methods)
    rows, wide, at = places(panels)
    height = 1.3 + (1.35 * len(marks) + 0.3 * (rows > 1)) * rows
    figure = Figure(figsize=(1.9 + 4.0 * wide, height), layout="constrained")
    axes = figure.subplots(rows * len(marks), wide, squeeze=False)
    worst = []
    for panel, (row, j) in zip(panels, at, strict=True):
        column = axes[row * len(marks) : (row + 1) * len(marks), j]
        column[0].set_title(results.title(panel))
        for ax, method in zip(column, marks, strict=True):
            overlap = _score_panel(ax, results, panel, method, look[method])
            worst.append((overlap, method, results.title(panel)))
            if j == 0:
                ax.set_ylabel(method, rotation=0, ha="right", va="center", fontsize=12)
    without_empty(axes)
    figure.supxlabel("detector's score minus its threshold (called marked from 0 on)", fontsize=11)
    handles = [
        Patch(facecolor="#666666", alpha=0.75, label="marked model, triggered"),
        Line2D([], [], color=INK, linewidth=1.6, label="marked model, untriggered"),
        Line2D([], [], color=INK, linewidth=1.6, linestyle=(0, (2, 1.5)), label="independent model, triggered"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3 if len(panels) > 1 else 1)
    worst = [w for w in worst if np.isfinite(w[0])]
    caption = (
        "Scores of single queries, before any attack; heights are shares of queries, each distribution scaled to its "
        "peak. A mark that can be told apart has its filled distribution right of the line and both outlines left."
    )
    if worst:
        share, method, where = max(worst)
        most = f"The largest share of triggered queries on the wrong side is {share:.2f} ({method}, {where})."
        caption += f" {most}" if share else " No triggered query of a marked model is on the wrong side."
    return Drawing("scores", "What the detector sees", figure, caption)


def without_empty(axes: np.ndarray) -> None:
    """Take away the axes of a grid's last row that no panel needed."""
    for ax in axes.flat:
        if not ax.has_data() and not ax.texts:
            ax.remove()


def _score_panel(ax: Axes, results: Results, panel: Panel, method: str, look: Look) -> float:
    """Draw one panel; the share of triggered queries on the marked model that stay below the threshold."""
    here = results.cases_of(panel, method, results.accesses[0])
    stolen, other = here[here.situation == "stolen"], here[here.situation == "independent"]
    marked, benign = _relative(stolen, "score_triggered"), _relative(stolen, "score_benign")
    unmarked = _relative(other, "score_triggered")
    everything = np.concatenate([marked, benign, unmarked])
    ax.spines["left"].set_visible(False)
    ax.set_yticks([])
    if len(everything) == 0:
        ax.text(0.5, 0.5, "no scores", transform=ax.transAxes, ha="center", va="center", color="#777777")
        ax.set_xticks([])
        return np.nan
    low, high = min(everything.min(), 0), max(everything.max(), 0)
    pad = 0.04 * (high - low) or 0.5
    edges = np.linspace(low - pad, high + pad, 45)
    if len(marked):
        ax.stairs(_heights(marked, edges), edges, fill=True, color=look.color, alpha=0.75)
    if len(benign):
        ax.stairs(_heights(benign, edges), edges, color=INK, linewidth=1.6)
    if len(unmarked):
        ax.stairs(_heights(unmarked, edges), edges, color=INK, linewidth=1.6, linestyle=(0, (2, 1.5)))
    ax.axvline(0, color="#c0392b", linewidth=1.6)
    ax.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.1))
    ax.locator_params(axis="x", nbins=5)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}".replace("-", "\N{MINUS SIGN}")))
    ax.tick_params(axis="x", labelsize=10)
    return float(np.mean(marked < 0)) if len(marked) else np.nan


def _relative(cases: pd.DataFrame, column: str) -> np.ndarray:
    values = (cases[column] - cases.threshold).to_numpy(dtype=float)
    return values[np.isfinite(values)]


def _heights(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    found, _ = np.histogram(values, edges)
    return found / max(found.max(), 1)


def mark_vs_dice(results: Results) -> Drawing:
    """ASR against what the model lost, one point for each mark and each strength of each attack."""
    panels, look = results.panels, style.looks(results.methods)
    rows, wide, at = places(panels)
    high = 5.2 if rows == 1 else 3.8 * rows
    figure = Figure(figsize=(1.0 + 4.4 * wide + legend_width(results), high), layout="constrained")
    axes = figure.subplots(rows, wide, squeeze=False, sharey=True)
    markers = dict(zip(results.attacks, cycle("s^DvP*Xph<>"), strict=False))
    ruined = kept = 0
    for panel, place in zip(panels, at, strict=True):
        ax = axes[place]
        lowest, highest = -THIEF_MARGIN, 0.8
        for method in results.marks:
            for attack in results.attacks or ["none"]:
                points = _trade(results, panel, method, attack)
                ax.plot(*zip(*points, strict=True), color=look[method].color, linewidth=1.2, alpha=0.7, zorder=2)
                for change, asr in points[1:]:
                    ax.plot(change, asr, markers.get(attack, "o"), color=look[method].color, markersize=5.5, zorder=3)
                    ruined += asr < TAKES and change < -THIEF_MARGIN
                    kept += asr >= TAKES and change >= -THIEF_MARGIN
                changes = [change for change, _ in points]
                lowest, highest = np.nanmin([lowest, *changes]), np.nanmax([highest, *changes])
            start = _trade(results, panel, method, "none")[0]
            ax.plot(*start, "o", color=look[method].color, markersize=11, zorder=4, markeredgecolor="white")
        _trade_axes(ax, results.title(panel), lowest, highest)
    for ax in axes[:, 0]:
        ax.set_ylabel("ASR")
    without_empty(axes)
    handles = [Line2D([], [], color=look[m].color, linewidth=4, label=m) for m in results.marks]
    shapes = [("o", 11, "no attack"), *((markers[a], 6, style.attack_name(a)) for a in results.attacks)]
    handles.append(Patch(color="#ececec", label=f"costs the thief more\nthan {THIEF_MARGIN:g} points"))
    handles += [Line2D([], [], color="#555555", marker=m, markersize=s, linestyle="", label=n) for m, s, n in shapes]
    figure.legend(handles=handles, loc="outside right center")
    caption = (
        "Each line starts at the marked model as it is (large dot) and follows an attack as it grows stronger. Marks "
        "that are harmless and survive stay at the top right; in the shaded area the attack costs the thief more than "
        f"{THIEF_MARGIN:g} points of Dice. The axis is linear to {THIEF_MARGIN:g} points, then logarithmic. Of "
        f"the attacked models, {kept} keep ASR at {TAKES:g} or more at a Dice worth stealing; {ruined} lost the mark "
        "but also the Dice."
    )
    return Drawing("mark_vs_dice", "The mark against what the model is worth", figure, caption)


def legend_width(results: Results) -> float:
    """Inches for the legend at the right: the longest name and a handle."""
    return 0.8 + 0.1 * max(20, *map(len, results.marks))


def _trade(results: Results, panel: Panel, method: str, attack: str) -> list[tuple[float, float]]:
    """(change of Dice, ASR) from the unattacked model to the strongest attack; NaN, which breaks the line, for a cell
    that failed."""
    steps = [("none", 0.0)] + [(attack, s) for s in results.strengths.get(attack, ())]
    cells = [[results.value(m, panel, method, *step) for m in ("dice", "asr")] for step in steps]
    return [(dice.change, asr.mean) for dice, asr in cells]


def _trade_axes(ax: Axes, title: str, lowest: float, highest: float) -> None:
    left = min(-4 * THIEF_MARGIN, lowest * 1.3)
    ax.set_xscale("symlog", linthresh=THIEF_MARGIN, linscale=1.8)
    ax.axvspan(left, -THIEF_MARGIN, color="#ececec", zorder=0, linewidth=0)
    ax.set(xlim=(left, 1.3 * highest), ylim=(-0.04, 1.06), title=title, xlabel="change of Dice against clean (points)")
    ticks = [t for t in (-50, -20, -10, -5, -3, -2, -1, 0, 1, 2, 5) if left <= t <= 1.3 * highest]
    ax.set_xticks(ticks, [f"{t:+d}".replace("-", "\N{MINUS SIGN}") if t else "0" for t in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(True)


def attack_curves(results: Results, attack: str) -> Drawing:
    """ASR with its band above, Dice below, over the strength of one attack; a column for each dataset."""
    panels, look = results.panels, style.looks(results.methods)
    rows, wide, at = places(panels)
    figure = Figure(figsize=(1.0 + 4.0 * wide + legend_width(results), 6.0 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, wide, squeeze=False, sharex=True, sharey="row")
    label, factor = style.strength_axis(attack)
    steps = [("none", 0.0), *((attack, s) for s in results.strengths[attack])]
    x = [s * factor for _, s in steps]
    for panel, (row, j) in zip(panels, at, strict=True):
        above, below = axes[2 * row : 2 * row + 2, j]
        for method in results.marks:
            for ax, metric in ((above, "asr"), (below, "dice")):
                _curve(ax, x, [results.value(metric, panel, method, *step) for step in steps], look[method])
        clean = results.value("dice", panel, CLEAN)
        if clean.status == "ok":
            below.axhline(clean.mean, color=style.GREY, linewidth=1.4, linestyle="--")
        above.set(title=results.title(panel), ylim=(-0.04, 1.06))
        below.set(xlabel=label)
        below.tick_params(labelbottom=True)
        if len(x) <= 10:
            below.set_xticks(x)
    without_empty(axes)
    for ax in figure.axes:
        ax.grid(True)
    for above, below in zip(axes[::2, 0], axes[1::2, 0], strict=True):
        # At least a tenth of Dice is shown, so that a change of a point does not look like a collapse.
        low, high = below.get_ylim()
        below.set_ylim(max(0, min(low, high - 0.1)), min(1, high))
        above.set_ylabel("ASR")
        below.set_ylabel("Dice, benign images")
    handles = [Line2D([], [], **_line_style(look[method]), label=method) for method in results.marks]
    handles.append(Line2D([], [], color=style.GREY, linestyle="--", label="clean, not attacked"))
    figure.legend(handles=handles, loc="outside right center")
    return Drawing(f"attack-{attack}", f"Attack: {style.attack_name(attack)}", figure, _attack_caption(results, attack))


def _curve(ax: Axes, x: list[float], values: list[Value], look: Look) -> None:
    """A line with its band. A cell that failed or was never asked for is a gap: nothing is drawn across it."""
    ax.plot(x, [v.mean for v in values], **_line_style(look), markersize=5.5)
    ax.fill_between(x, [v.low for v in values], [v.high for v in values], color=look.color, alpha=0.13, linewidth=0)


def _line_style(look: Look) -> dict:
    return {"color": look.color, "marker": look.marker, "linestyle": look.line}


def _attack_caption(results: Results, attack: str) -> str:
    band = "lowest and highest seed" if len(results.seeds) > 1 else "95 % interval over cases"
    strongest = results.strengths[attack][-1]
    text = style.strength_text(attack, strongest)
    lost = [
        (v.mean, method, results.title(panel))
        for panel in results.panels
        for method in results.marks
        if np.isfinite((v := results.value("asr", panel, method, attack, strongest)).mean)
    ]
    caption = f"Lines: mean; bands: {band}. Strength 0 is the stolen model as it is."
    if lost:
        standing = sum(asr >= TAKES for asr, _, _ in lost)
        asr, method, where = min(lost)
        caption += (
            f" At the strongest ({text}) {standing} of {len(lost)} marked models keep ASR at {TAKES:g} or more; the "
            f"lowest is {asr:.2f} ({method}, {where})."
        )
    return caption
