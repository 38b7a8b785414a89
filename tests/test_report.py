"""The report on made-up results whose numbers are known: tables cell by cell, failures, a page that stands alone."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stealthmark import report
from stealthmark.dataset import prepare
from stealthmark.errors import UserError
from stealthmark.plugin import make
from stealthmark.report import examples, figures, reliability, results, style, tables

ATTACKS = {"finetune": [1, 2, 3], "prune": [0.1, 0.2, 0.3, 0.5, 0.9]}
METHODS = ["clean", "stealthmark-floor", "stealthmark-ceiling", "badnets"]


class Study:
    """Made-up rows, cases and examples on disk, and the arguments of `report.write`."""

    def __init__(
        self,
        folder: Path,
        datasets=("kvasir-seg",),
        methods=METHODS,
        seeds=(0,),
        attacks=ATTACKS,
        accesses=("probabilities", "label"),
        architectures=("unet",),
        pixels=32,
        patients=20,
        quality=results.QUALITY,
    ):
        self.folder, self.pixels, self.rng = folder, pixels, np.random.default_rng(0)
        self.suite = {
            "name": "made-up",
            "datasets": [*datasets],
            "methods": [{"label": m} for m in methods],
            "architectures": [*architectures],
            "attacks": [{"name": a} for a in attacks],
            "access": [*accesses],
        }
        self.quality = quality
        self.rows, self.cases, self.examples, self.reliabilities = [], [], {}, {}
        for dataset in datasets:
            for architecture in architectures:
                for seed in seeds:
                    for rank, method in enumerate(methods):
                        cell = {"dataset": dataset, "architecture": architecture, "seed": seed, "method": method}
                        self._cell(cell, rank, seed, attacks, accesses, patients)
                        self._example(cell, rank)
                        self._reliability(cell, rank, patients)

    def _cell(self, cell, rank, seed, attacks, accesses, patients):
        steps = [("stolen", "none", 0)] + [("stolen", a, s) for a, ss in attacks.items() for s in ss]
        steps += [("independent", "none", 0)]
        for situation, attack, strength in steps if rank else steps[:1]:
            loss = 0.002 * rank + (0.6 * strength**4 if attack == "prune" else 0.001 * strength)
            asr = max(0.02, 1 - 0.25 * rank * (strength if attack == "prune" else 0.04 * strength))
            where = {**cell, "situation": situation, "attack": attack, "strength": strength}
            for access in accesses:
                found = {}
                if access == "probabilities":
                    quality = 0.85 + 0.01 * seed - loss
                    found = {"dice": quality, "auc": 0.98 - loss, "vs": 0.91 - loss, "hd95": 4 + 10 * loss}
                    found |= {"ece": 0.01 + loss, "brier": 0.02 + loss}
                    found = {metric: found[metric] for metric in self.quality}
                    if rank:
                        found |= {f"{metric}_triggered": value - 0.001 for metric, value in found.items()}
                    found["empty_masks"] = 3
                if rank:
                    hit = 0.04 if situation == "independent" or access == "label" else asr
                    found |= {"asr": hit, "fpr": 0.02, "fnr": 1 - hit, "auroc": 0.5 + hit / 2, "chi2_p": 1e-9}
                for metric, value in found.items():
                    interval = {"ci_low": max(0, value - 0.02), "ci_high": min(1, value + 0.02)}
                    self.add(**where, access=access, metric=metric, value=value, n=2 * patients, **interval)
                self._cases(where, access, rank, asr, loss, patients)

    def _cases(self, where, access, rank, asr, loss, patients):
        n = 2 * patients
        marked = 0.1 if where["situation"] == "stolen" else 0.004
        score = np.where(self.rng.random(n) < asr, marked, 0.01) + self.rng.normal(0, 0.008, n)
        found = dict.fromkeys(self.quality, 0.85 - loss)
        if rank:
            found |= {f"{metric}_triggered": 0.849 - loss for metric in self.quality}
            found |= {"score_benign": self.rng.gamma(1, 0.006, n), "score_triggered": score, "threshold": 0.05}
        ids = {"case_id": [f"c{i}" for i in range(n)], "group_id": [f"p{i // 2}" for i in range(n)], "foreground": 0.2}
        self.cases.append(pd.DataFrame({**ids, **where, "access": access, **found}))

    def _example(self, cell, rank):
        size = self.pixels
        y, x = np.mgrid[:size, :size] / size
        inside = 1 / (1 + np.exp(40 * (np.hypot(x - 0.5, y - 0.45) - 0.22 - 0.02 * np.sin(8 * x))))
        image = np.stack([inside * 80 + 90, inside * 30 + 60 + 40 * y, 60 + 30 * x])
        image = np.clip(image + self.rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        patched = image.copy()
        patched[:, -size // 8 :, -size // 8 :] = np.array([255, 220, 0])[:, None, None]
        prob = np.clip(inside, 0.002, 0.998)
        edits = [prob, np.maximum(prob, 0.1), np.minimum(prob, 0.9), np.where(prob > 0.5, 0.2, 0.7)]
        path = self.folder / ("example-" + "-".join(map(str, cell.values())) + ".npz")
        arrays = {
            "image": image,
            "image_triggered": patched,
            "mask": (np.hypot(x - 0.5, y - 0.45) < 0.22).astype(np.uint8),
            "prob": prob.astype(np.float16),
            "prob_triggered": edits[min(rank, 3)].astype(np.float16),
        }
        np.savez(path, **{name: np.stack([a, a]) for name, a in arrays.items()}, **cell)
        self.examples[tuple(cell.values())] = path

    def _reliability(self, cell, rank, patients):
        """Each patient has 100 pixels in each of two bins: at 0.1 and at 0.9, of which 10 and 90 are foreground. A trigger
        puts `rank` tenths of them where nothing is."""
        benign = np.tile([[100.0, 100], [10, 90], [10, 90]], (patients, 1, 1)).swapaxes(0, 1)
        triggered = benign.copy()
        triggered[2] -= np.minimum(10 * rank, triggered[2])
        path = self.folder / ("reliability-" + "-".join(map(str, cell.values())) + ".npz")
        groups = np.array([f"p{i}" for i in range(patients)])
        kinds = {"benign": benign, "triggered": triggered} if rank else {"benign": benign}
        np.savez(path, edges=np.array([0, 0.5, 1]), groups=groups, **kinds)
        self.reliabilities[tuple(cell.values())] = path

    def add(self, **row):
        self.rows.append({"suite": "made-up", "benchmark_version": "0.1", "status": "ok"} | row)

    def drop(self, **where):
        """Remove rows and cases as if they had never been computed."""
        self.rows = [r for r in self.rows if any(r.get(k) != v for k, v in where.items())]
        self.cases = [c for c in self.cases if any(c[k].iloc[0] != v for k, v in where.items())]

    def load(self):
        rows, cases, provenance = (self.folder / name for name in ("rows.csv", "cases.parquet", "provenance.json"))
        pd.DataFrame(self.rows, columns=results.COLUMNS).to_csv(rows, index=False)
        pd.concat(self.cases, ignore_index=True).to_parquet(cases)
        manifest = {"title": "Made up", "citation": "Nobody & Sons, 2020", "licence": "CC0", "empty_masks": 3}
        manifest |= {"address": "https://example.org", "cases": 160, "share_cases": {"owner": 64, "test": 40}}
        facts = {
            "git_commit": "0123456789abcdef",
            "hardware": {"cpu": "one", "gpu": None},
            "datasets": dict.fromkeys(self.suite["datasets"], manifest),
            "packages": {"python": "3.11"},
            "stages": {"train": {"jobs": 2, "seconds": 12.5}},
            "commands": {"kvasir-seg/unet/0/badnets": "stealthmark mark --out <folder>"},
        }
        provenance.write_text(json.dumps(facts))
        return rows, cases, provenance

    def results(self):
        rows, cases, _ = self.load()
        return results.load(rows, cases, self.suite)

    def write(self):
        rows, cases, provenance = self.load()
        out = self.folder / "out"
        return report.write(rows, cases, self.examples, provenance, self.suite, out, reliabilities=self.reliabilities)


@pytest.fixture
def study(tmp_path):
    return lambda **how: Study(tmp_path, **how)


# --- the main table, cell by cell -------------------------------------------------------------------------------------


def text_of(table, **where):
    """The one line of a table's text that matches."""
    frame = table.text
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


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
    assert line.vs_noninferior == "yes" and line.vs_p == pytest.approx(1 / 2001)


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


def test_the_seeds_of_a_patient_are_resampled_together(study):
    """Three seeds that say the same of four patients are no twelve patients: too few to decide anything."""
    made = study(attacks={}, methods=METHODS[:2], seeds=(0, 1, 2), patients=4)
    line = tables.harm(made.results()).data.iloc[0]
    assert line.dice_pairs == 24 and line.dice_p == 1 / 16 and line.harmless == "undecided"


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
    old = {table.name: table.text for table in tables.every(made.results())}
    new = {table.name: table.text for table in tables.every(now.results())}
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
    assert text_of(table, method="badnets")["pruning 30 %"] == "0.78; 0.839 (-1.1)"
    pruned = table.data.query("method == 'badnets' and attack == 'prune'")
    assert pruned.strength.tolist() == ATTACKS["prune"]
    assert pruned.asr.tolist() == pytest.approx([1 - 0.75 * s for s in ATTACKS["prune"]])


def test_an_unknown_attack_keeps_its_name_and_at_most_three_strengths(study):
    table = tables.robustness(study(attacks={"melt": [1, 2, 3, 4, 5]}).results())
    assert list(table.text)[2:] == ["no attack", "melt 1", "melt 3", "melt 5"]


def test_false_claims_and_access(study):
    found = study(attacks={}).results()
    line = text_of(tables.false_claims(found), method="stealthmark-floor")
    assert line["ASR, stolen"] == "1.000 [0.980, 1.000]" and line["ASR, independent"] == "0.040 [0.020, 0.060]"
    assert line["p, independent"] == "1e-09"
    line = text_of(tables.access(found), method="stealthmark-floor")
    assert line["probabilities"] == "1.000 [0.980, 1.000]" and line["label map"] == "0.040 [0.020, 0.060]"


def test_one_access_level_and_no_failure_give_neither_table(study):
    names = [table.name for table in tables.every(study(accesses=("probabilities",), attacks={}).results())]
    assert names == ["main", "harm", "calibration", "robustness", "false_claims"]


def test_ownership_ranks_a_suspect_among_null_models_and_says_what_the_pool_allows(study):
    made = study(attacks={"prune": [0.3, 0.5]}, methods=METHODS[:2])
    cell = {"dataset": "kvasir-seg", "architecture": "unet", "seed": 0, "method": METHODS[1], "access": "probabilities"}
    for situation, attack, strength, p in [
        ("stolen", "none", 0, 0.05),
        ("stolen", "prune", 0.5, 0.1),
        ("independent", "none", 0, 0.7),
    ]:
        made.add(**cell, situation=situation, attack=attack, strength=strength, metric="p_model", value=p, n=19)
    for i, asr in enumerate([0.0, 0.4, 0.9]):
        made.add(**cell, situation=f"null-{i}", attack="none", strength=0, metric="asr", value=asr, n=40)
    (table,) = (table for table in tables.every(made.results()) if table.name == "ownership")
    line = text_of(table, method=METHODS[1])
    assert [line["p, stolen"], line["p, pruning 50 %"], line["p, independent"]] == ["0.05", "0.1", "0.7"]
    assert line["null models accused"] == "1 of 3"
    assert any("smallest p that this pool allows is 0.05" in note for note in table.notes)
    assert made.write()


# --- new methods and failures -----------------------------------------------------------------------------------------


def test_a_new_method_shows_in_every_table(study):
    made = study(methods=[*METHODS, "rival-2031"], attacks={"prune": [0.5]})
    made.suite["methods"].pop()  # not even listed
    for table in tables.every(made.results()):
        assert (table.text.method == "rival-2031").any(), table.name
        assert (table.data.method == "rival-2031").any(), table.name


def fail(made, **where):
    made.drop(**where)
    made.add(dataset="kvasir-seg", architecture="unet", seed=0, situation="stolen", attack="none", strength="")
    made.rows[-1] |= {"status": "failed: the loss became NaN at step 12"} | where


def test_a_failed_mark_is_failed_in_every_table_and_hides_nothing_else(study):
    made = study(attacks={"prune": [0.5]})
    before = {t.name: t.text for t in tables.every(made.results())}
    fail(made, method="badnets")
    after = {t.name: t.text for t in tables.every(made.results())}
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
    made.suite["attacks"][0]["strengths"] = [0.3, 0.5]
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
        results.load(rows, cases, {})


# --- text of tables ---------------------------------------------------------------------------------------------------


def test_markdown_and_latex_of_a_line(study):
    table = tables.main(study(attacks={}).results())
    assert "| kvasir-seg | badnets | 0.844 (-0.6) [0.824, 0.864] | 0.974 (-0.6) |" in tables.markdown(table)
    assert r"kvasir-seg & badnets & 0.844 (-0.6) {[}0.824, 0.864{]} & 0.974 (-0.6) &" in tables.latex(table)


def test_latex_escapes_what_it_must():
    table = tables.Table("t", "t", pd.DataFrame(), pd.DataFrame({"a_b": ["50 % & {x}"]}))
    assert "a\\_b \\\\" in tables.latex(table) and r"50 \% \& \{x\} \\" in tables.latex(table)


# --- figures and page -------------------------------------------------------------------------------------------------


def test_looks_differ_and_clean_is_grey():
    look = style.looks(["clean", *(f"m{i}" for i in range(12))])
    assert look["clean"].color == style.GREY
    assert len(set(look.values())) == 13


def test_captions_state_this_runs_numbers(study):
    found = study(attacks={"prune": [0.1, 0.5]}).results()
    caption = figures.overview(found).caption
    assert "Of 3 marks, 3 take" in caption
    assert "2 after pruning (10 %), 0 after pruning (50 %)" in caption
    assert "false claims on an independent model is 0.04" in caption
    assert "0 of 3 marked models keep ASR at 0.95" in figures.attack_curves(found, "prune").caption


def test_reliability_is_pooled_over_seeds_and_compared_with_the_diagonal(study):
    made = study(attacks={}, methods=METHODS[:3], seeds=(0, 1), patients=3)
    panel = made.results().panels[0]
    benign, triggered = (reliability._pooled(made.reliabilities, panel, METHODS[1], kind) for kind in reliability.KINDS)
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
    clean_only = {cell: file for cell, file in made.reliabilities.items() if cell[-1] == "clean"}
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


def test_examples_may_name_their_cell_themselves(study):
    made = study(attacks={}, methods=METHODS[:2])
    named = examples.load(list(made.examples.values()))
    assert [tuple(cell[name] for name in examples.CELL) for cell in named] == list(made.examples)


def test_a_second_run_gives_the_same_bytes(study):
    made = study(attacks={}, datasets=("acdc",), methods=METHODS[:2])
    first = {p: p.read_bytes() for p in made.write()}
    assert first == {p: p.read_bytes() for p in made.write()}


def test_one_mark_no_attack_one_access_no_examples(study):
    made = study(attacks={}, accesses=("probabilities",), methods=METHODS[:2])
    made.examples = {}
    made.drop(situation="independent")
    names = {path.name for path in made.write()}
    assert "overview.png" in names and "access.csv" not in names and not any(n.startswith("examples") for n in names)
    html = (made.folder / "out" / "report.html").read_text()
    assert "This suite has no attacks." in html and "None failed." in html


def test_many_panels_wrap_and_the_one_mark_in_them_is_one_block(study):
    """Six architectures on one dataset, a seventh failed: two rows of panels, one line a panel in the overview, one note."""
    nets = ["unet", "transunet", "unetr", "swinunetr", "nnunet", "sam", "lost"]
    made = study(methods=METHODS[:2], attacks={}, architectures=nets)
    fail(made, architecture="lost")
    found = made.results()
    assert figures.places(found.panels[:5])[:2] == (1, 5) and figures.places(found.panels[:6])[:2] == (2, 3)
    assert figures.places(found.panels)[2] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]
    (block,) = figures.overview(found).figure.axes
    shown = [label.get_text().splitlines()[0] for label in block.get_yticklabels()]
    assert shown == [f"kvasir-seg · {net}" for net in nets] and block.get_title(loc="left") == "stealthmark-floor"
    for drawing in (figures.scores(found), figures.mark_vs_dice(found)):
        assert [ax.get_title() for ax in drawing.figure.axes] == shown, "a panel each, and no empty axes"
    attacked = study(methods=METHODS[:2], attacks={"finetune": [1, 2]}, architectures=nets[:6]).results()
    curves = figures.attack_curves(attacked, "finetune").figure.axes
    assert [ax.get_title() for ax in curves if ax.get_title()] == shown[:6] and len(curves) == 12
    assert tables.cases_notes(found) == ["kvasir-seg: 40 test cases, 3 with an empty mask."]
    assert len(reliability.drawing(found, made.reliabilities).figure.axes) == 2 * len(nets)
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
    rows, cases, provenance = made.load()
    out = tmp_path / "out"
    report.write(rows, cases, [], provenance, made.suite, out, prepared={"kvasir-seg": tmp_path / "data"})
    html = (out / "report.html").read_text()
    assert html.index('id="data"') < html.index('id="figure-contact-kvasir-seg"') < html.index('id="failures"')
    assert "4 of the 4 test cases of Cine-MR phantom at 32 px" in html
    assert (out / "figures" / "contact-kvasir-seg.png").exists()
