"""Verdicts: the scores of a key's suspects -> whose model each is, with the model as the unit, as rows."""

from collections.abc import Collection, Iterator

import numpy as np
import pandas as pd

from stealthmark.evidence import conformal_p, detect, holm, inside_p, owned
from stealthmark.layout import CLAIMS, NULL, STOLEN, Place
from stealthmark.metrics import auroc, clustered_mean

PLACE = list(Place._fields)


def metric_row(metric: str, n: int, value: float, low: float = np.nan, high: float = np.nan) -> dict:
    """What a row says of a metric; `low`, `high`: its interval, where it has one."""
    return {"metric": metric, "value": value, "n": n, "ci_low": low, "ci_high": high}


def model_score(scores: np.ndarray, groups: np.ndarray) -> dict:
    """The row `score`: the mean over a suspect's triggered queries, which is what it is ranked by, and its interval, from the
    standard error between groups (`metrics.clustered_mean`). n counts the groups. scores: float (N,), groups: any (N,)."""
    return metric_row("score", len(np.unique(groups)), *clustered_mean(scores, groups))


def verdicts(cases: pd.DataFrame, claimed: pd.DataFrame | None, asks: int, unmarked: Collection[str]) -> Iterator[dict]:
    """Where there are null models: whose model each suspect is, at each access level, as rows.

    `p_model`: the suspect's rank among the null models (their unit is the model, its score the mean over the triggered
    queries), which were queried as the suspect was; a null model's among the others. `p_unmarked`: the same among those that
    carry no mark at all, the members `unmarked`. `p_inside`: that the trigger makes the difference (Holm-adjusted over the
    attacks on a stolen model). `owned`: the verdict, 1 or 0; of a null model too, whoever marked it. `auroc_null`: a stolen
    model's triggered queries, attacked or not, against those of all null models.
    `queries_to_verdict`: the fewest queries that give the verdict on the model as it was stolen, and every larger number too,
    where an image takes `asks`. `tpr_5`, `tpr_1`: the stolen model's triggered queries above the score that 5 % and 1 % of the
    null models' triggered queries exceed. `claimed`: the null models' scores under others' claims.
    """
    scored = cases[cases["threshold"].notna()]
    for level, at_level in scored.groupby("access", sort=False):
        suspects = {Place(*values): part for values, part in at_level.groupby(PLACE, sort=False)}
        nulls = [place for place in suspects if place.role == NULL]
        pool = pd.DataFrame({"member": [place.member for place in nulls], "score": [_mean_score(suspects[p]) for p in nulls]})
        of_nulls = at_level[at_level["role"] == NULL]
        inside = {place: _inside(part) for place, part in suspects.items()}
        stolen = [place for place in suspects if place.role == STOLEN]
        inside |= dict(zip(stolen, holm([inside[place] for place in stolen]), strict=True))
        for place, part in suspects.items():
            among = pool[pool["member"] != place.member]  # all of them, unless it is one of them
            if claimed is not None and place.role in CLAIMS:
                among = claimed[(claimed["claim"] == place.role) & (claimed["access"] == level)]
            score, scores = _mean_score(part), among["score"].to_numpy()
            p_model = conformal_p(score, scores)
            verdict = {"p_model": p_model, "p_inside": inside[place], "owned": float(owned(p_model, inside[place]))}
            if place.as_stolen:
                verdict |= _detection_among_nulls(part, of_nulls)
                verdict["queries_to_verdict"] = _queries_to_verdict(part, of_nulls, len(stolen), asks)
            for metric, value in verdict.items():
                yield {**place._asdict(), **metric_row(metric, len(among), value)}
            never_marked = scores[among["member"].isin(unmarked).to_numpy()]
            if len(never_marked):
                yield {**place._asdict(), **metric_row("p_unmarked", len(never_marked), conformal_p(score, never_marked))}
            if place.role == STOLEN:
                triggered, others = (each["score_triggered"].to_numpy() for each in (part, of_nulls))
                yield {**place._asdict(), **metric_row("auroc_null", len(triggered) + len(others), auroc(triggered, others))}


def _mean_score(part: pd.DataFrame) -> float:
    return float(part["score_triggered"].mean())


def _inside(part: pd.DataFrame) -> float:
    hit, alarm = (detect(part[f"score_{kind}"].to_numpy(), part["threshold"].to_numpy()) for kind in ("triggered", "benign"))
    return inside_p(hit, alarm, part["group_id"].to_numpy())


def _detection_among_nulls(part: pd.DataFrame, nulls: pd.DataFrame) -> dict[str, float]:
    """`tpr_5` and `tpr_1` of one suspect among null models."""
    rates = {}
    for percent in (5, 1):
        threshold = np.quantile(nulls["score_triggered"], 1 - percent / 100, method="higher")
        rates[f"tpr_{percent}"] = float((part["score_triggered"] > threshold).mean())
    return rates


def _queries_to_verdict(part: pd.DataFrame, nulls: pd.DataFrame, family: int, asks: int) -> float:
    """The fewest queries that give the verdict; `family` p-values inside the suspect are adjusted for. NaN where none do."""
    # One image of every patient first, then the second of each: in the order in which an owner would best ask.
    order = part.groupby("group_id").cumcount().sort_values(kind="stable").index
    own = part.loc[order].reset_index(drop=True)
    others = nulls.pivot(index=PLACE, columns="case_id", values="score_triggered")[own["case_id"]].to_numpy()
    n = np.arange(1, len(own) + 1)
    scores, pools = np.cumsum(own["score_triggered"]) / n, np.cumsum(others, axis=1) / n
    fewest = np.nan
    for k in reversed(n):
        if not owned(conformal_p(scores[k - 1], pools[:, k - 1]), min(1.0, family * _inside(own[:k]))):
            break
        fewest = asks * k
    return fewest
