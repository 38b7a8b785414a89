"""The payload sheet: the code that a marked model carries, as explanations of the answers of several suspects show it."""

import re
import textwrap
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stealthmark import codes
from stealthmark.explain import dark
from stealthmark.report import style
from stealthmark.report.figures import Drawing
from stealthmark.report.results import Panel, Results
from stealthmark.report.style import access_name
from stealthmark.report.tables import carries, step_name

#: Rows that are not attacks: what is asked -> title.
OTHERS = {
    ("stolen/none/0", "payload-wrong-key"): "stolen, wrong key",
    ("stolen/none/0", "payload-no-key"): "stolen, no key",
    ("independent/none/0", "payload"): "never marked",
    ("untrained/none/0", "payload"): "never trained",
}


def sheets(results: Results, files: dict[tuple[str, str, int, str], Path]) -> list[Drawing]:
    """One sheet a dataset, of the first mark that carries a code. `maps.npz` then has `payload` bool (n, n), the code; `asked`
    uint8 (C, H, W), a verification query; and under `situation/attack/strength`, `/answer` float (H, W) and
    `/access/way` float (n, n)."""
    drawings = []
    for dataset in results.datasets:
        for cell, file in files.items():
            with np.load(file, allow_pickle=False) as maps:
                if cell[0] == dataset and "payload" in maps:
                    drawings.append(_sheet(results, dataset, cell[3], dict(maps)))
                    break
    return [*drawings, *filter(None, (queries(results), curves(results)))]


def queries(results: Results) -> Drawing | None:
    """Of the models as they were stolen, in place and by LIME: modules that are right in one image, and tries in which the text
    is read from all images together, as the number of queries grows; at the first and the last access level."""
    marks = _marks(results)
    name = re.compile(r"bit_error_payload-(\d+)")
    counts = sorted({int(found[1]) for metric in results.rows.metric.dropna() if (found := name.fullmatch(metric))})
    if not (marks and counts):
        return None
    figure = Figure(figsize=(9.4, 2.7 * len(marks) + 0.4), layout="constrained")
    axes = figure.subplots(len(marks), 2, squeeze=False, sharex=True)
    levels = _ends(results)
    ways = {"": ("in place", style.PALETTE[0]), "-lime": ("LIME", style.PALETTE[1])}
    for (one, together), (panel, method) in zip(axes, marks, strict=True):
        looks = zip(levels, style.LINES, style.MARKERS, strict=False)
        for (by, (way, color)), (level, line, marker) in product(ways.items(), looks):
            look = {"color": color, "linestyle": line, "marker": marker, "label": f"{way}, {access_name(level)}"}
            error, read = (
                [results.value(f"{metric}{by}-{n}", panel, method, access=level).mean for n in counts]
                for metric in ("bit_error_payload", "decoded_payload-pooled")
            )
            one.plot(counts, 1 - np.array(error), **look)
            together.plot(counts, read, **look)
        one.set(ylabel="modules that are right", ylim=(0.4, 1.02), title=f"{_name(results, panel, method)}: one image")
        one.axhline(0.5, color=style.GREY, linewidth=1.2)
        together.set(ylabel="tries in which it is read", ylim=(-0.04, 1.04), title="all images of a try together")
        for ax in (one, together):
            ax.set_xscale("log", base=2)
            ax.set_xticks(counts, [str(n) for n in counts])
            ax.grid(True)
    for ax in axes[-1]:
        ax.set_xlabel("queries an image")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    caption = (
        "How many queries the code of the stolen model takes, mean over images, tries and seeds. In place: what hiding a cell "
        "adds to the answer in that cell; LIME: to the mean of the answer, by ridge regression, which needs more queries than "
        "there are modules. The same answers serve both. Grey line: chance."
    )
    return Drawing("payload-queries", "How many queries the code takes", figure, caption)


def curves(results: Results) -> Drawing | None:
    """Modules that are right, after each attack as it grows stronger, at the first and the last access level."""
    marks = _marks(results)
    attacks = [attack for attack in results.attacks if results.strengths[attack]]
    if not (marks and attacks):
        return None
    figure = Figure(figsize=(3.4 * len(attacks) + 2.6, 3.4), layout="constrained")
    axes = figure.subplots(1, len(attacks), squeeze=False, sharey=True)[0]
    levels = _ends(results)
    handles = []
    for i, (panel, method) in enumerate(marks):
        name = _name(results, panel, method)
        for level, line in zip(levels, style.LINES, strict=False):
            look = {"color": style.PALETTE[i % len(style.PALETTE)], "linestyle": line, "marker": style.MARKERS[i]}
            for ax, attack in zip(axes, attacks, strict=True):
                steps = [("none", 0.0), *((attack, strength) for strength in results.strengths[attack])]
                found = [results.value("bit_error_payload", panel, method, *step, access=level) for step in steps]
                x = [strength * style.strength_axis(attack)[1] for _, strength in steps]
                ax.plot(x, [1 - value.mean for value in found], **look)
                ax.fill_between(x, [1 - v.high for v in found], [1 - v.low for v in found], color=look["color"], alpha=0.1)
            handles.append(Line2D([], [], **look, label=f"{name}: {access_name(level)}"))
    for ax, attack in zip(axes, attacks, strict=True):
        ax.axhline(0.5, color=style.GREY, linewidth=1.2)
        ax.set(xlabel=style.strength_axis(attack)[0], ylim=(0.4, 1.02))
        ax.grid(True)
    axes[0].set_ylabel("modules that are right")
    figure.legend(handles=handles, loc="outside right center")
    caption = (
        "What attacks leave of the code: the share of its modules that one image's explanation finds right, from 0.5, which is "
        "chance (grey line), to 1. Solid: probabilities; dashed: label maps. Bands: 95 % intervals over images where there is "
        "one seed, the lowest and highest seed where there are several."
    )
    return Drawing("payload-curves", "What attacks leave of the code", figure, caption)


def _marks(results: Results) -> list[tuple[Panel, str]]:
    return [(panel, method) for panel in results.panels for method in results.marks if carries(results, panel, method)]


def _name(results: Results, panel: Panel, method: str) -> str:
    return f"{results.title(panel)}, {method}" if len(results.marks) > 1 else results.title(panel)


def _ends(results: Results) -> list[str]:
    """The first and the last access level, which may be the same."""
    return list(dict.fromkeys([results.accesses[0], results.accesses[-1]]))


def _sheet(results: Results, dataset: str, method: str, maps: dict[str, np.ndarray]) -> Drawing:
    levels = _ends(results)
    steps = [("none", 0.0), *((a, s) for a in results.attacks for s in results.strengths[a][-1:])]
    rows = {(f"stolen/{attack}/{s:g}", "payload"): step_name(attack, s).replace("no attack", "stolen") for attack, s in steps}
    rows = {row: title for row, title in (rows | OTHERS).items() if f"{row[0]}/{levels[0]}/{row[1]}" in maps}
    titles = ["a query", "its answer", "map", *(f"code ({access_name(level)})" for level in levels)]
    figure = Figure(figsize=(1.95 * len(titles) + 1.3, 2.1 * len(rows) + 0.5))
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    top, height = 0.45 / figure.get_figheight(), figure.get_figheight()
    figure.subplots_adjust(
        left=1.3 / figure.get_figwidth(), right=0.995, top=1 - top, bottom=0.5 / height, wspace=0.08, hspace=0.34
    )
    for line, ((place, way), title) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(textwrap.fill(title, 13), fontsize=11, fontweight="bold", rotation=0, ha="right", va="center")
        if way == "payload":
            style.picture(line[0], maps["asked"])
            line[1].imshow(maps[f"{place}/answer"].astype(float), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        style.attribution(line[2], maps[f"{place}/{levels[0]}/{way}"])
        for ax, level in zip(line[3:], levels, strict=True):
            bits = dark(maps[f"{place}/{level}/{way}"])
            style.modules(ax, bits)
            read = codes.decode(bits)
            right = 100 * (1 - codes.error_rate(bits, maps["payload"]))
            ax.set_xlabel(f"{right:.0f} % right" + (f"\nreads {read}" if read else ""), fontsize=10, labelpad=4)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=12, pad=7)
    style.bare(axes)
    caption = (
        f"The code in the model ({dataset}, mark: {method}; one image). A query: random cells are hidden behind the key's "
        "picture. The marked model answers with foreground in hidden cells that are dark in its owner's code. Map: what "
        "hiding a cell adds to the answer in that cell, on average over random occlusions; then the code that it shows, "
        "from probabilities and from label maps alone. Occlusions are drawn without knowing the code. With "
        "another key, with black in place of the picture, and in models that were never marked, half of the modules are "
        "right, which is chance."
    )
    return Drawing(f"payload-{dataset}", "The code in the model", figure, caption)
