"""Verify: a certificate and what lies beside it -> what holds, what does not, and what could not be checked."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

import stealthmark
from stealthmark import certificate_page, dataset, record, timestamp
from stealthmark.access import at_access
from stealthmark.certificate import Certificate
from stealthmark.certificate_facts import Mark
from stealthmark.errors import UserError
from stealthmark.files import read_json, sha256_of
from stealthmark.method import BlackBoxMethod, CodeMark, Key
from stealthmark.pages import many
from stealthmark.stages.certify import SHOWS, Asking, payload_of
from stealthmark.stages.examination import Examination
from stealthmark.suspects.connect import connect, describe_suspect
from stealthmark.suspects.interface import Interface
from stealthmark.suspects.querier import Limits, digests_of

#: How far a number may lie from what is computed again: sums in another order, on another machine.
TOLERANCE = 1e-9
#: How far scores may lie from those of a suspect that is asked again, on another machine.
ALIKE = 1e-3


class Finding(NamedTuple):
    """One thing that was to be checked."""

    state: Literal["holds", "does not hold", "not checked"]
    text: str


def verify(
    certificate: Path,
    key_file: Path | None = None,
    data: Path | None = None,
    tsa_roots: Sequence[Path] = (),
    signed_by: Sequence[str] = (),
    suspect: str | None = None,
) -> list[Finding]:
    """Check a certificate, the file `certificate.json` or its folder, against the files beside it.

    Without more: facts and sentences agree, signatures are of these facts, no file has changed, and every number follows from
    the recorded scores. `key_file` and `data`, under seal: the key is the one committed to, it makes the recorded queries, and
    the recorded answers give the recorded scores. `tsa_roots`: PEM files of the roots that a time stamp is checked against.
    `signed_by`: public keys in hexadecimal, each of which must have signed. `suspect`: is asked once more, with key and data.

    Raises UserError where there is nothing to check, or an argument is not what it should be.
    """
    file = certificate / certificate_page.JSON if certificate.is_dir() else certificate
    try:
        text = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    if data is not None and key_file is None:
        raise UserError("--data needs --key: the queries are made from both")
    if suspect is not None and data is None:
        raise UserError("--suspect needs --key and --data: the queries are made from both")
    key = None if key_file is None else Key.read(key_file)
    timestamp.read_roots(tsa_roots)
    if data is not None:
        dataset.load(data)
    try:
        made = Certificate.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        return [
            Finding("does not hold", f"{file.name} is no certificate: {where + ': ' * bool(where)}{error.errors()[0]['msg']}")
        ]
    checks: list[Callable[[], Iterable[Finding]]] = [
        lambda: _facts(made),
        lambda: _signatures(made, signed_by),
        lambda: _files(made, file.parent),
        lambda: _page(made, file.parent),
        lambda: _commitment(made, file.parent, tsa_roots),
        lambda: _numbers(made, file.parent),
        lambda: _answers(made, file.parent),
        lambda: _with_key(made, file.parent, key, key_file, data, suspect),
        lambda: _never(made, suspect),
    ]
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except UserError as error:
            findings.append(Finding("does not hold", str(error)))
    return findings


def _facts(made: Certificate) -> list[Finding]:
    facts = "p among models is the rank among the null models listed, the verdict is what the conditions carry"
    return [Finding("holds", f"{facts}, the sentences are those of the facts, and the seal is theirs.")]


def _signatures(made: Certificate, expected: Sequence[str]) -> list[Finding]:
    """Reading a certificate has checked that its signatures are of its facts; left is whose they are."""
    found = [Finding("holds", f"Signed by the {one.role}, public key {one.public_key}.") for one in made.signatures]
    keys = {one.public_key for one in made.signatures}
    found += [Finding("does not hold", f"Not signed with the public key {key}.") for key in expected if key not in keys]
    if not made.signatures:
        found.append(Finding("not checked", "There is no signature: whoever changes a fact can compute the seal anew."))
    elif not expected:
        found.append(Finding("not checked", "Whose the public keys are (--signed-by)."))
    return found


def _files(made: Certificate, folder: Path) -> list[Finding]:
    """Every file beside the certificate is as it was."""
    found = []
    for name in (record.SCORES, record.QUERIES, record.ANSWERS, record.COMMITMENT):
        if name not in made.files:
            found.append(Finding("does not hold", f"The certificate lists no {name}."))
    for name, sha256 in made.files.items():
        if not (folder / name).is_file():
            state = "not checked" if name == record.ANSWERS else "does not hold"
            found.append(Finding(state, f"{name} is absent."))
        elif sha256_of(folder / name) != sha256:
            found.append(Finding("does not hold", f"{name} has changed: its SHA-256 is not the one in the certificate."))
        else:
            found.append(Finding("holds", f"{name} is as it was."))
    return found


def _page(made: Certificate, folder: Path) -> list[Finding]:
    file, version = folder / certificate_page.HTML, made.software.get("stealthmark")
    if not file.is_file():
        return [Finding("not checked", f"{file.name} is absent.")]
    if version != stealthmark.__version__:
        return [Finding("not checked", f"{file.name} was written by version {version}, this is {stealthmark.__version__}.")]
    if file.read_text(encoding="utf-8", errors="replace") != certificate_page.page(made):
        return [Finding("does not hold", f"{file.name} is not the page of these facts.")]
    return [Finding("holds", f"{file.name} is the page of these facts.")]


def _commitment(made: Certificate, folder: Path, roots: Sequence[Path]) -> list[Finding]:
    file, token = folder / record.COMMITMENT, folder / record.TOKEN
    if not file.is_file():
        return []  # `_files` has said so
    if read_json(file).get("commitment") != made.commitment.sha256:
        return [Finding("does not hold", f"{file.name} holds another commitment than the certificate.")]
    found = [Finding("holds", f"{file.name} holds the commitment of the certificate.")]
    stamp = made.commitment.stamp
    if (stamp is None) != (record.TOKEN not in made.files):
        return [
            *found,
            Finding("does not hold", f"The certificate states a time stamp without {token.name}, or the other way."),
        ]
    if stamp is None:
        return [*found, Finding("not checked", "When the commitment was made: there is no time stamp.")]
    if not roots:
        return [*found, Finding("not checked", "The time stamp: give the root certificate of its authority (--tsa-root).")]
    if timestamp.check(file.read_bytes(), token, roots) != stamp:
        return [*found, Finding("does not hold", f"{token.name} is another time stamp than the certificate states.")]
    return [*found, Finding("holds", f"The commitment existed on {stamp.time}, by the time stamp of “{stamp.authority}”.")]


def _numbers(made: Certificate, folder: Path) -> list[Finding]:
    """Every number of the certificate that follows from the recorded scores."""
    if not (folder / record.SCORES).is_file():
        return []
    again = record.statistics(record.read_scores(folder), made.scores.threshold)
    pairs = {
        "images": (made.queries.images, again.images),
        "patients": (made.queries.patients, again.patients),
        "the scores and the shares called marked": (made.scores.model_dump(), again.scores.model_dump()),
        "Dice": (made.task.dice, again.dice),
        "p among models": (made.p_model, again.p_model),
        "p inside the suspect": (made.p_inside, again.p_inside),
        "the verdict": (made.verdict, again.verdict),
        "the scores of the null models": ([(null.score, null.rate, null.dice) for null in made.nulls], again.nulls),
    }
    wrong = [name for name, (stated, computed) in pairs.items() if not _same(stated, computed)]
    if wrong:
        return [Finding("does not hold", f"Computed again from {record.SCORES}, these are others: {', '.join(wrong)}.")]
    n = many(len(made.nulls), "null model")
    names = ", ".join(pairs)
    return [Finding("holds", f"Computed again from the scores of the suspect and of {n}, these are as stated: {names}.")]


def _same(stated: object, computed: object) -> bool:
    """Whether two numbers, or nested collections of such, are the same but for rounding."""
    if isinstance(stated, dict) and isinstance(computed, dict):
        return stated.keys() == computed.keys() and all(_same(stated[name], computed[name]) for name in stated)
    if isinstance(stated, list | tuple) and isinstance(computed, list | tuple):
        return len(stated) == len(computed) and all(map(_same, stated, computed))
    if isinstance(stated, float) and isinstance(computed, float):
        return math.isclose(stated, computed, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return stated == computed


def _answers(made: Certificate, folder: Path) -> list[Finding]:
    """The recorded answers are those whose digests are recorded, and lie where the certificate says."""
    if not all((folder / name).is_file() for name in (record.QUERIES, record.ANSWERS)):
        return [Finding("not checked", f"The answers: {record.ANSWERS}, which goes to whoever checks in confidence.")]
    queries, answers = record.read_queries(folder), record.read_answers(folder)
    own = queries[queries.model == record.SUSPECT]
    others = [number for number in range(1, len(made.nulls) + 1) if not (queries.model == number).any()]
    if others or set(queries.model) - {*range(len(made.nulls) + 1)}:
        return [Finding("does not hold", f"{record.QUERIES} is of other models than the certificate.")]
    if [digest.hex() for digest in digests_of(answers)] != own.answer_sha256.tolist():
        return [Finding("does not hold", f"{record.ANSWERS} holds other answers than {record.QUERIES} has digests of.")]
    low, high = (float(value) for value in answers.aminmax())
    if not (_same(made.task.low, low) and _same(made.task.high, high)):
        return [Finding("does not hold", f"The answers lie between {low:g} and {high:g}, which is not what is stated.")]
    if len(own) > made.queries.sent:
        return [Finding("does not hold", f"{len(own)} queries are recorded, {made.queries.sent} are said to have been sent.")]
    return [Finding("holds", f"{many(len(own), 'answer')} of the suspect and their digests agree.")]


def _with_key(
    made: Certificate, folder: Path, key: Key | None, key_file: Path | None, data: Path | None, suspect: str | None
) -> list[Finding]:
    """With the key: that it is the one, makes these queries, and reads these scores from the recorded answers."""
    if key is None or key_file is None:
        return [Finding("not checked", "That the queries are those of the key, and the scores those of the answers (--key).")]
    if key.commitment() != made.commitment.sha256:
        return [Finding("does not hold", f"{key_file} is another key than the one committed to.")]
    found = [Finding("holds", f"{key_file} is the key that was committed to.")]
    threshold = key.detectors[made.access].threshold if made.access in key.detectors else None
    described = Mark.of(key).model_copy(update={"kind": made.method.kind, "citation": made.method.citation})
    if threshold != made.scores.threshold or described != made.method:
        return [*found, Finding("does not hold", "The key has another method or threshold than the certificate states.")]
    found.append(Finding("holds", "Method and threshold are those of the key."))
    if data is None or not (folder / record.ANSWERS).is_file():
        left = "the images (--data)" if data is None else record.ANSWERS
        return [*found, Finding("not checked", f"Queries and scores: this takes {left}.")]
    return [*found, *_asked_again(made, folder, key_file, data, suspect)]


def _asked_again(made: Certificate, folder: Path, key_file: Path, data: Path, suspect: str | None) -> list[Finding]:
    """The key's queries are made again, and answered as was recorded; and, where it is there, by the suspect itself."""
    examination = Examination.open(data, key_file, torch.device("cpu"))
    key, method = examination.key, examination.method
    if not isinstance(method, BlackBoxMethod) or isinstance(method, CodeMark) != (made.payload is not None):
        return [Finding("does not hold", f"A certificate of {method.name} would hold something else.")]
    scores, queries = record.read_scores(folder), record.read_queries(folder)
    own = scores[scores.model == record.SUSPECT]
    count = len(examination.arrays.cases)
    rows = np.arange(1) if method.questions(key) is not None else own.image.to_numpy()
    if rows.min() < 0 or rows.max() >= count or len(np.unique(rows)) < len(rows):
        return [Finding("does not hold", f"{record.SCORES} names other images than the {count} of {data}.")]
    recorded = queries[queries.model == record.SUSPECT]
    replay = record.Replay(recorded.query_sha256.tolist(), record.read_answers(folder))
    asking = Asking(examination, rows, made.access)
    payload = None
    try:
        if made.payload and isinstance(method, CodeMark):
            payload = payload_of(method, key, at_access(replay, made.access), asking.images, made.payload.queries)
        again = asking.lines(record.SUSPECT, replay)
    except UserError as error:
        versions = ", ".join(f"{name} {version}" for name, version in made.software.items())
        return [Finding("does not hold", f"{error}. Other versions may round otherwise: it was made with {versions}.")]
    wrong = _other_columns(again, own, 1e-6)
    if payload != made.payload:
        wrong.append("the code")
    if wrong:
        return [Finding("does not hold", f"Read again from the recorded answers, these are others: {', '.join(wrong)}.")]
    text = f"The key makes {len(replay.used)} of the queries recorded, and the answers to these give the recorded scores"
    found = [Finding("holds", f"{text}{' and the code' * (payload is not None)}.")]
    if left := len(replay) - len(replay.used):
        found.append(Finding("does not hold", f"{left} recorded queries are none of the key’s."))
    return found if suspect is None else [*found, *_of_the_suspect(made, suspect, asking, recorded, own, key)]


def _of_the_suspect(
    made: Certificate, suspect: str, asking: Asking, recorded: pd.DataFrame, own: pd.DataFrame, key: Key
) -> list[Finding]:
    """The suspect, asked once more, answers as it did."""
    sha256 = describe_suspect(suspect).get("sha256")
    if made.suspect.sha256 and sha256 != made.suspect.sha256:
        return [Finding("does not hold", f"The suspect at {suspect} is another file than the one examined.")]
    shows, interface = SHOWS.get(made.access, "probabilities"), Interface(**made.suspect.interface)
    recorder = record.Recorder(connect(suspect, key.shape, torch.device("cpu"), Limits(), shows, interface), keep=True)
    again = asking.lines(record.SUSPECT, recorder)
    before = dict(zip(recorded.query_sha256, recorded.answer_sha256, strict=True))
    same = sum(before.get(query) == answer for query, answer in recorder.digests.items())
    text = f"Asked again, the suspect gives {same} of {len(recorder.digests)} answers to the last bit"
    if wrong := _other_columns(again, own, ALIKE):
        return [Finding("does not hold", f"{text}, and these are others by more than {ALIKE:g}: {', '.join(wrong)}.")]
    return [Finding("holds", f"{text}, and all scores within {ALIKE:g}.")]


def _other_columns(again: pd.DataFrame, before: pd.DataFrame, tolerance: float) -> list[str]:
    """The columns in which two tables of scores differ."""
    if len(again) != len(before):
        return ["the number of images"]
    pairs = [(name, again[name].to_numpy(float), before[name].to_numpy(float)) for name in record.SCORE_COLUMNS]
    return [name for name, one, other in pairs if not np.allclose(one, other, tolerance, tolerance, equal_nan=True)]


def _never(made: Certificate, suspect: str | None) -> list[Finding]:
    """What no file can show."""
    asked = [] if suspect else [Finding("not checked", "That the suspect gave these answers, and would again (--suspect).")]
    named = sum(null.sha256 is not None for null in made.nulls)
    return [
        *asked,
        Finding("not checked", f"The null models themselves, {named} of {len(made.nulls)} named by SHA-256: that takes them."),
    ]
