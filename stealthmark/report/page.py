"""Tables, figures and provenance -> one HTML page that needs no network and no script."""

import base64
import json
import os
import re
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape

from stealthmark.pages import template
from stealthmark.report import style
from stealthmark.report.drawing import SECTIONS as LISTS
from stealthmark.report.drawing import Drawing
from stealthmark.report.facts import MethodFacts
from stealthmark.report.formatting import ABSENT, FAILED, Table
from stealthmark.report.results import HARM_MARGIN, QUALITY, TAKES, THIEF_MARGIN, Results

TEMPLATE = "report.html.j2"
#: What the page prints of a provenance file in its own place; any other field is printed as it is.
PLUGINS, SECTIONS = ("methods", "attacks", "scanners"), ("hardware", "packages", "stages")
KNOWN = ("datasets", "commands", "config", "files", *PLUGINS, *SECTIONS)


def render(
    results: Results,
    tables: list[Table],
    drawings: list[Drawing],
    provenance: dict,
    sources: dict[str, Path],
    out_dir: Path,
) -> str:
    """The page. `sources`: name -> path of the files it was made from, shown relative to the page's folder.

    provenance: `datasets` (name -> manifest), `methods`, `attacks`, `scanners` (label -> facts), `commands` (cell -> command),
    `hardware`, `packages` (name -> version), `stages` (name -> time and memory), `config`, and any other field; all may be
    absent.
    """
    first = results.rows.iloc[0]
    return template(Path(__file__).parent / TEMPLATE, {"cell": cell, "minus": minus, "value": plain}).render(
        suite=first.suite,
        version=first.benchmark_version,
        results=results,
        mark_count=len(results.marks),
        tables={table.name: blocks(table) for table in tables},
        drawings={drawing.name: embedded(drawing, out_dir) for drawing in drawings},
        figures={section: [drawing.name for drawing in drawings if drawing.section == section] for section in LISTS},
        reported=reported(results),
        sources={name: os.path.relpath(path, out_dir) for name, path in sources.items()},
        manifests=provenance.get("datasets", {}),
        plugins={kind: {label: entry.description for label, entry in getattr(results.facts, kind).items()} for kind in PLUGINS},
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
    html = escape(minus(number))
    if parenthesis:
        html += Markup("<span class=change>{}</span>").format(minus(parenthesis + change))
    if bracket:
        html += Markup("<span class=interval>{}</span>").format(minus("[" + interval))
    if semicolon:
        html += Markup("<span class=second>{}</span>").format(cell(second))
    return html


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


def embedded(drawing: Drawing, out_dir: Path) -> dict:
    """A figure for the template. `width` (rem) gives all figures one size of type; a narrower screen shrinks them to
    `least` and then scrolls."""
    width = 5.2 * drawing.figure.get_figwidth()
    size = {"width": f"{width:.1f}", "least": f"{0.62 * width:.1f}"}
    return {"title": drawing.title, "caption": drawing.caption, "image": image(drawing, out_dir), **size}


def image(drawing: Drawing, out_dir: Path) -> str:
    """The figure as a data address: lines as SVG, pictures as PNG."""
    kind, mime = ("png", "image/png") if drawing.pictures else ("svg", "image/svg+xml")
    data = (out_dir / "figures" / f"{drawing.name}.{kind}").read_bytes()
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def reported(results: Results) -> list[dict]:
    """What papers report beside what this run measured, of each method whose plug-in says so: its title, citation and labels,
    and lines of claim, reported and measured."""
    by_name: dict[str, list[MethodFacts]] = {}
    for method in results.marks:
        entry = results.facts.method(method)
        if entry.reported:
            by_name.setdefault(entry.name, []).append(entry)
    return [
        {
            "title": methods[0].title,
            "citation": methods[0].citation,
            "labels": [method.label for method in methods],
            "lines": [_reported_line(results, methods, claim) for claim in methods[0].reported],
        }
        for methods in by_name.values()
    ]


def _reported_line(results: Results, methods: list[MethodFacts], claim: dict) -> dict:
    """A metric as it is reported, and from the smallest to the largest over these methods; of quality its change."""
    metric = claim["metric"]
    quality = metric in QUALITY
    cells = [results.value(metric, panel, method.label) for panel in results.panels for method in methods]
    values = [value for value in (cell.change if quality else cell.mean for cell in cells) if np.isfinite(value)]
    measured = "not measured in this run"
    if values:
        ends = [("{:+.1f} points" if quality else "{:.3f}").format(round(end, 3)) for end in (min(values), max(values))]
        measured = minus(" to ".join(dict.fromkeys(ends)))
    title = style.METRICS.get(metric, metric) + ", change" * quality
    return {"claim": title, "reported": claim["text"], "measured": measured}
