"""Detection: a suspect's answers to a key's queries as scores, and the owner-side detector, fitted before any suspect is
queried."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from stealthmark.evidence import CALIBRATION_FPR
from stealthmark.method import Answers, BlackBoxMethod, Detector, Key
from stealthmark.suspects.querier import Predictor

#: Images that are asked with at a time: a multiple of what networks answer at once, so that parts change no answer.
CHUNK = 256


class Asking:
    """A suspect's answers to a key's queries, read part by part at every access level: memory does not grow with the images.

    `seen`: access level -> the suspect as it is seen there.
    """

    def __init__(
        self,
        method: BlackBoxMethod,
        key: Key,
        seen: dict[str, Predictor],
        trigger: Callable[[Tensor], Tensor] | None = None,
    ):
        self.method, self.key, self.seen, self.trigger = method, key, seen, trigger
        self._parts: dict[str, list[Answers]] = {level: [] for level in seen}
        self._first = 0

    def add(self, images: Tensor) -> None:
        """Ask with the next images, float (B, C, H, W) in [0, 1]."""
        for level, predictor in self.seen.items():
            part = self.method.query(predictor, self.key, images, self._first, self.trigger)
            self._parts[level].append(part)
        self._first += len(images)

    def scores(self) -> dict[str, Answers]:
        """One score a query at every level."""
        scores = {}
        for level, parts in self._parts.items():
            whole = Answers(torch.cat([part.triggered for part in parts]), torch.cat([part.benign for part in parts]))
            scores[level] = self.method.relate(whole, self.key)
        return scores


def ask(
    method: BlackBoxMethod,
    key: Key,
    seen: dict[str, Predictor],
    batches: Iterable[Tensor],
    trigger: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Answers]:
    """The scores of all queries at every access level of `seen`. What is asked with: the owner's images, in `batches` of
    float (B, C, H, W) in [0, 1], or the method's own questions."""
    asking = Asking(method, key, seen, trigger)
    questions = method.questions(key)
    for images in batches if questions is None else questions.split(CHUNK):
        asking.add(images)
    return asking.scores()


def fit_detector(own: Answers, null: Answers, groups: np.ndarray | None = None) -> Detector:
    """The detector, from the answers of the owner's model and of a null model to queries with calibration images.

    One score a query into a class-balanced logistic regression (as in the paper), *triggered queries of the owner's
    model* against *its benign queries and all queries of the null model*. Its boundary is the threshold, raised where
    needed so that of none of these three kinds more than `CALIBRATION_FPR` pass (split-conformal quantile).

    groups: any (N,), the patient or video of each query; None: each query stands for itself.
    """
    negatives = [scores.double().numpy() for scores in (own.benign, null.benign, null.triggered)]
    positive = own.triggered.double().numpy()
    quantiles = [_quantile(scores, groups) for scores in negatives]
    threshold = max(_boundary(positive, np.concatenate(negatives)), *quantiles)
    count = len(positive) if groups is None else len(np.unique(groups))
    counts = {"triggered": len(positive), "not": sum(map(len, negatives)), "groups": count}
    return Detector(threshold=threshold, fitted_on=counts)


def _boundary(positive: np.ndarray, negative: np.ndarray) -> float:
    """The score at which a one-dimensional logistic regression is undecided; -inf where more score is not more marked."""
    scores = np.concatenate([positive, negative])
    mean, sd = scores.mean(), scores.std() or 1.0
    labels = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    model = LogisticRegression(class_weight="balanced").fit(((scores - mean) / sd)[:, None], labels)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    return mean - sd * offset / slope if slope > 1e-6 else -math.inf


def _quantile(negative: np.ndarray, groups: np.ndarray | None = None) -> float:
    """The smallest score that a negative of a further exchangeable group exceeds with probability <= CALIBRATION_FPR; the
    largest score, where there are so few groups that none is (`evidence.guaranteed_fpr`).

    Queries of one patient resemble each other, so every group weighs as much as any other, however many queries it has
    (hierarchical conformal prediction; Lee, Barber & Willett, arXiv:2306.06342). groups: any (N,); None: one a query.
    """
    _, index, sizes = np.unique(np.arange(len(negative)) if groups is None else groups, return_inverse=True, return_counts=True)
    order = np.argsort(negative, kind="stable")
    weight = np.cumsum(1 / sizes[index][order]) / (len(sizes) + 1)  # the rest is the further group's
    enough = np.flatnonzero(weight >= 1 - CALIBRATION_FPR - 1e-12)  # sums of fractions miss their last digit
    return float(negative[order][enough[0] if len(enough) else -1])


def claimed_threshold(triggered: np.ndarray, benign: np.ndarray) -> float:
    """The threshold of a claimant who fits the detector on the suspect's own answers, as StealthMark's released code does.

    It separates whatever differs with and without the trigger; the benchmark grants it to malicious claimants alone.
    """
    return max(_boundary(triggered, benign), _quantile(benign))
