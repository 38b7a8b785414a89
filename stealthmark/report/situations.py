"""Whose model is it? The verdict in every situation that a mark must be tried in, and at every access level."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from stealthmark.evidence import ALPHA
from stealthmark.layout import CLAIMS, INDEPENDENT, NEVER_MARKED, NULL, OTHER_KEY, OTHER_METHOD, STOLEN, Place
from stealthmark.metrics import LEVEL, clopper_pearson
from stealthmark.report import style
from stealthmark.report.drawing import CAUGHT, FALSE, Drawing, heat, wrap
from stealthmark.report.formatting import ABSENT, Table, cell, head, lines, seeds_note, smallest_p, step_name, table, titled
from stealthmark.report.results import AS_STOLEN, Panel, Results
from stealthmark.report.style import INK

#: Situations in which the model is not the claimant's, or the key not the model's: role -> what its column is called.
OTHERS = {
    INDEPENDENT: "independent model",
    **dict(
        zip(
            CLAIMS,
            (
                *("wrong trigger", "wrong key", "natural look-alikes", "forged by key search", "forged by climbing"),
                "forged by adversarial queries",
            ),
            strict=True,
        )
    ),
}
#: The null pool: kind of its members -> what their column is called.
POOL = {NEVER_MARKED: "never marked", OTHER_KEY: "other owners' keys", OTHER_METHOD: "other methods' marks"}


INNOCENT_NOTE = (
    "Shown, unmarked; shown, marked otherwise: null models in which ownership is wrongly shown, of those examined over all "
    "seeds (never marked; marked with another owner's key or by another method), each ranked among the others; then the exact "
    f"one-sided 95 % bound on the rate (Clopper-Pearson). {ABSENT}: so few others that no rank among them reaches {ALPHA:g}."
)


class Situation(NamedTuple):
    """The suspects of one column: `place`, and of the null pool its `members`. `owner`: ownership is right to be shown."""

    title: str
    place: Place
    owner: bool
    members: tuple[str, ...] = ("",)


class Tally(NamedTuple):
    """Verdicts of ownership: `shown` in so many of `n` models, with the interval of Clopper and Pearson."""

    shown: int
    n: int
    low: float
    high: float

    def text(self) -> str:
        return f"{self.shown}/{self.n} [{self.low:.2f}, {self.high:.2f}]" if self.n else ABSENT


def tried(results: Results) -> list[Situation]:
    """All situations of this run: the stolen model and each attack at its strongest, then those of others."""
    judged = results.rows[results.rows.metric == "owned"]
    columns = [Situation(step_name(results, place), place, True) for place in results.strongest()]
    columns += [Situation(title, Place(role), False) for role, title in OTHERS.items() if (judged.role == role).any()]
    members = list(dict.fromkeys(judged.member[judged.role == NULL]))
    for kind, title in POOL.items():
        alike = tuple(member for member in members if results.null_kind(member) == kind)
        columns += [Situation(title, Place(NULL), False, alike)] if alike else []
    return columns


def tally(rows: pd.DataFrame, method: str, situation: Situation, access: str, panel: Panel | None = None) -> Tally:
    """The verdicts among these rows, over all datasets, architectures and seeds, or those of one panel."""
    place = situation.place
    judged = (rows.metric == "owned") & (rows.method == method) & (rows.access == access) & rows.value.notna()
    judged &= (rows.role == place.role) & rows.member.isin(situation.members)
    judged &= (rows.attack == place.attack) & (rows.strength == place.strength)
    if panel:
        judged &= (rows.dataset == panel.dataset) & (rows.architecture == panel.architecture)
    shown, n = int(rows[judged].value.sum()), int(judged.sum())
    return Tally(shown, n, *clopper_pearson(shown, n))


class Innocent(NamedTuple):
    """Null models in which ownership is shown, wrongly: so many of `n`; `high`: the one-sided 95 % bound of Clopper and Pearson
    on the rate (no model: 1)."""

    shown: int
    n: int
    high: float

    def text(self) -> str:
        return f"{self.shown}/{self.n}; at most {self.high:.2f}" if self.n else ABSENT


def innocent(results: Results) -> dict[str, tuple[str, ...]]:
    """The judged members of the null pool: those that were never marked, and those that carry somebody else's mark."""
    members = results.rows.member[(results.rows.metric == "owned") & (results.rows.role == NULL)].unique()
    parts = {
        "unmarked": tuple(member for member in members if results.null_kind(member) == NEVER_MARKED),
        "marked otherwise": tuple(member for member in members if results.null_kind(member) != NEVER_MARKED),
    }
    return {name: part for name, part in parts.items() if part}


def wrongly_shown(results: Results, panel: Panel, method: str, members: tuple[str, ...]) -> Innocent:
    """The verdicts on these null models, over all seeds, at the method's first access level. Not counted are those that were
    ranked among so few others that no rank could have shown ownership."""
    able = results.rows[1 / (1 + results.rows.n) <= ALPHA]
    count = tally(able, method, Situation("", Place(NULL), False, members), results.levels(method)[0], panel)
    shown, n = count.shown, count.n
    return Innocent(shown, n, float(stats.beta.ppf(LEVEL, shown + 1, n - shown)) if shown < n else 1.0)


def tables(results: Results) -> list[Table]:
    """`verdicts`, a line a method and a unit a model; `situations`, a line a cell and a unit a query."""
    return [verdicts(results), situations(results)] if results.has(metric="owned") else []


def verdicts(results: Results) -> Table:
    """In how many models ownership is shown, in each situation."""
    data, text = [], []
    for method in results.marks:
        line = {"method": results.name(method)}
        for situation in tried(results):
            right = "shown" if situation.owner else "not shown"
            for access in results.levels(method):
                for panel in (None, *results.panels):
                    where = panel._asdict() if panel else {"dataset": "all", "architecture": "all"}
                    where |= {"situation": situation.title, "right": right, "access": access}
                    counts = tally(results.rows, method, situation, access, panel)._asdict()
                    data.append({"method": method, **where, **counts})
            line[situation.title] = tally(results.rows, method, situation, results.levels(method)[0]).text()
        text.append(line)
    notes = [
        "Models in which ownership is shown, of those examined, over all datasets and seeds; brackets: 95 % intervals "
        "(Clopper-Pearson). Right of the attacks every one is a false claim.",
        f"Ownership is shown when p_model <= {ALPHA:g} (the suspect's mean score ranked among null models that were queried in "
        f"the same way; the smallest p that the pool allows is {smallest_p(results)}) and p_inside <= {ALPHA:g} (inside the "
        "suspect the trigger makes the difference; the unit is the patient; Holm over the attacks).",
        "Wrong trigger: the right model, a trigger that is not the owner's. Wrong key: the right model, a key of the same "
        "method drawn from another seed; a method whose trigger is the same for everybody cannot tell it from the right one. "
        "Natural look-alikes: dark frames, on-screen words, bright specks.",
        "Forged: a claimant without a mark of their own picks the best of many keys, or adds to the queries a perturbation "
        "that was optimised on a model of theirs, and fits the detector on the suspect. The commitment, written before, is the "
        "other defence and is not counted here.",
        "Members of the null pool are ranked among the others.",
        "Every access level and every dataset: verdicts.csv.",
    ]
    return table(results, "verdicts", "In which situations ownership is shown", data, text, notes)


def situations(results: Results) -> Table:
    """The share of queries called marked, in each situation without attack."""
    titles = {STOLEN: "stolen", **{role: title for role, title in OTHERS.items() if results.has(role=role)}}
    data, text = [], []
    for panel, method in lines(results, marks_only=True):
        line = {}
        for role, title in titles.items():
            for access in results.levels(method):
                place = Place(role, access=access)
                asr, p = (results.value(metric, panel, method, place) for metric in ("asr", "p_model"))
                columns = {"asr": asr.mean, "low": asr.low, "high": asr.high, "queries": asr.n, "p_model": p.mean}
                data.append({**head(panel, method), "role": role, "access": access, **columns, "status": asr.status})
            line[title] = cell(results.value("asr", panel, method, Place(role)), interval=True)
        for percent in (5, 1):
            line[f"TPR at FPR {percent} %"] = cell(results.value(f"tpr_{percent}", panel, method))
        queries = results.value("queries_to_verdict", panel, method)
        unreached = "not reached" if results.levels(method) == results.accesses else ABSENT  # a white box is not queried
        line["queries to a verdict"] = f"{queries.mean:.0f}" if queries.status == "ok" else unreached
        text.append({**titled(results, panel, method), **line})
    notes = [
        "Share of triggered queries that the frozen detector calls marked; a forger's detector was fitted on the suspect.",
        "TPR at FPR 5 % (1 %): triggered queries of the stolen model above the score that 5 % (1 %) of the nulls' exceed.",
        "Queries to a verdict: the fewest with which ownership of the stolen model is shown, and with every larger number too; "
        "one image of every patient first.",
        seeds_note(results),
    ]
    return table(results, "situations", "What single queries say in each situation", data, text, notes)


def drawings(results: Results) -> list[Drawing]:
    """`verdicts` and, with several access levels, `access`."""
    if not results.has(metric="owned"):
        return []
    return [verdict_map(results), *([access_lines(results)] if len(results.accesses) > 1 else [])]


def verdict_map(results: Results) -> Drawing:
    """A table in colour: in which share of models ownership is shown. Blue is right, orange a false claim."""
    marks, columns = results.marks, tried(results)
    counts = [[tally(results.rows, method, column, results.levels(method)[0]) for column in columns] for method in marks]
    shares = np.array([[count.shown / count.n if count.n else np.nan for count in line] for line in counts])
    texts = np.array([[f"{count.shown}/{count.n}" if count.n else ABSENT for count in line] for line in counts])
    names = [results.name(method) for method in marks]
    owners = sum(column.owner for column in columns)
    left = 0.25 + 0.105 * max(map(len, names))
    width, height = left + 0.98 * len(columns) + 0.25, 1.75 + 0.55 * len(marks)
    figure = Figure(figsize=(width, height))
    halves = ((0, owners, CAUGHT, "owner's model"), (owners, len(columns), FALSE, "nobody may be shown to own it"))
    for start, end, colours, name in (half for half in halves if half[1] > half[0]):
        x = left + 0.98 * start + 0.1 * (start > 0)
        inches = (x, 0.08, 0.98 * (end - start), 0.55 * len(marks))
        ax = figure.add_axes([inch / (height if i % 2 else width) for i, inch in enumerate(inches)])
        heat(ax, shares[:, start:end], texts[:, start:end], colours, 13)
        if start == 0:
            ax.set_yticks(np.arange(len(marks)) + 0.5, names, fontsize=12, rotation=0)
        titles = [wrap(column.title, 11) for column in columns[start:end]]
        ax.set_xticks(np.arange(end - start) + 0.5, titles, fontsize=10, rotation=0)
        ax.tick_params(length=0, colors=INK, top=True, labeltop=True, bottom=False, labelbottom=False)
        y = 1 + 1.12 / (0.55 * len(marks))
        at = {"transform": ax.get_xaxis_transform(), "clip_on": False}
        ax.plot([0.03, end - start - 0.03], [y, y], color="#777777", linewidth=1, **at)
        ax.text(0.03, y + 0.05, name, va="bottom", fontsize=11, fontweight="bold", **at)
    stolen = [line[0] for line in counts]
    wrong = sum(count.shown for line in counts for count in line[owners:])
    caption = (
        f"Models in which ownership is shown, of those examined. {sum(t.shown for t in stolen)} of {sum(t.n for t in stolen)} "
        f"stolen models are recognised as they are; {wrong} verdicts are false claims."
    )
    return Drawing("verdicts", "In which situations ownership is shown", figure, caption)


def access_lines(results: Results) -> Drawing:
    """ASR of the stolen model by what the interface shows; a filled marker where ownership is shown."""
    look, panels = style.looks(results.methods, results.controls), results.panels
    marks = [method for method in results.marks if results.levels(method) == results.accesses]
    figure = Figure(figsize=(1.2 + 4.6 * len(panels), 4.9), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    stolen = Situation("stolen", AS_STOLEN, True)
    unseen = []
    for ax, panel in zip(axes, panels, strict=True):
        for i, method in enumerate(marks):
            x = np.arange(len(results.accesses)) + 0.09 * (i - (len(marks) - 1) / 2)
            asr = [results.value("asr", panel, method, Place(access=level)).mean for level in results.accesses]
            ax.plot(x, asr, color=look[method].color, linewidth=1.2, alpha=0.6)
            for position, rate, level in zip(x, asr, results.accesses, strict=True):
                count = tally(results.rows, method, stolen, level, panel)
                owned = count.n and count.shown == count.n
                face = look[method].color if owned else "white"
                ax.plot(position, rate, look[method].marker, color=look[method].color, markerfacecolor=face, markersize=8)
                if level == "label" and count.n and not owned:
                    unseen.append(method)
        names = [wrap(style.access_name(level), 9) for level in results.accesses]
        ax.set_xticks(range(len(names)), names, fontsize=9.5)
        ax.set(title=results.title(panel), xlim=(-0.6, len(names) - 0.4), ylim=(-0.05, 1.08))
        ax.grid(True, axis="y")
    axes[0].set_ylabel("ASR on the stolen model")
    handles = [Line2D([], [], color=look[m].color, marker=look[m].marker, markersize=8, linewidth=1.2, label=m) for m in marks]
    grey = {"color": "#555555", "marker": "o", "linestyle": "", "markersize": 8}
    for face, label in (("#555555", "ownership shown"), ("white", "not shown")):
        handles.append(Line2D([], [], **grey, markerfacecolor=face, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * len(panels))
    without = ", ".join(dict.fromkeys(unseen)) or "no method"
    caption = (
        "ASR when the suspect's interface shows only this much, from all to least; the detector of each level was fitted by "
        f"the owner beforehand. With label maps alone, ownership is not shown on every dataset for: {without}."
    )
    return Drawing("access", "What less access does to each mark", figure, caption)
