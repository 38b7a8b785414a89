"""Tables as text: Markdown and LaTeX, what a cell looks like, and the notes that tables share."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from stealthmark.layout import CLEAN, NULL, Place
from stealthmark.report import facts, style
from stealthmark.report.changes import Change, Measure
from stealthmark.report.results import QUALITY, TRIGGERED, Panel, Results, Value

ABSENT, FAILED = "–", "failed"


@dataclass(frozen=True)
class Table:
    """data: one number a column; text: the same lines for reading, whose first columns `dataset` (and `architecture`)
    group the lines. A text cell is `value (change) [low, high]`, `failed`, or a dash where nothing was asked for."""

    name: str
    title: str
    data: pd.DataFrame
    text: pd.DataFrame
    notes: list[str] = field(default_factory=list)


def table(results: Results, name: str, title: str, data: list[dict], text: list[dict], notes: list[str]) -> Table:
    """A table of these lines, without a column for a single architecture, and with notes on the signs that occur in it."""
    frame = pd.DataFrame(text)
    if len(results.architectures) == 1 and "architecture" in frame:
        frame = frame.drop(columns="architecture")
    return Table(name, title, pd.DataFrame(data), frame, [*notes, *_footnotes(results, text)])


def lines(results: Results, marks_only: bool = False) -> list[tuple[Panel, str]]:
    """The lines of a table: every panel with every method, or with every mark (no clean model, no control)."""
    methods = results.marks if marks_only else results.methods
    return [(panel, method) for panel in results.panels for method in methods]


def head(panel: Panel, method: str) -> dict:
    """How a line for machines starts."""
    return {**panel._asdict(), "method": method}


def titled(results: Results, panel: Panel, method: str) -> dict:
    """How a line for people starts."""
    return {**panel._asdict(), "method": results.name(method)}


def numbers(values: dict[str, Value], prefix: str = "") -> dict:
    """The columns for machines of these values: mean, interval, the change where they are of quality, seeds and n."""
    columns = {}
    for name, value in values.items():
        columns[prefix + name] = value.mean
        if name.removesuffix("_triggered") in QUALITY:
            columns[f"{prefix}{name}_change"] = value.change
        columns |= {f"{prefix}{name}_low": value.low, f"{prefix}{name}_high": value.high}
    any_value = next((value for value in values.values() if value.status == "ok"), Value())
    return {**columns, f"{prefix}seeds": any_value.seeds, f"{prefix}n": any_value.n}


def change_numbers(name: str, change: Change) -> dict:
    fields = {"change": change.mean, "low": change.low, "high": change.high, "pairs": change.pairs}
    return {f"{name}_{field_name}": value for field_name, value in fields.items()}


def status(value: Value) -> str:
    return "some seeds failed" if value.part else value.status


def cell(value: Value, change: bool = False, interval: bool = False) -> str:
    """`0.861 (-0.4) [0.843, 0.878]`; an asterisk where some seeds failed."""
    if value.status != "ok":
        return FAILED if value.status == FAILED else ABSENT
    text = f"{value.mean:.3f}" + ("*" if value.part else "")
    if change and np.isfinite(value.change):
        text += f" ({_rounded(value.change)})"
    if interval and np.isfinite(value.low) and np.isfinite(value.high):
        text += f" [{value.low:.3f}, {value.high:.3f}]"
    return text


def presence(asr: Value, auroc: Value, auroc_null: Value | None = None) -> str:
    """`0.78, AUROC 0.97, nulls 0.95`: what the frozen threshold catches, then what is left to be told apart."""
    if asr.status != "ok":
        return cell(asr)
    text = f"{asr.mean:.2f}" + ("*" if asr.part else "")
    text += f", AUROC {auroc.mean:.2f}" if auroc.status == "ok" else ""
    return text + (f", nulls {auroc_null.mean:.2f}" if auroc_null and auroc_null.status == "ok" else "")


def presence_and_dice(asr: Value, auroc: Value, auroc_null: Value, dice: Value) -> str:
    """`0.78, AUROC 0.97; 0.839 (-1.1)`"""
    text = presence(asr, auroc, auroc_null)
    return f"{text}; {cell(dice, change=True)}" if asr.status == dice.status == "ok" else text


def p_value(value: Value) -> str:
    """The largest over seeds, to two digits."""
    if value.status != "ok":
        return cell(value)
    p = value.high if value.seeds > 1 else value.mean
    return "< 1e-16" if p < 1e-16 else f"{p:.2g}"


def change_text(change: Change) -> str:
    """`-1.1 [-2.3, +0.3]`"""
    return "{} [{}, {}]".format(*map(_rounded, (change.mean, change.low, change.high)))


def seeds_text(change: Change) -> str:
    """`; seeds -1.7, -1.9, +2.0`, of several."""
    return f"; seeds {', '.join(map(_rounded, change.by_seed))}" if len(change.by_seed) > 1 else ""


def _rounded(change: float) -> str:
    # A change that rounds to nothing has no sign.
    return f"{change:+.1f}" if abs(change) >= 0.05 else "0.0"


def metric_title(measure: Measure) -> str:
    """`Dice`, `Dice, triggered`."""
    return style.METRICS[measure.metric] + ", triggered" * (measure.query == TRIGGERED)


def step_name(results: Results, place: Place) -> str:
    """What was done to a stolen model: `stolen`, `pruning 30 %`."""
    if place.as_stolen:
        return "stolen"
    attack = results.facts.attack(place.attack)
    return f"{attack.title} {attack.strength(place.strength)}"


def smallest_p(results: Results) -> str:
    """The smallest p that the null pools of this run allow, from the one of most models to that of fewest."""
    rows = results.rows[(results.rows.metric == "p_model") & (results.rows.role != NULL)]
    return " to ".join(dict.fromkeys(f"{1 / (1 + n):.3g}" for n in (rows.n.max(), rows.n.min())))


def seeds_note(results: Results, brackets: bool = True) -> str:
    if len(results.seeds) > 1:
        ends = "; brackets: lowest and highest seed" if brackets else ""
        return f"Mean over {len(results.seeds)} seeds{ends}; each alone: by-seed.md."
    text = "One seed"
    if brackets:
        text += "; brackets: 95 % intervals, groups (patients, videos) being the unit; they say nothing of other seeds"
    return text + "."


def zero_note(results: Results, what: str = "In parentheses: change") -> str:
    """What changes are measured against, as a sentence that starts with `what`."""
    text = f"{what} against {results.against} of the same seed, in points (hundredths)."
    if results.controls:
        text += f" {results.controls[0]}: ordinary training from the clean model for as long as a mark takes."
        if results.of_kind(facts.FINGERPRINT):
            text += " A fingerprint's change is against the clean model, which it leaves as it is."
    return text


def fingerprint_notes(results: Results) -> list[str]:
    """A note on methods that change no model."""
    names = ", ".join(results.of_kind(facts.FINGERPRINT))
    return [f"{names}: a fingerprint. Nothing is embedded; the model is the clean one."] if names else []


def guaranteed_notes(results: Results) -> list[str]:
    """What the calibrated thresholds of these methods guarantee, a sentence for each dataset and number of patients; none in
    rows from before it was known."""
    rows = results.rows[(results.rows.metric == "fpr_guaranteed") & results.rows.value.notna()]
    rows = rows[rows.method.isin(results.of_kind(facts.EMBEDDED))]  # questions and bits of a method's own are no patients
    counts = rows.groupby(["dataset", "n", "value"], sort=False).size().index
    return [
        f"{dataset}: with {n:.0f} calibration patients (or videos) the threshold guarantees an FPR of {value:.3f} per patient, "
        "for a further one like them."
        for dataset, n, value in counts
    ]


def cases_notes(results: Results) -> list[str]:
    """How many test cases, and how many of them have an empty mask; of a dataset once, where its panels agree."""
    counted: dict[Panel, str] = {}
    for panel in results.panels:
        values = (results.value("dice", panel, method) for method in results.methods)
        n = next((value.n for value in values if value.status == "ok" and np.isfinite(value.n)), None)
        counts = (results.value("empty_masks", panel, method) for method in results.methods)
        empty = next((count for count in counts if count.status == "ok"), None)
        if n is not None:
            text = f"{n:.0f} test cases" + (" per seed" if len(results.seeds) > 1 else "")
            counted[panel] = text + (f", {empty.mean:.0f} with an empty mask." if empty else ".")
    texts = {dataset: {text for panel, text in counted.items() if panel.dataset == dataset} for dataset in results.datasets}
    names = {panel: panel.dataset if len(texts[panel.dataset]) == 1 else results.title(panel) for panel in counted}
    return list(dict.fromkeys(f"{names[panel]}: {text}" for panel, text in counted.items()))


def _footnotes(results: Results, text: list[dict]) -> list[str]:
    """The signs that occur in these lines, explained."""
    cells = [str(value) for line in text for value in line.values()]
    notes = []
    if FAILED in cells:
        notes.append("failed: the cell could not be computed; see the table of failures.")
    if any("*" in value for value in cells):
        notes.append("*: some seeds failed and are not in the mean.")
    if ABSENT in cells:
        dashed = {line["method"] for line in text if ABSENT in line.values()}
        reasons = ["a clean model has no key"] if CLEAN in dashed else []
        if controls := [method for method in results.of_kind(facts.CONTROL) if method in dashed]:
            reasons.append(f"{', '.join(controls)}: a control without a mark")
        notes.append(f"{ABSENT}: not measured" + (f" ({'; '.join(reasons)})." if reasons else "."))
    names = {line["method"] for line in text}
    if any(results.name(method) in names for method in results.of_kind(facts.WHITE_BOX)):
        notes.append("White box: sees the weights, which nobody has of a model behind an interface.")
    return notes


def write(written: Table, folder: Path) -> list[Path]:
    """`<name>.csv` from the data, `<name>.md` and `<name>.tex` from the text."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{written.name}.{suffix}" for suffix in ("csv", "md", "tex")]
    written.data.to_csv(paths[0], index=False, float_format="%.6g")
    paths[1].write_text(markdown(written))
    paths[2].write_text(latex(written))
    return paths


def markdown(written: Table) -> str:
    rows = [list(written.text.columns), ["---"] * len(written.text.columns), *written.text.to_numpy().tolist()]
    body = "\n".join("| " + " | ".join(str(text).replace("|", "\\|") for text in row) + " |" for row in rows)
    return "\n\n".join([body, *written.notes]) + "\n"


def latex(written: Table) -> str:
    """A booktabs tabular, then the notes as one paragraph."""
    columns = "l" * len(written.text.columns)
    parts = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", _tex_line(written.text.columns), "\\midrule"]
    parts += [_tex_line(row) for row in written.text.to_numpy().tolist()]
    parts += ["\\bottomrule", "\\end{tabular}"]
    notes = [f"\\par\\footnotesize {' '.join(map(_tex, written.notes))}"] if written.notes else []
    return "\n".join(parts + notes) + "\n"


def _tex_line(cells: list) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"


TEX = str.maketrans(
    {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", "–": "--", "·": r"$\cdot$"}
    | {char: f"\\{char}" for char in "{}%_&#$"}
)


def _tex(text: str) -> str:
    # A line that begins with a bracket would be read as the argument of the line break before it.
    return str(text).translate(TEX).replace("[", "{[}").replace("]", "{]}")
