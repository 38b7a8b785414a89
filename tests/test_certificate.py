"""The certificate: p by hand, sentences that follow the facts, no secret, and a page that nothing in it can take over."""

import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from stealthmark import codes
from stealthmark.certificate import Certificate, software
from stealthmark.certificate_facts import Commitment, Mark, Null, Payload, Queries, Scores, Stamp, Suspect, Task
from stealthmark.certificate_page import KINDS, modules, page, swarm, write
from stealthmark.errors import UserError
from stealthmark.method import Key
from stealthmark.pages import p_text
from stealthmark.suspects.querier import Kind

SEED = 82736455518273
KEY = Key(method={"name": "stealthmark", "trigger": "word", "payload": "OWNER1", "epochs": None}, seed=SEED, shape=(3, 96, 96))
GROUPS = np.repeat(np.arange(20), 2)
CREATED = datetime(2026, 3, 14, 15, 9, tzinfo=UTC)
STAMP = Stamp(time=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC), authority="CN=An Authority", authority_sha256="cd" * 32)
TASK = Task(dice=0.8, low=0.001, high=0.999)


def nulls(n: int, above: int = 0) -> tuple[Null, ...]:
    """n null models around 0, of which the first `above` score higher than the suspect's 3."""
    return tuple(Null(name=f"null-{i}", score=4.0 if i < above else i / n, rate=0.0, sha256="ef" * 32) for i in range(n))


def certificate(**changes) -> Certificate:
    """40 queries of 20 patients, all at 3 with the trigger and at 0 without; 19 null models, none as high."""
    facts = {
        "claimant": "A Hospital",
        "created": CREATED,
        "commitment": Commitment(sha256=KEY.commitment(), published="the register", stamp=STAMP),
        "method": Mark.of(KEY, "Yu et al."),
        "suspect": Suspect(name="suspect.safetensors", kind="checkpoint", sha256="ab" * 32),
        "access": "probabilities",
        "queries": Queries(images=40, patients=20, sent=80),
        "scores": Scores.of(np.full(40, 3.0), np.zeros(40), 1.0, GROUPS),
        "task": TASK,
        "nulls": nulls(19),
        "p_model": 0.05,
        "p_inside": 0.001,
        "alpha": 0.05,
        "margin": 0.1,
        "verdict": "shown",
        "software": software(),
    }
    return Certificate(**facts | changes)


def states(made: Certificate) -> list[str]:
    return [reason.state for reason in made.reasons]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_smallest_p_by_hand():
    assert certificate().smallest_p == 0.05
    assert certificate(nulls=nulls(99), p_model=0.01).smallest_p == 0.01


def test_rates_by_hand():
    """All 40 triggered queries of 20 patients: surer than of 20 queries (0.025 quantile of Beta(20.25, 0.75): 0.8556), less
    sure than of 40 that do not resemble each other (of Beta(40.25, 0.75): 0.9248); none of the benign ones."""
    scores = certificate().scores
    assert (scores.triggered, scores.benign) == (3, 0)
    assert (scores.marked_triggered.share, scores.marked_triggered.high) == (1, 1)
    assert 0.8556 < scores.marked_triggered.low < 0.9248
    assert (scores.marked_benign.share, scores.marked_benign.low) == (0, 0)
    assert scores.marked_benign.high == pytest.approx(1 - scores.marked_triggered.low)


@pytest.mark.parametrize(
    "p, text", [(0.05, "0.05"), (1 / 60, "0.0167"), (0.05001, "0.0501"), (1.0, "1"), (0.0004, "0.0004"), (1e-9, "below 0.0001")]
)
def test_a_p_is_never_printed_smaller_than_it_is(p, text):
    assert p_text(p) == text


def test_dots_that_touch_are_moved_apart():
    assert swarm(np.array([10.0, 0.0, 1.0, 2.0, 6.0]), 5) == [1, 0, 1, -1, 0]


def test_a_code_is_drawn_dark_where_it_is():
    assert modules(("10", "01")) == "M0,0h1v1h-1zM1,1h1v1h-1z"
    assert modules(("10", "01"), ("11", "01")) == "M1,0h1v1h-1z"


def test_a_payload_by_hand():
    code = codes.encode("OWNER1")
    found = code.copy()
    found[12, 12] ^= True
    payload = Payload.of("OWNER1", code, found, 512)
    assert payload.bit_error == pytest.approx(1 / 169)
    assert payload.decoded == "OWNER1"
    assert payload.found[:12] == payload.code[:12] and payload.found[12][:12] == payload.code[12][:12]
    with pytest.raises(ValidationError, match="rows"):
        Payload(**payload.model_dump() | {"found": payload.found[:5]})


# --- the verdict ------------------------------------------------------------------------------------------------------


def test_shown():
    made = certificate()
    assert states(made) == ["met", "met", "met"]
    assert made.summary == (
        "Asked with the trigger, “suspect.safetensors” scores above all 19 null models: p = 0.05, the smallest that this "
        "pool allows."
    )
    assert made.heading == "Ownership is shown" and '<div class="word">Ownership is shown</div>' in page(made)


def test_not_shown_where_null_models_score_as_high():
    """4 of 19 above: p = 5 / 20."""
    made = certificate(nulls=nulls(19, above=4), p_model=0.25, verdict="not shown")
    assert states(made) == ["not met", "met", "met"]
    assert "above 15 of 19 null models: p = 0.25, which is above the level of 0.05" in made.summary
    assert "Ownership is not shown</div>" in page(made)
    assert any("Not shown does not mean independent" in limit for limit in made.limits)


def test_a_tie_counts_against_the_owner():
    tied = (*nulls(18), Null(name="tied", score=3.0, rate=1.0))
    assert certificate(nulls=tied, p_model=0.1, verdict="not shown").at_or_above == 1


def test_not_shown_where_the_trigger_makes_no_difference():
    made = certificate(p_inside=0.4, verdict="not shown")
    assert states(made) == ["met", "not met", "met"]
    assert "more than 10 percentage points (one-sided test over 20 patients: p = 0.4, above" in made.reasons[1].text
    assert made.summary.endswith("but not every condition is met.")


def test_not_shown_without_null_models_and_no_p():
    made = certificate(nulls=(), p_model=None, verdict="not shown")
    assert made.p_model is None and made.smallest_p is None
    assert made.reasons[0].state == "not met" and "No null model" in made.reasons[0].text
    assert "no p-value" in made.summary
    assert "<h2>The null models" not in page(made)


def test_a_pool_too_small_says_how_many_it_takes():
    made = certificate(nulls=nulls(9), p_model=0.1, verdict="not shown")
    assert "at least 19 null models" in made.reasons[0].text


@pytest.mark.parametrize("published", [None, "the register"])
def test_a_commitment_without_a_date_stays_open(published):
    made = certificate(commitment=Commitment(sha256=KEY.commitment(), published=published))
    assert states(made) == ["met", "met", "open"]
    assert "no date is proven; the file’s own date proves nothing" in made.reasons[2].text
    assert "no date is proven; the file’s own date proves nothing" in page(made)
    assert made.summary.endswith("Open: whether the key was fixed before the suspect was seen.")
    assert any("made to fit the suspect" in limit for limit in made.limits)


@pytest.mark.parametrize("published", [None, "the register"])
def test_a_time_stamp_dates_the_commitment(published):
    made = certificate(commitment=Commitment(sha256=KEY.commitment(), published=published, stamp=STAMP))
    assert states(made) == ["met", "met", "met"]
    for text in (made.reasons[2].text, page(made)):
        assert "2 January 2025, 03:04" in text and "CN=An Authority" in text
    assert "no date is proven" not in page(made)


@pytest.mark.parametrize(
    "task, usual, does",
    [
        ({"dice": 0.61}, 0.8, True),
        ({"dice": 0.59}, 0.8, False),
        ({"dice": 0.29}, 0.36, False),
        ({"dice": 0.29}, 0.33, True),
        ({"dice": 0.31}, None, True),
        ({"dice": 0.29}, None, False),
        ({"dice": 0.31, "own": 0.9}, None, False),
        ({"dice": 0.31, "own": 0.9}, 0.4, True),
        ({"dice": None}, 0.8, True),
    ],
)
def test_a_suspect_far_below_other_models_does_not_do_the_task(task, usual, does):
    """More than 20 points below the null models' median (without these, the owner's model), or below 0.3; but of a task that
    these do as badly, nobody can say it."""
    pool = tuple(null.model_copy(update={"dice": usual}) for null in nulls(19, above=4))
    made = certificate(task=TASK.model_copy(update=task), nulls=pool, p_model=0.25, verdict="not shown")
    assert made.does_the_task is does
    sentence = "; the suspect does not do this task as described: check scale, normalisation, class order"
    assert made.heading == "Ownership is not shown" + sentence * (not does)
    assert (sentence in page(made)) == (f"Its Dice on ordinary images is {task['dice']}" in made.summary) == (not does)
    assert any("tells nothing, for the claim or against it" in limit for limit in made.limits) == (not does)
    assert any("was not measured" in limit for limit in made.limits) == (task["dice"] is None)


@pytest.mark.parametrize("shows, high, does", [("logits", 0.73, False), ("logits", 0.74, True), ("probabilities", 0.73, True)])
def test_logits_between_minus_one_and_one_are_no_logits(shows, high, does):
    """sigmoid(0) = 0.5, sigmoid(1) = 0.7311."""
    task = Task(dice=0.8, low=0.5, high=high)
    facts = {"task": task, "suspect": Suspect(name="it", kind="http", shows=shows)}
    made = certificate(**facts, nulls=nulls(19, above=4), p_model=0.25, verdict="not shown")
    assert made.does_the_task is does
    assert ("All of its logits lie between -1 and 1" in made.summary) == (not does)
    shown = certificate(**facts)
    assert shown.heading == "Ownership is shown" and "logits" not in shown.summary
    assert len(shown.warnings) == (not does)


def test_null_models_that_segment_worse_are_warned_of():
    """The median of 0.70, 0.74 and 0.9 is 0.74: 6 points below the suspect's 0.80."""

    def warned(*dice: float) -> tuple[str, ...]:
        pool = [null.model_copy(update={"dice": value}) for null, value in zip(nulls(3), dice, strict=True)]
        return certificate(nulls=tuple(pool), p_model=0.25, verdict="not shown").warnings

    (warning,) = warned(0.70, 0.74, 0.9)
    assert "their median Dice is 0.74, the suspect’s is 0.80" in warning
    assert not warned(0.70, 0.76, 0.9)


def test_null_models_of_the_owners_cases_are_warned_of():
    shares = ["owner", "owner", "attacker", None]
    pool = tuple(null.model_copy(update={"share": share}) for null, share in zip(nulls(4), shares, strict=True))
    made = certificate(nulls=pool, p_model=0.2, verdict="not shown")
    (warning,) = made.warnings
    assert warning.startswith("2 of 4 null models were trained on the owner’s cases") and warning in page(made)
    assert "Whose cases 1 of 4 null models were trained on is not known." in made.limits


def test_p_without_the_marked_null_models_is_told():
    """Of 10 never marked, 2 score as high as the suspect: 3 / 11. Of all 19, 5: 6 / 20."""
    others = tuple(Null(name=f"o{i}", score=4.0 if i < 3 else 0.0, rate=0.0, kind="another owner's key") for i in range(9))
    made = certificate(nulls=(*nulls(10, above=2), *others), p_model=0.3, verdict="not shown")
    assert "Among the 10 null models that were never marked, without the others, p is 0.273." in made.limits
    assert not any("without the others" in limit for limit in certificate().limits)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"created": STAMP.time - timedelta(seconds=1)}, "after the examination"),
        ({"verdict": "not shown"}, "facts carry 'shown'"),
        ({"p_inside": 0.06}, "facts carry 'not shown'"),
        ({"p_inside": None}, "facts carry 'not shown'"),
        ({"p_model": 0.01}, "gives 0.05"),
        ({"p_model": None}, "it is their rank"),
        ({"nulls": ()}, "it is their rank"),
        ({"created": datetime(2026, 3, 14)}, "timezone"),
        ({"p_inside": float("nan")}, "p_inside"),
        ({"claimant": "A\u202eHospital"}, "printable"),
        ({"claimant": ""}, "at least 1 character"),
    ],
)
def test_what_the_facts_do_not_carry_is_refused(changes, problem):
    with pytest.raises(ValidationError, match=problem):
        certificate(**changes)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_the_limits_name_the_smallest_p_and_what_the_pool_is_made_of():
    pool = (*nulls(15), *(Null(name=f"o{i}", score=0.1, rate=0, kind="marked by another method") for i in range(4)))
    limits = " ".join(certificate(nulls=pool).limits)
    assert "The smallest p that 19 null models allow is 0.05." in limits
    assert "The pool: 15 never marked, 4 marked by another method." in limits
    for said in ("exchangeable", "Holm", "not the probability", "for whoever trusts the authority", "not proven who copied"):
        assert said in limits


def test_limits_follow_the_suspect():
    seen = certificate(access="label", suspect=Suspect(name="a service", kind="http"))
    assert any("label maps only" in limit for limit in seen.limits)
    assert any("Nothing fixes which model answered" in limit for limit in seen.limits)
    assert not any("label maps only" in limit for limit in certificate().limits)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_of_suspect_is_named(kind):
    made = certificate(suspect=Suspect(name="it", kind=kind))
    assert f"<dd>{KINDS[kind]}</dd>" in page(made)
    assert any("othing fixes which" in limit for limit in made.limits), "a suspect without a digest"


def test_the_claim_says_what_the_kind_of_method_did():
    assert certificate().claim == (
        "A Hospital claims that the model “suspect.safetensors” was made from a model that A Hospital marked with the method "
        "stealthmark."
    )
    claims = [certificate(method=Mark.of(KEY, kind=kind)).claim for kind in ("fingerprint", "control")]
    for claim, said in zip(claims, ("took a fingerprint", "leaves no mark"), strict=True):
        assert said in claim and "marked with" not in claim


# --- files ------------------------------------------------------------------------------------------------------------


def payload() -> Payload:
    code = codes.encode("OWNER1")
    return Payload.of("OWNER1", code, ~code, 512)


def test_a_keyed_hash_has_a_p_and_a_qr_code_none(tmp_path):
    """1 of 64 bits wrong: (1 + 64) / 2**64 of all keys agree as well."""
    code = codes.hashed("OWNER1", 7, 8)
    found = code.copy()
    found[0, 0] = ~found[0, 0]
    made = Payload.of("OWNER1", code, found, 512)
    assert made.chance == pytest.approx(65 / 2**64) and payload().chance is None
    for held, said in ((made, True), (payload(), False)):
        write(certificate(payload=held), tmp_path / str(said))
        page = (tmp_path / str(said) / "certificate.html").read_text(encoding="utf-8")
        assert ("p of the code" in page) == ("binomial" in page) == said


def test_json_round_trips(tmp_path):
    made = certificate(payload=payload())
    write(made, tmp_path / "new")
    text = (tmp_path / "new/certificate.json").read_text(encoding="utf-8")
    assert Certificate.model_validate_json(text) == made
    told = json.loads(text)
    assert told["verdict"] == "shown" and told["smallest_p"] == 0.05 and told["limits"] == list(made.limits)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["certificate.html", "certificate.json"]


@pytest.mark.parametrize("field, value", [("summary", "p = 0.000001"), ("limits", []), ("smallest_p", 0.001)])
def test_a_sentence_that_was_changed_is_refused(field, value):
    told = json.loads(certificate().model_dump_json())
    with pytest.raises(ValidationError, match=f"{field} is not what"):
        Certificate.model_validate(told | {field: value})


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/inner"):
        write(certificate(), tmp_path / "file/inner")


def test_no_secret_of_the_key_is_told(tmp_path):
    assert Mark.of(KEY).options == {"trigger": "word", "epochs": None}
    with pytest.raises(ValidationError, match="seed"):
        Mark(name="stealthmark", options={"seed": SEED})
    write(certificate(), tmp_path)
    for file in tmp_path.iterdir():
        text = file.read_text(encoding="utf-8")
        assert str(SEED) not in text and "OWNER1" not in text
        assert KEY.commitment() in text


class Tags(HTMLParser):
    """Every tag and attribute of a page, and whether what was opened was closed."""

    VOID = {"meta"}

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.open = set(), [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


EVIL = "<script>alert(1)</script>\" onload='x' {{ 7 * 7 }} https://evil.example"


def test_the_page_needs_nothing_and_lets_nothing_in():
    """The untrusted names stand in it as text, whatever they are, and no tag or attribute fetches or runs anything."""
    made = certificate(
        claimant=EVIL,
        suspect=Suspect(name=EVIL, kind="http"),
        nulls=(Null(name=EVIL, score=0.0, rate=0.0, kind=EVIL[:80]), *nulls(18)),
        commitment=Commitment(sha256=KEY.commitment(), published=EVIL),
        payload=payload().model_copy(update={"decoded": EVIL}),
        method=Mark(name=EVIL, citation=EVIL, options={EVIL: EVIL}),
        access=EVIL,
        software={EVIL: EVIL},
    )
    html = page(made)
    found = Tags(html)
    assert not found.open
    assert not found.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "use", "a"}
    names = {name for name, _ in found.attributes}
    assert not names & {"src", "href", "xlink:href", "srcset", "action", "background"}
    assert not [name for name in names if name.startswith("on")]
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style and "evil" not in style
    assert "<script" not in html and "&lt;script&gt;" in html and "{{ 7 * 7 }}" in html


def test_every_null_model_is_a_dot_and_a_line():
    html = page(certificate(nulls=nulls(19, above=4), p_model=0.25, verdict="not shown"))
    assert html.count('fill="#6b6b6b"') == 19
    table = html.split("<h2>The null models")[1]
    order = re.findall(r"<td>(null-\d+)<|(The suspect)", table)
    assert len(order) == 20 and order[4] == ("", "The suspect")
