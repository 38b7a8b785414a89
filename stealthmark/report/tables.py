"""Rows -> tables: numbers for machines (CSV) and the same cells as text for people (Markdown, LaTeX, the page)."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from stealthmark.metrics import CALIBRATION, SEGMENTATION
from stealthmark.report import style
from stealthmark.report.results import CLEAN, HARM_MARGIN, QUALITY, Change, Panel, Results, Value, failures, paired_change
from stealthmark.stages import NULL

ABSENT = "–"
#: Of a metric's name: on benign, on triggered images.
SUFFIXES = ("", "_triggered")
EXPLAINED = ("stolen", "independent", "untrained")
FAILED = "failed"


@dataclass(frozen=True)
class Table:
    """data: one number a column; text: the same lines for reading, whose first columns `dataset` (and `architecture`)
    group the lines. A text cell is `value (change) [low, high]`, `failed`, or a dash where nothing was asked for."""

    name: str
    title: str
    data: pd.DataFrame
    text: pd.DataFrame
    notes: list[str] = field(default_factory=list)


def every(results: Results) -> list[Table]:
    """The tables of a run: main, harm, robustness, false_claims; where there is something to show, calibration, access,
    ownership, explanations, payload, failures."""
    tables = [main(results), harm(results), robustness(results), false_claims(results)]
    if results.rows.metric.isin(CALIBRATION).any():
        tables.insert(2, calibration(results))
    if len(results.accesses) > 1:
        tables.append(access(results))
    if (results.rows.metric == "p_model").any():
        tables.append(ownership(results))
    if results.rows.metric.astype(str).str.startswith("bit_error_").any():
        tables.append(explanations(results))
    if (results.rows.metric == "bit_error_payload").any():
        tables.append(payload(results))
    if len(failures(results.rows)):
        tables.append(failed(results))
    return tables


def main(results: Results) -> Table:
    """The paper's table: quality on benign and on triggered images, and detection, before any attack."""
    columns = {
        "Dice": ("dice", True, True),
        "AUC": ("auc", True, False),
        "VS": ("vs", True, False),
        "Dice, triggered": ("dice_triggered", True, True),
        "ASR": ("asr", False, True),
        "FPR": ("fpr", False, True),
        "AUROC": ("auroc", False, False),
    }
    data, text = [], []
    for panel, method in _lines(results):
        values = {name: results.value(name, panel, method) for name, _, _ in columns.values()}
        data.append({**_head(panel, method), **_numbers(values), "status": _status(values["dice"])})
        line = {title: cell(values[name], change, interval) for title, (name, change, interval) in columns.items()}
        text.append({**_head(panel, method), **line})
    notes = [
        "In parentheses: change against the clean model of the same seed, in points (hundredths).",
        seeds_note(results),
        *cases_notes(results),
        "ASR: triggered queries that the frozen detector calls marked; FPR: untriggered queries that it calls marked.",
        *_footnotes(text),
    ]
    return _table(results, "main", "Marks before any attack", data, text, notes)


def harm(results: Results) -> Table:
    """What the mark costs its owner: paired change against clean, patients resampled, and a verdict at the margin."""
    data, text = [], []
    for panel, method in _lines(results, marks_only=True):
        numbers, line, harmless = {}, {}, {}
        for suffix in SUFFIXES:
            changes = {f"{name}{suffix}": paired_change(results, panel, method, f"{name}{suffix}") for name in SEGMENTATION}
            for name, change in changes.items():
                numbers |= _change_numbers(name, change)
                bound, p, answer = change.verdict or (np.nan, np.nan, ABSENT)
                numbers |= {f"{name}_bound": bound, f"{name}_p": p, f"{name}_noninferior": answer}
                shown = f"{_change(change)}; {answer}" if change.pairs else _missing(results, panel, method)
                line[_metric_title(name)] = shown
            harmless[suffix] = _harmless([change.verdict.answer for change in changes.values() if change.verdict])
        benign, triggered = harmless.values()
        data.append({**_head(panel, method), **numbers, "harmless": benign, "harmless_triggered": triggered})
        text.append(
            {**_head(panel, method), **line, "harmless": benign if benign == ABSENT else f"{benign}; triggered: {triggered}"}
        )
    notes = [
        "Mean change against the clean model on the same test case: points for Dice, AUC and VS, px for HD95 (less is "
        "better). Triggered images are compared with the clean model on the same images without trigger.",
        "Brackets: 95 % intervals, bootstrap over groups (patients, videos), all seeds of a group together. Cases where a "
        "metric is undefined are left out; harm.csv counts those that are in.",
        f"Below each: is the marked model not worse by {HARM_MARGIN:g} point ({HARM_MARGIN:g} px)? yes when the one-sided 95 % "
        "interval of the same bootstrap stays on the good side of that margin (p < 0.05 for non-inferiority), no when the "
        "opposite one-sided interval stays on the bad side, else undecided. The two-sided bracket is a little wider, so it may "
        "reach over the margin beside a yes. harm.csv has every bound and p. Fewer than five groups decide nothing.",
        "Harmless: yes when all four metrics say yes, no when one says no; on benign, then on triggered images.",
    ]
    return _table(results, "harm", "What a mark costs its owner", data, text, notes)


def calibration(results: Results) -> Table:
    """Whether probabilities still mean what they say: ECE and Brier score with their paired change against clean."""
    data, text = [], []
    for panel, method in _lines(results):
        numbers, line = {}, {}
        for name in (f"{name}{suffix}" for suffix in SUFFIXES for name in CALIBRATION):
            value, change = results.value(name, panel, method), Change()
            if method != CLEAN:
                change = paired_change(results, panel, method, name)
            numbers |= {name: value.mean, **_change_numbers(name, change)}
            line[_metric_title(name)] = cell(value) + (f"; {_change(change)}" if change.pairs and value.status == "ok" else "")
        data.append({**_head(panel, method), **numbers, "status": _status(results.value(CALIBRATION[0], panel, method))})
        text.append({**_head(panel, method), **line})
    notes = [
        "ECE: expected calibration error of each image, its pixels in 15 bins of equal width by their probability of "
        "foreground: the difference between mean probability and share of foreground, weighted by pixels (Guo et al. 2017). "
        "Brier: mean squared difference between probability and mask. Both 0 to 1, less is better, mean over images.",
        "Below each: mean change against the clean model on the same images without trigger, in points (hundredths), with its "
        "95 % interval, groups (patients, videos) resampled, all seeds of a group together. Every interval: calibration.csv.",
        *_footnotes(text),
    ]
    return _table(results, "calibration", "What a mark does to probabilities", data, text, notes)


def robustness(results: Results) -> Table:
    """ASR and Dice after each attack; every strength in the data, at most three of each attack in the text."""
    steps = [(attack, s) for attack in results.attacks for s in results.strengths[attack]]
    shown = [(attack, s) for attack in results.attacks for s in results.shown_strengths(attack)]
    data, text = [], []
    for panel, method in _lines(results, marks_only=True):
        for attack, strength in [("none", 0.0), *steps]:
            values = {m: results.value(m, panel, method, attack, strength) for m in ("asr", "dice", "fpr")}
            where = {"attack": attack, "strength": strength}
            data.append({**_head(panel, method), **where, **_numbers(values), "status": _status(values["asr"])})
        line = {}
        for attack, strength in [("none", 0.0), *shown]:
            asr, dice = (results.value(m, panel, method, attack, strength) for m in ("asr", "dice"))
            line[step_name(attack, strength)] = _both(asr, dice)
        text.append({**_head(panel, method), **line})
    notes = [
        "ASR; then Dice on benign images with its change against the unattacked clean model, in points.",
        seeds_note(results, brackets=False),
        "Every strength and every interval: robustness.csv.",
        *_footnotes(text),
    ]
    return _table(results, "robustness", "Marks after attacks", data, text, notes)


def false_claims(results: Results) -> Table:
    """A model that is not the owner's, examined with the owner's key."""
    data, text = [], []
    for panel, method in _lines(results, marks_only=True):
        own = {m: results.value(m, panel, method) for m in ("asr", "fpr", "chi2_p")}
        other = {m: results.value(m, panel, method, situation="independent") for m in ("asr", "fpr", "auroc", "chi2_p")}
        numbers = {**_numbers(own, "stolen_"), **_numbers(other, "independent_")}
        data.append({**_head(panel, method), **numbers, "status": _status(other["asr"])})
        line = {
            "ASR, stolen": cell(own["asr"], interval=True),
            "ASR, independent": cell(other["asr"], interval=True),
            "FPR, independent": cell(other["fpr"], interval=True),
            "AUROC, independent": cell(other["auroc"]),
            "p, stolen": _p(own["chi2_p"]),
            "p, independent": _p(other["chi2_p"]),
        }
        text.append({**_head(panel, method), **line})
    notes = [
        "Independent: a clean model that another party trained on other data. Its ASR is the rate of false claims per "
        "query and should be as low as the FPR.",
        "p: the paper's chi-square on the table detector x triggered (no Yates correction). It asks whether answers "
        "differ with and without the trigger, so it can be small for a model never marked. Largest over seeds.",
        seeds_note(results),
        *_footnotes(text),
    ]
    return _table(results, "false_claims", "False claims against an independent model", data, text, notes)


def access(results: Results) -> Table:
    """ASR at each access level, before any attack."""
    data, text = [], []
    for panel, method in _lines(results, marks_only=True):
        line = {}
        for level in results.accesses:
            values = {m: results.value(m, panel, method, access=level) for m in ("asr", "fpr", "auroc")}
            status = _status(values["asr"])
            data.append({**_head(panel, method), "access": level, **_numbers(values), "status": status})
            line[style.access_name(level)] = cell(values["asr"], interval=True)
        text.append({**_head(panel, method), **line})
    notes = [
        "ASR when the suspect's interface shows only this much.",
        seeds_note(results),
        *_footnotes(text),
    ]
    return _table(results, "access", "ASR by what the suspect's interface shows", data, text, notes)


def ownership(results: Results) -> Table:
    """Whose model is it? The suspect's rank among models that nobody stole; and how many of those are accused."""
    steps = [
        ("none", 0.0),
        *((attack, results.strengths[attack][-1]) for attack in results.attacks if results.strengths[attack]),
    ]
    data, text = [], []
    for panel, method in _lines(results, marks_only=True):
        situations = [("stolen", *step) for step in steps] + [("independent", "none", 0.0)]
        line = {}
        for situation, attack, strength in situations:
            p = results.value("p_model", panel, method, attack, strength, situation)
            where = {"situation": situation, "attack": attack, "strength": strength}
            data.append({**_head(panel, method), **where, "p": p.mean, "p_largest": p.high, "nulls": p.n, "status": _status(p)})
            name = "independent" if situation == "independent" else step_name(attack, strength).replace("no attack", "stolen")
            line[f"p, {name}"] = _p(p)
        accused, pool = _accused(results, panel, method)
        shown = f"{accused} of {pool}" if pool else ABSENT
        line["null models accused"] = shown
        data[-1] |= {"nulls_accused": accused, "nulls_examined": pool}
        text.append({**_head(panel, method), **line})
    smallest = 1 / (1 + results.rows[results.rows.metric == "p_model"].n.min())
    notes = [
        "p: the unit is the model. The suspect's mean score over triggered queries is ranked among null models (never marked, "
        "or marked by another method): (1 + nulls at or above it) / (1 + nulls). Largest over seeds.",
        f"The smallest p that this pool allows is {smallest:.3g}.",
        "Null models accused: those of which the frozen detector calls most triggered queries marked.",
        *_footnotes(text),
    ]
    return _table(results, "ownership", "Whose model is it", data, text, notes)


def _accused(results: Results, panel: Panel, method: str) -> tuple[int, int]:
    """How many models of the null pool have an ASR above one half, and how many there are, over all seeds."""
    rows = results.rows
    here = (rows.dataset == panel.dataset) & (rows.architecture == panel.architecture) & (rows.method == method)
    here &= rows.situation.astype(str).str.startswith(NULL) & (rows.metric == "asr") & (rows.access == results.accesses[0])
    return int((rows[here].value > 0.5).sum()), int(here.sum())


def explanations(results: Results) -> Table:
    """Wrong bits of the owner's QR code in explanations of a marked, an independent and an untrained model."""
    ways = {"gated-qr": "gated-qr", "lime": "LIME, random occlusion"}
    data, text = [], []
    for panel, method in _lines(results, marks_only=True):
        line = {}
        for way, name in ways.items():
            for situation in EXPLAINED:
                error, read = (
                    results.value(f"{metric}_{way}", panel, method, situation=situation, access=results.accesses[0])
                    for metric in ("bit_error", "decoded")
                )
                numbers = _numbers({"bit_error": error, "decoded": read})
                data.append({**_head(panel, method), "way": way, "situation": situation, **numbers, "status": _status(error)})
                line[f"{name}: {situation}"] = cell(error, interval=True)
        text.append({**_head(panel, method), **line})
    notes = [
        "Share of wrong modules of the owner's QR code in the explanation of answers to triggered images: 0 is the whole "
        "code, 0.5 is chance.",
        "gated-qr: the explanation step of StealthMark's released code. The verifier hides only cells that are dark in the "
        "code and calls every coefficient that is not zero dark; so the code appears in models that were never marked, and "
        "in one that was never trained. It is no evidence.",
        "LIME, random occlusion: the same images and as many queries, with occlusions that know nothing of the code.",
        seeds_note(results),
        *_footnotes(text),
    ]
    return _table(results, "explanations", "Whose models show the owner's QR code", data, text, notes)


def payload(results: Results) -> Table:
    """Of marks that carry a code: how many of its modules explanations find right, and how often they read it."""
    steps = [("none", 0.0), *((attack, s) for attack in results.attacks for s in results.strengths[attack])]
    stolen = {step_name(*step).replace("no attack", "stolen"): ("stolen", *step, "payload") for step in steps}
    others = {
        "wrong key": ("stolen", "none", 0.0, "payload-wrong-key"),
        "no key": ("stolen", "none", 0.0, "payload-no-key"),
        "independent": ("independent", "none", 0.0, "payload"),
        "untrained": ("untrained", "none", 0.0, "payload"),
    }
    by_lime = {f"{name}, by LIME": (*place[:3], f"{place[3]}-lime") for name, place in (stolen | others).items()}
    pooled = {"payload": "payload-pooled", "payload-lime": "payload-pooled-lime"}
    ends = {attack: name for name, (_, attack, *_) in stolen.items()}  # the strongest of each attack is its last
    natural = {f"{name}, natural answers": (*stolen[name][:3], "payload-natural") for name in ends.values()}
    natural["independent, natural answers"] = ("independent", "none", 0.0, "payload-natural")
    marks = [pair for pair in _lines(results, marks_only=True) if carries(results, *pair)]
    data, text = [], []
    for panel, method in marks:
        for suspect, (situation, attack, strength, way) in (stolen | others | by_lime | natural).items():
            line = {}
            for level in results.accesses:
                place = (panel, method, attack, strength, situation, level)
                error, read = (results.value(f"{metric}_{way}", *place) for metric in ("bit_error", "decoded"))
                together = results.value(f"decoded_{pooled[way]}" if way in pooled else "", *place)
                p = results.value(f"chance_p_{pooled.get(way, way)}", *place)
                right = error._replace(mean=1 - error.mean, low=1 - error.high, high=1 - error.low)
                where = {"suspect": suspect, "way": way, "attack": attack, "strength": strength, "access": level}
                numbers = _numbers({"right": right, "read": read, "together": together, "p": p})
                data.append({**_head(panel, method), **where, **numbers, "status": _status(error)})
                shown = cell(right, interval=True)
                shown += f"; read {read.mean:.2f}" if read.status == "ok" else ""
                shown += f", together {together.mean:.2f}" if together.status == "ok" else ""
                line[style.access_name(level)] = shown + (f"; p {_p(p)}" if p.status == "ok" else "")
            text.append({**_head(panel, method), "suspect": suspect, **line})
    notes = [
        "Share of the code's modules that one image's explanation finds right: 1 is the whole code, 0.5 is chance; then how "
        "often the owner's text is read from it. Random occlusions; what hiding a cell adds to the answer in that cell.",
        "By LIME: the same answers, of which only the mean is explained, by ridge regression on which cells were hidden.",
        "Together: how often it is read from the mean of the maps of all images of a try. Natural answers: nothing hidden; the "
        "level of the background in the answers to all test images, where a mark with the option natural has put its code too.",
        "p, of a keyed hash: how probable so many right bits are, or more, in what knows nothing of the key (binomial, exact, "
        "since the key is random); of a try's images together, the largest p of tries and seeds.",
        "Wrong key: the stolen model, hidden cells behind another key's picture. No key: behind black, as anybody would ask.",
        seeds_note(results),
        *_footnotes(text),
    ]
    return _table(results, "payload", "The code in the model", data, text, notes)


def carries(results: Results, panel: Panel, method: str) -> bool:
    """Was a code looked for that the mark itself carries?"""
    return any(results.value("bit_error_payload", panel, method, access=level).status == "ok" for level in results.accesses)


def failed(results: Results) -> Table:
    """Every row whose status is not ok, as it is."""
    columns = ["dataset", "architecture", "seed", "method", "situation", "attack", "strength", "access", "status"]
    data = failures(results.rows)[columns].drop_duplicates()
    text = data.astype(object).where(data.notna(), ABSENT).astype(str)
    text["status"] = text.status.str.split().str.join(" ")
    return Table("failures", "Cells that failed", data, text)


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


def step_name(attack: str, strength: float) -> str:
    return "no attack" if attack == "none" else f"{style.attack_name(attack)} {style.strength_text(attack, strength)}"


def seeds_note(results: Results, brackets: bool = True) -> str:
    if len(results.seeds) > 1:
        return f"Mean over {len(results.seeds)} seeds" + ("; brackets: lowest and highest seed." if brackets else ".")
    text = "One seed"
    if brackets:
        text += (
            "; brackets: 95 % intervals over cases, groups (patients, videos) resampled for means, Clopper-Pearson at "
            "the effective sample size for rates"
        )
    return text + "."


def cases_notes(results: Results) -> list[str]:
    """How many test cases, and how many of them have an empty mask; of a dataset once, where its panels agree."""
    counted: dict[Panel, str] = {}
    for panel in results.panels:
        values = (results.value("dice", panel, method) for method in results.methods)
        n = next((value.n for value in values if value.status == "ok" and np.isfinite(value.n)), None)
        empty = next((v for m in results.methods if (v := results.value("empty_masks", panel, m)).status == "ok"), None)
        if n is not None:
            text = f"{n:.0f} test cases" + (" per seed" if len(results.seeds) > 1 else "")
            counted[panel] = text + (f", {empty.mean:.0f} with an empty mask." if empty else ".")
    texts = {dataset: {text for panel, text in counted.items() if panel.dataset == dataset} for dataset in results.datasets}
    of = {panel: panel.dataset if len(texts[panel.dataset]) == 1 else results.title(panel) for panel in counted}
    return list(dict.fromkeys(f"{of[panel]}: {text}" for panel, text in counted.items()))


def write(table: Table, folder: Path) -> list[Path]:
    """`<name>.csv` from the data, `<name>.md` and `<name>.tex` from the text."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{table.name}.{suffix}" for suffix in ("csv", "md", "tex")]
    table.data.to_csv(paths[0], index=False, float_format="%.6g")
    paths[1].write_text(markdown(table))
    paths[2].write_text(latex(table))
    return paths


def markdown(table: Table) -> str:
    lines = [list(table.text.columns), ["---"] * len(table.text.columns), *table.text.to_numpy().tolist()]
    body = "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines)
    return "\n\n".join([body, *table.notes]) + "\n"


def latex(table: Table) -> str:
    """A booktabs tabular, then the notes as one paragraph."""
    columns = "l" * len(table.text.columns)
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", _tex_line(table.text.columns), "\\midrule"]
    lines += [_tex_line(line) for line in table.text.to_numpy().tolist()]
    lines += ["\\bottomrule", "\\end{tabular}"]
    notes = [f"\\par\\footnotesize {' '.join(map(_tex, table.notes))}"] if table.notes else []
    return "\n".join(lines + notes) + "\n"


def _tex_line(cells: list) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"


TEX = str.maketrans(
    {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", "–": "--", "·": r"$\cdot$"}
    | {char: f"\\{char}" for char in "{}%_&#$"}
)


def _tex(text: str) -> str:
    # A line that begins with a bracket would be read as the argument of the line break before it.
    return str(text).translate(TEX).replace("[", "{[}").replace("]", "{]}")


def _table(results: Results, name: str, title: str, data: list[dict], text: list[dict], notes: list[str]) -> Table:
    frame = pd.DataFrame(text)
    if len(results.architectures) == 1 and "architecture" in frame:
        frame = frame.drop(columns="architecture")
    return Table(name, title, pd.DataFrame(data), frame, notes)


def _lines(results: Results, marks_only: bool = False) -> list[tuple[Panel, str]]:
    methods = results.marks if marks_only else results.methods
    return [(panel, method) for panel in results.panels for method in methods]


def _head(panel: Panel, method: str) -> dict:
    return {**panel._asdict(), "method": method}


def _numbers(values: dict[str, Value], prefix: str = "") -> dict:
    found = {}
    for name, value in values.items():
        found[prefix + name] = value.mean
        if name.removesuffix("_triggered") in QUALITY:
            found[f"{prefix}{name}_change"] = value.change
        found |= {f"{prefix}{name}_low": value.low, f"{prefix}{name}_high": value.high}
    any_value = next((v for v in values.values() if v.status == "ok"), Value())
    return {**found, f"{prefix}seeds": any_value.seeds, f"{prefix}n": any_value.n}


def _status(value: Value) -> str:
    return "some seeds failed" if value.part else value.status


def _both(asr: Value, dice: Value) -> str:
    if asr.status != "ok":
        return cell(asr)
    text = f"{asr.mean:.2f}" + ("*" if asr.part else "")
    return f"{text}; {cell(dice, change=True)}" if dice.status == "ok" else text


def _p(value: Value) -> str:
    if value.status != "ok":
        return cell(value)
    p = value.high if value.seeds > 1 else value.mean
    return "< 1e-16" if p < 1e-16 else f"{p:.2g}"


def _rounded(change: float) -> str:
    # A change that rounds to nothing has no sign.
    return f"{change:+.1f}" if abs(change) >= 0.05 else "0.0"


def _missing(results: Results, panel: Panel, method: str) -> str:
    return FAILED if results.value("dice", panel, method).status == "failed" else ABSENT


def _harmless(answers: list[str]) -> str:
    """All must be yes, so no answer needs adjusting for how many there are; one no is enough."""
    if not answers:
        return ABSENT
    return "no" if "no" in answers else "yes" if set(answers) == {"yes"} else "undecided"


def _metric_title(name: str) -> str:
    return style.METRICS[name.removesuffix("_triggered")] + (", triggered" if name.endswith("_triggered") else "")


def _change(change: Change) -> str:
    """`-1.1 [-2.3, +0.3]`"""
    return "{} [{}, {}]".format(*map(_rounded, (change.mean, change.low, change.high)))


def _change_numbers(name: str, change: Change) -> dict:
    fields = {"change": change.mean, "low": change.low, "high": change.high, "pairs": change.pairs}
    return {f"{name}_{field}": value for field, value in fields.items()}


def _footnotes(text: list[dict]) -> list[str]:
    """The signs that occur in this table, explained."""
    cells = [str(value) for line in text for value in line.values()]
    notes = []
    if FAILED in cells:
        notes.append("failed: the cell could not be computed; see the table of failures.")
    if any("*" in c for c in cells):
        notes.append("*: some seeds failed and are not in the mean.")
    if ABSENT in cells:
        clean = any(line["method"] == CLEAN for line in text)
        controls = [line["method"] for line in text if line["method"] != CLEAN and line.get("AUROC") == ABSENT]
        why = f"; {', '.join(dict.fromkeys(controls))}: a control without a mark" if controls else ""
        notes.append(f"{ABSENT}: not measured" + (f" (a clean model has no key{why})." if clean else "."))
    return notes
