"""Tables of what a mark costs its owner: quality, and what probabilities are worth, against the zero."""

import numpy as np

from stealthmark.layout import CLEAN
from stealthmark.metrics import CALIBRATION, SEGMENTATION, THRESHOLD_DICE
from stealthmark.report.changes import Measure, paired_change
from stealthmark.report.formatting import (
    ABSENT,
    FAILED,
    Table,
    cell,
    change_numbers,
    change_text,
    fingerprint_notes,
    head,
    lines,
    metric_title,
    seeds_text,
    status,
    table,
    titled,
)
from stealthmark.report.results import BENIGN, HARM_MARGIN, TRIGGERED, Panel, Results

QUERIES = (BENIGN, TRIGGERED)


def harm(results: Results) -> Table:
    """What each method costs: paired change against its zero (`Results.zero`) and a verdict at the margin.

    With a control, the clean model has a line too: what it lacks in training. The control has one for triggered images. These
    two bring no mark that could be called harmless.
    """
    metrics = (*SEGMENTATION, *([THRESHOLD_DICE] if THRESHOLD_DICE in results.cases else []))
    own = [(panel, method) for panel, method in lines(results) if results.controls or method in results.marks]
    data, text = [], []
    for panel, method in own:
        columns, line, harmless = {}, {}, {}
        for query in QUERIES:
            measures = [Measure(name, query) for name in metrics]
            changes = {measure: paired_change(results, panel, method, measure) for measure in measures}
            for measure, change in changes.items():
                name = measure.column
                bound, p, answer = change.verdict or (np.nan, np.nan, ABSENT)
                columns |= change_numbers(name, change)
                columns |= {f"{name}_bound": bound, f"{name}_p": p, f"{name}_noninferior": answer}
                verdict = change_text(change) + (f"; {answer}" if method in results.marks else "") + seeds_text(change)
                line[metric_title(measure)] = verdict if change.pairs else _missing(results, panel, method)
            asked = [change.verdict.answer for m, change in changes.items() if change.verdict and m.metric in SEGMENTATION]
            harmless[query] = _harmless(asked)
        benign, triggered = harmless.values() if method in results.marks else (ABSENT, ABSENT)
        zero = results.zero(method)
        data.append({**head(panel, method), "zero": zero, **columns, "harmless": benign, "harmless_triggered": triggered})
        verdict = benign if ABSENT in (benign, triggered) else f"{benign}; triggered: {triggered}"
        text.append({**titled(results, panel, method), **line, "harmless": verdict})
    return table(results, "harm", "What a mark costs its owner", data, text, _harm_notes(results))


def _harm_notes(results: Results) -> list[str]:
    zero = results.controls[0] if results.controls else CLEAN
    several = len(results.seeds) > 1
    unit = "groups (patients, videos) being the unit"
    if several:
        unit = f"groups (patients, videos) and the {len(results.seeds)} seeds are both units; last the change of each seed"
    notes = [
        f"Mean change against {results.against} of the same seed, on the same test case: points for Dice, AUC and VS, px for "
        f"HD95 (less is better). Triggered images are compared with {zero} on the same images without trigger.",
        f"Brackets: 95 % intervals, {unit}. Cases where a metric is undefined are left out; harm.csv counts those that are in.",
    ]
    if results.controls:
        notes.insert(1, f"{zero} is ordinary training from the clean model for as long as a mark takes, so it has no change.")
    if THRESHOLD_DICE in results.cases:
        notes.append(
            "Dice over thresholds: the mean over 255 thresholds from 0 to 1 (Fan et al. 2020), in points. It is harm that the "
            "threshold 0.5 does not see, and no part of the verdict harmless."
        )
    side = "when the one-sided 95 % interval stays on the good side of that margin (p < 0.05 for "
    side += "non-inferiority), no when the opposite one-sided interval stays on the bad side, else undecided. The two-sided "
    side += "bracket is a little wider, so it may reach over the margin beside a yes. harm.csv has every bound and p."
    if several:
        side = (
            "when the bracket, and the test of all seeds together, stay on the good side of that margin, no when both stay on "
        )
        side += "the bad side, else undecided. harm.csv has every bound."
    return [
        *notes,
        f"Below each: is the model not worse by {HARM_MARGIN:g} point ({HARM_MARGIN:g} px)? yes {side} Fewer than five groups "
        "decide nothing.",
        "Harmless: yes when Dice, AUC, VS and HD95 all say yes, no when one says no; on benign, then on triggered images.",
        *fingerprint_notes(results),
    ]


def _missing(results: Results, panel: Panel, method: str) -> str:
    return FAILED if results.value("dice", panel, method).status == FAILED else ABSENT


def _harmless(answers: list[str]) -> str:
    """All must be yes, so no answer needs adjusting for how many there are; one no is enough."""
    if not answers:
        return ABSENT
    return "no" if "no" in answers else "yes" if set(answers) == {"yes"} else "undecided"


def calibration(results: Results) -> Table:
    """Whether probabilities still mean what they say: ECE and Brier score with their paired change against the zero."""
    data, text = [], []
    for panel, method in lines(results):
        columns, line = {}, {}
        for measure in (Measure(name, query) for query in QUERIES for name in CALIBRATION):
            value = results.value(measure.metric, panel, method, query=measure.query)
            change = paired_change(results, panel, method, measure)
            columns |= {measure.column: value.mean, **change_numbers(measure.column, change)}
            second = f"; {change_text(change)}" if change.pairs and value.status == "ok" else ""
            line[metric_title(measure)] = cell(value) + second
        data.append({**head(panel, method), **columns, "status": status(results.value(CALIBRATION[0], panel, method))})
        text.append({**titled(results, panel, method), **line})
    unit = (
        "groups (patients, videos) and seeds are both units"
        if len(results.seeds) > 1
        else "groups (patients, videos) being the unit"
    )
    notes = [
        "ECE: expected calibration error of each image, its pixels in 15 bins of equal width by their probability of "
        "foreground: the difference between mean probability and share of foreground, weighted by pixels (Guo et al. 2017). "
        "Brier: mean squared difference between probability and mask. Both 0 to 1, less is better, mean over images.",
        f"Below each: mean change against {results.against} on the same images without trigger, in points (hundredths), with "
        f"its 95 % interval, {unit}. Every interval: calibration.csv.",
    ]
    return table(results, "calibration", "What a mark does to probabilities", data, text, notes)
