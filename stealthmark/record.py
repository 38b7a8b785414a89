"""What lies beside a certificate, so that others can compute it again: scores, digests of queries and answers, and answers.

`scores.parquet`: a line for every model and image that was asked with. `queries.parquet`: a line for every query that was sent,
with the SHA-256 of query and answer. `answers.npz`: what the suspect answered, which shows where the mark lies: it goes to
whoever checks the claim in confidence, as the key does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stealthmark.certificate_facts import Scores
from stealthmark.errors import UserError
from stealthmark.evidence import conformal_p, detect, inside_p, owned
from stealthmark.files import LARGEST, read_arrays, read_table, sha256_of, whole
from stealthmark.method import Answers
from stealthmark.metrics import THRESHOLD, counts, dice
from stealthmark.suspects.querier import Predictor, digests_of

SCORES, QUERIES, ANSWERS = "scores.parquet", "queries.parquet", "answers.npz"
#: The commitment as it was when the suspect was asked, and the token of its time stamp, as copies.
COMMITMENT, TOKEN = "commitment.json", "commitment.tsr"
#: `model` of the suspect; the null models are counted from 1 in the order of the certificate.
SUSPECT = 0
#: Scores beyond are none: their sums would not be finite.
LARGEST_SCORE = 1e100
SCORE_COLUMNS = ("model", "image", "patient", "triggered", "benign", "dice")
QUERY_COLUMNS = ("model", "query_sha256", "answer_sha256")


class Recorder:
    """A predictor that remembers the digest of every query and of its answer, in the order in which they were first sent.

    With `keep` it also keeps the answers, float32 (H, W) each, and gives these again to who asks again, so that all scores rest
    on what is recorded. `low`, `high`: the least and the greatest of all answers.
    """

    def __init__(self, predictor: Predictor, keep: bool = False):
        self.digests: dict[str, str] = {}
        self.answers: dict[str, Tensor] = {}
        self.low, self.high = 1.0, 0.0
        self._predictor, self._keep = predictor, keep

    def __call__(self, images: Tensor) -> Tensor:
        queries = [query.hex() for query in digests_of(images)]
        if all(query in self.answers for query in queries):
            return torch.stack([self.answers[query] for query in queries])
        answers = self._predictor(images)
        self.low, self.high = min(self.low, float(answers.min())), max(self.high, float(answers.max()))
        for query, digest, answer in zip(queries, digests_of(answers), answers, strict=True):
            if query not in self.digests:
                self.digests[query] = digest.hex()
                if self._keep:
                    self.answers[query] = answer.clone()
        return torch.stack([self.answers[query] for query in queries]) if self._keep else answers

    def asked(self, images: Tensor) -> bool:
        """Whether all of these images were asked with."""
        return all(query.hex() in self.digests for query in digests_of(images))


class Replay:
    """A predictor that answers as was recorded. Raises UserError for a query that was not. `used`: the digests of those that
    were asked."""

    def __init__(self, queries: list[str], answers: Tensor):
        self._answers = dict(zip(queries, answers, strict=True))
        self.used: set[str] = set()

    def __len__(self) -> int:
        """How many queries were recorded."""
        return len(self._answers)

    def asked(self, images: Tensor) -> bool:
        """Whether all of these images were asked with."""
        return all(query.hex() in self._answers for query in digests_of(images))

    def __call__(self, images: Tensor) -> Tensor:
        queries = [query.hex() for query in digests_of(images)]
        if missing := sum(query not in self._answers for query in queries):
            raise UserError(f"{missing} of {len(queries)} queries that the key makes are not among those recorded")
        self.used.update(queries)
        return torch.stack([self._answers[query] for query in queries])


class Statistics(NamedTuple):
    """All that a certificate computes from the scores. `nulls`: (score, rate, Dice) of each null model."""

    images: int
    patients: int
    scores: Scores
    dice: float | None
    nulls: list[tuple[float, float, float | None]]
    p_model: float | None
    p_inside: float
    verdict: str


def check_size(queries: int, shape: tuple[int, ...]) -> None:
    """Raises UserError where the answers to so many queries of `shape` (C, H, W) are more than can be kept in one file."""
    size = queries * shape[1] * shape[2] * 4
    if size > LARGEST:
        raise UserError(
            f"the answers to {queries} queries of {shape[1]} x {shape[2]} px are {size / 1e9:.1f} GB to keep beside the "
            f"certificate; allowed: {LARGEST / 1e9:.1f} GB; ask less with --limits '{{budget: ...}}'"
        )


def scored(model: int, images: np.ndarray, groups: np.ndarray, answers: Answers, quality: np.ndarray | None) -> pd.DataFrame:
    """The lines of one model. images: int (N,), rows of the test share (or numbers of the method's own questions); groups: any
    (N,), patients, which are numbered and not named; quality: Dice float (N,), None where it was not measured."""
    return pd.DataFrame(
        {
            "model": model,
            "image": images,
            "patient": np.unique(groups, return_inverse=True)[1],
            "triggered": answers.triggered.double().numpy(),
            "benign": answers.benign.double().numpy(),
            "dice": np.nan if quality is None else quality,
        }
    )


def quality(predictor: Predictor, images: Tensor, masks: np.ndarray) -> np.ndarray:
    """Dice of each answer to ordinary images float (N, C, H, W), float (N,); masks: bool (N, H, W)."""
    return dice(counts(predictor(images).numpy() >= THRESHOLD, masks))


def statistics(scores: pd.DataFrame, threshold: float) -> Statistics:
    """From the lines of all models (`scored`) and the key's threshold. A null model's lines are as many as the suspect's."""
    models = [part for _, part in scores.groupby("model", sort=True)]
    own = models[0]
    triggered, benign, groups = (own[name].to_numpy() for name in ("triggered", "benign", "patient"))
    nulls = [
        (float(part.triggered.mean()), float(detect(part.triggered.to_numpy(), threshold).mean()), _mean(part.dice))
        for part in models[1:]
    ]
    p_model = conformal_p(float(own.triggered.mean()), np.array([score for score, _, _ in nulls])) if nulls else None
    p_inside = inside_p(detect(triggered, threshold), detect(benign, threshold), groups)
    return Statistics(
        images=len(own),
        patients=own.patient.nunique(),
        scores=Scores.of(triggered, benign, threshold, groups),
        dice=_mean(own.dice),
        nulls=nulls,
        p_model=p_model,
        p_inside=p_inside,
        verdict="shown" if p_model is not None and owned(p_model, p_inside) else "not shown",
    )


def _mean(values: pd.Series) -> float | None:
    return None if values.isna().all() else float(values.mean())


def write(
    folder: Path, scores: pd.DataFrame, recorders: list[Recorder], commitment: bytes, token: bytes | None
) -> dict[str, str]:
    """Write the record into `folder`, each file whole or not at all: name -> SHA-256 of each. recorders: of the suspect, which
    kept its answers, and of each null model."""
    folder.mkdir(parents=True, exist_ok=True)
    queries = [
        pd.DataFrame({"model": number, "query_sha256": [*one.digests], "answer_sha256": [*one.digests.values()]})
        for number, one in enumerate(recorders)
    ]
    answers = torch.stack([*recorders[SUSPECT].answers.values()]).numpy()
    writers: dict[str, Callable[[Path], object]] = {
        SCORES: lambda path: scores.to_parquet(path, index=False),
        QUERIES: lambda path: pd.concat(queries, ignore_index=True).to_parquet(path, index=False),
        ANSWERS: lambda path: _savez(path, answers),
        COMMITMENT: lambda path: path.write_bytes(commitment),
    }
    (folder / TOKEN).unlink(missing_ok=True)  # of a certificate that lay here before
    if token is not None:
        writers[TOKEN] = lambda path: path.write_bytes(token)
    for name, writer in writers.items():
        with whole(folder / name) as partial:
            writer(partial)
    return {name: sha256_of(folder / name) for name in writers}


def _savez(path: Path, answers: np.ndarray) -> None:
    with path.open("wb") as file:  # numpy appends an ending to a path that has another
        np.savez_compressed(file, answers=answers)


def read_scores(folder: Path) -> pd.DataFrame:
    """`scores.parquet` of a certificate's folder. Raises UserError where it is not what `write` writes."""
    table = read_table(folder / SCORES, SCORE_COLUMNS)[[*SCORE_COLUMNS]]
    wrong = [name for name in SCORE_COLUMNS if table[name].dtype.kind not in ("iu" if name in SCORE_COLUMNS[:3] else "f")]
    if wrong or table.empty or not (table[["triggered", "benign"]].abs() < LARGEST_SCORE).all(axis=None):
        raise UserError(
            f"{folder / SCORES} does not hold scores; {', '.join(wrong) or 'it'} has other values than finite numbers"
        )
    if table.model.min() != SUSPECT or not table.dice.dropna().between(0, 1).all():
        raise UserError(f"{folder / SCORES} does not hold the suspect's scores, or a Dice outside of 0 to 1")
    return table


def read_queries(folder: Path) -> pd.DataFrame:
    """`queries.parquet` of a certificate's folder. Raises UserError where it is not what `write` writes."""
    table = read_table(folder / QUERIES, QUERY_COLUMNS)
    digests = table[[*QUERY_COLUMNS[1:]]].astype(str)
    if not digests.apply(lambda column: column.str.fullmatch("[0-9a-f]{64}")).all(axis=None):
        raise UserError(f"{folder / QUERIES} does not hold digests: SHA-256 in hexadecimal")
    return table


def read_answers(folder: Path) -> Tensor:
    """`answers.npz` of a certificate's folder: float32 (N, H, W). Raises UserError where it is not what `write` writes."""
    answers = read_arrays(folder / ANSWERS, ["answers"])["answers"]
    if answers.dtype != np.float32 or answers.ndim != 3:
        raise UserError(
            f"{folder / ANSWERS} does not hold answers: {answers.dtype} {answers.shape}; allowed: float32 (N, H, W)"
        )
    return torch.from_numpy(answers)
