"""Rows and per-case scores -> tables, figures and one self-contained page."""

import json
from pathlib import Path

import matplotlib

from stealthmark import dataset
from stealthmark.collate import cell_folder
from stealthmark.report import examples as example_sheets
from stealthmark.report import explanations as explanation_sheets
from stealthmark.report import figures, page, payload, reliability, results, situations, style, tables
from stealthmark.report.contact import contact_sheet
from stealthmark.stages import CASES, EXAMPLES, MAPS, RELIABILITY
from stealthmark.suite import Cell, Suite
from stealthmark.triggers import Trigger

#: The trigger that contact sheets show: a person can see it, and it is the same for every key.
CONTACT = Trigger(kind="text")


def study(suite: Suite, results_folder: Path) -> list[Path]:
    """Tables, figures and page of a collated suite, into its folder of results."""

    def files(stage: str, name: str) -> dict[Cell, Path]:
        return {cell: file for cell in suite.cells() if (file := cell_folder(results_folder, stage, cell) / name).exists()}

    return write(
        results_folder / "rows.csv",
        results_folder / CASES,
        files("evidence", EXAMPLES),
        results_folder / "provenance.json",
        suite.model_dump(mode="json"),
        results_folder,
        files("explanations", MAPS),
        files("evidence", RELIABILITY),
        {
            entry.label: folder
            for entry in suite.datasets
            if all(((folder := results_folder / "data" / entry.label) / name).exists() for name in dataset.ARRAYS)
        },
    )


def write(
    rows_csv: Path,
    cases_parquet: Path,
    examples: list[Path] | dict[tuple[str, str, int, str], Path],
    provenance_json: Path,
    suite: dict,
    out_dir: Path,
    maps: dict[tuple[str, str, int, str], Path] | None = None,
    reliabilities: dict[tuple[str, str, int, str], Path] | None = None,
    prepared: dict[str, Path] | None = None,
) -> list[Path]:
    """Write `tables/*.csv|md|tex`, `figures/*.png|svg`, `figures/captions.json` and `report.html` into `out_dir`.

    examples: one file a cell, see `examples.load`; maps likewise, see `explanations.sheets`; and reliabilities, see
    `reliability.drawing`. prepared: dataset -> its folder of arrays, for a contact sheet. suite: the study as read from
    YAML; its `methods`, `datasets`, `architectures`, `attacks` and `access` (names, or mappings with `label` or `name`) give
    the order of everything. What the suite does not list comes last. Returns the files written. Raises UserError when the
    rows cannot be read.
    """
    found = results.load(Path(rows_csv), Path(cases_parquet), suite)
    provenance = json.loads(Path(provenance_json).read_text())
    out_dir = Path(out_dir)
    written = []
    made = tables.every(found) + situations.tables(found)
    for table in made:
        written += tables.write(table, out_dir / "tables")
    folder = out_dir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(style.RC):
        drawings = draw(found, example_sheets.load(examples)) + explanation_sheets.sheets(found, maps or {})
        drawings += payload.sheets(found, maps or {})
        drawings += [d for d in [reliability.drawing(found, reliabilities or {})] if d is not None]
        drawings += [contact_sheet(name, dataset.load(data), CONTACT) for name, data in (prepared or {}).items()]
        for drawing in drawings:
            written += style.save(drawing.figure, folder / drawing.name)
    captions = folder / "captions.json"
    captions.write_text(json.dumps({d.name: d.caption for d in drawings}, indent=2) + "\n")
    html = out_dir / "report.html"
    sources = {"rows": Path(rows_csv), "cases": Path(cases_parquet), "provenance": Path(provenance_json)}
    html.write_text(page.render(found, made, drawings, provenance, sources, out_dir))
    return [*written, captions, html]


def draw(found: results.Results, cells: list[dict]) -> list[figures.Drawing]:
    """Every figure that these results support, in the page's order. Without a mark there is nothing to draw."""
    if not (found.marks and found.panels):
        return []
    drawings = [figures.overview(found), *situations.drawings(found), figures.mark_vs_dice(found)]
    drawings += [figures.attack_curves(found, attack) for attack in found.attacks if found.strengths[attack]]
    drawings += [d for d in [figures.scores(found)] if d is not None]
    return drawings + example_sheets.sheets(found, cells)
