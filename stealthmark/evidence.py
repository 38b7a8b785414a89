"""Evidence: the owner-side detector, fitted before any suspect is queried, what it says of a suspect's answers, and when that
shows ownership."""

import math

import numpy as np
import pandas as pd
from scipy.special import rel_entr
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from stealthmark.method import Detector, Key, MethodContract, Predictor

#: Half of the false-positive rate that evidence is judged at (0.05): what the owner's own images may reach.
CALIBRATION_FPR = 0.025
#: What a p-value of ownership must not exceed.
ALPHA = 0.05
#: How much more often, at least, triggered queries must be called marked than the same images without the trigger.
MARGIN = 0.1


def fit_detector(method: MethodContract, key: Key, marked: Predictor, null: Predictor, images: Tensor) -> Detector:
    """The detector, from the owner's marked model and a null model on calibration images float (N, C, H, W).

    One score a query into a class-balanced logistic regression (as in the paper), *triggered queries of the marked
    model* against *its benign queries and all queries of the null model*. Its boundary is the threshold, raised where
    needed so that of none of these three kinds more than `CALIBRATION_FPR` pass (split-conformal quantile).
    """
    own, other = method.query(marked, key, images), method.query(null, key, images)
    negatives = [other_scores.double().numpy() for other_scores in (own.benign, other.benign, other.triggered)]
    positive = own.triggered.double().numpy()
    threshold = max(_boundary(positive, np.concatenate(negatives)), *map(_quantile, negatives))
    return Detector(threshold=threshold, fitted_on={"triggered": len(positive), "not": sum(map(len, negatives))})


def _boundary(positive: np.ndarray, negative: np.ndarray) -> float:
    """The score at which a one-dimensional logistic regression is undecided; -inf where more score is not more marked."""
    scores = np.concatenate([positive, negative])
    mean, sd = scores.mean(), scores.std() or 1.0
    labels = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    model = LogisticRegression(class_weight="balanced").fit(((scores - mean) / sd)[:, None], labels)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    return mean - sd * offset / slope if slope > 1e-6 else -math.inf


def _quantile(negative: np.ndarray) -> float:
    """The smallest score that a further exchangeable negative exceeds with probability <= CALIBRATION_FPR."""
    rank = math.ceil((len(negative) + 1) * (1 - CALIBRATION_FPR))
    return float(np.sort(negative)[min(rank, len(negative)) - 1])


def detect(scores: np.ndarray, threshold: float) -> np.ndarray:
    """bool: the query is called marked. Strictly above, so that an interface that shows nothing convicts nobody."""
    return scores > threshold


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
    found, under_h0 = (difference.mean() + 1) / 2, (MARGIN + 1) / 2
    if found <= under_h0:
        return 1.0
    divergence = rel_entr(found, under_h0) + rel_entr(1 - found, 1 - under_h0)
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


def claimed_threshold(triggered: np.ndarray, benign: np.ndarray) -> float:
    """The threshold of a claimant who fits the detector on the suspect's own answers, as StealthMark's released code does.

    It separates whatever differs with and without the trigger; the benchmark grants it to malicious claimants alone.
    """
    return max(_boundary(triggered, benign), _quantile(benign))
