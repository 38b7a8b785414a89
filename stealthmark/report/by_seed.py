"""Each seed alone: what the means over seeds in the other tables are made of."""

from stealthmark.report.changes import Measure, paired_change
from stealthmark.report.formatting import (
    Table,
    cell,
    change_numbers,
    change_text,
    head,
    lines,
    numbers,
    presence_and_dice,
    status,
    step_name,
    table,
    titled,
)
from stealthmark.report.results import AS_STOLEN, TRIGGERED, Results

#: The columns for people: title -> metric, and the query of quality.
COLUMNS = {
    "Dice": Measure("dice"),
    "Dice, triggered": Measure("dice", TRIGGERED),
    "ASR": Measure("asr", ""),
    "FPR": Measure("fpr", ""),
    "AUROC": Measure("auroc", ""),
}
METRICS = ("asr", "auroc", "auroc_null", "dice")


def table_of(results: Results) -> Table:
    """A line for each dataset, architecture, method and seed; every strength of every attack in the data."""
    alone = {seed: results.of_seed(seed) for seed in results.seeds}
    data, text = [], []
    for panel, method in lines(results):
        for seed, own in alone.items():
            values = {m.column: own.value(m.metric, panel, method, query=m.query) for m in COLUMNS.values()}
            line = {title: cell(values[m.column], interval=True) for title, m in COLUMNS.items()}
            columns = numbers(values)
            for title, measure in COLUMNS.items():
                if measure.metric == "dice":
                    change = paired_change(own, panel, method, measure)
                    columns |= change_numbers(measure.column, change)
                    line[title] += f"; {change_text(change)}" if change.pairs else ""
            start = {**head(panel, method), "seed": seed}
            data.append({**start, **AS_STOLEN._asdict(), **columns, "status": status(values["dice"])})
            for place in results.steps()[1:]:
                after = {metric: own.value(metric, panel, method, place) for metric in METRICS}
                if method in results.marks:
                    data.append({**start, **place._asdict(), **numbers(after), "status": status(after["asr"])})
                if place.strength in results.some_strengths(place.attack):
                    line[step_name(results, place)] = presence_and_dice(*after.values())
            text.append({**titled(results, panel, method), "seed": f"{seed:.0f}", **line})
    notes = [
        "Each seed alone, with its own 95 % intervals over cases, groups (patients, videos) as the unit. Below Dice: the "
        f"paired change against {results.against} of this seed, in points. After attacks: as in the table of robustness.",
        "Every strength and every interval: by-seed.csv.",
    ]
    return table(results, "by-seed", "Each seed alone", data, text, notes)
