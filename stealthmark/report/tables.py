"""Rows -> tables: numbers for machines (CSV) and the same cells as text for people (Markdown, LaTeX, the page)."""

from stealthmark.access import WEIGHTS
from stealthmark.layout import CLEAN, INDEPENDENT, NULL, Place
from stealthmark.metrics import CALIBRATION
from stealthmark.report import by_seed, explanation_tables, facts, model_level, shown_code, situations, style
from stealthmark.report.changes import Measure
from stealthmark.report.formatting import (
    ABSENT,
    Table,
    cases_notes,
    cell,
    fingerprint_notes,
    guaranteed_notes,
    head,
    lines,
    numbers,
    p_value,
    presence_and_dice,
    seeds_note,
    smallest_p,
    status,
    step_name,
    table,
    titled,
    zero_note,
)
from stealthmark.report.harm_tables import calibration, harm
from stealthmark.report.results import AS_STOLEN, OTHERS_MODEL, PLACE, SCANS, TRIGGERED, Panel, Results, failures

#: What a detector says: at the owner's frozen threshold, and whatever the threshold.
DETECTION = ("asr", "auroc", "auroc_null")


def all_tables(results: Results) -> list[Table]:
    """The tables of a run: main, harm, robustness, false_claims; where there is something to show, calibration, by-seed,
    access, ownership, queries, scanners, explanations, payload, verdicts, situations, failures."""
    tables = [main(results), harm(results)]
    if results.rows.metric.isin(CALIBRATION).any():
        tables.append(calibration(results))
    tables += [robustness(results), false_claims(results)]
    if len(results.seeds) > 1:
        tables.append(by_seed.table_of(results))
    if len(results.accesses) > 1:
        tables.append(access(results))
    if results.has(metric="p_model"):
        tables.append(ownership(results))
    tables += model_level.tables(results)
    if results.scanners:
        tables.append(scanners(results))
    tables += [*shown_code.tables(results), *explanation_tables.tables(results), *situations.tables(results)]
    if len(failures(results.rows)):
        tables.append(failed(results))
    return tables


def main(results: Results) -> Table:
    """The paper's table: quality on benign and on triggered images, and detection, before any attack; then, where there are
    null models with a verdict, in how many of them ownership is wrongly shown."""
    columns = {
        "Dice": (Measure("dice"), True, True),
        "AUC": (Measure("auc"), True, False),
        "VS": (Measure("vs"), True, False),
        "Dice, triggered": (Measure("dice", TRIGGERED), True, True),
        "ASR": (Measure("asr", ""), False, True),
        "FPR": (Measure("fpr", ""), False, True),
        "AUROC": (Measure("auroc", ""), False, False),
    }
    if results.has(metric="auroc_null"):
        columns["AUROC, nulls"] = (Measure("auroc_null", ""), False, False)
    innocent = situations.innocent(results)
    data, text = [], []
    for panel, method in lines(results):
        values = {m.column: results.value(m.metric, panel, method, query=m.query) for m, _, _ in columns.values()}
        line = {title: cell(values[m.column], change, interval) for title, (m, change, interval) in columns.items()}
        shown = {}
        for name, members in innocent.items():
            count = situations.wrongly_shown(results, panel, method, members)
            line[f"shown, {name}"] = count.text()
            column = name.replace(" ", "_")
            shown |= {f"shown_{column}": count.shown, f"examined_{column}": count.n, f"shown_{column}_high": count.high}
        data.append({**head(panel, method), **numbers(values), **shown, "status": status(values["dice"])})
        text.append({**titled(results, panel, method), **line})
    notes = [
        zero_note(results),
        seeds_note(results),
        *cases_notes(results),
        "ASR: triggered queries that the frozen detector calls marked; FPR: untriggered queries that it calls marked. AUROC: "
        "how well the scores of triggered and ordinary queries of the same model separate, whatever the threshold"
        + ("; nulls: its triggered queries against those of all null models." if "AUROC, nulls" in columns else "."),
        *guaranteed_notes(results),
        *([situations.INNOCENT_NOTE] if innocent else []),
        *fingerprint_notes(results),
    ]
    return table(results, "main", "Marks before any attack", data, text, notes)


def robustness(results: Results) -> Table:
    """ASR, AUROC and Dice after each attack; every strength in the data, at most three of each attack in the text."""
    some = [AS_STOLEN, *(Place(attack=a, strength=s) for a in results.attacks for s in results.some_strengths(a))]
    asked = [metric for metric in (*DETECTION, "dice", "fpr") if metric != DETECTION[-1] or results.has(metric=metric)]
    data, text = [], []
    for panel, method in lines(results, marks_only=True):
        for place in results.steps():
            values = {metric: results.value(metric, panel, method, place) for metric in asked}
            where = {"attack": place.attack, "strength": place.strength}
            data.append({**head(panel, method), **where, **numbers(values), "status": status(values["asr"])})
        line = {}
        for place in some:
            found = [results.value(metric, panel, method, place) for metric in (*DETECTION, "dice")]
            line["no attack" if place.as_stolen else step_name(results, place)] = presence_and_dice(*found)
        text.append({**titled(results, panel, method), **line})
    notes = [
        "ASR at the threshold that was frozen before; AUROC of triggered against ordinary queries of the same model, which no "
        "threshold decides"
        + (" (nulls: against triggered queries of the null models)" if DETECTION[-1] in asked else "")
        + ": a mark can be present where its calibration is gone.",
        zero_note(results, "Then Dice on benign images, with its change"),
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
        *guaranteed_notes(results),
    ]
    return table(results, "false_claims", "False claims against an independent model", data, text, notes)


def access(results: Results) -> Table:
    """ASR at each access level, before any attack."""
    levels = [*results.accesses, *([WEIGHTS] if results.of_kind(facts.WHITE_BOX) else [])]
    asked = [metric for metric in (*DETECTION, "fpr") if metric != DETECTION[-1] or results.has(metric=metric)]
    data, text = [], []
    for panel, method in lines(results, marks_only=True):
        line = dict.fromkeys(map(style.access_name, levels), ABSENT)
        for level in results.levels(method):
            place = AS_STOLEN._replace(access=level)
            values = {metric: results.value(metric, panel, method, place) for metric in asked}
            data.append({**head(panel, method), "access": level, **numbers(values), "status": status(values["asr"])})
            auroc = f"; AUROC {cell(values['auroc'])}" if values["auroc"].status == "ok" else ""
            line[style.access_name(level)] = cell(values["asr"], interval=True) + auroc
        text.append({**titled(results, panel, method), **line})
    notes = [
        "ASR when the suspect's interface shows only this much; below it the AUROC of triggered against ordinary queries, "
        "which no threshold decides.",
        seeds_note(results),
        *guaranteed_notes(results),
    ]
    return table(results, "access", "ASR by what the suspect's interface shows", data, text, notes)


def ownership(results: Results) -> Table:
    """Whose model is it? The suspect's rank among models that nobody stole; and how many of those are accused."""
    data, text = [], []
    for panel, method in lines(results, marks_only=True):
        line = {}
        for place in (*results.strongest(), OTHERS_MODEL):
            p, unmarked, score = (results.value(m, panel, method, place) for m in ("p_model", "p_unmarked", "score"))
            where = {"role": place.role, "attack": place.attack, "strength": place.strength}
            columns = {"p": p.mean, "p_largest": p.high, "nulls": p.n}
            if unmarked.status == "ok":
                columns |= {"p_unmarked": unmarked.mean, "p_unmarked_largest": unmarked.high, "nulls_unmarked": unmarked.n}
            if score.status == "ok":
                columns |= {"score": score.mean, "score_low": score.low, "score_high": score.high}
            data.append({**head(panel, method), **where, **columns, "status": status(p)})
            text_of_p = p_value(p) + (f"; unmarked {p_value(unmarked)}" if unmarked.status == "ok" else "")
            text_of_p += f"; score {cell(score, interval=True)}" if score.status == "ok" else ""
            line[f"p, {INDEPENDENT if place == OTHERS_MODEL else step_name(results, place)}"] = text_of_p
        accused, pool = _accused(results, panel, method)
        line["null models accused"] = f"{accused} of {pool}" if pool else ABSENT
        data[-1] |= {"nulls_accused": accused, "nulls_examined": pool}
        text.append({**titled(results, panel, method), **line})
    notes = [
        "p: the unit is the model. The suspect's mean score over triggered queries is ranked among null models (never marked, "
        "or marked by another method): (1 + nulls at or above it) / (1 + nulls). Largest over seeds.",
        f"The smallest p that this pool allows is {smallest_p(results)}.",
        *(["Unmarked: the same rank among null models that were never marked."] if results.has(metric="p_unmarked") else []),
        *(["Score: the mean over triggered queries, its interval from groups."] if results.has(metric="score") else []),
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
