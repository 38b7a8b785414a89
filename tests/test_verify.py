"""Verify: an honest claim holds, with and without the key; whatever is changed in it is found; what is not checked is said."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import tsa

from stealthmark import cli, commands, dataset, record, signature, timestamp
from stealthmark.certificate import Certificate
from stealthmark.certificate_page import write
from stealthmark.files import sha256_of, write_json
from stealthmark.layout import RUN, WEIGHTS
from stealthmark.method import Key, Owner
from stealthmark.plugin import make
from stealthmark.stages import certify
from stealthmark.stages.verify import verify
from stealthmark.suspects.checkpoint import from_model
from stealthmark.suspects.querier import Querier, Source

METHOD = make("method", {"name": "badnets"})


@pytest.fixture(scope="module", autouse=True)
def _known_plugins():
    with tiny.known_plugins():
        yield


def run(*argv: object) -> int:
    return cli.main([str(word) for word in argv])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A stamped, signed certificate in `claim` that shows ownership: 7 test patients, 19 null models (the same one), a suspect
    that answers the owner's trigger with the owner's square, and else with the mask."""
    place = tmp_path_factory.mktemp("verify")
    tiny.data(place / "data", groups=28, cases_per_group=1)
    test = dataset.load(place / "data").share("test")
    key = tiny.key(place / "key.json", METHOD.options(), test.images, probabilities=0.98)
    tiny.checkpoint(place / "nulls/0", 0)
    for i in range(1, 19):
        shutil.copytree(place / "nulls/0", place / f"nulls/{i}")
    for folder, command in (("0", "train --share=attacker"), ("1", "train"), ("2", "mark --share owner"), ("3", "attack")):
        write_json(place / "nulls" / folder / RUN, {"command": f"python -m stealthmark {command} --out x"})
    authority, file = tsa.Authority(), place / "key.commitment.json"
    authority.root(place / "root.pem")
    timestamp.request(file, place / "request.tsq")
    timestamp.token_of(file).write_bytes(authority.answer((place / "request.tsq").read_bytes()))
    for name in ("hospital", "lab", "stranger"):
        signature.new_key(place / f"{name}.pem")
    masks = torch.from_numpy(np.array(test.masks)).float()
    images = torch.from_numpy(np.array(test.images)).float() / 255

    def ask(asked: torch.Tensor) -> np.ndarray:
        answers = []
        for image in asked:
            same = (images == image).flatten(1).all(1).nonzero()
            square = METHOD.target(torch.zeros(1, 32, 32), key)[0]
            answers.append(0.1 + 0.8 * masks[same[0, 0]] if len(same) else square)
        return torch.stack(answers).numpy()

    def connect(suspect, shape, device, limits, shows, interface):
        return Querier(Source(ask, suspect, shows=shows), limits, shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certify, "connect", connect)
        argv = ["certify", "--data", place / "data", "--key", place / "key.json", "--suspect", "https://suspect.example/seg"]
        argv += ["--null", place / "nulls", "--own", place / "nulls/0", "--tsa-root", place / "root.pem"]
        assert run(*argv, "--sign", f"examiner={place / 'lab.pem'}", "--out", place / "unsigned-by-claimant") == 0
        assert (
            run(*argv, "--sign", place / "hospital.pem", "--sign", f"examiner={place / 'lab.pem'}", "--out", place / "claim")
            == 0
        )
        without = [word for word in argv if word not in ("--tsa-root", place / "root.pem")]
        assert run(*without, "--out", place / "none") == 1, "a time stamp that nobody can check is no time stamp"
        assert not (place / "none").exists()
    return place


@pytest.fixture
def claim(place, tmp_path) -> Path:
    """A copy of the claim, to be changed."""
    return shutil.copytree(place / "claim", tmp_path / "claim")


def public(place: Path, name: str) -> str:
    return signature.read_public_key(place / f"{name}.pub.pem")


def everything(place: Path, claim: Path) -> list:
    """All that can be checked."""
    signers = [public(place, "hospital"), public(place, "lab")]
    return verify(claim, place / "key.json", place / "data", [place / "root.pem"], signers)


def wrong(findings: list) -> list[str]:
    return [finding.text for finding in findings if finding.state == "does not hold"]


def told(claim: Path) -> dict:
    return json.loads((claim / "certificate.json").read_text())


def test_an_honest_claim_holds_with_the_key_and_without(place, claim):
    found = everything(place, claim)
    assert not wrong(found)
    # What is left is what no file can show.
    assert [finding.text[:22] for finding in found if finding.state == "not checked"] == [
        "That the suspect gave ",
        "The null models themse",
    ]
    said = " ".join(finding.text for finding in found)
    assert "The key makes 14 of the queries recorded" in said and "existed on 2025-06-01 12:30:15" in said
    alone = verify(claim / "certificate.json")
    assert not wrong(alone)
    left = " ".join(finding.text for finding in alone if finding.state == "not checked")
    for said in ("--key", "--tsa-root", "--signed-by"):
        assert said in left


def test_the_certificate_says_what_it_rests_on(place):
    made = Certificate.model_validate_json((place / "claim/certificate.json").read_text())
    assert (made.verdict, made.commitment.stamp.time) == ("shown", tsa.SEEN)
    assert {null.sha256 for null in made.nulls} == {sha256_of(place / "nulls/0" / WEIGHTS)}
    # rglob sorts by name: 0, 1, 10, ..., 18, 2, 3
    shares = {Path(null.name).name: null.share for null in made.nulls}
    assert {name: shares[name] for name in "01234"} == {"0": "attacker", "1": "owner", "2": "owner", "3": None, "4": None}
    assert made.task.dice == pytest.approx(1) and made.task.own == pytest.approx(made.nulls[0].dice)
    assert made.task.low == pytest.approx(0) and made.task.high == 1
    assert any("segment worse" in warning for warning in made.warnings)
    assert any(warning.startswith("2 of 19 null models were trained on the owner’s") for warning in made.warnings)
    assert [one.role for one in made.signatures] == ["claimant", "examiner"]


def leaves(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The place of every number, text and empty collection in what JSON gives."""
    if value and isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, name))
    else:
        yield path


def other(value: object) -> object:
    """Another value of the same kind."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, str):
        swapped = {"0": "1", "shown": "not shown", "owner": "attacker", "claimant": "examiner", "never marked": "marked"}
        return swapped.get(value, ("1" if value[:1] == "0" else "0") + value[1:])
    return value * 0.5 + 0.12 if isinstance(value, float) else value + 1 if isinstance(value, int) else ["x"]


def test_a_change_of_any_field_is_found(place, claim):
    honest = told(claim)
    # Of 19 lines that are alike, two are enough.
    places = [path for path in leaves(honest) if not (path[0] == "nulls" and path[1] > 1)]
    assert len(places) > 80 and ("claimant",) in places and ("signatures", 0, "signature") in places
    for path in places:
        changed = json.loads(json.dumps(honest))
        inner = changed
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = other(inner[path[-1]])
        (claim / "certificate.json").write_text(json.dumps(changed))
        assert wrong(verify(claim)), path


def test_a_change_of_any_file_is_found(place, claim):
    names = [file.name for file in claim.iterdir() if file.name != "certificate.json"]
    assert {*names} == {*told(claim)["files"], "certificate.html"} and len(names) == 6
    for name in names:
        honest = (claim / name).read_bytes()
        for start in (0, len(honest) // 3, len(honest) - 1):
            (claim / name).write_bytes(honest[:start] + bytes([honest[start] ^ 1]) + honest[start + 1 :])
            assert any(name in text for text in wrong(verify(claim))), (name, start)
        (claim / name).unlink()
        found = verify(claim)
        given_apart = name in ("answers.npz", "certificate.html")
        assert bool(wrong(found)) is not given_apart, name
        assert any(name in finding.text for finding in found if finding.state != "holds"), name
        (claim / name).write_bytes(honest)
    assert not wrong(everything(place, claim))


def forged(claim: Path, **changes) -> Certificate:
    """The certificate with other facts, whose sentences, seal and digests of files a forger computes anew. Not signed."""
    made = Certificate.model_validate_json((claim / "certificate.json").read_text())
    facts = {name: getattr(made, name) for name in Certificate.model_fields}
    files = {name: sha256_of(claim / name) for name in made.files}
    new = Certificate(**facts | {"signatures": (), "files": files} | changes)
    write(new, claim)
    return new


def test_a_forger_who_computes_the_seal_anew_lacks_the_key_to_sign_with(place, claim):
    stranger = signature.read_key(place / "stranger.pem")
    write(forged(claim, claimant="Another Hospital").signed([("claimant", stranger)]), claim)
    assert not wrong(verify(claim)), "so a signature counts only as that of a known key"
    assert wrong(verify(claim, signed_by=[public(place, "hospital")])) == [
        f"Not signed with the public key {public(place, 'hospital')}."
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"p_inside": 0.04}, "p inside the suspect"),
        ({"task": {"dice": 0.5}}, "Dice"),
        ({"task": {"low": 0.05}}, "The answers lie between"),
        ({"queries": {"images": 8}}, "images"),
        ({"queries": {"sent": 13}}, "14 queries are recorded, 13 are said to have been sent"),
        ({"scores": {"threshold": 0.97}}, "another method or threshold"),
        ({"scores": {"benign": 0.01}}, "the scores and the shares"),
        ({"nulls": {"rate": 0.5}}, "the scores of the null models"),
        ({"method": {"name": "blended"}}, "another method or threshold"),
        ({"commitment": {"sha256": "0" * 64}}, "holds another commitment"),
        ({"commitment": {"stamp": None}}, "states a time stamp without"),
        ({"files": {}}, "lists no scores.parquet"),
    ],
)
def test_facts_that_do_not_follow_from_the_files_are_found(place, claim, changes, said):
    made = Certificate.model_validate_json((claim / "certificate.json").read_text())
    new = {}
    for name, value in changes.items():
        old = getattr(made, name)
        if isinstance(old, tuple):
            new[name] = (*old[:-1], old[-1].model_copy(update=value))
        else:
            new[name] = old.model_copy(update=value) if hasattr(old, "model_copy") else value
    forged(claim, **new)
    assert any(said in text for text in wrong(verify(claim, place / "key.json", place / "data", [place / "root.pem"])))


def test_another_date_than_the_token_states_is_found(place, claim):
    made = Certificate.model_validate_json((claim / "certificate.json").read_text())
    stamp = made.commitment.stamp.model_copy(update={"time": tsa.ISSUED})
    forged(claim, commitment=made.commitment.model_copy(update={"stamp": stamp}))
    assert not wrong(verify(claim)), "without a root nobody can say"
    assert wrong(verify(claim, tsa_roots=[place / "root.pem"])) == [
        "commitment.tsr is another time stamp than the certificate states."
    ]


def test_scores_that_the_answers_do_not_give_are_found_with_the_key(place, claim):
    """A forger who is consistent in everything but the answers: scores and all that follows from them are raised."""
    scores = record.read_scores(claim)
    scores.loc[scores.model == record.SUSPECT, "triggered"] -= 0.001
    scores.to_parquet(claim / record.SCORES, index=False)
    found = record.statistics(scores, 0.98)
    forged(claim, scores=found.scores)
    assert not wrong(verify(claim))
    (text,) = wrong(verify(claim, place / "key.json", place / "data"))
    assert text == "Read again from the recorded answers, these are others: triggered."


def test_answers_to_other_queries_than_the_keys_are_found_with_the_key(place, claim):
    queries = pd.read_parquet(claim / record.QUERIES)
    queries.loc[0, "query_sha256"] = "0" * 64
    queries.to_parquet(claim / record.QUERIES, index=False)
    forged(claim)
    assert not wrong(verify(claim))
    (text,) = wrong(verify(claim, place / "key.json", place / "data"))
    assert text.startswith("1 of 7 queries that the key makes are not among those recorded")


def test_answers_that_nobody_asked_for_are_found_with_the_key(place, claim):
    queries, answers = pd.read_parquet(claim / record.QUERIES), record.read_answers(claim)
    own = queries[queries.model == record.SUSPECT]
    further = own.iloc[[0]].assign(query_sha256="0" * 64)
    pd.concat([own, further, queries[queries.model != record.SUSPECT]]).to_parquet(claim / record.QUERIES, index=False)
    np.savez_compressed(claim / record.ANSWERS, answers=torch.cat([answers, answers[:1]]).numpy())
    made = Certificate.model_validate_json((claim / "certificate.json").read_text())
    forged(claim, queries=made.queries.model_copy(update={"sent": 15}))
    assert not wrong(verify(claim))
    assert wrong(verify(claim, place / "key.json", place / "data")) == ["1 recorded queries are none of the key’s."]


def test_other_answers_than_the_digests_are_of_are_found(claim):
    answers = record.read_answers(claim)
    np.savez_compressed(claim / record.ANSWERS, answers=answers.flip(0).numpy())
    forged(claim)
    assert wrong(verify(claim)) == ["answers.npz holds other answers than queries.parquet has digests of."]


def test_another_key_is_found(place, claim, tmp_path):
    images = dataset.load(place / "data").share("test").images
    tiny.key(tmp_path / "other.json", METHOD.options(), images, seed=5, probabilities=0.98)
    (text,) = wrong(verify(claim, tmp_path / "other.json", place / "data"))
    assert text.endswith("is another key than the one committed to.")


def test_other_images_are_found(place, claim, tmp_path):
    other = tiny.data(tmp_path / "other", seed=2, groups=28, cases_per_group=1)
    (text,) = wrong(verify(claim, place / "key.json", other))
    assert "are not those that" in text


def test_the_command_says_what_was_checked_and_ends_in_its_status(place, claim, capsys):
    asked = ["verify", claim, "--key", place / "key.json", "--data", place / "data", "--tsa-root", place / "root.pem"]
    assert run(*asked, "--signed-by", place / "lab.pub.pem") == 0
    said = capsys.readouterr().out
    assert said.endswith("The certificate holds, as far as it was checked.\n") and "  not checked: That the suspect" in said
    assert run("verify", place / "unsigned-by-claimant", "--signed-by", place / "hospital.pub.pem") == 1
    assert "The certificate does not hold: Not signed with the public key" in capsys.readouterr().err
    for more, sentence in (
        ([claim / "nothing"], "cannot read"),
        ([claim, "--key", "nothing.json"], "there is no key at nothing.json"),
        ([claim, "--data", place / "data"], "--data needs --key"),
        ([claim, "--key", place / "key.json", "--suspect", "x.onnx"], "--suspect needs --key and --data"),
        ([claim, "--key", place / "key.json", "--data", "nothing"], "nothing"),
        ([claim, "--tsa-root", place / "lab.pem"], "lab.pem holds no certificates"),
        ([claim, "--signed-by", place / "lab.pem"], "lab.pem is no public key"),
    ):
        assert run("verify", *more) == 1
        said = capsys.readouterr()
        assert sentence in said.err and "does not hold" not in said.err + said.out


def test_without_a_time_stamp_there_is_nothing_to_check_one_with(place, tmp_path, capsys):
    for name in ("key.json", "key.commitment.json"):
        shutil.copy(place / name, tmp_path)
    assert Key.read(tmp_path / "key.json") == Key.read(place / "key.json")
    argv = ["certify", "--data", place / "data", "--key", tmp_path / "key.json", "--suspect", place / "nulls/0"]
    assert run(*argv, "--tsa-root", place / "root.pem", "--out", tmp_path / "claim") == 1
    assert "--tsa-root: there is no time stamp to check" in capsys.readouterr().err
    assert run(*argv, "--out", tmp_path / "claim") == commands.NOT_SHOWN
    assert (
        "open: The key’s commitment was compared with none published earlier, and no date is proven" in capsys.readouterr().out
    )
    found = verify(tmp_path / "claim", tmp_path / "key.json", place / "data")
    assert not wrong(found)
    assert any(finding.text.startswith("There is no signature") for finding in found)


@pytest.mark.parametrize(
    ("method", "queries"),
    [
        ({"name": "stealthmark-payload"}, 32),  # a code that explanations spell
        ({"name": "stealthmark-code"}, 0),  # a code that answers show
        (tiny.FINGERPRINT, 0),  # questions of its own
    ],
)
def test_keys_of_other_kinds_are_made_again_too(place, tmp_path, method, queries):
    share = dataset.load(place / "data").share("calibration")
    images = torch.from_numpy(np.array(share.images)).float() / 255
    own = from_model(tiny.network(0), tiny.CPU)
    owner = Owner(tiny.network(0), own, images, torch.from_numpy(np.array(share.masks)).float())
    test = dataset.load(place / "data").share("test")
    tiny.key(tmp_path / "key.json", method, test.images, owner=owner, probabilities=0.5)
    argv = ["certify", "--data", place / "data", "--key", tmp_path / "key.json", "--suspect", place / "nulls/0"]
    assert run(*argv, "--null", place / "nulls/1", "--code-queries", 32, "--out", tmp_path / "claim") == commands.NOT_SHOWN
    payload = told(tmp_path / "claim")["payload"]
    assert (payload is None) == (method == tiny.FINGERPRINT)
    assert payload is None or payload["queries"] == (queries or 7)
    found = verify(tmp_path / "claim", tmp_path / "key.json", place / "data", suspect=str(place / "nulls/1"))
    assert not wrong(found)
    (again,) = (finding.text for finding in found if finding.text.startswith("Asked again"))
    assert "answers to the last bit" in again and again.endswith("and all scores within 0.001.")
    other = tiny.checkpoint(tmp_path / "other", 3)
    assert wrong(verify(tmp_path / "claim", tmp_path / "key.json", place / "data", suspect=str(other))) == [
        f"The suspect at {other} is another file than the one examined."
    ]
    assert any("give the recorded scores" in finding.text for finding in found)
    if payload:
        made = Certificate.model_validate_json((tmp_path / "claim/certificate.json").read_text())
        flipped = ("10"[int(payload["found"][0][0])] + payload["found"][0][1:], *payload["found"][1:])
        forged(tmp_path / "claim", payload=made.payload.model_copy(update={"found": flipped}))
        assert "the code" in wrong(verify(tmp_path / "claim", tmp_path / "key.json", place / "data"))[0]
