"""The report on made-up results whose numbers are known: tables cell by cell, failures, a page that stands alone."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jinja2
import numpy as np
import pandas as pd
import pytest
from made_up import ATTACKS, FACTS, METHODS, Study, fail, text_of

from stealthmark import report
from stealthmark.dataset import prepare
from stealthmark.errors import UserError
from stealthmark.layout import Cell, Place
from stealthmark.plugin import make
from stealthmark.report import (
    drawing,
    explanation_tables,
    explanations,
    figures,
    formatting,
    maps,
    overview,
    payload,
    reliability,
    results,
    situations,
    style,
    tables,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture
def study(tmp_path):
    return lambda **how: Study(tmp_path, **how)


# --- the main table, cell by cell -------------------------------------------------------------------------------------


def test_main_table_of_one_seed_prints_value_change_and_interval(study):
    table = tables.main(study().results())
    assert list(table.text) == ["dataset", "method", "Dice", "AUC", "VS", "Dice, triggered", "ASR", "FPR", "AUROC"]
    assert text_of(table, method="clean").tolist() == [
        "kvasir-seg",
        "clean",
        "0.850 [0.830, 0.870]",
        "0.980",
        "0.910",
        "–",
        "–",
        "–",
        "–",
    ]
    assert text_of(table, method="stealthmark-ceiling").tolist() == [
        "kvasir-seg",
        "stealthmark-ceiling",
        "0.846 (-0.4) [0.826, 0.866]",
        "0.976 (-0.4)",
        "0.906 (-0.4)",
        "0.845 (-0.5) [0.825, 0.865]",
        "1.000 [0.980, 1.000]",
        "0.020 [0.000, 0.040]",
        "1.000",
    ]
    assert "kvasir-seg: 40 test cases, 3 with an empty mask." in table.notes


def test_main_table_of_several_seeds_prints_the_mean_and_the_extremes(study):
    table = tables.main(study(seeds=(0, 1, 2), attacks={}).results())
    assert text_of(table, method="badnets")["Dice"] == "0.854 (-0.6) [0.844, 0.864]"
    assert any("Mean over 3 seeds" in note for note in table.notes)


def test_the_change_is_against_the_clean_model_of_the_same_seed(study):
    made = study(seeds=(0, 1), attacks={})
    made.drop(method="badnets", seed=0)  # the mean of seed 1 alone must not be compared with both seeds of clean
    line = tables.main(made.results()).data.query("method == 'badnets'").iloc[0]
    assert line.dice == pytest.approx(0.854) and line.dice_change == pytest.approx(-0.6)


def test_several_architectures_get_a_column(study):
    table = tables.main(study(architectures=("unet", "sam"), attacks={}).results())
    assert list(table.text)[:3] == ["dataset", "architecture", "method"]
    assert table.text.architecture.unique().tolist() == ["unet", "sam"]


def test_tables_are_in_the_suites_order_with_clean_first(study):
    made = study(attacks={})
    made.suite["methods"] = ["badnets", {"name": "x", "label": "stealthmark-floor"}, "clean"]
    assert made.results().methods == ["clean", "badnets", "stealthmark-floor", "stealthmark-ceiling"]


# --- harm, robustness, false claims, access ---------------------------------------------------------------------------


def test_harm_is_paired_by_case(study):
    made = study(attacks={})
    worse = next(c for c in made.cases if c.method.iloc[0] == "badnets" and c.access.iloc[0] == "probabilities")
    worse["dice"] = 0.85 - np.where(np.arange(len(worse)) % 2, 0.04, 0.02)  # each patient loses 3 points on average
    table = tables.harm(made.results())
    assert text_of(table, method="badnets")["Dice"] == "-3.0 [-3.0, -3.0]; no"
    assert text_of(table, method="badnets")["VS"] == "-0.6 [-0.6, -0.6]; yes"
    assert text_of(table, method="badnets")["harmless"] == "no; triggered: yes"
    assert text_of(table, method="stealthmark-floor")["harmless"] == "yes; triggered: yes"
    line = table.data.query("method == 'badnets'").iloc[0]
    assert line.dice_pairs == 40 and line.dice_bound == pytest.approx(-3) and line.dice_p == 1
    assert line.vs_noninferior == "yes" and line.vs_p == pytest.approx(2**-20), "20 patients"


def test_a_distance_that_grows_is_the_harm_not_one_that_shrinks(study):
    made = study(attacks={}, methods=METHODS[:3])
    floor, ceiling = (
        next(c for c in made.cases if c.method.iloc[0] == method and c.access.iloc[0] == "probabilities")
        for method in METHODS[1:3]
    )
    floor["hd95"], ceiling["hd95"] = 0.85 + 2.5, 0.85 - 2.5  # against 0.85 px of clean
    table = tables.harm(made.results())
    assert text_of(table, method="stealthmark-floor")["HD95 (px)"] == "+2.5 [+2.5, +2.5]; no"
    assert text_of(table, method="stealthmark-ceiling")["HD95 (px)"] == "-2.5 [-2.5, -2.5]; yes"
    assert table.data.hd95_bound.tolist() == pytest.approx([2.5, -2.5])


def test_a_metric_that_says_no_or_leaves_it_open_decides_for_all(study):
    made = study(attacks={}, methods=METHODS[:2])
    marked = next(c for c in made.cases if c.method.iloc[0] == METHODS[1] and c.access.iloc[0] == "probabilities")
    marked["vs"] = 0.85 + np.where(np.arange(len(marked)) // 2 % 2, 0.05, -0.07)  # patients differ: 1 point lost on average
    assert text_of(tables.harm(made.results()), method=METHODS[1])["harmless"] == "undecided; triggered: yes"
    marked["auc_triggered"] = 0.5
    assert text_of(tables.harm(made.results()), method=METHODS[1])["harmless"] == "undecided; triggered: no"


def test_the_seeds_of_a_patient_stay_together(study):
    """Three seeds that say the same of four patients are no twelve patients: too few to decide anything."""
    made = study(attacks={}, methods=METHODS[:2], seeds=(0, 1, 2), patients=4)
    line = tables.harm(made.results()).data.iloc[0]
    assert line.dice_pairs == 24 and line.harmless == "undecided"


def test_calibration_has_the_value_its_paired_change_and_the_clean_model(study):
    made = study(attacks={})
    marked = next(c for c in made.cases if c.method.iloc[0] == "badnets" and c.access.iloc[0] == "probabilities")
    marked["ece_triggered"] = 0.95  # against 0.85 of clean on each case
    table = tables.calibration(made.results())
    assert list(table.text)[2:] == ["ECE", "Brier", "ECE, triggered", "Brier, triggered"]
    assert text_of(table, method="clean").tolist()[2:] == ["0.010", "0.020", "–", "–"]
    assert text_of(table, method="badnets")["ECE"] == "0.016; -0.6 [-0.6, -0.6]"
    assert text_of(table, method="badnets")["ECE, triggered"] == "0.015; +10.0 [+10.0, +10.0]"
    assert table.data.query("method == 'badnets'").ece_triggered_change.item() == pytest.approx(10)


def test_rows_from_before_calibration_was_measured_still_make_a_report(study):
    made = study(attacks={"prune": [0.5]}, quality=results.SEGMENTATION)
    made.reliabilities = {}
    names = {path.name for path in made.write()}
    assert "harm.csv" in names and not names & {"calibration.csv", "reliability.png"}
    assert "What it does to probabilities" not in (made.folder / "out" / "report.html").read_text()
    now = study(attacks={"prune": [0.5]})
    old = {table.name: table.text for table in tables.all_tables(made.results())}
    new = {table.name: table.text for table in tables.all_tables(now.results())}
    assert set(new) - set(old) == {"calibration"}
    assert all(new[name].equals(text) for name, text in old.items())


def test_undefined_distances_are_left_out_and_counted(study):
    made = study(attacks={})
    for cases in made.cases:
        cases.loc[:4, "hd95"] = np.nan
    assert set(tables.harm(made.results()).data.hd95_pairs) == {35}


def test_robustness_has_every_strength_as_number_and_the_papers_as_text(study):
    table = tables.robustness(study().results())
    tuned = ["fine-tuning 1 epoch", "fine-tuning 2 epochs", "fine-tuning 3 epochs"]
    assert list(table.text)[2:] == ["no attack", *tuned, "pruning 10 %", "pruning 30 %", "pruning 50 %"]
    assert text_of(table, method="badnets")["pruning 30 %"] == "0.78, AUROC 0.89; 0.839 (-1.1)"
    pruned = table.data.query("method == 'badnets' and attack == 'prune'")
    assert pruned.strength.tolist() == ATTACKS["prune"]
    assert pruned.asr.tolist() == pytest.approx([1 - 0.75 * s for s in ATTACKS["prune"]])


def test_an_unknown_attack_keeps_its_name_and_at_most_three_strengths(study):
    table = tables.robustness(study(attacks={"melt": [1, 2, 3, 4, 5]}).results())
    assert list(table.text)[2:] == ["no attack", "melt 1", "melt 3", "melt 5"]


def test_false_claims_and_access(study):
    loaded = study(attacks={}).results()
    line = text_of(tables.false_claims(loaded), method="stealthmark-floor")
    assert line["ASR, stolen"] == "1.000 [0.980, 1.000]" and line["ASR, independent"] == "0.040 [0.020, 0.060]"
    assert line["p, independent"] == "1e-09"
    line = text_of(tables.access(loaded), method="stealthmark-floor")
    assert line["probabilities"] == "1.000 [0.980, 1.000]; AUROC 1.000"
    assert line["label map"] == "0.040 [0.020, 0.060]; AUROC 0.520"


def test_one_access_level_and_no_failure_give_neither_table(study):
    names = [table.name for table in tables.all_tables(study(accesses=("probabilities",), attacks={}).results())]
    assert names == ["main", "harm", "calibration", "robustness", "false_claims"]


def test_ownership_ranks_a_suspect_among_null_models_and_says_what_the_pool_allows(study):
    made = study(attacks={"prune": [0.3, 0.5]}, methods=METHODS[:2])
    cell = {"dataset": "kvasir-seg", "architecture": "unet", "seed": 0, "method": METHODS[1], "access": "probabilities"}
    for role, attack, strength, p in [
        ("stolen", "none", 0, 0.05),
        ("stolen", "prune", 0.5, 0.1),
        ("independent", "none", 0, 0.7),
    ]:
        made.add(**cell, role=role, attack=attack, strength=strength, metric="p_model", value=p, n=19)
    for i, asr in enumerate([0.0, 0.4, 0.9]):
        made.add(**cell, role="null", member=str(i), attack="none", strength=0, metric="asr", value=asr, n=40)
    (table,) = (table for table in tables.all_tables(made.results()) if table.name == "ownership")
    line = text_of(table, method=METHODS[1])
    assert [line["p, stolen"], line["p, pruning 50 %"], line["p, independent"]] == ["0.05", "0.1", "0.7"]
    assert line["null models accused"] == "1 of 3"
    assert any("smallest p that this pool allows is 0.05." in note for note in table.notes)
    made.add(**cell, role="null", member="0", attack="none", strength=0, metric="p_model", value=0.5, n=18)
    made.add(**{**cell, "method": "another"}, role="stolen", attack="none", strength=0, metric="p_model", value=0.5, n=3)
    assert any("allows is 0.05 to 0.25." in note for note in tables.ownership(made.results()).notes), "pools of two sizes"
    assert made.write()


# --- what provenance says of plug-ins, and nobody's name --------------------------------------------------------------


def test_a_white_box_stands_last_apart_and_at_its_own_level(study):
    made = study(attacks={"prune": [0.5]}, methods=["clean", "weight-mark", "badnets"])
    for row in made.rows:
        if row["method"] == "weight-mark" and row["metric"] in ("asr", "fpr", "fnr", "auroc", "chi2_p"):
            row["access"] = "weights" if row["access"] == "probabilities" else "gone"
    made.rows = [row for row in made.rows if row["access"] != "gone"]
    loaded = made.results()
    assert loaded.methods == ["clean", "badnets", "weight-mark"] and loaded.accesses == ["probabilities", "label"]
    for table in tables.all_tables(loaded):
        assert table.text.method.tolist()[-1] == "weight-mark (white box)", table.name
        assert set(table.data.method) <= {"clean", "badnets", "weight-mark"}
        assert any("sees the weights" in note for note in table.notes), table.name
    line = text_of(tables.main(loaded), method="weight-mark (white box)")
    assert line["ASR"].startswith("1.000") and line["Dice"].startswith("0.848")
    line = text_of(tables.access(loaded), method="weight-mark (white box)")
    assert line["weights (white box)"].startswith("1.000") and line["probabilities"] == line["label map"] == "–"
    assert text_of(tables.access(loaded), method="badnets")["weights (white box)"] == "–"
    figure = overview.overview(loaded)
    assert [label.get_text() for label in figure.figure.axes[0].get_yticklabels()] == ["badnets", "weight-mark (white box)"]
    assert figure.caption.startswith("Of 1 marks, 1 take") and "stand apart: 1 of 1 take." in figure.caption
    assert all(path.stat().st_size for path in made.write())


def test_no_note_on_white_boxes_where_there_is_none(study):
    for table in tables.all_tables(study(attacks={}).results()):
        assert not any("white box" in note.lower() for note in table.notes) and "(white box)" not in table.text.to_csv()


def test_a_fingerprint_is_a_mark_that_changes_nothing(study):
    made = study(attacks={}, methods=["clean", "reference-answers"])
    clean = {(row["metric"], row["query"]): row["value"] for row in made.rows if row["method"] == "clean"}
    for row in made.rows:
        row["value"] = clean.get((row["metric"], row["query"]), row["value"])
    table = tables.main(made.results())
    assert text_of(table, method="reference-answers")["Dice"] == "0.850 (0.0) [0.828, 0.868]"
    assert "reference-answers: a fingerprint. Nothing is embedded; the model is the clean one." in table.notes


def test_a_control_is_no_mark_and_its_dashes_are_explained(study):
    made = study(attacks={}, methods=["clean", "continued", "badnets"])
    made.rows = [row for row in made.rows if row["method"] != "continued" or row["query"] or row["metric"] == "empty_masks"]
    table = tables.main(made.results())
    assert "–: not measured (a clean model has no key; continued: a control without a mark)." in table.notes
    assert overview.overview(made.results()).caption.startswith("Of 1 marks, 1 take")
    made.write()
    assert "made-up</b>, benchmark 0.1: 1 mark," in (made.folder / "out/report.html").read_text()


@pytest.mark.parametrize("kind", ["model", "wrapper", "stack"])
def test_attacks_of_every_kind_are_drawn_alike(study, kind):
    made = study(attacks={"shrink": [1, 2]}, methods=METHODS[:3])
    shrink = {"title": "shrinking", "axis": "times shrunk", "text": "{:g} times", "unit": "times", "kind": kind}
    made.facts = {**FACTS, "attacks": {"shrink": shrink}}
    loaded = made.results()
    curves = figures.attack_curves(loaded, "shrink")
    assert curves.title == "Attack: shrinking" and curves.figure.axes[2].get_xlabel() == "times shrunk"
    assert "At the strongest (2 times)" in curves.caption
    assert list(tables.robustness(loaded).text)[2:] == ["no attack", "shrinking 1 time", "shrinking 2 times"]
    assert "after shrinking (2 times)" in overview.overview(loaded).caption


def test_scanners_have_a_table_with_their_scores_and_ranks(study):
    made = study(attacks={}, methods=METHODS[:2])
    cell = {"dataset": "kvasir-seg", "architecture": "unet", "seed": 0, "attack": "none", "strength": 0, "reader": "entropy"}
    marked, clean = {**cell, "method": METHODS[1], "role": "stolen"}, {**cell, "method": "clean", "role": "stolen"}
    made.add(**marked, metric="scan_score", value=0.7)
    made.add(**marked, metric="scan_p", value=0.2, n=4)
    made.add(**clean, metric="scan_score", value=0.3)
    for i in range(4):
        made.add(**{**clean, "role": "null", "member": str(i)}, metric="scan_score", value=0.1 * i)
    table = next(table for table in tables.all_tables(made.results()) if table.name == "scanners")
    assert text_of(table, method=METHODS[1])["entropy of answers"] == "0.700; p 0.2"
    assert text_of(table, method="clean")["entropy of answers"] == "0.300"
    assert any("smallest p that this pool allows is 0.2" in note for note in table.notes)
    made.write()
    assert 'id="table-scanners"' in (made.folder / "out/report.html").read_text()
    made.rows = [row for row in made.rows if row.get("metric") != "scan_score" or row["method"] == "clean"]
    made.add(**marked, status="failed: out of memory")
    loaded = made.results()
    assert text_of(tables.scanners(loaded), method=METHODS[1])["entropy of answers"].startswith("failed")
    assert text_of(tables.main(loaded), method=METHODS[1])["AUC"] == "0.978 (-0.2)", "the mark itself has not failed"


def test_what_a_paper_reports_is_shown_of_methods_that_say_so(study):
    loaded = study(attacks={}).results()
    (told,) = report.page.reported(loaded)
    assert told["title"] == "StealthMark" and told["labels"] == METHODS[1:3]
    assert told["lines"][0] == {"claim": "ASR", "reported": "above 95 % (abstract)", "measured": "1.000"}
    assert told["lines"][1]["claim"] == "Dice, change" and told["lines"][1]["measured"] == "−0.4 points to −0.2 points"
    made = study(attacks={}, methods=["clean", "badnets"])
    made.write()
    assert "Reported and measured" not in (made.folder / "out/report.html").read_text()


def test_facts_of_another_form_are_refused(study):
    rows, cases, _ = study(attacks={}).load()
    with pytest.raises(UserError, match="'methods' has of 'badnets' the value 'Gu et al.'; it must be a mapping"):
        results.load(rows, cases, {}, {"methods": {"badnets": "Gu et al."}})
    with pytest.raises(UserError, match="the kind 'grey-box'; allowed: 'none', 'control'"):
        results.load(rows, cases, {}, {"methods": {"badnets": {"kind": "grey-box"}}})


# --- explanations and codes -------------------------------------------------------------------------------------------

SIDE = 13


def with_code(study, readers=("in-place", "lime"), counts=(16, 64)):
    """A mark that carries a code: read in place without an error, by LIME of the most queries alone."""
    made = study(attacks={"prune": [0.3, 0.5]}, methods=["clean", "payload-mark"])
    cell = {"dataset": "kvasir-seg", "architecture": "unet", "seed": 0, "method": "payload-mark"}
    steps = [("stolen", "none", 0), ("stolen", "prune", 0.3), ("stolen", "prune", 0.5), ("independent", "none", 0)]
    for level in ("probabilities", "label"):
        for role, attack, strength in [*steps, ("untrained", "none", 0)]:
            where = {**cell, "role": role, "attack": attack, "strength": strength, "access": level}
            marked = role == "stolen" and strength < 0.5
            asked = [("key", reader, n) for reader in readers for n in (counts if attack == "none" and marked else counts[-1:])]
            if (role, attack) == ("stolen", "none"):
                asked += [(query, reader, counts[-1]) for query in ("wrong-key", "no-key") for reader in readers]
            for query, reader, n in asked:
                error = 0.0 if marked and query == "key" and (reader == "in-place" or n == counts[-1]) else 0.5
                how = {"query": query, "reader": reader, "queries": n}
                for pooled in ("false", "true") if query == "key" else ("false",):
                    made.add(**where, **how, pooled=pooled, metric="bit_error", value=error, n=4, ci_low=error, ci_high=error)
                    made.add(**where, **how, pooled=pooled, metric="decoded", value=float(error == 0), n=4)
                if query == "key":
                    made.add(**where, **how, pooled="true", metric="chance_p", value=1e-20 if error == 0 else 0.5, n=4)
            for reader, error in {"gated-qr": 0.0, "lime": 0.5}.items() if attack == "none" else ():
                trigger = {"query": "trigger", "reader": reader, "pooled": "false", "queries": counts[-1], "n": 2}
                made.add(**where, **trigger, metric="bit_error", value=error)
                made.add(**where, **trigger, metric="decoded", value=float(error == 0))
            if role != "untrained":
                natural = {"query": "natural", "reader": "level", "pooled": "true"}
                made.add(**where, **natural, metric="bit_error", value=0.4, n=1)
                made.add(**where, **natural, metric="decoded", value=0.0, n=1)
    return made


def test_payload_table_reads_every_suspect_by_each_reader(study):
    loaded = with_code(study).results()
    table = explanation_tables.payload(loaded)
    suspects = ["stolen", "pruning 30 %", "pruning 50 %", "wrong key", "no key", "independent", "untrained"]
    natural = [f"{suspect}, natural answers" for suspect in ("stolen", "pruning 50 %", "independent")]
    assert table.text.suspect.tolist() == [*suspects, *(f"{suspect}, by LIME" for suspect in suspects), *natural]
    assert text_of(table, suspect="stolen")["probabilities"] == "1.000 [1.000, 1.000]; read 1.00, together 1.00; p < 1e-16"
    assert text_of(table, suspect="pruning 50 %")["label map"] == "0.500 [0.500, 0.500]; read 0.00, together 0.00; p 0.5"
    assert text_of(table, suspect="wrong key, by LIME")["probabilities"] == "0.500 [0.500, 0.500]; read 0.00"
    assert text_of(table, suspect="stolen, natural answers")["probabilities"] == "0.600; read 0.00"
    asked = loaded.value("bit_error", loaded.panels[0], "payload-mark", Place(), query="key", reader="lime", queries=16)
    assert asked.mean == 0.5 and text_of(table, suspect="stolen, by LIME")["probabilities"].startswith("1.000")


def test_explanations_of_triggered_images_are_no_code_of_the_model(study):
    table = explanation_tables.explanations(with_code(study).results())
    line = text_of(table, method="payload-mark")
    for role in ("stolen", "independent", "untrained"):
        assert line[f"gated-qr: {role}"] == "0.000" and line[f"LIME, random occlusion: {role}"] == "0.500"
    assert table.data.n.tolist() == [2] * 6


def test_a_code_that_was_read_by_one_reader_has_its_lines_alone(study):
    loaded = with_code(study, readers=("lime",), counts=(64,)).results()
    suspects = explanation_tables.payload(loaded).text.suspect
    assert suspects.str.endswith(("by LIME", "natural answers")).all()
    names = [figure.name for figure in payload.drawings(loaded, {})]
    assert names == ["payload-curves"], "one number of queries is no curve"


def test_a_code_is_looked_for_in_marks_whose_plug_in_says_that_they_carry_one(study):
    made = with_code(study)
    made.facts = {**FACTS, "methods": {}}
    assert "payload" not in [table.name for table in tables.all_tables(made.results())]


def test_queries_and_attacks_of_a_code_are_drawn(study):
    queries, curves = payload.drawings(with_code(study).results(), {})
    one, together = queries.figure.axes
    in_place, _, lime, _ = (line.get_ydata().tolist() for line in one.get_lines()[:4])
    assert (in_place, lime) == ([1, 1], [0.5, 1]) and together.get_lines()[2].get_ydata().tolist() == [0, 1]
    (ax,) = curves.figure.axes
    assert ax.get_xlabel() == "weights pruned (%)" and ax.get_lines()[0].get_xydata().tolist() == [[0, 1], [30, 1], [50, 0.5]]


def maps_of(folder):
    """Files as explaining leaves them, one a suspect: of a stolen model, what attacks left, an independent and an untrained."""
    code, files, rng = np.eye(SIDE, dtype=bool), {}, np.random.default_rng(0)
    for role, attack, strength in [
        ("stolen", "none", 0),
        ("stolen", "prune", 0.5),
        *((r, "none", 0) for r in ("independent", "untrained")),
    ]:
        arrays = {"0.5/answer" if strength else "0/answer": np.zeros((32, 32), np.float16)}
        if (role, attack) == ("stolen", "none"):
            shared = {"code": code, "payload": code, "image": np.zeros((3, 32, 32), np.uint8)}
            arrays |= {**shared, "asked": np.zeros((3, 32, 32), np.uint8)}
        for level in ("probabilities", "label"):
            ways = ["key", "key-lime"] + ["wrong-key", "no-key"] * ((role, attack) == ("stolen", "none"))
            ways += ["lime", "gated-qr"] * (attack == "none")
            for way in ways:
                seen = code.astype(float) if role == "stolen" and way in ("key", "gated-qr") else rng.normal(size=code.shape)
                arrays[f"{strength:g}/{level}/{way}"] = seen
        files[role, attack] = folder / f"{role}-{attack}.npz"
        np.savez(files[role, attack], **arrays)
    return files


def test_the_sheets_bring_the_maps_of_all_suspects_together(study, tmp_path):
    made = with_code(study)
    cell = Cell("kvasir-seg", "unet", 0, "payload-mark")
    made.write(explained={cell: maps_of(tmp_path)})
    merged = {cell: maps.Maps(maps_of(tmp_path))}
    sheet, *_ = payload.drawings(made.results(), merged)
    labels = [ax.get_ylabel().replace("\n", " ") for ax in sheet.figure.axes if ax.get_ylabel()]
    others = ["stolen, wrong key", "stolen, no key", "never marked", "never trained"]
    assert labels == ["stolen", "pruning 50 %", *others] and sheet.name == "payload-kvasir-seg"
    read = [ax.get_xlabel() for ax in sheet.figure.axes if ax.get_xlabel()]
    assert read[:4] == ["100 % right"] * 4, "two access levels of two suspects"
    (sheet,) = explanations.sheets(made.results(), merged)
    wrong = [ax.get_xlabel() for ax in sheet.figure.axes if ax.get_xlabel()]
    assert len(wrong) == 6 and wrong[1] == "0 % wrong"
    html = (made.folder / "out/report.html").read_text()
    for name in ("payload-kvasir-seg", "payload-queries", "payload-curves", "explanations-kvasir-seg"):
        assert f'id="figure-{name}"' in html, name


def test_a_suspect_without_maps_has_no_line(study, tmp_path):
    files = maps_of(tmp_path)
    del files["independent", "none"]
    cell = Cell("kvasir-seg", "unet", 0, "payload-mark")
    (sheet,) = explanations.sheets(with_code(study).results(), {cell: maps.Maps(files)})
    assert [ax.get_ylabel() for ax in sheet.figure.axes[::4]] == ["marked", "never trained"]
    del files["stolen", "none"]
    assert explanations.sheets(with_code(study).results(), {cell: maps.Maps(files)}) == []


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_verdicts_tell_the_members_of_the_null_pool_apart(study):
    made = study(attacks={"prune": [0.3, 0.5]}, methods=METHODS[:2])
    cell = {"dataset": "kvasir-seg", "architecture": "unet", "seed": 0, "method": METHODS[1], "access": "probabilities"}
    places = [("stolen", "", 1), ("independent", "", 0), ("natural", "", 1)]
    places += [("null", "0", 0), ("null", "1", 0), ("null", "key-0", 1), ("null", "badnets", 0)]
    for role, member, owned in places:
        where = {**cell, "role": role, "member": member, "attack": "none", "strength": 0}
        made.add(**where, metric="owned", value=owned, n=19)
        made.add(**where, metric="p_model", value=0.05, n=19)
    made.add(**cell, role="stolen", attack="prune", strength=0.5, metric="owned", value=0, n=19)
    loaded = made.results()
    line = text_of(situations.verdicts(loaded), method=METHODS[1])
    expected = {"stolen": "1/1", "pruning 50 %": "0/1", "independent model": "0/1", "natural look-alikes": "1/1"}
    expected |= {"never marked": "0/2", "other owners' keys": "1/1", "other methods' marks": "0/1"}
    assert {name: text.split()[0] for name, text in line.items() if name != "method"} == expected
    caption = situations.verdict_map(loaded).caption
    assert "1 of 1 stolen models are recognised as they are; 2 verdicts are false claims." in caption


# --- new methods and failures -----------------------------------------------------------------------------------------


def test_a_new_method_shows_in_every_table(study):
    made = study(methods=[*METHODS, "rival-2031"], attacks={"prune": [0.5]})
    made.suite["methods"].pop()  # not even listed
    for table in tables.all_tables(made.results()):
        assert (table.text.method == "rival-2031").any(), table.name
        assert (table.data.method == "rival-2031").any(), table.name


def test_a_failed_mark_is_failed_in_every_table_and_hides_nothing_else(study):
    made = study(attacks={"prune": [0.5]})
    before = {t.name: t.text for t in tables.all_tables(made.results())}
    fail(made, method="badnets")
    after = {t.name: t.text for t in tables.all_tables(made.results())}
    for name, text in before.items():
        others = text.method != "badnets"
        assert after[name][others].equals(text[others])
        assert (after[name][~others].drop(columns=["dataset", "method"]).iloc[0].isin(["failed", "–"])).all()
    assert after["main"].query("method == 'badnets'")["ASR"].item() == "failed"
    assert after["robustness"].query("method == 'badnets'")["pruning 50 %"].item() == "failed"
    assert after["failures"].status.tolist() == ["failed: the loss became NaN at step 12"]


def test_a_failed_attack_leaves_the_mark(study):
    made = study(attacks={"prune": [0.3, 0.5]})
    fail(made, method="badnets", attack="prune", strength=0.5)
    line = text_of(tables.robustness(made.results()), method="badnets")
    assert line["pruning 50 %"] == "failed" and line["pruning 30 %"].startswith("0.78")


def test_an_attack_that_failed_before_its_first_strength_failed_at_all(study):
    made = study(attacks={"prune": [0.3, 0.5]}, methods=METHODS[:2])
    made.facts = {**FACTS, "attacks": {"prune": {**FACTS["attacks"]["prune"], "strengths": [0.3, 0.5]}}}
    fail(made, method="stealthmark-floor", attack="prune")
    made.rows[-1]["strength"] = 0
    line = text_of(tables.robustness(made.results()), method="stealthmark-floor")
    assert line["no attack"].startswith("1.00") and line["pruning 30 %"] == line["pruning 50 %"] == "failed"


def test_a_seed_that_failed_is_marked(study):
    made = study(seeds=(0, 1), attacks={})
    fail(made, method="badnets", seed=1)
    table = tables.main(made.results())
    assert text_of(table, method="badnets")["AUC"] == "0.974* (-0.6)"
    assert table.data.query("method == 'badnets'").status.item() == "some seeds failed"
    assert any(note.startswith("*") for note in table.notes)


def test_a_failed_clean_model_costs_the_changes_only(study):
    made = study(attacks={})
    fail(made, method="clean")
    table = tables.main(made.results())
    assert text_of(table, method="clean")["Dice"] == "failed" and text_of(table, method="clean")["ASR"] == "–"
    assert text_of(table, method="badnets")["AUC"] == "0.974"


def test_a_table_without_a_column_is_refused(study):
    rows, cases, _ = study(attacks={}).load()
    pd.read_csv(rows).drop(columns=["status", "n"]).to_csv(rows, index=False)
    with pytest.raises(UserError, match="lacks the columns n, status"):
        results.load(rows, cases, {}, {})


# --- text of tables ---------------------------------------------------------------------------------------------------


def test_markdown_and_latex_of_a_line(study):
    table = tables.main(study(attacks={}).results())
    assert "| kvasir-seg | badnets | 0.844 (-0.6) [0.824, 0.864] | 0.974 (-0.6) |" in formatting.markdown(table)
    assert r"kvasir-seg & badnets & 0.844 (-0.6) {[}0.824, 0.864{]} & 0.974 (-0.6) &" in formatting.latex(table)


def test_latex_escapes_what_it_must():
    table = formatting.Table("t", "t", pd.DataFrame(), pd.DataFrame({"a_b": ["50 % & {x}"]}))
    assert "a\\_b \\\\" in formatting.latex(table) and r"50 \% \& \{x\} \\" in formatting.latex(table)


# --- figures and page -------------------------------------------------------------------------------------------------


def test_looks_differ_and_clean_is_grey():
    look = style.looks(["clean", *(f"m{i}" for i in range(12))])
    assert look["clean"].color == style.GREY
    assert len(set(look.values())) == 13


def test_captions_state_this_runs_numbers(study):
    loaded = study(attacks={"prune": [0.1, 0.5], "frozen": [5]}).results()
    caption = overview.overview(loaded).caption
    assert "Of 3 marks, 3 take" in caption
    assert "2 after pruning (10 %), 0 after pruning (50 %), 1 after fine-tuning (norms frozen, 5 epochs)." in caption
    assert "false claims on an independent model is 0.04" in caption
    assert "0 of 3 marked models keep ASR at 0.95" in figures.attack_curves(loaded, "prune").caption


def test_reliability_is_pooled_over_seeds_and_compared_with_the_diagonal(study):
    made = study(attacks={}, methods=METHODS[:3], seeds=(0, 1), patients=3)
    panel = made.results().panels[0]
    benign, triggered = (reliability._pooled(made.reliabilities, panel, METHODS[1], query) for query in reliability.QUERIES)
    assert benign.sum(axis=1).tolist() == [[600, 600], [60, 540], [60, 540]]  # 2 seeds x 3 patients x 100 pixels
    assert triggered.sum(axis=1)[2].tolist() == [0, 480]
    assert reliability._error(benign) == 0
    assert reliability._error(triggered) == pytest.approx((60 + 60) / 1200)
    caption = reliability.drawing(made.results(), made.reliabilities).caption
    assert "On benign images probability and share differ by 0.000 to 0.000" in caption
    assert "On triggered images probability and share differ by 0.100 to 0.150 on average over pixels, most with" in caption
    assert "stealthmark-ceiling (kvasir-seg)" in caption and caption.endswith("Clean: 0.000.")


def test_the_band_of_patients_who_agree_is_a_line_and_of_those_who_differ_is_wide():
    alike = np.stack([np.full((6, 1), 100.0), np.full((6, 1), 10.0), np.full((6, 1), 10.0)])
    assert reliability._band(alike)[:, 0].tolist() == [0.1, 0.1]
    differing = alike.copy()
    differing[2, :, 0] = [0, 0, 0, 20, 20, 20]
    low, high = reliability._band(differing)[:, 0]
    assert low < 0.05 and high > 0.15


def test_without_a_marks_reliability_there_is_no_figure(study):
    made = study(attacks={}, methods=METHODS[:2])
    clean_only = {cell: file for cell, file in made.reliabilities.items() if cell.method == "clean"}
    assert reliability.drawing(made.results(), {}) is None and reliability.drawing(made.results(), clean_only) is None


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    made = Study(tmp_path_factory.mktemp("report"), datasets=("acdc", "kvasir-seg"), attacks={"prune": [0.1, 0.5]})
    fail(made, method="badnets", dataset="acdc")
    return made, made.write()


def test_write_makes_every_file_that_it_names(written):
    made, paths = written
    out = made.folder / "out"
    names = {str(p.relative_to(out)) for p in paths}
    assert all(p.stat().st_size > 0 for p in paths)
    figure_names = ["overview", "scores", "mark_vs_dice", "attack-prune", "examples-acdc", "examples-kvasir-seg", "reliability"]
    assert {f"figures/{name}.{kind}" for name in figure_names for kind in ("png", "svg")} < names
    table_names = ["main", "harm", "calibration", "robustness", "false_claims", "access", "failures"]
    assert {f"tables/{name}.{kind}" for name in table_names for kind in ("csv", "md", "tex")} < names
    assert set(json.loads((out / "figures/captions.json").read_text())) == set(figure_names)


def test_each_figure_has_its_own_caption_in_snakemakes_report(written):
    """`workflow/report/figures.rst` says what captions.json says, whatever the figures are."""
    captions = json.loads((written[0].folder / "out/figures/captions.json").read_text())
    template = jinja2.Template((ROOT / "workflow/report/figures.rst").read_text())
    for name, caption in captions.items():
        job = SimpleNamespace(params=SimpleNamespace(captions=captions), wildcards=SimpleNamespace(figure=name))
        assert template.render(snakemake=job).strip() == caption


def test_the_report_needs_no_torch():
    """It is imported where tables are made, which takes no model."""
    command = [sys.executable, "-X", "importtime", "-c", "import stealthmark.report"]
    imported = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stderr
    assert "stealthmark.report.figures" in imported and not re.search(r"\| +torch\b", imported)


def test_the_page_stands_alone(written):
    html = (written[0].folder / "out" / "report.html").read_text()
    assert not re.search(r"<script|<link|@import|url\(", html)
    sources = re.findall(r'src="([^"]{0,30})', html)
    assert len(sources) == 7 and all(source.startswith("data:image/") for source in sources)
    assert set(re.findall(r'href="(http[^"]*)"', html)) == {"https://example.org"}
    assert str(written[0].folder) not in html


def test_the_page_has_sources_failures_and_escapes(written):
    html = (written[0].folder / "out" / "report.html").read_text()
    sources = ['href="../rows.csv"', "0123456789abcdef", "CC0", "Nobody &amp; Sons", "--out &lt;folder&gt;"]
    failed = ['<span class="failed">failed</span>', "the loss became NaN at step 12"]
    assert [part for part in [*sources, *failed, "above 95 %"] if part not in html] == []


def test_a_second_run_gives_the_same_bytes(study):
    made = study(attacks={}, datasets=("acdc",), methods=METHODS[:2])
    first = {p: p.read_bytes() for p in made.write()}
    assert first == {p: p.read_bytes() for p in made.write()}


def test_one_mark_no_attack_one_access_no_examples(study):
    made = study(attacks={}, accesses=("probabilities",), methods=METHODS[:2])
    made.examples = {}
    made.drop(role="independent")
    names = {path.name for path in made.write()}
    assert "overview.png" in names and "access.csv" not in names and not any(n.startswith("examples") for n in names)
    html = (made.folder / "out" / "report.html").read_text()
    assert "This suite has no attacks." in html and "None failed." in html


def test_many_panels_wrap_and_the_one_mark_in_them_is_one_block(study):
    """Six architectures on one dataset, a seventh failed: two rows of panels, one line a panel in the overview, one note."""
    nets = ["unet", "transunet", "unetr", "swinunetr", "nnunet", "sam", "lost"]
    made = study(methods=METHODS[:2], attacks={}, architectures=nets)
    fail(made, architecture="lost")
    loaded = made.results()
    assert drawing.grid(loaded.panels[:5])[:2] == (1, 5) and drawing.grid(loaded.panels[:6])[:2] == (2, 3)
    assert drawing.grid(loaded.panels)[2] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]
    block, less_shown, not_stolen = overview.overview(loaded).figure.axes
    titles = [label.get_text().splitlines()[0] for label in block.get_yticklabels()]
    assert titles == [f"kvasir-seg · {net}" for net in nets] and block.get_title(loc="left") == "stealthmark-floor"
    assert not less_shown.get_yticklabels() and not not_stolen.get_yticklabels()
    for figure in (figures.scores(loaded).figure, figures.mark_vs_dice(loaded).figure):
        assert [ax.get_title() for ax in figure.axes] == titles, "a panel each, and no empty axes"
    attacked = study(methods=METHODS[:2], attacks={"finetune": [1, 2]}, architectures=nets[:6]).results()
    curves = figures.attack_curves(attacked, "finetune").figure.axes
    assert [ax.get_title() for ax in curves if ax.get_title()] == titles[:6] and len(curves) == 18
    assert formatting.cases_notes(loaded) == ["kvasir-seg: 40 test cases, 3 with an empty mask."]
    assert len(reliability.drawing(loaded, made.reliabilities).figure.axes) == 2 * len(nets)
    assert all(path.stat().st_size for path in made.write())


def test_nothing_but_failures_and_nan_is_drawn(study):
    made = study(attacks={"prune": [0.5]}, methods=METHODS[:3])
    for method in METHODS[:2]:
        fail(made, method=method)
    for row in made.rows:
        row["value"] = np.nan
    made.examples = {}
    assert (made.folder / "out" / "report.html") in made.write()


def test_clean_alone_is_a_table_without_figures(study):
    made = study(methods=["clean"], attacks={})
    made.examples = {}
    assert not any(path.suffix == ".png" for path in made.write())


def test_a_prepared_dataset_has_a_contact_sheet_beside_its_manifest(study, tmp_path):
    made = study(attacks={}, methods=METHODS[:2])
    prepare(make("dataset", {"name": "phantom-cine", "groups": 8, "cases_per_group": 2}), 32, 1, tmp_path / "data")
    made.write(examples={}, reliabilities={}, prepared={"kvasir-seg": tmp_path / "data"})
    out = made.folder / "out"
    html = (out / "report.html").read_text()
    assert html.index('id="data"') < html.index('id="figure-contact-kvasir-seg"') < html.index('id="failures"')
    assert "4 of the 4 test cases of Cine-MR phantom at 32 px" in html
    assert (out / "figures" / "contact-kvasir-seg.png").exists()
