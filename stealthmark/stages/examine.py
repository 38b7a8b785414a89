"""Examine: suspects + key + images -> evidence, kept per suspect."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stealthmark import claims, dataset, metrics
from stealthmark.access import PROBABILITIES, WEIGHTS
from stealthmark.detection import CHUNK, Asking, ask
from stealthmark.files import write_json
from stealthmark.layout import CASES, EVIDENCE, EXAMPLES, INDEPENDENT, NULL, POOL, RELIABILITY, STOLEN, Place
from stealthmark.method import Answers, BlackBoxMethod, EmbeddedMark, Key, WhiteBoxMark
from stealthmark.settings import ClaimPlan
from stealthmark.stages.examination import (
    Examination,
    Listed,
    Suspect,
    check_job,
    check_places,
    failure,
    finished,
    listed_in,
    spread,
)
from stealthmark.stages.train import float_images, float_masks, load_network

#: What a case is, in the table of evidence.
CASE = ["case_id", "group_id", "foreground"]


def examine(data: Path, key_file: Path | None, suspects: list[tuple[Place, Path]], out: Path, device: torch.device) -> None:
    """The owner's queries, and the segmentation's quality, on the test share, per case.

    `suspects`: where each stands, and its folder, a checkpoint or an attack's. Without a key (method `clean`) only quality is
    measured; of null models only the answers to the key's queries. A suspect that is a member of its role, as null models
    are, has a folder of its own in `out`; one that was examined before, with the same key, images and weights, is left as it
    is. Others lie in `out` itself.

    Writes `cases.parquet`, of the stolen model as it is `examples.npz` (three cases with their probability maps) and
    `reliability.npz`, and `evidence.json`, where a suspect that could not be examined is listed with its status; of the stolen
    model as it is it also says how many groups the key's threshold at each access level was calibrated on.
    """
    check_job(suspects)
    examination = Examination.open(data, key_file, device)
    for place, folder in suspects:
        kept_in = out / place.member
        listed = listed_in(folder, place)
        identity = examination.identity(listed)
        if finished(kept_in / EVIDENCE, identity):
            continue
        _forget(kept_in)
        tables = [_examine_one(examination, one, kept_in) for one in listed if one.status == "ok"]
        kept_in.mkdir(parents=True, exist_ok=True)  # only now: input that is refused leaves nothing behind
        if tables:
            pd.concat(tables, ignore_index=True).to_parquet(kept_in / CASES)
        failures = [failure(one) for one in listed if one.status != "ok"]
        summary = {"status": "ok", "failures": failures, "identity": identity}
        if place.as_stolen and examination.key:
            summary["calibrated_on"] = _calibrated_on(examination.key)
        write_json(kept_in / EVIDENCE, summary)
    members = [place.member for place, _ in suspects if place.member]
    if members:
        write_json(out / EVIDENCE, {"status": "ok", "failures": [], "members": members})


def _calibrated_on(key: Key) -> dict[str, int]:
    """Access level -> how many groups (patients, videos) its threshold was calibrated on; of keys that know."""
    counts = {level: detector.fitted_on.get("groups") for level, detector in key.detectors.items()}
    return {level: count for level, count in counts.items() if count}


def _forget(folder: Path) -> None:
    """Remove the evidence that an earlier run has left in a folder: of a suspect that failed since, it would still speak."""
    for name in (EVIDENCE, CASES, POOL, EXAMPLES, RELIABILITY):
        (folder / name).unlink(missing_ok=True)


def _examine_one(examination: Examination, listed: Listed, out: Path) -> pd.DataFrame:
    """The table of one suspect: a line a case and an access level."""
    suspect = examination.suspect(listed)
    method, key = examination.method, examination.key
    measures_quality = listed.place.role != NULL
    looks = [_Examples(examination), _Reliability(examination)] if listed.place.as_stolen else []
    asking = None
    if isinstance(method, BlackBoxMethod) and method.questions(key) is None:
        asking = Asking(method, key, examination.seen(suspect.predictor))
    quality = []
    for rows, images in examination.batches() if measures_quality or asking else ():
        if measures_quality:
            quality.append(_quality(examination, suspect, images, rows))
        for look in looks:
            look.add(suspect, images, rows)
        if asking:
            asking.add(images)
        suspect.forget()  # memory does not grow with the number of images
    for look in looks:
        out.mkdir(parents=True, exist_ok=True)
        look.write(out)
    cases = examination.arrays.cases[CASE]
    measured = pd.concat(quality, ignore_index=True) if quality else pd.DataFrame(index=cases.index)
    scores = asking.scores() if asking else _other_scores(examination, suspect)
    tables = []
    for level in examination.levels:
        table = cases.assign(**listed.place._replace(access=level)._asdict())
        if level == PROBABILITIES:
            table = table.join(measured)
        if asking:
            table = table.assign(**_scored(scores[level], key.detectors[level].threshold))
        tables.append(table)
    if scores and not asking:
        if not measures_quality:
            tables = []
        for level, answers in scores.items():
            table = _questions(answers).assign(**listed.place._replace(access=level)._asdict())
            tables.append(table.assign(**_scored(answers, key.detectors[level].threshold)))
    return pd.concat(tables, ignore_index=True)


def _other_scores(examination: Examination, suspect: Suspect) -> dict[str, Answers]:
    """The scores of methods that do not ask with the owner's images: with questions of their own, or by looking inside."""
    method, key = examination.method, examination.key
    if isinstance(method, WhiteBoxMark):
        return {WEIGHTS: method.inspect(suspect.model, key)}
    if isinstance(method, BlackBoxMethod):
        return ask(method, key, examination.seen(suspect.predictor), [])
    return {}


def _questions(answers: Answers) -> pd.DataFrame:
    """The cases of a method that does not ask with the owner's images: its questions, or its bits, each for itself."""
    numbered = [f"question-{number}" for number in range(len(answers.triggered))]
    return pd.DataFrame({"case_id": numbered, "group_id": numbered, "foreground": np.nan})


def _scored(answers: Answers, threshold: float) -> dict:
    """The columns of evidence: a query's score with the trigger and without, and what it must exceed."""
    triggered, benign = (scores.numpy().astype(np.float64) for scores in (answers.triggered, answers.benign))
    return {"score_triggered": triggered, "score_benign": benign, "threshold": threshold}


def examine_claims(
    data: Path,
    key_file: Path,
    suspects: list[tuple[Place, Path]],
    plan: ClaimPlan,
    seed: int,
    out: Path,
    device: torch.device,
) -> None:
    """What others may claim: the model as it was stolen, and the null models, asked in the situations of `layout.CLAIMS`.

    The independent model among the `suspects` is the claimant's surrogate. Writes `cases.parquet`, of the stolen model;
    `pool.parquet`, a line a claim, a null model and an access level; and `evidence.json`. Where the stolen or the independent
    model failed, or the method is read from the weights, there are no claims.
    """
    check_places(suspects)
    examination = Examination.open(data, key_file, device)
    listed = {place: listed_in(folder, place)[0] for place, folder in suspects}
    owned, surrogate = (listed.get(Place(role)) for role in (STOLEN, INDEPENDENT))
    out.mkdir(parents=True, exist_ok=True)
    _forget(out)
    tables, pool = [], []
    possible = owned and surrogate and {owned.status, surrogate.status} == {"ok"}
    if possible and isinstance(examination.method, BlackBoxMethod):
        stolen = examination.suspect(owned)
        made = _claims(data, examination, stolen, surrogate, plan, seed)
        stolen.forget()  # what a climber was answered is of no further use
        rows = spread(len(examination.arrays.cases), plan.images)
        images, cases = examination.images(rows), examination.arrays.cases.iloc[rows][CASE].reset_index(drop=True)
        for claim in made:
            for level, answers in claim.ask(examination.method, examination.seen(stolen.predictor), images).items():
                of_images = len(cases) == len(answers.triggered)
                table = (cases if of_images else _questions(answers)).assign(**Place(claim.name, access=level)._asdict())
                tables.append(table.assign(**_scored(answers, claim.threshold(answers, level))))
        for null in (one for place, one in listed.items() if place.role == NULL and one.status == "ok"):
            seen = examination.seen(examination.suspect(null).predictor)
            for claim in made:
                for level, answers in claim.ask(examination.method, seen, images).items():
                    score = float(answers.triggered.double().mean())
                    pool.append({"claim": claim.name, "member": null.place.member, "access": level, "score": score})
    if tables:
        pd.concat(tables, ignore_index=True).to_parquet(out / CASES)
        pd.DataFrame(pool, columns=["claim", "member", "access", "score"]).to_parquet(out / POOL)
    write_json(out / EVIDENCE, {"status": "ok", "failures": []})


def _claims(
    data: Path, examination: Examination, stolen: Suspect, surrogate: Listed, plan: ClaimPlan, seed: int
) -> list[claims.Claim]:
    """The claims of somebody who holds the attacker's share and has trained the surrogate on it."""
    arrays = dataset.load(data).share("attacker")
    model, _ = load_network(surrogate.folder, arrays.images.shape[1], examination.device)
    images, masks = float_images(arrays.images), float_masks(arrays.masks)
    return claims.all_claims(examination.method, examination.key, stolen.predictor, model, images, masks, plan, seed)


def _quality(examination: Examination, suspect: Suspect, images: torch.Tensor, rows: slice) -> pd.DataFrame:
    """The metrics of some cases, on benign and (where the method has a trigger) on triggered images, as `*_triggered`."""
    masks = examination.masks(rows)
    quality = metrics.segmentation(suspect.predictor(images).numpy(), masks)
    if isinstance(examination.method, EmbeddedMark):
        queries = examination.method.trigger(images, examination.key)
        moved = examination.method.moved(torch.from_numpy(masks).float(), examination.key).numpy() > 0
        triggered = metrics.segmentation(suspect.predictor(queries).numpy(), moved)
        quality = quality.join(triggered.add_suffix("_triggered"))
    return quality


class _Examples:
    """The test cases whose foreground is at the quartiles of size, as the suspect answers them."""

    def __init__(self, examination: Examination):
        self.examination = examination
        shares = [examination.masks(rows).mean((1, 2)) for rows in examination.arrays.chunks(CHUNK)]
        order = np.argsort(np.concatenate(shares), kind="stable")
        #: The rows, in the order in which they are shown.
        self.chosen = [int(order[len(order) * quarter // 4]) for quarter in (1, 2, 3)]
        self.answers: dict[int, dict[str, np.ndarray]] = {}

    def add(self, suspect: Suspect, images: torch.Tensor, rows: slice) -> None:
        method, key = self.examination.method, self.examination.key
        for row in {row for row in self.chosen if rows.start <= row < rows.stop}:
            image = images[[row - rows.start]]
            triggered = method.trigger(image, key) if isinstance(method, EmbeddedMark) else image
            self.answers[row] = {
                "image": as_bytes(image),
                "image_triggered": as_bytes(triggered),
                "mask": self.examination.masks(slice(row, row + 1)).astype(np.uint8),
                "prob": suspect.predictor(image).numpy().astype(np.float16),
                "prob_triggered": suspect.predictor(triggered).numpy().astype(np.float16),
            }

    def write(self, out: Path) -> None:
        in_order = [self.answers[row] for row in self.chosen]
        np.savez_compressed(out / EXAMPLES, **{name: np.concatenate([case[name] for case in in_order]) for name in in_order[0]})


def as_bytes(images: torch.Tensor) -> np.ndarray:
    """images float in [0, 1] -> uint8, same shape."""
    return (images * 255).round().to(torch.uint8).numpy()


class _Reliability:
    """How often what the suspect gives a probability is foreground: `benign` and (where the method has a trigger) `triggered`,
    float (3, G, B), the sums of `metrics.Reliability` over the cases of each of G groups in B bins."""

    def __init__(self, examination: Examination):
        self.examination = examination
        groups = examination.arrays.cases["group_id"].to_numpy(dtype=str)
        self.names, self.index = np.unique(groups, return_inverse=True)
        self.sums: dict[str, np.ndarray] = {}

    def add(self, suspect: Suspect, images: torch.Tensor, rows: slice) -> None:
        method, key = self.examination.method, self.examination.key
        queries = {"benign": images}
        if isinstance(method, EmbeddedMark):
            queries["triggered"] = method.trigger(images, key)
        for kind, asked_with in queries.items():
            answers, masks = suspect.predictor(asked_with).numpy(), self.examination.masks(rows)
            per_case = np.stack(metrics.reliability(answers, masks, metrics.ODDS_BINS))
            sums = self.sums.setdefault(kind, np.zeros((3, len(self.names), per_case.shape[-1])))
            np.add.at(sums, (slice(None), self.index[rows]), per_case)

    def write(self, out: Path) -> None:
        np.savez_compressed(out / RELIABILITY, edges=metrics.ODDS_BINS, groups=self.names, **self.sums)
