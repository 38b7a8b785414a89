"""Whose model is it? The verdict in every situation that a mark must be tried in, and at every access level."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from stealthmark.evidence import ALPHA
from stealthmark.metrics import clopper_pearson
from stealthmark.report import style
from stealthmark.report.figures import CAUGHT, FALSE, Drawing
from stealthmark.report.results import Panel, Results
from stealthmark.report.style import INK
from stealthmark.report.tables import ABSENT, Table, cell, seeds_note, step_name
from stealthmark.stages import NULL

#: Situations in which the model is not the claimant's, or the key not the model's, as columns are called.
OTHERS = {
    "independent": "independent model",
    "wrong-trigger": "wrong trigger",
    "wrong-key": "wrong key",
    "natural": "natural look-alikes",
    "search": "forged by key search",
    "adversarial": "forged by adversarial queries",
}
#: The members of the null pool, by the beginning of their situation; every other one was never marked.
POOL = {f"{NULL}key-": "other owners' keys", NULL: "other methods' marks"}


class Place(NamedTuple):
    """A situation as it stands in rows, and what is right there: ownership shown (`owner`) or not."""

    title: str
    situations: tuple[str, ...]
    attack: str
    strength: float
    owner: bool


class Tally(NamedTuple):
    """Verdicts of ownership: in how many of `n` models, with the interval of Clopper and Pearson."""

    shown: int
    n: int
    low: float
    high: float

    def text(self) -> str:
        return f"{self.shown}/{self.n} [{self.low:.2f}, {self.high:.2f}]" if self.n else ABSENT


def places(results: Results) -> list[Place]:
    """All situations that were tried: the stolen model and each attack at its strongest, then those of others."""
    steps = [("none", 0.0), *((a, results.strengths[a][-1]) for a in results.attacks if results.strengths[a])]
    found = [Place(step_name(*step).replace("no attack", "stolen"), ("stolen",), *step, True) for step in steps]
    tried = list(dict.fromkeys(results.rows[results.rows.metric == "owned"].situation))
    found += [Place(title, (name,), "none", 0.0, False) for name, title in OTHERS.items() if name in tried]
    nulls = [name for name in tried if name.startswith(NULL)]
    members = {"never marked": [name for name in nulls if name.removeprefix(NULL).isdigit()]}
    for start, title in POOL.items():
        known = {name for group in members.values() for name in group}
        members[title] = [name for name in nulls if name.startswith(start) and name not in known]
    return found + [Place(title, tuple(names), "none", 0.0, False) for title, names in members.items() if names]


def tally(results: Results, method: str, place: Place, access: str, panel: Panel | None = None) -> Tally:
    """Over all datasets, architectures and seeds, or those of one panel."""
    rows = results.rows
    here = (rows.metric == "owned") & (rows.method == method) & (rows.access == access) & rows.value.notna()
    here &= rows.situation.isin(place.situations) & (rows.attack == place.attack) & (rows.strength == place.strength)
    if panel:
        here &= (rows.dataset == panel.dataset) & (rows.architecture == panel.architecture)
    shown, n = int(rows[here].value.sum()), int(here.sum())
    return Tally(shown, n, *clopper_pearson(shown, n))


def tables(results: Results) -> list[Table]:
    """`verdicts`, a line a method and a unit a model; `situations`, a line a cell and a unit a query."""
    return [verdicts(results), situations(results)] if (results.rows.metric == "owned").any() else []


def verdicts(results: Results) -> Table:
    """In how many models ownership is shown, in each situation."""
    data, text = [], []
    for method in results.marks:
        line = {"method": method}
        for place in places(results):
            for access in results.accesses:
                for panel in (None, *results.panels):
                    found = tally(results, method, place, access, panel)
                    where = panel._asdict() if panel else {"dataset": "all", "architecture": "all"}
                    told = {"situation": place.title, "right": "shown" if place.owner else "not shown", "access": access}
                    data.append({"method": method, **where, **told, **found._asdict()})
            line[place.title] = tally(results, method, place, results.accesses[0]).text()
        text.append(line)
    smallest = 1 / (1 + results.rows[results.rows.metric == "p_model"].n.max())
    notes = [
        "Models in which ownership is shown, of those examined, over all datasets and seeds; brackets: 95 % intervals "
        "(Clopper-Pearson). Right of the attacks every one is a false claim.",
        f"Ownership is shown when p_model <= {ALPHA:g} (the suspect's mean score ranked among null models that were queried in "
        f"the same way; the smallest p that the pool allows is {smallest:.3g}) and p_inside <= {ALPHA:g} (inside the suspect "
        "the trigger makes the difference; the unit is the patient; Holm over the attacks).",
        "Wrong trigger: the right model, a trigger that is not the owner's. Wrong key: the right model, a key of the same "
        "method drawn from another seed; a method whose trigger is the same for everybody cannot tell it from the right one. "
        "Natural look-alikes: dark frames, on-screen words, bright specks.",
        "Forged: a claimant without a mark of their own picks the best of many keys, or adds to the queries a perturbation "
        "that was optimised on a model of theirs, and fits the detector on the suspect. The commitment, written before, is the "
        "other defence and is not counted here.",
        "Members of the null pool are ranked among the others.",
        "Every access level and every dataset: verdicts.csv.",
    ]
    return Table("verdicts", "In which situations ownership is shown", pd.DataFrame(data), pd.DataFrame(text), notes)


def situations(results: Results) -> Table:
    """The share of queries called marked, in each situation without attack."""
    shown = {"stolen": "stolen", **{name: title for name, title in OTHERS.items() if name in set(results.rows.situation)}}
    data, text = [], []
    for panel in results.panels:
        for method in results.marks:
            head = {**panel._asdict(), "method": method}
            line = {}
            for situation, title in shown.items():
                for access in results.accesses:
                    asr, p = (results.value(m, panel, method, situation=situation, access=access) for m in ("asr", "p_model"))
                    told = {"asr": asr.mean, "low": asr.low, "high": asr.high, "queries": asr.n, "p_model": p.mean}
                    data.append({**head, "situation": situation, "access": access, **told, "status": asr.status})
                line[title] = cell(results.value("asr", panel, method, situation=situation), interval=True)
            queries = results.value("queries", panel, method)
            line["TPR at FPR 5 %"], line["TPR at FPR 1 %"] = (
                cell(results.value(f"tpr_{percent}", panel, method)) for percent in (5, 1)
            )
            line["queries to a verdict"] = f"{queries.mean:.0f}" if queries.status == "ok" else "not reached"
            text.append({**head, **line})
    frame = pd.DataFrame(text)
    if len(results.architectures) == 1:
        frame = frame.drop(columns="architecture")
    notes = [
        "Share of triggered queries that the frozen detector calls marked; a forger's detector was fitted on the suspect.",
        "TPR at FPR 5 % (1 %): triggered queries of the stolen model above the score that 5 % (1 %) of the nulls' exceed.",
        "Queries to a verdict: the fewest with which ownership of the stolen model is shown, and with every larger number too; "
        "one image of every patient first.",
        seeds_note(results),
    ]
    return Table("situations", "What single queries say in each situation", pd.DataFrame(data), frame, notes)


def drawings(results: Results) -> list[Drawing]:
    """`verdicts` and, with several access levels, `access`."""
    if not (results.rows.metric == "owned").any():
        return []
    return [verdict_map(results), *([access_lines(results)] if len(results.accesses) > 1 else [])]


def verdict_map(results: Results) -> Drawing:
    """A table in colour: in which share of models ownership is shown. Blue is right, orange a false claim."""
    marks, columns = results.marks, places(results)
    width, height = 0.4 + 0.105 * max(map(len, marks)) + 0.98 * len(columns), 1.75 + 0.55 * len(marks)
    figure = Figure(figsize=(width, height))
    left = 1 - (0.98 * len(columns) + 0.15) / width
    ax = figure.add_axes((left, 0.08 / height, 0.98 * len(columns) / width, 0.55 * len(marks) / height))
    wrong = 0
    for y, method in enumerate(marks):
        for x, place in enumerate(columns):
            found = tally(results, method, place, results.accesses[0])
            share = found.shown / found.n if found.n else 0.0
            wrong += found.shown if not place.owner else 0
            colours = CAUGHT if place.owner else FALSE
            ax.add_patch(Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, facecolor=colours(share) if found.n else "white"))
            ink = "white" if share > (0.88 if place.owner else 0.5) else INK
            shown = f"{found.shown}/{found.n}" if found.n else "–"
            ax.text(x + 0.5, y + 0.5, shown, ha="center", va="center", color=ink, fontsize=13)
    ax.set(xlim=(0, len(columns)), ylim=(len(marks), 0))
    ax.set_yticks(np.arange(len(marks)) + 0.5, marks, fontsize=12)
    titles = [place.title.replace(" %", "\N{NO-BREAK SPACE}%") for place in columns]
    ax.set_xticks(np.arange(len(columns)) + 0.5, [_wrapped(title) for title in titles], fontsize=10)
    ax.tick_params(length=0, colors=INK, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    owners = sum(place.owner for place in columns)
    for start, end, name in ((0, owners, "owner's model"), (owners, len(columns), "nobody may be shown to own it")):
        y = 1 + 1.12 / (0.55 * len(marks))
        at = {"transform": ax.get_xaxis_transform(), "clip_on": False}
        ax.plot([start + 0.03, end - 0.03], [y, y], color="#777777", linewidth=1, **at)
        ax.text(start + 0.03, y + 0.05, name, va="bottom", fontsize=11, fontweight="bold", **at)
    stolen = [tally(results, method, columns[0], results.accesses[0]) for method in marks]
    caption = (
        f"Models in which ownership is shown, of those examined. {sum(t.shown for t in stolen)} of {sum(t.n for t in stolen)} "
        f"stolen models are recognised as they are; {wrong} verdicts are false claims."
    )
    return Drawing("verdicts", "In which situations ownership is shown", figure, caption)


def _wrapped(title: str, most: int = 11) -> str:
    lines = [""]
    for word in title.replace("\n", " ").split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def access_lines(results: Results) -> Drawing:
    """ASR of the stolen model by what the interface shows; a filled marker where ownership is shown."""
    look, panels = style.looks(results.methods), results.panels
    figure = Figure(figsize=(1.2 + 4.6 * len(panels), 4.9), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    stolen = places(results)[0]
    lost = []
    for ax, panel in zip(axes, panels, strict=True):
        for i, method in enumerate(results.marks):
            x = np.arange(len(results.accesses)) + 0.09 * (i - (len(results.marks) - 1) / 2)
            asr = [results.value("asr", panel, method, access=level).mean for level in results.accesses]
            ax.plot(x, asr, color=look[method].color, linewidth=1.2, alpha=0.6)
            for place, rate, level in zip(x, asr, results.accesses, strict=True):
                found = tally(results, method, stolen, level, panel)
                shown = found.n and found.shown == found.n
                face = look[method].color if shown else "white"
                ax.plot(place, rate, look[method].marker, color=look[method].color, markerfacecolor=face, markersize=8)
                if level == "label" and not shown:
                    lost.append(method)
        names = [_wrapped(style.access_name(level), 9) for level in results.accesses]
        ax.set_xticks(range(len(names)), names, fontsize=9.5)
        ax.set(title=results.title(panel), xlim=(-0.6, len(names) - 0.4), ylim=(-0.05, 1.08))
        ax.grid(True, axis="y")
    axes[0].set_ylabel("ASR on the stolen model")
    handles = [
        Line2D([], [], color=look[m].color, marker=look[m].marker, markersize=8, linewidth=1.2, label=m) for m in results.marks
    ]
    grey = {"color": "#555555", "marker": "o", "linestyle": "", "markersize": 8}
    for face, label in (("#555555", "ownership shown"), ("white", "not shown")):
        handles.append(Line2D([], [], **grey, markerfacecolor=face, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * len(panels))
    gone = ", ".join(dict.fromkeys(lost)) or "no method"
    caption = (
        "ASR when the suspect's interface shows only this much, from all to least; the detector of each level was fitted by "
        f"the owner beforehand. With label maps alone, ownership is not shown on every dataset for: {gone}."
    )
    return Drawing("access", "What less access does to each mark", figure, caption)
