"""Certify: one suspect + key + null models -> a certificate, and beside it what it rests on (`record`)."""

import argparse
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stealthmark import certificate_facts as facts
from stealthmark import codes, record, timestamp
from stealthmark.access import at_access
from stealthmark.certificate import Certificate, software
from stealthmark.certificate_page import write
from stealthmark.detection import CHUNK, ask
from stealthmark.errors import UserError
from stealthmark.evidence import ALPHA, MARGIN
from stealthmark.files import read_json, sha256_of
from stealthmark.layout import RUN, WEIGHTS
from stealthmark.method import BlackBoxMethod, CodeMark, ExplainedCode, Key, commitment_of
from stealthmark.occlusion import BackgroundParts, read_code_maps
from stealthmark.progress import log
from stealthmark.record import Recorder
from stealthmark.signature import PrivateKey
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


def certify(
    data: Path,
    key_file: Path,
    suspect: str,
    nulls: list[tuple[str, Path]],
    access: str,
    claimant: str,
    published: Path | None,
    created: datetime,
    out: Path,
    device: torch.device,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    code_queries: int = 512,
    interface: Interface = Interface(),  # noqa: B008 (frozen)
    own: Path | None = None,
    tsa_roots: Sequence[Path] = (),
    sign: Sequence[tuple[facts.Role, PrivateKey]] = (),
) -> Certificate:
    """A certificate in `out` about one suspect: whatever `suspects.connect` opens, as `interface` describes it.

    The suspect shows `access`; it and the `nulls`, (kind, checkpoint folder), are asked with the test share's images that the
    key was committed with, each with and without the trigger; as many of them as the budget of `limits` allows, evenly
    spread. `published`: the file of the commitment as it was published. Nothing is fitted. Where the mark carries a code
    that answers do not show by themselves, `code_queries` more, over up to four images, ask the suspect for it. `own`: the
    owner's model, whose Dice stands beside the suspect's. A time stamp beside the commitment (`timestamp.token_of`) is checked
    against `tsa_roots`. `sign`: who signs.

    Raises UserError where the key is not the one committed to, here or there, has no detector for that access level, where
    the suspect's interface shows less, where a time stamp does not hold, and where an answer cannot be relied on: then there
    is no certificate, for or against.
    """
    key = Key.read(key_file)
    stamped = timestamp.find([*([published] if published else []), commitment_of(key_file)])
    commitment = _commitment(key, key_file, published, stamped, tsa_roots, created)
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
    record.check_size(len(rows) * method.asks + code_queries * isinstance(method, ExplainedCode), key.shape)
    asking = Asking(examination, rows, access)

    querier = connect(suspect, key.shape, device, limits, SHOWS.get(access, "probabilities"), interface)
    recorders = [Recorder(querier, keep=True)]
    payload = None
    if isinstance(method, CodeMark):
        payload = payload_of(method, key, at_access(recorders[0], access), asking.images, code_queries)
    lines = [asking.lines(record.SUSPECT, recorders[0])]
    for number, (_, folder) in enumerate(nulls, 1):
        recorders.append(Recorder(_open(folder, key, device)))
        lines.append(asking.lines(number, recorders[-1]))
    own_dice = None if own is None else float(record.quality(_open(own, key, device), asking.images, asking.masks).mean())

    scores = pd.concat(lines, ignore_index=True)
    found = record.statistics(scores, key.detectors[access].threshold)
    token = stamped.token.read_bytes() if stamped else None
    file = stamped.file if stamped else commitment_of(key_file)
    described = describe_suspect(suspect)
    made = Certificate(
        claimant=claimant,
        created=created,
        commitment=commitment,
        method=facts.Mark.of(key, method.citation, method.family),
        suspect=facts.Suspect(**described, interface=interface.model_dump(exclude_defaults=True), shows=querier.source.shows),
        access=access,
        queries=facts.Queries(images=found.images, patients=found.patients, sent=querier.sent),
        scores=found.scores,
        task=facts.Task(dice=found.dice, own=own_dice, low=recorders[0].low, high=recorders[0].high),
        nulls=tuple(_null(*null, *of_null) for null, of_null in zip(nulls, found.nulls, strict=True)),
        p_model=found.p_model,
        p_inside=found.p_inside,
        alpha=ALPHA,
        margin=MARGIN,
        payload=payload,
        verdict=found.verdict,
        files=record.write(out, scores, recorders, file.read_bytes(), token),
        software=software(),
    ).signed(sign)
    for warning in made.warnings:
        log(f"warning: {warning}")
    write(made, out)
    return made


def _commitment(
    key: Key,
    key_file: Path,
    published: Path | None,
    stamped: timestamp.Stamped | None,
    roots: Sequence[Path],
    created: datetime,
) -> facts.Commitment:
    """What is known of the key's commitment. Raises UserError where the published one is another, where a time stamp does not
    hold or is younger than the examination, and where there is none to check."""
    if published:
        try:
            there = str(read_json(published).get("commitment"))
        except OSError as error:
            raise UserError(f"cannot read {published}: {error.strerror}") from None
        if there != key.commitment():
            raise UserError(f"the commitment in {published} is {there}, that of {key_file} is {key.commitment()}")
    if stamped is None and roots:
        place = timestamp.token_of(commitment_of(key_file))
        raise UserError(f"--tsa-root: there is no time stamp to check; allowed where there is one, {place}")
    stamp = None
    if stamped:
        stamp = timestamp.check(stamped.file.read_bytes(), stamped.token, roots)
        if stamp.time > created:
            raise UserError(f"{stamped.token} is of {stamp.time}, after this examination ({created}); allowed: before")
    return facts.Commitment(sha256=key.commitment(), published=published.name if published else None, stamp=stamp)


class Asking:
    """How suspect and null models are asked: with the images at some rows of the test share, at one access level."""

    def __init__(self, examination: Examination, rows: np.ndarray, access: str):
        self._examination, self._rows, self._access = examination, rows, access
        self.images, self.masks = examination.images(rows), examination.masks(rows)

    def lines(self, model: int, recorder: Recorder | record.Replay) -> pd.DataFrame:
        """Ask a model: its scores, as `record.scored` has them. Its Dice is measured where it was asked with the images."""
        key, method = self._examination.key, self._examination.method
        answers = ask(method, key, {self._access: at_access(recorder, self._access)}, [self.images])[self._access]
        if method.questions(key) is not None:  # of its own: each stands for itself
            numbers = np.arange(len(answers.triggered))
            return record.scored(model, numbers, numbers, answers, None)
        groups = self._examination.arrays.cases["group_id"].to_numpy()[self._rows]
        measured = record.quality(recorder, self.images, self.masks) if recorder.asked(self.images) else None
        return record.scored(model, self._rows, groups, answers, measured)


def _asked_rows(examination: Examination, limits: Limits, code_queries: int) -> np.ndarray:
    """The test images that the budget allows, evenly spread. Raises UserError where it does not suffice for one."""
    method, count = examination.method, len(examination.arrays.cases)
    carries = isinstance(method, ExplainedCode)
    if carries and code_queries < 2 * ASKED_FOR_CODE:
        raise UserError(f"the code is asked for with {code_queries} queries; allowed: at least {2 * ASKED_FOR_CODE}")
    for_code = code_queries if carries else 0
    most = count if limits.budget is None else (limits.budget - for_code) // method.asks
    if most < 1:
        needed = f"the {method.asks} queries that one image takes" + f" and the {for_code} for the code" * carries
        raise UserError(f"a budget of {limits.budget} is less than {needed}")
    return spread(count, most)


def _open(folder: Path, key: Key, device: torch.device) -> Predictor:
    """A model of one's own: a null model, or the owner's."""
    model, _ = load_network(folder, key.shape[0], device)
    return from_model(model, device)


def _null(kind: str, folder: Path, score: float, rate: float, dice: float | None) -> facts.Null:
    """A null model as the certificate lists it."""
    sha256, share = sha256_of(folder / WEIGHTS), _share_of(folder)
    return facts.Null(name=str(folder), score=score, rate=rate, kind=kind, sha256=sha256, dice=dice, share=share)


def _share_of(folder: Path) -> str | None:
    """Whose cases a model was trained on, as the note of the run that made it has the command; None where there is none."""
    try:
        words = shlex.split(str(read_json(folder / RUN).get("command")))
    except (OSError, ValueError):
        return None
    if not {"train", "mark"} & {*words[:4]}:
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--share", default="owner")  # as both commands have it
    share = parser.parse_known_args(words)[0].share
    return share if share in get_args(facts.TrainedOn) else None


def payload_of(method: CodeMark, key: Key, seen: Predictor, images: Tensor, queries: int) -> facts.Payload:
    """The code that a suspect's answers show. One that shows by itself: from the answers to all images with the trigger, which
    are asked anyway. One that explanations spell: from `queries` occlusions, spread over the first images (four at most)."""
    code = method.modules(key).numpy()
    if isinstance(method, ExplainedCode):
        chosen = images[:ASKED_FOR_CODE]
        each = queries // len(chosen)
        drawn = [key.uniform((each, code.size), f"code {i}") < 0.5 for i in range(len(chosen))]
        baseline = method.baseline(key)
        pairs = zip(chosen, drawn, strict=True)
        found = np.mean([read_code_maps(seen, image, visible, baseline).in_place for image, visible in pairs], axis=0)
        asked = each * len(chosen)
    else:
        parts, asked = BackgroundParts(len(code)), len(images)
        for part in images.split(CHUNK):
            parts.add(seen(method.trigger(part, key)))
        found = parts.map(range(asked))
    return facts.Payload.of(method.text(key), code, codes.minimum_error_split(found), asked)
