"""Made-up results whose numbers are known, on disk as a study leaves them: what the tests of the report read."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from stealthmark import report
from stealthmark.layout import Cell
from stealthmark.report import results

ATTACKS = {"finetune": [1, 2, 3], "prune": [0.1, 0.2, 0.3, 0.5, 0.9]}
METHODS = ["clean", "stealthmark-floor", "stealthmark-ceiling", "badnets"]
#: What plug-ins say of themselves.
REPORTED = [{"metric": "asr", "text": "above 95 % (abstract)"}, {"metric": "dice", "text": "drop below 1 %"}]
OUR_MARK = {"name": "stealthmark", "title": "StealthMark", "citation": "Yu et al.", "reported": REPORTED}
FACTS = {
    "methods": {
        "clean": {"name": "clean", "kind": "none"},
        "stealthmark-floor": OUR_MARK,
        "stealthmark-ceiling": OUR_MARK,
        "badnets": {"name": "badnets", "citation": "Gu et al.", "kind": "embedded"},
        "payload-mark": {"name": "payload-mark", "carries_code": True},
        "weight-mark": {"name": "weight-mark", "kind": "white-box"},
        "reference-answers": {"name": "reference-answers", "kind": "fingerprint"},
        "continued": {"name": "continued", "kind": "control"},
    },
    "attacks": {
        "finetune": {"title": "fine-tuning", "axis": "epochs of fine-tuning", "text": "{:g} epochs"},
        "frozen": {"title": "fine-tuning (norms frozen)", "axis": "epochs", "text": "{:g} epochs"},
        "prune": {
            **{"title": "pruning", "axis": "weights pruned (%)", "scale": 100.0, "text": "{:g} %"},
            **{"reported": [0.1, 0.3, 0.5]},
        },
    },
    "scanners": {"entropy": {"title": "entropy of answers", "citation": "nobody"}},
}


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
        self.quality, self.facts = quality, FACTS
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
        for role, attack, strength in steps if rank else steps[:1]:
            loss = 0.002 * rank + (0.6 * strength**4 if attack == "prune" else 0.001 * strength)
            asr = max(0.02, 1 - 0.25 * rank * (strength if attack == "prune" else 0.04 * strength))
            where = {**cell, "role": role, "attack": attack, "strength": strength}
            for access in accesses:
                values = {}
                if access == "probabilities":
                    quality = 0.85 + 0.01 * seed - loss
                    measured = {"dice": quality, "auc": 0.98 - loss, "vs": 0.91 - loss, "hd95": 4 + 10 * loss}
                    measured |= {"ece": 0.01 + loss, "brier": 0.02 + loss}
                    values = {(metric, "benign"): measured[metric] for metric in self.quality}
                    if rank:
                        values |= {(metric, "triggered"): measured[metric] - 0.001 for metric in self.quality}
                    values["empty_masks", ""] = 3
                if rank:
                    hit = 0.04 if role == "independent" or access == "label" else asr
                    rates = {"asr": hit, "fpr": 0.02, "fnr": 1 - hit, "auroc": 0.5 + hit / 2, "chi2_p": 1e-9}
                    values |= {(metric, ""): value for metric, value in rates.items()}
                for (metric, query), value in values.items():
                    interval = {"ci_low": max(0, value - 0.02), "ci_high": min(1, value + 0.02)}
                    self.add(**where, access=access, query=query, metric=metric, value=value, n=2 * patients, **interval)
                self._cases(where, access, rank, asr, loss, patients)

    def _cases(self, where, access, rank, asr, loss, patients):
        n = 2 * patients
        marked = 0.1 if where["role"] == "stolen" else 0.004
        score = np.where(self.rng.random(n) < asr, marked, 0.01) + self.rng.normal(0, 0.008, n)
        columns = dict.fromkeys(self.quality, 0.85 - loss) if access == "probabilities" else {}
        if rank:
            columns |= {f"{metric}_triggered": value - 0.001 for metric, value in columns.items()}
            columns |= {"score_benign": self.rng.gamma(1, 0.006, n), "score_triggered": score, "threshold": 0.05}
        ids = {"case_id": [f"c{i}" for i in range(n)], "group_id": [f"p{i // 2}" for i in range(n)], "foreground": 0.2}
        self.cases.append(pd.DataFrame({**ids, **where, "member": "", "access": access, **columns}))

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
        np.savez(path, **{name: np.stack([a, a]) for name, a in arrays.items()})
        self.examples[Cell(**cell)] = path

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
        self.reliabilities[Cell(**cell)] = path

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
        content = {
            **self.facts,
            "git_commit": "0123456789abcdef",
            "hardware": {"cpu": "one", "gpu": None},
            "datasets": dict.fromkeys(self.suite["datasets"], manifest),
            "packages": {"python": "3.11"},
            "stages": {"train": {"jobs": 2, "seconds": 12.5}},
            "commands": {"kvasir-seg/unet/0/badnets": "stealthmark mark --out <folder>"},
        }
        provenance.write_text(json.dumps(content))
        return rows, cases, provenance

    def results(self):
        rows, cases, provenance = self.load()
        return results.load(rows, cases, self.suite, json.loads(provenance.read_text()))

    def write(self, **files):
        known = {"examples": self.examples, "reliabilities": self.reliabilities}
        return report.write(report.Sources(*self.load(), **(known | files)), self.suite, self.folder / "out")


def text_of(table, **where):
    """The one line of a table's text that matches."""
    frame = table.text
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


def fail(made, **where):
    made.drop(**where)
    made.add(dataset="kvasir-seg", architecture="unet", seed=0, role="stolen", attack="none", strength="")
    made.rows[-1] |= {"status": "failed: the loss became NaN at step 12"} | where
