"""Evidence: what a detector says of a suspect's answers, and when that shows ownership."""

import numpy as np
import pandas as pd
from scipy.special import rel_entr

#: What a p-value of ownership must not exceed.
ALPHA = 0.05
#: Half of it: what the false-positive rate of a frozen threshold may be, where there are patients enough to see to that.
CALIBRATION_FPR = ALPHA / 2
#: How much more often, at least, triggered queries must be called marked than the same images without the trigger.
MARGIN = 0.1


def detect(scores: np.ndarray, threshold: float) -> np.ndarray:
    """bool: the query is called marked. Strictly above, so that an interface that shows nothing convicts nobody."""
    return scores > threshold


def guaranteed_fpr(groups: int) -> float:
    """The probability, at most, that a query of a further group (patient, video) like these is above a calibrated threshold.

    `groups`: how many the threshold was calibrated on, at least one. The largest score of G groups is exceeded by a further one
    with probability 1 / (G + 1) at most, so fewer than 39 guarantee more than `CALIBRATION_FPR`.
    """
    return max(CALIBRATION_FPR, 1 / (groups + 1))


def conformal_p(suspect: float, nulls: np.ndarray) -> float:
    """The p-value of H0 "the suspect was trained independently": its score's rank among the null models' scores.

    (1 + the number of nulls at or above it) / (1 + the number of nulls): valid when suspect and nulls are exchangeable
    under H0, and never smaller than 1 / (1 + the number of nulls).
    """
    return (1 + int(np.sum(nulls >= suspect))) / (1 + len(nulls))


def inside_p(triggered: np.ndarray, benign: np.ndarray, groups: np.ndarray) -> float:
    """The p-value of H0 "inside this suspect the trigger makes no more difference than `MARGIN`".

    The difference is how much more often triggered queries are called marked than the same images without the trigger; the
    unit is the patient. One-sided and valid for any distribution of the patients' differences, which lie in [-1, 1]: the
    bound of Hoeffding (1963, Theorem 1) in its relative-entropy form, conservative. triggered, benign: bool (N,); groups:
    any (N,).
    """
    difference = pd.Series(triggered.astype(float) - benign.astype(float)).groupby(np.asarray(groups)).mean()
    measured, under_h0 = (difference.mean() + 1) / 2, (MARGIN + 1) / 2
    if measured <= under_h0:
        return 1.0
    divergence = rel_entr(measured, under_h0) + rel_entr(1 - measured, 1 - under_h0)
    return float(np.exp(-len(difference) * divergence))


def holm(ps: list[float]) -> list[float]:
    """p-values adjusted for asking several questions (Holm 1979), in their order: the family-wise error stays at alpha."""
    order = np.argsort(ps, kind="stable")
    adjusted = np.maximum.accumulate([min(1.0, (len(ps) - rank) * ps[i]) for rank, i in enumerate(order)] or [1.0])
    return [float(adjusted[rank]) for rank in np.argsort(order, kind="stable")]


def owned(p_model: float, p_inside: float) -> bool:
    """The verdict: ownership is shown when the suspect ranks above the null models (`conformal_p`; the unit is the model),
    *and* inside the suspect it is the trigger that makes the difference (`inside_p`; the unit is the patient)."""
    return p_model <= ALPHA and p_inside <= ALPHA
