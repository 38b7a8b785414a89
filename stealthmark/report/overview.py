"""The figure at the top: which marks take, and which survive, as a table in colour."""

import textwrap
from itertools import groupby
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stealthmark.layout import CLEAN, Place
from stealthmark.report import facts, style
from stealthmark.report.drawing import BESIDE, CAUGHT, FALSE, Drawing, heat, signed, wrap
from stealthmark.report.formatting import ABSENT, FAILED
from stealthmark.report.results import AS_STOLEN, OTHERS_MODEL, TAKES, Panel, Results, Value


class Column(NamedTuple):
    """A column: which suspect its ASR and Dice are of, in which group it stands, and what it is called in running text."""

    group: str
    title: str
    place: Place
    phrase: str = ""


class Block(NamedTuple):
    """Lines under one title: what each is called, and the panel and the mark that it shows."""

    title: str
    note: str
    names: list[str]
    lines: list[tuple[Panel, str]]


STOLEN_MODEL, LESS_SHOWN, NOT_STOLEN = "stolen model", "stolen,\nless shown", "not\nstolen"
#: With fewer columns than this the titles need lines of their own.
NARROW = 5
#: Inches: a cell, the gap before another group, a line of a column's title.
WIDE, HIGH, GAP, TITLE_LINE = 1.12, 0.8, 0.2, 0.19
#: Characters of a column's title in a line.
LETTERS = 14


def overview(results: Results) -> Drawing:
    """ASR and AUROC as stolen, attacked, by access, and on an independent model, with the change of Dice where it is another
    model."""
    groups = [list(group) for _, group in groupby(_columns(results), key=lambda column: column.group)]
    columns = [column for group in groups for column in group]
    blocks = _blocks(results)
    narrow = len(columns) < NARROW
    titles = 0.1 + TITLE_LINE * max(column.title.count("\n") + 1 for column in columns)
    header = titles + 0.72
    title, bottom = (0.75, 1.2) if narrow else (0.5, 0.55)
    longest = max(len(line) for block in blocks for name in block.names for line in name.splitlines())
    left = 0.25 + 0.105 * longest
    width = left + WIDE * len(columns) + GAP * (len(groups) - 1) + 0.1
    height = header + len(blocks) * title + HIGH * sum(len(block.lines) for block in blocks) + bottom
    figure = Figure(figsize=(width, height))
    top = height - header
    for block in blocks:
        top -= title + HIGH * len(block.lines)
        x = left
        for group in groups:
            wide, high = WIDE * len(group), HIGH * len(block.lines)
            ax = figure.add_axes((x / width, top / height, wide / width, high / height))
            _cells(ax, results, block, group)
            if x == left:
                ax.set_yticks(np.arange(len(block.lines)) + 0.5, block.names, fontsize=12, rotation=0)
                ax.set_title(block.title, loc="left", pad=22 if narrow else 7, fontsize=13)
            if block is blocks[0]:
                _header(ax, group, 1 + title / high, 1 + (title + titles) / high)
            x += wide + GAP
        noted, edge, side = (figure.axes[-len(groups)], 0.0, "left") if narrow else (ax, 1.0, "right")
        at = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": side, "annotation_clip": False}
        noted.annotate(block.note, (edge, 1.0), (0, 7), fontsize=10, color="#555555", **at)
    note = "Large: ASR, the share of triggered queries detected. Small: AUROC, and change of Dice against "
    note = textwrap.fill(f"{note}{results.against}, points.", 17 * len(columns))
    figure.text((left + 0.02) / width, 0.16 / height, note, fontsize=10, color="#555555")
    return Drawing("overview", "Which marks take, and which survive", figure, _caption(results, columns))


def _columns(results: Results) -> list[Column]:
    columns = [Column(STOLEN_MODEL, "as it is", AS_STOLEN)]
    for label in results.attacks:
        attack = results.facts.attack(label)
        for strength in results.some_strengths(label) if attack.reported else results.strengths[label][-1:]:
            text = attack.strength(strength)
            phrase = f"{attack.title[:-1]}, {text})" if attack.title.endswith(")") else f"{attack.title} ({text})"
            place = Place(attack=label, strength=strength)
            columns.append(Column(STOLEN_MODEL, f"{wrap(attack.title, LETTERS)}\n{text}", place, phrase))
    for level in results.accesses[1:]:
        name = style.access_name(level)
        columns.append(Column(LESS_SHOWN, name.replace(" ", "\n", 1), Place(access=level), name))
    if results.has(role=OTHERS_MODEL.role):
        columns.append(Column(NOT_STOLEN, "independent\nmodel", OTHERS_MODEL))
    return columns


def _blocks(results: Results) -> list[Block]:
    """A block a panel, a line a mark; where there is one mark in many panels, one block, a line a panel."""
    if len(results.marks) == 1 and len(results.panels) > BESIDE:
        (method,) = results.marks
        names = [f"{results.title(panel)}\n{_start_dice(results, panel)}".rstrip() for panel in results.panels]
        return [Block(results.name(method), "", names, [(panel, method) for panel in results.panels])]
    names = [results.name(mark) for mark in results.marks]
    return [
        Block(results.title(panel), _start_dice(results, panel), names, [(panel, mark) for mark in results.marks])
        for panel in results.panels
    ]


def _start_dice(results: Results, panel: Panel) -> str:
    """What marks are measured against, and the clean model beside it."""
    names = {control: control for control in results.controls[:1]} | {CLEAN: "clean model"}
    values = {name: results.value("dice", panel, method) for method, name in names.items()}
    return "; ".join(f"{name}: Dice {value.mean:.3f}" for name, value in values.items() if value.status == "ok")


def _cells(ax: Axes, results: Results, block: Block, group: list[Column]) -> None:
    """A block's cells of one group of columns: ASR, AUROC, and where it is another model the change of Dice below it."""
    asr = [[results.value("asr", panel, method, column.place) for column in group] for panel, method in block.lines]
    texts = [[_asr_text(value) for value in line] for line in asr]
    shares = np.array([[value.mean if value.status == "ok" else np.nan for value in line] for line in asr])
    heat(ax, shares, np.array(texts), FALSE if group[0].group == NOT_STOLEN else CAUGHT, 14)
    written = {text.get_position(): text for text in ax.texts}
    for y, (panel, method) in enumerate(block.lines):
        for x, column in enumerate(group):
            if asr[y][x].status == FAILED:
                look = {"facecolor": "white", "edgecolor": "#cccccc", "hatch": "////", "linewidth": 0}
                ax.add_patch(Rectangle((x + 0.015, y + 0.03), 0.97, 0.94, **look))
            dice, auroc = (results.value(metric, panel, method, column.place) for metric in ("dice", "auroc"))
            below = [f"AUROC {auroc.mean:.2f}"] if auroc.status == "ok" else []
            if group[0].group == STOLEN_MODEL and np.isfinite(dice.change):
                below.append(f"Dice {signed(dice.change)}")
            if below:
                above = written[(x + 0.5, y + 0.5)]
                above.set_y(y + 0.46 - 0.1 * len(below))
                look = {"ha": "center", "va": "center", "fontsize": 9.5, "color": above.get_color(), "linespacing": 1.1}
                ax.text(x + 0.5, y + 0.86 - 0.09 * len(below), "\n".join(below), **look)


def _asr_text(asr: Value) -> str:
    return f"{asr.mean:.2f}" if asr.status == "ok" else {"failed": FAILED, "absent": ABSENT}[asr.status]


def _header(ax: Axes, group: list[Column], above: float, line: float) -> None:
    """Column titles from `above` on and, over a `line`, the group's name: both in heights of the axes."""
    at = {"transform": ax.get_xaxis_transform(), "clip_on": False, "va": "bottom", "fontsize": 11}
    for x, column in enumerate(group):
        ax.text(x + 0.5, above, column.title, ha="center", **at)
    ax.plot([0.03, len(group) - 0.03], [line, line], color="#777777", linewidth=1, transform=at["transform"], clip_on=False)
    ax.text(0.03, line + (line - above) / 12, group[0].group, fontweight="bold", **at)


def _caption(results: Results, columns: list[Column]) -> str:
    open_marks = [method for method in results.marks if method not in results.of_kind(facts.WHITE_BOX)]
    everywhere = " on every dataset" if len(results.panels) > 1 else ""

    def count(place: Place, methods: list[str]) -> int:
        return sum(
            all(results.value("asr", panel, method, place).mean >= TAKES for panel in results.panels) for method in methods
        )

    taken = f"{count(AS_STOLEN, open_marks)} take{everywhere}"
    parts = [f"Of {len(open_marks)} marks, {taken}: ASR at least {TAKES:g} on the stolen model as it is."]
    survived = [f"{count(column.place, open_marks)} after {column.phrase}" for column in columns if column.place.strength > 0]
    if survived:
        parts.append(f"Still at that level: {', '.join(survived)}.")
    levels = [f"{count(column.place, open_marks)} with {column.phrase}" for column in columns if column.place.access]
    if levels:
        parts.append(f"When the interface shows less than probabilities: {', '.join(levels)}.")
    if white_boxes := results.of_kind(facts.WHITE_BOX):
        parts.append(
            f"White boxes, which see the weights, stand apart: {count(AS_STOLEN, white_boxes)} of {len(white_boxes)} take."
        )
    claims = [
        (results.value("asr", panel, method, OTHERS_MODEL).mean, results.name(method), results.title(panel))
        for panel in results.panels
        for method in results.marks
    ]
    claims = [claim for claim in claims if np.isfinite(claim[0])]
    if claims:
        rate, method, where = max(claims)
        parts.append(f"The highest rate of false claims on an independent model is {rate:.2f} ({method}, {where}).")
    return " ".join(parts)
