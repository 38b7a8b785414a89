"""Tables of what explanations of a suspect's answers show: the owner's QR code, and codes that marks carry."""

from typing import NamedTuple

from stealthmark.layout import INDEPENDENT, STOLEN, UNTRAINED, Place
from stealthmark.report import facts, style
from stealthmark.report.formatting import (
    Table,
    cell,
    head,
    lines,
    numbers,
    p_value,
    seeds_note,
    status,
    step_name,
    table,
    titled,
)
from stealthmark.report.results import AS_STOLEN, OTHERS_MODEL, Panel, Results, Value

#: Ways to read an explanation of triggered images against a code that no model carries, and their titles.
READERS = {"gated-qr": "gated-qr", "lime": "LIME, random occlusion"}
#: The code in the level of the answers themselves, of several images together.
LEVEL = "level"
EXPLAINED = (STOLEN, INDEPENDENT, UNTRAINED)
#: Ways to read a code that a mark carries, and what a line's name ends in.
CODE_READERS = {"in-place": "", "lime": ", by LIME"}


class Probe(NamedTuple):
    """A line of the payload table: a suspect, what it is asked with (see rows.csv), and how its answers are read."""

    place: Place
    query: str
    reader: str


def tables(results: Results) -> list[Table]:
    """`explanations` and `payload`, where there is something to show."""
    made = [explanations(results)] if results.has(metric="bit_error", query="trigger") else []
    return [*made, *([payload(results)] if marks_with_code(results) else [])]


def explanations(results: Results) -> Table:
    """Wrong bits of the owner's QR code in explanations of a marked, an independent and an untrained model."""
    data, text = [], []
    readers = {reader: title for reader, title in READERS.items() if results.has(query="trigger", reader=reader)}
    by_level = results.has(metric="bit_error", query="trigger", reader=LEVEL)
    readers |= {LEVEL: "level of all answers"} if by_level else {}
    for panel, method in ((panel, method) for panel, method in lines(results) if method not in results.of_kind(facts.NONE)):
        line = {}
        for reader, title in readers.items():
            for role in EXPLAINED:
                error, read = (
                    results.value(metric, panel, method, Place(role), query="trigger", reader=reader, pooled=reader == LEVEL)
                    for metric in ("bit_error", "decoded")
                )
                columns = numbers({"bit_error": error, "decoded": read})
                data.append({**head(panel, method), "reader": reader, "role": role, **columns, "status": status(error)})
                line[f"{title}: {role}"] = cell(error, interval=True)
        text.append({**titled(results, panel, method), **line})
    notes = [
        "Share of wrong modules of the owner's QR code in the explanation of answers to triggered images: 0 is the whole "
        "code, 0.5 is chance.",
        "gated-qr: the explanation step of StealthMark's released code. The verifier hides only cells that are dark in the "
        "code and calls every coefficient that is not zero dark; so the code appears in models that were never marked, and "
        "in one that was never trained. It is no evidence.",
        "LIME, random occlusion: the same images and as many queries, with occlusions that know nothing of the code.",
        *(["Level: the code as triggered answers themselves show it, of all images together; nothing is hidden."] * by_level),
        seeds_note(results),
    ]
    return table(results, "explanations", "Whose models show the owner's QR code", data, text, notes)


def payload(results: Results) -> Table:
    """Of marks that carry a code: how many of its modules explanations find right, and how often they read it."""
    data, text = [], []
    for panel, method in marks_with_code(results):
        for suspect, probe in probes(results).items():
            line = {}
            for level in results.accesses:
                place = probe.place._replace(access=level)
                where = {"suspect": suspect, "query": probe.query, "reader": probe.reader, **place._asdict()}
                values = _code_values(results, panel, method, probe._replace(place=place))
                data.append({**head(panel, method), **where, **numbers(values), "status": status(values["right"])})
                line[style.access_name(level)] = _code_text(**values)
            text.append({**titled(results, panel, method), "suspect": suspect, **line})
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
    ]
    return table(results, "payload", "The code in the model", data, text, notes)


def probes(results: Results) -> dict[str, Probe]:
    """The lines of the payload table by name, for the readers of this run."""
    suspects = {step_name(results, place): (place, "key") for place in results.steps()}
    suspects |= {"wrong key": (AS_STOLEN, "wrong-key"), "no key": (AS_STOLEN, "no-key")}
    suspects |= {INDEPENDENT: (OTHERS_MODEL, "key"), UNTRAINED: (Place(UNTRAINED), "key")}
    lines_of = {
        f"{suspect}{ending}": Probe(place, query, reader)
        for reader, ending in CODE_READERS.items()
        if reader in code_readers(results)
        for suspect, (place, query) in suspects.items()
    }
    natural = [*((step_name(results, place), place) for place in results.strongest()), (INDEPENDENT, OTHERS_MODEL)]
    return lines_of | {f"{suspect}, natural answers": Probe(place, "natural", "level") for suspect, place in natural}


def _code_values(results: Results, panel: Panel, method: str, probe: Probe) -> dict[str, Value]:
    """Modules that are right, how often the text is read from one image and from all of a try together, and the p-value."""

    def value(metric: str, pooled: bool) -> Value:
        return results.value(metric, panel, method, probe.place, query=probe.query, reader=probe.reader, pooled=pooled)

    at_once = probe.query == "natural"  # all images make one map
    error, read, p = value("bit_error", at_once), value("decoded", at_once), value("chance_p", True)
    right = error._replace(mean=1 - error.mean, low=1 - error.high, high=1 - error.low)
    return {"right": right, "read": read, "together": Value() if at_once else value("decoded", True), "p": p}


def _code_text(right: Value, read: Value, together: Value, p: Value) -> str:
    text = cell(right, interval=True)
    text += f"; read {read.mean:.2f}" if read.status == "ok" else ""
    text += f", together {together.mean:.2f}" if together.status == "ok" else ""
    return text + (f"; p {p_value(p)}" if p.status == "ok" else "")


def code_readers(results: Results) -> list[str]:
    """The ways in which codes were read that marks carry; the first is the one that figures show."""
    return [reader for reader in CODE_READERS if results.has(metric="bit_error", query="key", reader=reader)]


def marks_with_code(results: Results) -> list[tuple[Panel, str]]:
    """The lines of marks that carry a code which was looked for."""
    return [
        (panel, method)
        for panel, method in lines(results, marks_only=True)
        if results.facts.method(method).carries_code and any(_looked_for(results, panel, method))
    ]


def _looked_for(results: Results, panel: Panel, method: str) -> list[bool]:
    return [
        results.value("bit_error", panel, method, Place(access=level), query="key", reader=reader).status == "ok"
        for level in results.accesses
        for reader in code_readers(results)
    ]
