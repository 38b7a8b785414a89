"""Certify: one suspect + key + null models -> a certificate."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stealthmark import certificate, codes
from stealthmark.access import at_access
from stealthmark.certificate import Certificate
from stealthmark.certificate_page import write
from stealthmark.detection import ask
from stealthmark.errors import UserError
from stealthmark.evidence import ALPHA, MARGIN, conformal_p, detect, inside_p, owned
from stealthmark.method import Answers, BlackBoxMethod, CodeMark, Key
from stealthmark.occlusion import read_code_maps
from stealthmark.progress import log
from stealthmark.seeds import secret_uniform
from stealthmark.stages.examination import Examination, spread
from stealthmark.stages.train import load_network
from stealthmark.suspects.checkpoint import from_model
from stealthmark.suspects.connect import connect, describe_suspect
from stealthmark.suspects.interface import Interface
from stealthmark.suspects.querier import Limits, Predictor

#: How many images, at most, a certificate's queries for a code are spread over.
ASKED_FOR_CODE = 4
#: What the numbers in a suspect's answers are, by access level; probabilities at any other.
SHOWS = {"label": "labels", "logits": "logits"}
#: The distance from one half to the sigmoid of 1. Probabilities that are taken for logits go no further.
LIKE_PROBABILITIES = 0.2311


def certify(
    data: Path,
    key_file: Path,
    suspect: str,
    nulls: list[tuple[str, Path]],
    access: str,
    claimant: str,
    published: tuple[str, str] | None,
    created: datetime,
    out: Path,
    device: torch.device,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    code_queries: int = 512,
    interface: Interface = Interface(),  # noqa: B008 (frozen)
) -> Certificate:
    """A certificate in `out` about one suspect: whatever `suspects.connect` opens, as `interface` describes it.

    The suspect shows `access`; it and the `nulls`, (kind, checkpoint folder), are asked with the test share's images that the
    key was committed with, each with and without the trigger; as many of them as the budget of `limits` allows, evenly
    spread. `published`: (where, SHA-256) of the commitment as it was published. Nothing is fitted. Where the mark carries a
    code, `code_queries` more, over up to four images, ask the suspect for it.

    Raises UserError where the key is not the one committed to, here or there, has no detector for that access level, where
    the suspect's interface shows less, and where an answer cannot be relied on: then there is no certificate, for or against.
    """
    key = Key.read(key_file)
    if published and published[1] != key.commitment():
        raise UserError(f"the commitment in {published[0]} is {published[1]}, that of {key_file} is {key.commitment()}")
    if access not in key.detectors:
        raise UserError(f"{key_file} has no detector for the access level {access!r}; it has: {', '.join(key.detectors)}")
    if interface.shows == "labels" and access != "label":
        raise UserError(
            f"field 'shows' of the interface has the value 'labels'; allowed with the access level {access!r}: others"
        )
    examination = Examination.open(data, key_file, device)
    method = examination.method
    if not isinstance(method, BlackBoxMethod):
        raise UserError(f"{key_file} is a key of {method.name}, which is read from weights; a suspect shows only answers")
    rows = _asked_rows(examination, limits, code_queries)
    images, groups = examination.images(rows), examination.arrays.cases["group_id"].to_numpy()[rows]

    def scores(predictor: Predictor) -> Answers:
        return ask(method, key, {access: at_access(predictor, access)}, [images])[access]

    predictor = connect(suspect, key.shape, device, limits, SHOWS.get(access, "probabilities"), interface)
    payload = None
    if isinstance(method, CodeMark):
        payload = _payload_of(method, key, at_access(predictor, access), images, code_queries)
    answers = scores(predictor)
    if predictor.source.shows == "logits" and predictor.extreme <= LIKE_PROBABILITIES:
        remedy = "--access probabilities, and 'shows: probabilities' where --interface has another"
        log(f"warning: all logits lie between -1 and 1, as those of no sure model do; if they are probabilities: {remedy}")
    triggered, benign = (values.double().numpy() for values in (answers.triggered, answers.benign))
    if len(triggered) != len(groups):  # a method with questions of its own: each stands for itself
        groups = np.arange(len(triggered))
    threshold = key.detectors[access].threshold
    hits, alarms = detect(triggered, threshold), detect(benign, threshold)
    pool = [_null(kind, folder, scores, threshold, images.shape[1], device) for kind, folder in nulls]
    mean = float(triggered.mean())
    p_model = conformal_p(mean, np.array([null.score for null in pool])) if pool else None
    p_inside = inside_p(hits, alarms, groups)
    made = Certificate(
        claimant=claimant,
        created=created,
        commitment=certificate.Commitment(sha256=key.commitment(), published=published[0] if published else None),
        method=certificate.Mark.of(key, method.citation, method.family),
        suspect=certificate.Suspect(**describe_suspect(suspect), interface=interface.model_dump(exclude_defaults=True)),
        access=access,
        queries=certificate.Queries(images=len(triggered), patients=len(np.unique(groups)), sent=predictor.sent),
        scores=certificate.Scores.of(triggered, benign, threshold, groups),
        nulls=tuple(pool),
        p_model=p_model,
        p_inside=p_inside,
        alpha=ALPHA,
        margin=MARGIN,
        payload=payload,
        verdict="shown" if p_model is not None and owned(p_model, p_inside) else "not shown",
        software=certificate.software(),
    )
    out.mkdir(parents=True, exist_ok=True)
    write(made, out)
    return made


def _asked_rows(examination: Examination, limits: Limits, code_queries: int) -> np.ndarray:
    """The test images that the budget allows, evenly spread. Raises UserError where it does not suffice for one."""
    method, count = examination.method, len(examination.arrays.cases)
    carries = isinstance(method, CodeMark)
    if carries and code_queries < 2 * ASKED_FOR_CODE:
        raise UserError(f"the code is asked for with {code_queries} queries; allowed: at least {2 * ASKED_FOR_CODE}")
    for_code = code_queries if carries else 0
    most = count if limits.budget is None else (limits.budget - for_code) // method.asks
    if most < 1:
        needed = f"the {method.asks} queries that one image takes" + f" and the {for_code} for the code" * carries
        raise UserError(f"a budget of {limits.budget} is less than {needed}")
    return spread(count, most)


def _null(
    kind: str,
    folder: Path,
    scores: Callable[[Predictor], Answers],
    threshold: float,
    channels: int,
    device: torch.device,
) -> certificate.Null:
    """A null model as the certificate lists it, asked as the suspect was."""
    model, _ = load_network(folder, channels, device)
    triggered = scores(from_model(model, device)).triggered.double().numpy()
    rate = float(detect(triggered, threshold).mean())
    return certificate.Null(name=str(folder), score=float(triggered.mean()), rate=rate, kind=kind)


def _payload_of(method: CodeMark, key: Key, seen: Predictor, images: Tensor, queries: int) -> certificate.Payload:
    """The code that a suspect's answers spell, from `queries` occlusions spread over the first images (four at most)."""
    code = method.modules(key).numpy()
    chosen = images[:ASKED_FOR_CODE]
    each = queries // len(chosen)
    maps = [
        read_code_maps(seen, image, secret_uniform((each, code.size), key.seed, "code", i) < 0.5, method.baseline(key)).in_place
        for i, image in enumerate(chosen)
    ]
    modules = codes.minimum_error_split(np.mean(maps, axis=0))
    return certificate.Payload.of(method.text(key), code, modules, each * len(chosen))
