"""Rows and per-case scores -> tables, figures and one self-contained page. Nothing here needs torch but contact sheets."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

from stealthmark import dataset
from stealthmark.files import read_json, write_text
from stealthmark.layout import (
    CAPTIONS,
    CASES,
    EXAMPLES,
    PROVENANCE,
    RELIABILITY,
    REPORT,
    ROWS,
    Cell,
    Place,
    Study,
    suspect_folder,
)
from stealthmark.report import (
    examples,
    explanations,
    figures,
    formatting,
    maps,
    model_level,
    overview,
    page,
    payload,
    reliability,
    results,
    shown_code,
    situations,
    style,
    tables,
)
from stealthmark.report.contact import contact_sheet
from stealthmark.report.drawing import Drawing
from stealthmark.report.results import Results

if TYPE_CHECKING:
    from stealthmark.suite import Suite


@dataclass(frozen=True)
class Sources:
    """The files that a report is made from. examples, reliabilities: one file a cell, see `examples.load` and
    `reliability.drawing`. explained: a cell's files, see `maps.Maps`. prepared: dataset -> its folder of arrays, for a contact
    sheet. All but the first three may be absent."""

    rows: Path
    cases: Path
    provenance: Path
    examples: dict[Cell, Path] = field(default_factory=dict)
    reliabilities: dict[Cell, Path] = field(default_factory=dict)
    explained: dict[Cell, maps.Files] = field(default_factory=dict)
    prepared: dict[str, Path] = field(default_factory=dict)


def study(suite: "Suite", folder: Path) -> list[Path]:
    """Tables, figures and page of a collated suite, into its folder of results; the files written."""
    return write(find(suite, folder), suite.model_dump(mode="json"), folder)


def find(suite: "Suite", folder: Path) -> Sources:
    """The files of a suite's folder of results that there are."""
    lies, attacks = Study(folder), [entry.label for entry in suite.attacks]
    own = {cell: suspect_folder(lies.evidence(cell), Place()) for cell in suite.cells()}
    prepared = {entry.label: lies.data(entry.label) for entry in suite.datasets}
    return Sources(
        folder / ROWS,
        folder / CASES,
        folder / PROVENANCE,
        examples={cell: files / EXAMPLES for cell, files in own.items() if (files / EXAMPLES).exists()},
        reliabilities={cell: files / RELIABILITY for cell, files in own.items() if (files / RELIABILITY).exists()},
        explained={cell: files for cell in suite.cells() if (files := maps.find(lies, cell, attacks))},
        prepared={name: data for name, data in prepared.items() if all((data / file).exists() for file in dataset.WRITTEN)},
    )


def write(sources: Sources, suite: dict, out_dir: Path) -> list[Path]:
    """Write `tables/*.csv|md|tex`, `figures/*.png|svg`, `figures/captions.json` and `report.html` into `out_dir`; the files
    written.

    suite: the study as read from YAML. Its `methods`, `datasets`, `architectures`, `attacks`, `scanners` and `access` (names,
    or mappings with `label` or `name`) give the order of everything; what the suite does not list comes last. Raises UserError
    when the rows cannot be read.
    """
    provenance = read_json(sources.provenance)
    loaded = results.load(sources.rows, sources.cases, suite, provenance)
    made = tables.all_tables(loaded)
    written = [path for table in made for path in formatting.write(table, out_dir / "tables")]
    folder = out_dir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(style.RC):
        drawings = draw(loaded, sources)
        written += [path for drawing in drawings for path in style.save(drawing.figure, folder / drawing.name)]
    captions, html = folder / CAPTIONS, out_dir / REPORT
    write_text(captions, json.dumps({drawing.name: drawing.caption for drawing in drawings}, indent=2) + "\n")
    links = {"rows": sources.rows, "cases": sources.cases, "provenance": sources.provenance}
    write_text(html, page.render(loaded, made, drawings, provenance, links, out_dir))
    return [*written, captions, html]


def draw(loaded: Results, sources: Sources) -> list[Drawing]:
    """Every figure that these results support, in the page's order. Without a mark there is nothing to draw of the study."""
    drawings = []
    if loaded.marks and loaded.panels:
        drawings += [overview.overview(loaded), *situations.drawings(loaded), figures.mark_vs_dice(loaded)]
        drawings += [figures.attack_curves(loaded, attack) for attack in loaded.attacks if loaded.strengths[attack]]
        drawings += [
            model_level.drawing(loaded),
            figures.scores(loaded),
            *examples.sheets(loaded, examples.load(sources.examples)),
        ]
    explained = {cell: maps.Maps(files) for cell, files in sources.explained.items()}
    drawings += [
        *explanations.sheets(loaded, explained),
        *shown_code.drawings(loaded, explained),
        *payload.drawings(loaded, explained),
    ]
    drawings.append(reliability.drawing(loaded, sources.reliabilities))
    drawings += [contact_sheet(name, dataset.load(data)) for name, data in sources.prepared.items()]
    return [drawing for drawing in drawings if drawing is not None]
