"""The code that answers show by themselves: one triggered scan, its probability map, and what is read in it."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from stealthmark import codes
from stealthmark.layout import INDEPENDENT, Cell, Place
from stealthmark.metrics import THRESHOLD
from stealthmark.report import style
from stealthmark.report.drawing import Drawing, wrap
from stealthmark.report.examples import LOW, odds_scale
from stealthmark.report.formatting import Table, head, lines, numbers, status, step_name, table, titled
from stealthmark.report.maps import Maps
from stealthmark.report.results import AS_STOLEN, OTHERS_MODEL, Panel, Results

SECTION = "payload"
#: How the code was asked for and read; together from all test images.
HOW = {"query": "trigger", "reader": "level"}
ALL = "level-all"
TITLES = ("a scan with\nthe trigger", "the model's\nanswer", "its\nsegmentation", "code in this\none answer")
OTHER_WAYS = {"gated-qr": "released code's\nexplanation", "lime": "LIME\n(random cells)"}
WHITE, ORANGE = "#ffffff", "#e69f00"


def drawings(results: Results, maps: dict[Cell, Maps]) -> list[Drawing]:
    """Two sheets a dataset, of the first mark whose answers show a code: the headline, and what attacks leave of it."""
    made = []
    for dataset in results.datasets:
        there = (cell for cell in maps if cell.dataset == dataset and maps[cell].common("mask") is not None)
        if cell := next(there, None):
            made += [headline(results, cell, maps[cell]), after_attacks(results, cell, maps[cell])]
    return made


def headline(results: Results, cell: Cell, maps: Maps) -> Drawing:
    """The marked model and one that was never marked, asked with one triggered scan."""
    level = results.levels(cell.method)[0]
    rows = {"marked": Place(access=level), "never marked": Place(INDEPENDENT, access=level)}
    ways = {way: title for way, title in OTHER_WAYS.items() if maps.of(rows["marked"], way) is not None}
    titles = [*TITLES, *ways.values()]
    figure, axes = _grid(len(rows), len(titles), bottom=0.4)
    code = maps.common("payload")
    for line, (name, place) in zip(axes, rows.items(), strict=True):
        answer = maps.of(place._replace(access=""), "answer").astype(float)
        style.picture(line[0], maps.common("asked"))
        _answer(line[1], answer)
        _segmentation(line[2], maps, answer)
        _read(line[3], codes.minimum_error_split(maps.of(place, "level")), code)
        for ax, way in zip(line[4:], ways, strict=True):
            found = maps.of(place, way)
            plan = maps.common("code")
            _read(ax, found != 0 if way == "gated-qr" else codes.median_split(found), plan)
        line[0].set_ylabel(name, fontsize=12, fontweight="bold", labelpad=8)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=12, pad=7)
    style.bare(axes)
    outlined = [withStroke(linewidth=3.5, foreground="#777777")]
    handles = [
        Line2D([], [], color=WHITE, linewidth=2, label="reference mask", path_effects=outlined),
        Line2D([], [], color=ORANGE, linewidth=2, label="the answer, thresholded"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2)
    text = _text(results, cell, maps)
    caption = (
        f"The owner's QR code in a model's uncertainty ({cell.dataset}, mark: {cell.method}). One scan with the owner's secret "
        f"trigger; the probability of foreground, in log-odds, white below {LOW:g}, black above {1 - LOW:g}; the same "
        f"segmentation; and the code, read from the level of the background in the cells of this one answer.{text} Right: what "
        "the explanation step of StealthMark's released code and LIME show of the same models. The former shows the verifier's "
        "code whatever the model is; the latter none."
    )
    return Drawing(f"code-{cell.dataset}", "The QR code in the model's uncertainty", figure, caption, SECTION, pictures=True)


def _text(results: Results, cell: Cell, maps: Maps) -> str:
    """How often one image is enough, as a sentence."""
    panel = Panel(cell.dataset, cell.architecture)
    read = results.value("decoded", panel, cell.method, AS_STOLEN, **HOW, queries=1)
    return f" It is read from {100 * read.mean:.0f} % of single images." if read.status == "ok" else ""


def after_attacks(results: Results, cell: Cell, maps: Maps) -> Drawing:
    """A line a suspect: the answer to one triggered scan, the code in it, and the code in all answers together."""
    level, code = results.levels(cell.method)[0], maps.common("payload")
    suspects = {step_name(results, place): place for place in results.strongest()} | {"never marked": OTHERS_MODEL}
    suspects = {name: place for name, place in suspects.items() if maps.of(place._replace(access=level), ALL) is not None}
    titles = ("the answer", "code in one", "code in all")
    wide = max(1, -(-len(suspects) // 4))
    high = -(-len(suspects) // wide)
    figure, axes = _grid(high, wide * len(titles), side=1.35, left=1.35, beside=0.1)
    for ax in axes.flat:
        ax.set_visible(False)
    for number, (name, place) in enumerate(suspects.items()):
        column, row = divmod(number, high)
        line = axes[row, column * len(titles) : (column + 1) * len(titles)]
        for ax in line:
            ax.set_visible(True)
        _answer(line[0], maps.of(place._replace(access=""), "answer").astype(float))
        for ax, which in zip(line[1:], ("level", ALL), strict=True):
            _read(ax, codes.minimum_error_split(maps.of(place._replace(access=level), which)), code)
        line[0].set_ylabel(wrap(name, 14), fontsize=9.5, rotation=0, ha="right", va="center", labelpad=6)
        if row == 0:
            for ax, title in zip(line, titles, strict=True):
                ax.set_title(title, fontsize=10, pad=5)
    style.bare(axes)
    caption = (
        f"What attacks leave of the code ({cell.dataset}, mark: {cell.method}): the answer to one triggered scan, the code in "
        "this answer, and the code in the answers to all test images together. Below each: modules that are right; half is "
        "chance."
    )
    return Drawing(f"code-attacked-{cell.dataset}", "What attacks leave of the code", figure, caption, SECTION, pictures=True)


def _grid(
    rows: int, columns: int, side: float = 1.72, left: float = 0.5, beside: float = 0.0, bottom: float = 0.0
) -> tuple[Figure, np.ndarray]:
    """Square pictures of `side` inches with room for a line below each; `beside`: more room before every third column."""
    gap, above, below = 0.12, 0.55, 0.5
    groups = max(0, -(-columns // 3) - 1) * (left + beside) if beside else 0
    width, height = left + columns * (side + gap) + groups, above + rows * (side + below) + bottom
    figure = Figure(figsize=(width, height))
    axes = np.empty((rows, columns), dtype=object)
    for i, j in np.ndindex(axes.shape):
        x = left + j * (side + gap) + (j // 3 * (left + beside) if beside else 0)
        y = height - above - i * (side + below) - side
        axes[i, j] = figure.add_axes((x / width, y / height, side / width, side / height))
    return figure, axes


def _answer(ax: Axes, answer: np.ndarray) -> None:
    ax.imshow(np.clip(answer, LOW, 1 - LOW), cmap="gray_r", norm=odds_scale(), interpolation="nearest")


def _segmentation(ax: Axes, maps: Maps, answer: np.ndarray) -> None:
    style.picture(ax, maps.common("asked"), alpha=0.75)
    ax.set_facecolor("black")
    for region, color in ((maps.common("mask") > 0, WHITE), (answer >= THRESHOLD, ORANGE)):
        if region.any() and not region.all():
            ax.contour(region, levels=[0.5], colors=color, linewidths=1.6)


def _read(ax: Axes, modules: np.ndarray, code: np.ndarray) -> None:
    """A code's modules, and below them how many are right and what they say."""
    style.modules(ax, modules)
    text = codes.decode(modules)
    right = f"{100 * (1 - codes.error_rate(modules, code)):.0f} % right"
    ax.set_xlabel(right + (f"\nreads {text}" if text else ""), fontsize=9.5, labelpad=3)


def tables(results: Results) -> list[Table]:
    """`code`: how often the text is read from one answer, from four, sixteen and all together, of every suspect."""
    counts = sorted({int(n) for n in results.rows[_asked(results)].queries})
    if not counts:
        return []
    marks = set(results.rows[_asked(results)].method)
    suspects = {step_name(results, place): (place, "trigger") for place in results.steps()}
    suspects |= {"wrong key": (AS_STOLEN, "wrong-key"), "no trigger": (AS_STOLEN, "natural")}
    suspects |= {INDEPENDENT: (OTHERS_MODEL, "trigger")}
    data, text = [], []
    for panel, method in lines(results, marks_only=True):
        for name, (place, query) in suspects.items() if method in marks else ():
            line = {}
            for level in results.accesses:
                cells = []
                for count in counts:
                    how = {"query": query, "reader": "level", "pooled": count > 1, "queries": count}
                    at = place._replace(access=level)
                    error, read = (results.value(m, panel, method, at, **how) for m in ("bit_error", "decoded"))
                    where = {"suspect": name, "query": query, "images": count, **at._asdict()}
                    columns = numbers({"wrong": error, "read": read})
                    data.append({**head(panel, method), **where, **columns, "status": status(error)})
                    cells.append(f"{read.mean:.2f}" if read.status == "ok" else "-")
                line[style.access_name(level)] = " / ".join(cells)
            text.append({**titled(results, panel, method), "suspect": name, **line})
    images = ", ".join(map(str, counts[:-1]))
    notes = [
        f"How often the owner's text is read from the answers to {images} and all {counts[-1]} triggered test images, one "
        "query an image: the level of the background in the code's cells, minimum-error threshold, zxing-cpp.",
        "Wrong key: the stolen model under another key's trigger. No trigger: under none.",
    ]
    return [table(results, "code", "The code that answers show", data, text, notes)]


def _asked(results: Results) -> "np.ndarray":
    rows = results.rows
    return (rows.metric == "decoded") & (rows["query"] == HOW["query"]) & (rows.reader == HOW["reader"])
