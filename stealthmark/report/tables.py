"""Rows -> tables: numbers for machines (CSV) and the same cells as text for people (Markdown, LaTeX, the page)."""

import numpy as np

from stealthmark.access import WEIGHTS
from stealthmark.layout import CLEAN, INDEPENDENT, NULL, Place
from stealthmark.metrics import CALIBRATION, SEGMENTATION
from stealthmark.report import explanation_tables, facts, situations, style
from stealthmark.report.formatting import (
    ABSENT,
    FAILED,
    Table,
    asr_and_dice,
    cases_notes,
    cell,
    change_numbers,
    change_text,
    head,
    lines,
    metric_title,
    numbers,
    p_value,
    seeds_note,
    smallest_p,
    status,
    step_name,
    table,
    titled,
)
from stealthmark.report.results import (
    AS_STOLEN,
    BENIGN,
    HARM_MARGIN,
    OTHERS_MODEL,
    PLACE,
    SCANS,
    TRIGGERED,
    Change,
    Measure,
    Panel,
    Results,
    failures,
    paired_change,
)

QUERIES = (BENIGN, TRIGGERED)


def all_tables(results: Results) -> list[Table]:
    """The tables of a run: main, harm, robustness, false_claims; where there is something to show, calibration, access,
    ownership, scanners, explanations, payload, verdicts, situations, failures."""
    tables = [main(results), harm(results)]
    if results.rows.metric.isin(CALIBRATION).any():
        tables.append(calibration(results))
    tables += [robustness(results), false_claims(results)]
    if len(results.accesses) > 1:
        tables.append(access(results))
    if results.has(metric="p_model"):
        tables.append(ownership(results))
    if results.scanners:
        tables.append(scanners(results))
    tables += [*explanation_tables.tables(results), *situations.tables(results)]
    if len(failures(results.rows)):
        tables.append(failed(results))
    return tables


def main(results: Results) -> Table:
    """The paper's table: quality on benign and on triggered images, and detection, before any attack."""
    columns = {
        "Dice": (Measure("dice"), True, True),
        "AUC": (Measure("auc"), True, False),
        "VS": (Measure("vs"), True, False),
        "Dice, triggered": (Measure("dice", TRIGGERED), True, True),
        "ASR": (Measure("asr", ""), False, True),
        "FPR": (Measure("fpr", ""), False, True),
        "AUROC": (Measure("auroc", ""), False, False),
    }
    data, text = [], []
    for panel, method in lines(results):
        values = {m.column: results.value(m.metric, panel, method, query=m.query) for m, _, _ in columns.values()}
        data.append({**head(panel, method), **numbers(values), "status": status(values["dice"])})
        line = {title: cell(values[m.column], change, interval) for title, (m, change, interval) in columns.items()}
        text.append({**titled(results, panel, method), **line})
    notes = [
        "In parentheses: change against the clean model of the same seed, in points (hundredths).",
        seeds_note(results),
        *cases_notes(results),
        "ASR: triggered queries that the frozen detector calls marked; FPR: untriggered queries that it calls marked.",
        *_fingerprints(results),
    ]
    return table(results, "main", "Marks before any attack", data, text, notes)


def _fingerprints(results: Results) -> list[str]:
    """A note on methods that change no model."""
    names = ", ".join(results.of_kind(facts.FINGERPRINT))
    return [f"{names}: a fingerprint. Nothing is embedded; the model is the clean one."] if names else []


def harm(results: Results) -> Table:
    """What the mark costs its owner: paired change against clean, patients resampled, and a verdict at the margin."""
    data, text = [], []
    for panel, method in lines(results, marks_only=True):
        columns, line, harmless = {}, {}, {}
        for query in QUERIES:
            measures = [Measure(name, query) for name in SEGMENTATION]
            changes = {measure: paired_change(results, panel, method, measure) for measure in measures}
            for measure, change in changes.items():
                name = measure.column
                bound, p, answer = change.verdict or (np.nan, np.nan, ABSENT)
                columns |= change_numbers(name, change)
                columns |= {f"{name}_bound": bound, f"{name}_p": p, f"{name}_noninferior": answer}
                verdict = f"{change_text(change)}; {answer}" if change.pairs else _missing(results, panel, method)
                line[metric_title(measure)] = verdict
            harmless[query] = _harmless([change.verdict.answer for change in changes.values() if change.verdict])
        benign, triggered = harmless.values()
        data.append({**head(panel, method), **columns, "harmless": benign, "harmless_triggered": triggered})
        verdict = benign if ABSENT in (benign, triggered) else f"{benign}; triggered: {triggered}"
        text.append({**titled(results, panel, method), **line, "harmless": verdict})
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
        *_fingerprints(results),
    ]
    return table(results, "harm", "What a mark costs its owner", data, text, notes)


def _missing(results: Results, panel: Panel, method: str) -> str:
    return FAILED if results.value("dice", panel, method).status == FAILED else ABSENT


def _harmless(answers: list[str]) -> str:
    """All must be yes, so no answer needs adjusting for how many there are; one no is enough."""
    if not answers:
        return ABSENT
    return "no" if "no" in answers else "yes" if set(answers) == {"yes"} else "undecided"


def calibration(results: Results) -> Table:
    """Whether probabilities still mean what they say: ECE and Brier score with their paired change against clean."""
    data, text = [], []
    for panel, method in lines(results):
        columns, line = {}, {}
        for measure in (Measure(name, query) for query in QUERIES for name in CALIBRATION):
            value = results.value(measure.metric, panel, method, query=measure.query)
            change = Change() if method == CLEAN else paired_change(results, panel, method, measure)
            columns |= {measure.column: value.mean, **change_numbers(measure.column, change)}
            second = f"; {change_text(change)}" if change.pairs and value.status == "ok" else ""
            line[metric_title(measure)] = cell(value) + second
        data.append({**head(panel, method), **columns, "status": status(results.value(CALIBRATION[0], panel, method))})
        text.append({**titled(results, panel, method), **line})
    notes = [
        "ECE: expected calibration error of each image, its pixels in 15 bins of equal width by their probability of "
        "foreground: the difference between mean probability and share of foreground, weighted by pixels (Guo et al. 2017). "
        "Brier: mean squared difference between probability and mask. Both 0 to 1, less is better, mean over images.",
        "Below each: mean change against the clean model on the same images without trigger, in points (hundredths), with its "
        "95 % interval, groups (patients, videos) resampled, all seeds of a group together. Every interval: calibration.csv.",
    ]
    return table(results, "calibration", "What a mark does to probabilities", data, text, notes)


def robustness(results: Results) -> Table:
    """ASR and Dice after each attack; every strength in the data, at most three of each attack in the text."""
    some = [AS_STOLEN, *(Place(attack=a, strength=s) for a in results.attacks for s in results.some_strengths(a))]
    data, text = [], []
    for panel, method in lines(results, marks_only=True):
        for place in results.steps():
            values = {metric: results.value(metric, panel, method, place) for metric in ("asr", "dice", "fpr")}
            where = {"attack": place.attack, "strength": place.strength}
            data.append({**head(panel, method), **where, **numbers(values), "status": status(values["asr"])})
        line = {}
        for place in some:
            asr, dice = (results.value(metric, panel, method, place) for metric in ("asr", "dice"))
            line["no attack" if place.as_stolen else step_name(results, place)] = asr_and_dice(asr, dice)
        text.append({**titled(results, panel, method), **line})
    notes = [
        "ASR; then Dice on benign images with its change against the unattacked clean model, in points.",
        seeds_note(results, brackets=False),
        "Every strength and every interval: robustness.csv.",
    ]
    return table(results, "robustness", "Marks after attacks", data, text, notes)


def false_claims(results: Results) -> Table:
    """A model that is not the owner's, examined with the owner's key."""
    data, text = [], []
    for panel, method in lines(results, marks_only=True):
        own = {metric: results.value(metric, panel, method) for metric in ("asr", "fpr", "chi2_p")}
        other = {metric: results.value(metric, panel, method, OTHERS_MODEL) for metric in ("asr", "fpr", "auroc", "chi2_p")}
        columns = {**numbers(own, "stolen_"), **numbers(other, "independent_")}
        data.append({**head(panel, method), **columns, "status": status(other["asr"])})
        line = {
            "ASR, stolen": cell(own["asr"], interval=True),
            "ASR, independent": cell(other["asr"], interval=True),
            "FPR, independent": cell(other["fpr"], interval=True),
            "AUROC, independent": cell(other["auroc"]),
            "p, stolen": p_value(own["chi2_p"]),
            "p, independent": p_value(other["chi2_p"]),
        }
        text.append({**titled(results, panel, method), **line})
    notes = [
        "Independent: a clean model that another party trained on other data. Its ASR is the rate of false claims per "
        "query and should be as low as the FPR.",
        "p: the paper's chi-square on the table detector x triggered (no Yates correction). It asks whether answers "
        "differ with and without the trigger, so it can be small for a model never marked. Largest over seeds.",
        seeds_note(results),
    ]
    return table(results, "false_claims", "False claims against an independent model", data, text, notes)


def access(results: Results) -> Table:
    """ASR at each access level, before any attack."""
    levels = [*results.accesses, *([WEIGHTS] if results.of_kind(facts.WHITE_BOX) else [])]
    data, text = [], []
    for panel, method in lines(results, marks_only=True):
        line = dict.fromkeys(map(style.access_name, levels), ABSENT)
        for level in results.levels(method):
            place = AS_STOLEN._replace(access=level)
            values = {metric: results.value(metric, panel, method, place) for metric in ("asr", "fpr", "auroc")}
            data.append({**head(panel, method), "access": level, **numbers(values), "status": status(values["asr"])})
            line[style.access_name(level)] = cell(values["asr"], interval=True)
        text.append({**titled(results, panel, method), **line})
    notes = ["ASR when the suspect's interface shows only this much.", seeds_note(results)]
    return table(results, "access", "ASR by what the suspect's interface shows", data, text, notes)


def ownership(results: Results) -> Table:
    """Whose model is it? The suspect's rank among models that nobody stole; and how many of those are accused."""
    data, text = [], []
    for panel, method in lines(results, marks_only=True):
        line = {}
        for place in (*results.strongest(), OTHERS_MODEL):
            p = results.value("p_model", panel, method, place)
            where = {"role": place.role, "attack": place.attack, "strength": place.strength}
            columns = {"p": p.mean, "p_largest": p.high, "nulls": p.n, "status": status(p)}
            data.append({**head(panel, method), **where, **columns})
            line[f"p, {INDEPENDENT if place == OTHERS_MODEL else step_name(results, place)}"] = p_value(p)
        accused, pool = _accused(results, panel, method)
        line["null models accused"] = f"{accused} of {pool}" if pool else ABSENT
        data[-1] |= {"nulls_accused": accused, "nulls_examined": pool}
        text.append({**titled(results, panel, method), **line})
    notes = [
        "p: the unit is the model. The suspect's mean score over triggered queries is ranked among null models (never marked, "
        "or marked by another method): (1 + nulls at or above it) / (1 + nulls). Largest over seeds.",
        f"The smallest p that this pool allows is {smallest_p(results)}.",
        "Null models accused: those of which the frozen detector calls most triggered queries marked.",
    ]
    return table(results, "ownership", "Whose model is it", data, text, notes)


def _accused(results: Results, panel: Panel, method: str) -> tuple[int, int]:
    """How many models of the null pool have an ASR above one half, and how many there are, over all seeds."""
    rows = results.rows
    asr = (rows.dataset == panel.dataset) & (rows.architecture == panel.architecture) & (rows.method == method)
    asr &= (rows.role == NULL) & (rows.metric == "asr") & (rows.access == results.levels(method)[0])
    return int((rows[asr].value > 0.5).sum()), int(asr.sum())


def scanners(results: Results) -> Table:
    """How backdoored a model looks to somebody who has it and no key, and its rank among models that were never marked."""
    data, text = [], []
    for panel, method in lines(results):
        line = {}
        for scanner in results.scanners:
            for place in (AS_STOLEN, OTHERS_MODEL) if method == CLEAN else (AS_STOLEN,):
                score, p = (results.value(metric, panel, method, place, reader=scanner) for metric in SCANS)
                columns = {"score": score.mean, "score_low": score.low, "score_high": score.high, "p": p.mean, "nulls": p.n}
                where = {"scanner": scanner, "role": place.role}
                data.append({**head(panel, method), **where, **columns, "status": status(score)})
                if place == AS_STOLEN:
                    second = f"; p {p_value(p)}" if p.status == "ok" else ""
                    line[results.facts.scanner(scanner).title] = cell(score, interval=True) + second
        text.append({**titled(results, panel, method), **line})
    notes = ["How backdoored the model looks to somebody who has it and knows no key; more is more suspicious."]
    if results.has(metric=SCANS[1]):
        ranked = results.rows[results.rows.metric == SCANS[1]]
        notes.append(
            "p: its rank among null models that were never marked, (1 + nulls that look at least as backdoored) / (1 + nulls), "
            f"largest over seeds; the smallest p that this pool allows is {1 / (1 + ranked.n.min()):.3g}."
        )
    return table(
        results, "scanners", "Does it look backdoored", data, text, [*notes, seeds_note(results, len(results.seeds) > 1)]
    )


def failed(results: Results) -> Table:
    """Every row whose status is not ok, as it is."""
    data = failures(results.rows)[["dataset", "architecture", "seed", "method", *PLACE, "status"]].drop_duplicates()
    text = data.astype(object).where(data.notna() & (data != ""), ABSENT).astype(str)
    text["status"] = text.status.str.split().str.join(" ")
    return Table("failures", "Cells that failed", data, text)
