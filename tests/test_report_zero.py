"""What the report measures against, what stands beside ASR, the model as the unit, innocent models, and each seed alone."""

import numpy as np
import pytest
from made_up import METHODS, Study, fail, text_of

from stealthmark.report import (
    by_seed,
    explanation_tables,
    figures,
    model_level,
    overview,
    reliability,
    situations,
    style,
    tables,
)
from stealthmark.report.changes import Measure, paired_change

CONTROLLED = ["clean", "continued", "stealthmark-floor"]
CELL = {"dataset": "kvasir-seg", "architecture": "unet", "seed": 0, "access": "probabilities"}
NONE = {"attack": "none", "strength": 0}


@pytest.fixture
def study(tmp_path):
    return lambda **how: Study(tmp_path, **how)


def controlled(study, methods=CONTROLLED, **how):
    """A suite with a control, whose rows have no detection and which nobody attacked. Dice: clean 0.850, control 0.848, floor
    0.846; the cases of each have 0.85, 0.848 and 0.846."""
    made = study(methods=methods, **how)
    made.rows = [
        row
        for row in made.rows
        if row["method"] != "continued"
        or ((row["query"] or row["metric"] == "empty_masks") and row["attack"] == "none" and row["role"] == "stolen")
    ]
    return made


# --- the zero ---------------------------------------------------------------------------------------------------------


def test_with_a_control_it_is_the_zero_and_clean_stands_beside_it(study):
    loaded = controlled(study, attacks={}).results()
    assert [loaded.zero(method) for method in loaded.methods] == ["continued"] * 3
    assert loaded.marks == ["stealthmark-floor"] and loaded.controls == ["continued"]
    table = tables.main(loaded)
    assert table.text.method.tolist() == CONTROLLED
    assert text_of(table, method="clean")["Dice"].startswith("0.850 (+0.2)")
    assert text_of(table, method="continued")["Dice"] == "0.848 [0.828, 0.868]"
    assert text_of(table, method="stealthmark-floor")["Dice"].startswith("0.846 (-0.2)")
    assert text_of(table, method="stealthmark-floor")["Dice, triggered"].startswith("0.845 (-0.3)")
    assert table.notes[0].startswith("In parentheses: change against the control continued of the same seed")


def test_without_a_control_clean_is_and_every_table_says_what_that_means(study):
    loaded = study(attacks={"prune": [0.5]}, methods=METHODS[:2]).results()
    assert loaded.zero("stealthmark-floor") == "clean" and loaded.against == "clean (trained for less long)"
    by_name = {table.name: " ".join(table.notes) for table in tables.all_tables(loaded)}
    for name in ("main", "harm", "calibration", "robustness"):
        assert "against clean (trained for less long)" in by_name[name], name
    assert figures.mark_vs_dice(loaded).figure.axes[0].get_xlabel() == "change of Dice against clean (points)"
    assert "against clean (trained for less long)" in overview.overview(loaded).figure.texts[-1].get_text().replace("\n", " ")


def test_of_several_controls_the_first_in_the_suites_order_is_the_zero(study):
    made = study(methods=["clean", "stealthmark-floor", "longer", "continued"], attacks={})
    made.facts = {**made.facts, "methods": {**made.facts["methods"], "longer": {"name": "continued", "kind": "control"}}}
    loaded = made.results()
    assert loaded.methods == ["clean", "longer", "continued", "stealthmark-floor"]
    assert loaded.zero("stealthmark-floor") == loaded.zero("continued") == "longer"
    assert text_of(tables.main(loaded), method="continued")["AUC"] == "0.974 (-0.2)", "ranks 2 and 3, 0.002 each"


def test_a_fingerprint_is_measured_against_the_clean_model_that_it_leaves_as_it_is(study):
    made = controlled(study, methods=["clean", "continued", "reference-answers"], attacks={})
    clean = {(row["metric"], row["query"]): row["value"] for row in made.rows if row["method"] == "clean"}
    for row in made.rows:
        if row["method"] == "reference-answers":
            row["value"] = clean.get((row["metric"], row["query"]), row["value"])
    loaded = made.results()
    assert loaded.zero("reference-answers") == "clean" and loaded.zero("clean") == "continued"
    table = tables.main(loaded)
    assert text_of(table, method="reference-answers")["Dice"].startswith("0.850 (0.0)")
    assert "A fingerprint's change is against the clean model" in table.notes[0]


def test_a_control_that_failed_is_replaced_by_nothing(study):
    made = controlled(study, attacks={})
    fail(made, method="continued")
    loaded = made.results()
    line = text_of(tables.main(loaded), method="stealthmark-floor")
    assert loaded.zero("stealthmark-floor") == "continued" and line["AUC"] == "0.976"
    assert text_of(tables.harm(loaded), method="stealthmark-floor")["Dice"] == "–"
    assert text_of(tables.main(loaded), method="continued")["Dice"] == "failed"


def test_harm_and_calibration_are_paired_with_the_control(study):
    loaded = controlled(study, attacks={}).results()
    table = tables.harm(loaded)
    assert text_of(table, method="stealthmark-floor")["Dice"] == "-0.2 [-0.2, -0.2]; yes"
    assert text_of(table, method="clean")["Dice"] == "+0.2 [+0.2, +0.2]" and text_of(table, method="clean")["harmless"] == "–"
    assert text_of(table, method="continued")["Dice"] == "–"
    assert text_of(table, method="continued")["Dice, triggered"] == "-0.1 [-0.1, -0.1]", "against its own ordinary answers"
    assert set(table.data.zero) == {"continued"} and "against the control continued" in table.notes[0]
    table = tables.calibration(loaded)
    assert text_of(table, method="stealthmark-floor")["ECE"] == "0.014; -0.2 [-0.2, -0.2]"
    assert text_of(table, method="continued")["ECE"] == "0.012"


def test_a_control_is_in_no_table_or_figure_of_detection(study):
    loaded = controlled(study, attacks={"prune": [0.1, 0.5]}).results()
    for table in (tables.robustness(loaded), tables.false_claims(loaded), tables.access(loaded)):
        assert table.text.method.unique().tolist() == ["stealthmark-floor"], table.name
    figure = overview.overview(loaded)
    assert [label.get_text() for label in figure.figure.axes[0].get_yticklabels()] == ["stealthmark-floor"]
    notes = [text.get_text() for ax in figure.figure.axes for text in ax.texts]
    assert "continued: Dice 0.848; clean model: Dice 0.850" in notes
    below = figures.attack_curves(loaded, "prune").figure.axes[2]
    assert [line.get_ydata()[0] for line in below.get_lines() if line.get_linestyle() == "--"] == pytest.approx([0.85, 0.848])


def test_a_control_changes_no_colour_of_a_mark():
    before, after = style.looks(["clean", "a", "b"]), style.looks(["clean", "continued", "a", "b"], ["continued"])
    assert {name: after[name] for name in before} == before and after["continued"].color not in {
        look.color for look in before.values()
    }


def test_the_control_is_asked_without_trigger_in_both_columns_of_the_reliability(study):
    made = controlled(study, attacks={})
    caption = reliability.drawing(made.results(), made.reliabilities).caption
    assert "clean and continued: no mark, asked without trigger" in caption
    assert caption.endswith("Clean: 0.000. Continued: 0.000."), "though a trigger puts a tenth of its pixels elsewhere"


# --- presence beside calibration --------------------------------------------------------------------------------------


def test_a_mark_that_is_present_and_out_of_calibration_shows_both(study):
    made = study(attacks={"prune": [0.5]}, methods=METHODS[:2])
    for row in made.rows:
        if row["attack"] == "prune" and row["metric"] in ("asr", "auroc") and row["access"] == "probabilities":
            row["value"] = {"asr": 0.03, "auroc": 0.999}[row["metric"]]
    where = {**CELL, "method": METHODS[1], "role": "stolen"}
    made.add(**where, **NONE, metric="auroc_null", value=0.75, n=40)
    loaded = made.results()
    line = text_of(tables.robustness(loaded), method=METHODS[1])
    assert line["pruning 50 %"].startswith("0.03, AUROC 1.00; ")
    assert line["no attack"].startswith("1.00, AUROC 1.00, nulls 0.75; ")
    assert text_of(tables.main(loaded), method=METHODS[1])["AUROC, nulls"] == "0.750"
    assert tables.robustness(loaded).data.auroc_null.tolist()[0] == 0.75
    middle = figures.attack_curves(loaded, "prune").figure.axes[1]
    assert middle.get_ylabel() == "AUROC" and middle.get_lines()[0].get_ydata()[-1] == 0.999
    texts = [text.get_text() for text in overview.overview(loaded).figure.axes[0].texts]
    assert any(text.startswith("AUROC 1.00\nDice ") for text in texts)


# --- harm that one half does not see ----------------------------------------------------------------------------------


def test_dice_over_thresholds_is_a_column_of_harm_and_decides_nothing(study):
    made = study(attacks={}, methods=METHODS[:2])
    assert not any("thresholds" in title for title in tables.harm(made.results()).text), "rows of older benchmarks"
    for cases in made.cases:
        if cases.access.iloc[0] == "probabilities":
            cases["threshold_dice"] = 0.8
            if cases.method.iloc[0] != "clean":
                cases["threshold_dice_triggered"] = 0.7
    table = tables.harm(made.results())
    line = text_of(table, method=METHODS[1])
    assert line["Dice over thresholds"] == "0.0 [0.0, 0.0]; yes"
    assert line["Dice over thresholds, triggered"] == "-10.0 [-10.0, -10.0]; no"
    assert line["harmless"] == "yes; triggered: yes"
    assert table.data.threshold_dice_triggered_change.item() == pytest.approx(-10)


# --- the model as the unit --------------------------------------------------------------------------------------------


def with_scores(made, method=METHODS[1]):
    """Stolen 0.9, pruned 0.4, independent 0.2; never marked 0.1 and 0.3, another owner's key 0.5."""
    where = {**CELL, "method": method}
    models = [("stolen", "", "none", 0, 0.9), ("stolen", "", "prune", 0.5, 0.4), ("independent", "", "none", 0, 0.2)]
    models += [("null", "0", "none", 0, 0.1), ("null", "1", "none", 0, 0.3), ("null", "key-0", "none", 0, 0.5)]
    for role, member, attack, strength, score in models:
        place = {**where, "role": role, "member": member, "attack": attack, "strength": strength}
        made.add(**place, metric="score", value=score, n=20, ci_low=score - 0.05, ci_high=score + 0.05)
        made.add(**place, metric="owned", value=float(score > 0.8), n=20)
        if role != "null":
            made.add(**place, metric="p_model", value=0.25, n=3)
            made.add(**place, metric="p_unmarked", value=1 / 3, n=2)
    return made


def test_mean_scores_stand_among_those_of_null_models(study):
    made = with_scores(study(attacks={"prune": [0.5]}, methods=METHODS[:2]))
    loaded = made.results()
    nulls, suspects = model_level.scores_of(loaded, loaded.panels[0], METHODS[1])
    assert nulls.value.tolist() == [0.1, 0.3, 0.5] and suspects.value.tolist() == [0.9, 0.4, 0.2]
    drawn = model_level.drawing(loaded)
    (ax,) = drawn.figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["null models", "independent", "stolen", "pruning 50 %"]
    unmarked, marked, highest = ax.get_lines()[:3]
    assert unmarked.get_xdata().tolist() == [0.1, 0.3] and marked.get_xdata().tolist() == [0.5]
    assert highest.get_xdata() == [0.5, 0.5] and "1 of 2 stolen models" in drawn.caption
    points = {line.get_xdata()[0]: line.get_markerfacecolor() for line in ax.get_lines()[3:] if line.get_marker() == "o"}
    assert points[0.9] != "white" and points[0.4] == points[0.2] == "white", "filled where ownership is shown"
    bars = [line.get_xdata() for line in ax.get_lines()[3:] if line.get_marker() != "o" and len(set(line.get_xdata())) > 1]
    assert [pytest.approx([0.85, 0.95]) == bar for bar in bars].count(True) == 1
    line = text_of(tables.ownership(loaded), method=METHODS[1])
    assert line["p, stolen"] == "0.25; unmarked 0.33; score 0.900 [0.850, 0.950]"
    made.write()
    assert 'id="figure-model-scores"' in (made.folder / "out/report.html").read_text()


def test_rows_of_older_benchmarks_have_neither_scores_nor_queries(study):
    loaded = study(attacks={}, methods=METHODS[:2]).results()
    assert model_level.drawing(loaded) is None and model_level.tables(loaded) == []


def test_queries_until_shown_are_listed_by_suspect_access_and_seed(study):
    made = study(attacks={"prune": [0.5]}, methods=METHODS[:2], seeds=(0, 1))
    where = {**CELL, "method": METHODS[1], "role": "stolen", "metric": "queries_to_verdict", "n": 39}
    for seed, value in ((1, np.nan), (0, 14)):
        made.add(**{**where, "seed": seed}, **NONE, value=value)
    made.add(**{**where, "access": "label"}, **NONE, value=32)
    made.add(**where, attack="prune", strength=0.5, value=3)
    (table,) = model_level.tables(made.results())
    assert table.text.suspect.tolist() == ["stolen", "pruning 50 %"]
    stolen, pruned = (text_of(table, suspect=suspect) for suspect in table.text.suspect)
    assert stolen["probabilities"] == "14, not reached" and stolen["label map"] == "32"
    assert pruned["probabilities"] == "3" and pruned["label map"] == "–"
    assert table.data.queries.isna().sum() == 1 and len(table.data) == 4


# --- innocent models --------------------------------------------------------------------------------------------------


def test_innocent_models_that_are_accused_are_in_the_headline_with_an_exact_bound(study):
    made = study(attacks={}, methods=METHODS[:2])
    where = {**CELL, **NONE, "method": METHODS[1], "role": "null", "metric": "owned"}
    for i in range(39):
        made.add(**where, member=str(i), value=0, n=40)
    for member, owned in (("key-0", 1), ("badnets", 0)):
        made.add(**where, member=member, value=owned, n=40)
    table = tables.main(made.results())
    line = text_of(table, method=METHODS[1])
    # None of 39: 1 - 0.05^(1/39) = 0.0739. One of two: p^2 = 0.95 is missed by two, so 1 - p^2 = 0.05 and p = 0.9747.
    assert line["shown, unmarked"] == "0/39; at most 0.07" and line["shown, marked otherwise"] == "1/2; at most 0.97"
    assert table.data.query(f"method == {METHODS[1]!r}").shown_unmarked_high.item() == pytest.approx(1 - 0.05 ** (1 / 39))
    assert text_of(table, method="clean")["shown, unmarked"] == "–" and situations.INNOCENT_NOTE in table.notes


def test_a_control_among_the_null_models_was_never_marked(study):
    made = controlled(study, attacks={})
    for member, owned in (("0", 0), ("continued", 1), ("badnets", 0)):
        made.add(**CELL, **NONE, method=METHODS[1], role="null", member=member, metric="owned", value=owned, n=40)
    loaded = made.results()
    assert situations.innocent(loaded) == {"unmarked": ("0", "continued"), "marked otherwise": ("badnets",)}
    titles = {column.title: column.members for column in situations.tried(loaded)}
    assert titles["never marked"] == ("0", "continued") and titles["other methods' marks"] == ("badnets",)


def test_a_pool_in_which_nothing_can_be_shown_clears_nobody(study):
    """A null model among eighteen others has a rank of 1/19 at best, above 0.05."""
    made = study(attacks={}, methods=METHODS[:2])
    for i in range(19):
        made.add(**CELL, **NONE, method=METHODS[1], role="null", member=str(i), metric="owned", value=0, n=18)
    assert text_of(tables.main(made.results()), method=METHODS[1])["shown, unmarked"] == "–"


def test_without_verdicts_the_headline_is_as_before(study):
    assert not any("shown" in title for title in tables.main(study(attacks={}).results()).text)


# --- seeds ------------------------------------------------------------------------------------------------------------


def seeds_that_differ(study):
    """Three seeds of twenty patients, whose marked models lose 1.7 and 1.9 and gain 2.0 points on every case."""
    made = study(attacks={"prune": [0.5]}, methods=METHODS[:2], seeds=(0, 1, 2))
    for cases in made.cases:
        if cases.method.iloc[0] == METHODS[1] and cases.access.iloc[0] == "probabilities" and cases.attack.iloc[0] == "none":
            cases["dice"] = 0.85 + (-0.017, -0.019, 0.020)[cases.seed.iloc[0]]
    return made


def test_seeds_that_disagree_are_no_verdict(study):
    loaded = seeds_that_differ(study).results()
    change = paired_change(loaded, loaded.panels[0], METHODS[1], Measure("dice"))
    assert change.mean == pytest.approx(-1.6 / 3) and change.by_seed == pytest.approx((-1.7, -1.9, 2.0))
    # Three means: their standard error is 2.20 / sqrt(3) = 1.27, times t with 2 degrees of freedom, 4.30: 5.5 points.
    assert change.low < -1.9 and change.high > 2.0, "not the interval of sixty patients that say the same"
    assert change.verdict.answer == "undecided" and np.isnan(change.verdict.p)
    table = tables.harm(loaded)
    assert text_of(table, method=METHODS[1])["Dice"].endswith("; undecided; seeds -1.7, -1.9, +2.0")
    assert "seeds are both units" in " ".join(table.notes)


def test_each_seed_is_shown_alone(study):
    loaded = seeds_that_differ(study).results()
    table = by_seed.table_of(loaded)
    lines = table.text[table.text.method == METHODS[1]]
    assert lines.seed.tolist() == ["0", "1", "2"]
    assert [text.split("; ")[1] for text in lines.Dice] == ["-1.7 [-1.7, -1.7]", "-1.9 [-1.9, -1.9]", "+2.0 [+2.0, +2.0]"]
    assert [text.split()[0] for text in lines.Dice] == ["0.848", "0.858", "0.868"]
    assert lines["pruning 50 %"].iloc[0].startswith("0.88, AUROC 0.94; 0.8")
    assert set(table.data.attack) == {"none", "prune"} and len(table.data) == 3 + 6
    assert "by-seed" in [table.name for table in tables.all_tables(loaded)]


def test_a_seed_that_failed_is_failed_in_its_line_alone(study):
    made = study(attacks={}, methods=METHODS[:2], seeds=(0, 1))
    fail(made, method=METHODS[1], seed=1)
    text = by_seed.table_of(made.results()).text
    assert text[text.method == METHODS[1]].ASR.tolist() == ["1.000 [0.980, 1.000]", "failed"]


def test_one_seed_has_no_table_of_seeds(study):
    assert "by-seed" not in [table.name for table in tables.all_tables(study(attacks={}).results())]


# --- what is guaranteed, and a reader that came later -----------------------------------------------------------------


def test_what_the_threshold_guarantees_is_said_once_under_each_table_with_fpr(study):
    made = study(attacks={}, methods=METHODS[:3])
    for method in METHODS[1:3]:
        made.add(**CELL, **NONE, role="stolen", method=method, metric="fpr_guaranteed", value=1 / 13, n=12)
    loaded = made.results()
    for table in (tables.main(loaded), tables.false_claims(loaded), tables.access(loaded)):
        said = [note for note in table.notes if "12 calibration patients" in note]
        assert len(said) == 1 and "guarantees an FPR of 0.077 per patient" in said[0], table.name


def test_explanations_have_a_reader_of_the_answers_level(study):
    made = study(attacks={}, methods=METHODS[:2])
    how = {**CELL, **NONE, "method": METHODS[1], "query": "trigger", "reader": "level", "pooled": "true"}
    for role, error in (("stolen", 0.05), ("independent", 0.5)):
        for images, worse in ((1, 0.2), (16, 0.0)):
            made.add(**how, role=role, queries=images, metric="bit_error", value=error + worse, n=16)
            made.add(**how, role=role, queries=images, metric="decoded", value=float(role == "stolen"), n=16)
    (table,) = explanation_tables.tables(made.results())
    line = text_of(table, method=METHODS[1])
    assert [title for title in line.index if title.startswith(("gated", "LIME"))] == []
    assert line["level of all answers: stolen"] == "0.050" and line["level of all answers: independent"] == "0.500"
    assert line["level of all answers: untrained"] == "–"
    made.write()
    assert "level of all answers: stolen" in (made.folder / "out/report.html").read_text()


def test_dice_over_thresholds_changes_in_points_too(study):
    made = study(attacks={}, methods=METHODS[:2])
    for method, value in (("clean", 0.81), (METHODS[1], 0.71)):
        made.add(**CELL, **NONE, role="stolen", method=method, query="benign", metric="threshold_dice", value=value, n=40)
    loaded = made.results()
    value = loaded.value("threshold_dice", loaded.panels[0], METHODS[1])
    assert value.mean == pytest.approx(0.71) and value.change == pytest.approx(-10)
