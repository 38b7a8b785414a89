"""The payload sheet: the code that a marked model carries, as explanations of the answers of several suspects show it."""

import textwrap
from itertools import product

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stealthmark import codes
from stealthmark.layout import NO_ATTACK, STOLEN, UNTRAINED, Cell, Place
from stealthmark.report import style
from stealthmark.report.drawing import Drawing, wrap
from stealthmark.report.explanation_tables import code_readers, marks_with_code
from stealthmark.report.formatting import step_name
from stealthmark.report.maps import Maps
from stealthmark.report.results import AS_STOLEN, OTHERS_MODEL, Panel, Results
from stealthmark.report.style import access_name

SECTION = "payload"
#: Lines of the sheet that are not attacks: title -> the suspect, and what it is asked with.
OTHERS = {
    "stolen, wrong key": (AS_STOLEN, "wrong-key"),
    "stolen, no key": (AS_STOLEN, "no-key"),
    "never marked": (OTHERS_MODEL, "key"),
    "never trained": (Place(UNTRAINED), "key"),
}
READERS = {"in-place": "in place", "lime": "LIME"}


def drawings(results: Results, maps: dict[Cell, Maps]) -> list[Drawing]:
    """One sheet a dataset, of the first mark that carries a code; then what holds for all marks with one."""
    made = []
    for dataset in results.datasets:
        there = (cell for cell in maps if cell.dataset == dataset and _is_explained(maps[cell]))
        if cell := next(there, None):
            made.append(_sheet(results, dataset, cell.method, maps[cell]))
    return [*made, *filter(None, (query_curves(results), attack_curves(results)))]


def _is_explained(maps: Maps) -> bool:
    """Whether there is a code that explanations spell; one that answers show by themselves is drawn in `shown_code`."""
    return maps.common("payload") is not None and maps.common("mask") is None


def query_curves(results: Results) -> Drawing | None:
    """Of the models as they were stolen, in place and by LIME: modules that are right in one image, and tries in which the text
    is read from all images together, as the number of queries grows; at the first and the last access level."""
    marks = marks_with_code(results)
    rows = results.rows
    as_stolen = rows[
        (rows.metric == "bit_error") & (rows["query"] == "key") & (rows.role == STOLEN) & (rows.attack == NO_ATTACK)
    ]
    counts = sorted(set(as_stolen.queries))
    if not marks or len(counts) < 2:
        return None
    figure = Figure(figsize=(9.4, 2.7 * len(marks) + 0.4), layout="constrained")
    axes = figure.subplots(len(marks), 2, squeeze=False, sharex=True)
    levels = _ends(results)
    for (one, together), (panel, method) in zip(axes, marks, strict=True):
        looks = zip(levels, style.LINES, style.MARKERS, strict=False)
        for (reader, color), (level, line, marker) in product(zip(code_readers(results), style.PALETTE, strict=False), looks):
            look = {"color": color, "linestyle": line, "marker": marker, "label": f"{READERS[reader]}, {access_name(level)}"}
            how = {"place": Place(access=level), "query": "key", "reader": reader}
            error = [results.value("bit_error", panel, method, **how, queries=n).mean for n in counts]
            read = [results.value("decoded", panel, method, **how, pooled=True, queries=n).mean for n in counts]
            one.plot(counts, 1 - np.array(error), **look)
            together.plot(counts, read, **look)
        one.set(
            ylabel="modules that are right", ylim=(0.4, 1.02), title=wrap(f"{_name(results, panel, method)}: one image", 32)
        )
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
    return Drawing("payload-queries", "How many queries the code takes", figure, caption, SECTION)


def attack_curves(results: Results) -> Drawing | None:
    """Modules that are right, after each attack as it grows stronger, at the first and the last access level."""
    marks = marks_with_code(results)
    attacks = [attack for attack in results.attacks if results.strengths[attack]]
    if not (marks and attacks):
        return None
    figure = Figure(figsize=(3.4 * len(attacks) + 2.6, 3.4), layout="constrained")
    axes = figure.subplots(1, len(attacks), squeeze=False, sharey=True)[0]
    levels, reader = _ends(results), code_readers(results)[0]
    handles = []
    for i, (panel, method) in enumerate(marks):
        for level, line in zip(levels, style.LINES, strict=False):
            look = {"color": style.PALETTE[i % len(style.PALETTE)], "linestyle": line}
            look["marker"] = style.MARKERS[i % len(style.MARKERS)]
            for ax, attack in zip(axes, attacks, strict=True):
                places = [place._replace(access=level) for place in results.curve(attack)]
                errors = [results.value("bit_error", panel, method, p, query="key", reader=reader) for p in places]
                x = [results.facts.attack(attack).in_unit(place.strength) for place in places]
                ax.plot(x, [1 - error.mean for error in errors], **look)
                low, high = [1 - error.high for error in errors], [1 - error.low for error in errors]
                ax.fill_between(x, low, high, color=look["color"], alpha=0.1)
            handles.append(Line2D([], [], **look, label=f"{_name(results, panel, method)}: {access_name(level)}"))
    for ax, attack in zip(axes, attacks, strict=True):
        ax.axhline(0.5, color=style.GREY, linewidth=1.2)
        ax.set(xlabel=results.facts.attack(attack).axis, ylim=(0.4, 1.02), title=wrap(results.facts.attack(attack).title, 28))
        ax.grid(True)
    axes[0].set_ylabel("modules that are right")
    figure.legend(handles=handles, loc="outside right center")
    caption = (
        "What attacks leave of the code: the share of its modules that one image's explanation finds right, from 0.5, which is "
        "chance (grey line), to 1. Solid: probabilities; dashed: label maps. Bands: 95 % intervals over images where there is "
        "one seed, the lowest and highest seed where there are several."
    )
    return Drawing("payload-curves", "What attacks leave of the code", figure, caption, SECTION)


def _name(results: Results, panel: Panel, method: str) -> str:
    return f"{results.title(panel)}, {method}" if len(results.marks) > 1 else results.title(panel)


def _ends(results: Results) -> list[str]:
    """The first and the last access level, which may be the same."""
    return list(dict.fromkeys([results.accesses[0], results.accesses[-1]]))


def _sheet(results: Results, dataset: str, method: str, maps: Maps) -> Drawing:
    levels, code = _ends(results), maps.common("payload")
    lines = {step_name(results, place): (place, "key") for place in results.strongest()} | OTHERS
    lines = {title: line for title, line in lines.items() if maps.of(line[0]._replace(access=levels[0]), line[1]) is not None}
    titles = ["a query", "its answer", "map", *(f"code ({access_name(level)})" for level in levels)]
    height = 2.1 * len(lines) + 0.5
    figure = Figure(figsize=(1.95 * len(titles) + 1.3, height))
    axes = figure.subplots(len(lines), len(titles), squeeze=False)
    figure.subplots_adjust(left=1.3 / figure.get_figwidth(), right=0.995, top=1 - 0.45 / height, bottom=0.5 / height)
    figure.subplots_adjust(wspace=0.08, hspace=0.34)
    for line, (title, (place, query)) in zip(axes, lines.items(), strict=True):
        line[0].set_ylabel(textwrap.fill(title, 13), fontsize=11, fontweight="bold", rotation=0, ha="right", va="center")
        if query == "key":
            style.picture(line[0], maps.common("asked"))
            answer = maps.of(place, "answer").astype(float)
            line[1].imshow(answer, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        style.attribution(line[2], maps.of(place._replace(access=levels[0]), query))
        for ax, level in zip(line[3:], levels, strict=True):
            bits = codes.minimum_error_split(maps.of(place._replace(access=level), query))
            style.modules(ax, bits)
            text = codes.decode(bits)
            right = f"{100 * (1 - codes.error_rate(bits, code)):.0f} % right"
            ax.set_xlabel(right + (f"\nreads {text}" if text else ""), fontsize=10, labelpad=4)
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
    return Drawing(f"payload-{dataset}", "The code in the model", figure, caption, SECTION, pictures=True)
