"""Tables, figures and provenance -> one HTML page that needs no network and no script."""

import base64
import json
import os
import re
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape

from stealthmark.pages import template
from stealthmark.report import figures
from stealthmark.report.results import HARM_MARGIN, TAKES, THIEF_MARGIN, Results
from stealthmark.report.tables import ABSENT, FAILED, Table

TEMPLATE = "report.html.j2"
#: What the page prints of a provenance file in its own place; any other field is printed as it is.
KNOWN = ("datasets", "methods", "commands", "config", *(SECTIONS := ("hardware", "packages", "stages")))


def render(
    results: Results,
    tables: list[Table],
    drawings: list[figures.Drawing],
    provenance: dict,
    sources: dict[str, Path],
    out_dir: Path,
) -> str:
    """The page. `sources`: name -> path of the files it was made from, shown relative to the page's folder.

    provenance: `datasets` (name -> manifest), `methods` (name -> citation), `commands` (cell -> command), `hardware`,
    `packages` (name -> version), `stages` (name -> time and memory), `config`, and any other field; all may be absent.
    """
    by_name = {drawing.name: drawing for drawing in drawings}
    first = results.rows.iloc[0]
    return template(Path(__file__).parent / TEMPLATE, {"cell": cell, "minus": minus, "value": plain}).render(
        suite=first.suite,
        version=first.benchmark_version,
        results=results,
        tables={table.name: blocks(table) for table in tables},
        drawings={name: shown(drawing, out_dir) for name, drawing in by_name.items()},
        attack_figures=[name for name in by_name if name.startswith("attack-")],
        explanation_figures=[name for name in by_name if name.startswith("explanations-")],
        payload_figures=[name for name in by_name if name.startswith("payload-")],
        example_figures=[name for name in by_name if name.startswith("examples-")],
        reported=reported(results),
        sources={name: os.path.relpath(path, out_dir) for name, path in sources.items()},
        manifests=provenance.get("datasets", {}),
        citations=provenance.get("methods", {}),
        commands=provenance.get("commands", {}),
        config=json.dumps(provenance.get("config", {}), indent=1),
        sections={name: provenance[name] for name in SECTIONS if name in provenance},
        facts={name: value for name, value in provenance.items() if name not in KNOWN},
        takes=TAKES,
        harm_margin=HARM_MARGIN,
        thief_margin=THIEF_MARGIN,
    )


def blocks(table: Table) -> dict:
    """A table for the template: the first columns (dataset, architecture) become a heading over their lines."""
    heads = [c for c in ("dataset", "architecture") if c in table.text and table.name != "failures"]
    columns = [c for c in table.text.columns if c not in heads]
    groups: dict[str, list] = {}
    for line in table.text.to_dict("records"):
        groups.setdefault(" · ".join(line[h] for h in heads), []).append([line[c] for c in columns])
    return {"name": table.name, "title": table.title, "columns": columns, "groups": groups, "notes": table.notes}


def cell(text: str) -> Markup:
    """`0.861 (-0.4) [0.84, 0.88]` -> the value, its change, and the interval small on a line of its own, as is what
    follows a semicolon."""
    text = str(text)
    if text in (FAILED, ABSENT):
        return Markup('<span class="{}">{}</span>').format("failed" if text == FAILED else "absent", text)
    text, semicolon, second = text.partition("; ")
    main, bracket, interval = text.partition(" [")
    number, parenthesis, change = main.partition(" (")
    shown = escape(minus(number))
    if parenthesis:
        shown += Markup("<span class=change>{}</span>").format(minus(parenthesis + change))
    if bracket:
        shown += Markup("<span class=interval>{}</span>").format(minus("[" + interval))
    if semicolon:
        shown += Markup("<span class=second>{}</span>").format(cell(second))
    return shown


def minus(text: str) -> str:
    """A hyphen before a digit, at the start of a number, becomes a minus sign."""
    return re.sub(r"(?<![\w.\-])-(?=\d)", "\N{MINUS SIGN}", str(text))


def plain(value: object) -> str:
    """A provenance value as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {plain(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown(drawing: figures.Drawing, out_dir: Path) -> dict:
    """A figure for the template. `width` (rem) gives all figures one size of type; a narrower screen shrinks them to
    `least` and then scrolls."""
    width = 5.2 * drawing.figure.get_figwidth()
    size = {"width": f"{width:.1f}", "least": f"{0.62 * width:.1f}"}
    return {"title": drawing.title, "caption": drawing.caption, "image": image(drawing, out_dir), **size}


def image(drawing: figures.Drawing, out_dir: Path) -> str:
    """The figure as a data address: lines as SVG, pictures as PNG."""
    pictures = drawing.name.startswith(("examples-", "explanations-", "payload-")) and not drawing.name.endswith(
        ("-curves", "-queries")
    )
    kind, mime = ("png", "image/png") if pictures else ("svg", "image/svg+xml")
    data = (out_dir / "figures" / f"{drawing.name}.{kind}").read_bytes()
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def reported(results: Results) -> list[dict]:
    """The abstract's two claims beside what this run measured for the marks called after the method."""
    own = [method for method in results.marks if method.startswith("stealthmark")]

    def span(metric: str, field: str) -> str:
        found = [getattr(results.value(metric, p, m), field) for p in results.panels for m in own]
        found = [v for v in found if np.isfinite(v)]
        if not found:
            return "not measured in this run"
        text = "{:.3f}" if field == "mean" else "{:+.1f} points"
        low, high = (text.format(round(v, 3)) for v in (min(found), max(found)))
        return minus(low if low == high else f"{low} to {high}")

    return [
        {"claim": "ASR", "reported": "above 95 %", "measured": span("asr", "mean")},
        {"claim": "Dice, change", "reported": "drop below 1 %", "measured": span("dice", "change")},
        {"claim": "AUC, change", "reported": "drop below 1 %", "measured": span("auc", "change")},
    ]
