"""What figures have in common: a drawing with its caption, grids of panels, maps of cells in colour."""

import textwrap
from dataclasses import dataclass

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from stealthmark.report.results import Panel, Results
from stealthmark.report.style import INK

#: Parts of the page that list whatever figures are in them.
SECTIONS = ("attacks", "explanations", "payload", "examples")
#: Panels beside each other; more go below.
BESIDE = 5
# Light to dark in one hue each, so that print in grey keeps the order: dark blue is a mark that stands, dark orange a
# false claim. Most of each scale is spent where decisions are made: above 0.8, and below 0.3.
CAUGHT = LinearSegmentedColormap.from_list(
    "caught", [(0, "#f3f6f9"), (0.5, "#cfe0ec"), (0.8, "#8dbbd9"), (0.95, "#2f7fb5"), (1, "#084a78")]
)
FALSE = LinearSegmentedColormap.from_list("false", [(0, "#fbf7f4"), (0.05, "#f9e7da"), (0.3, "#eb9c67"), (1, "#8a2f06")])
#: Below this luminance white is read more easily than ink.
DARK = 0.21


@dataclass(frozen=True)
class Drawing:
    """A figure under its file name, with its title and caption on the page.

    section: the one of `SECTIONS` that it is in; blank where the page names it. pictures: it is made of pixels.
    """

    name: str
    title: str
    figure: Figure
    caption: str
    section: str = ""
    pictures: bool = False


def grid(panels: list[Panel]) -> tuple[int, int, list[tuple[int, int]]]:
    """(rows, columns, the row and column of every panel) of a grid that is `BESIDE` panels wide at most, its rows as even as
    can be."""
    rows = -(-len(panels) // BESIDE)
    wide = -(-len(panels) // rows)
    return rows, wide, [divmod(i, wide) for i in range(len(panels))]


def remove_empty(axes: np.ndarray) -> None:
    """Take away the axes of a grid's last row that no panel needed."""
    for ax in axes.flat:
        if not ax.has_data() and not ax.texts:
            ax.remove()


def legend_width(results: Results) -> float:
    """Inches for the legend at the right: the longest name and a handle."""
    return 0.8 + 0.1 * max(20, *(len(results.name(method)) for method in results.marks))


def heat(ax: Axes, shares: np.ndarray, texts: np.ndarray, cmap: Colormap, size: float) -> None:
    """Draw cells in colour, shares float (n, m) in [0, 1], each with its text, str (n, m). NaN: a white cell, small text."""
    known = np.isfinite(shares)
    annotation = {"annot": texts, "fmt": "", "annot_kws": {"fontsize": size}}
    lines = {"linewidths": 2.5, "linecolor": "white", "cbar": False, "xticklabels": False, "yticklabels": False}
    sns.heatmap(shares, mask=~known, vmin=0, vmax=1, cmap=cmap, ax=ax, **annotation, **lines)
    for text, share in zip(ax.texts, shares[known], strict=True):
        text.set_color("white" if sns.utils.relative_luminance(cmap(share)) < DARK else INK)
    for y, x in np.argwhere(~known):
        ax.text(x + 0.5, y + 0.5, texts[y, x], ha="center", va="center", fontsize=10)
    ax.tick_params(length=0, colors=INK)


def wrap(title: str, most: int) -> str:
    """A title in lines of at most so many characters. No word is broken, and a number keeps its percent sign."""
    text = textwrap.fill(title.replace(" %", "\N{NO-BREAK SPACE}%"), most, break_long_words=False, break_on_hyphens=False)
    return text.replace("\N{NO-BREAK SPACE}", " ")


def signed(change: float) -> str:
    """A change in points with a real minus, none for what rounds to zero."""
    if abs(change) < 0.05:
        return "0.0"
    return f"{change:+.1f}".replace("-", "\N{MINUS SIGN}")
