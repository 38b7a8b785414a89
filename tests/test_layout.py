"""The layout: every name of a place, a folder and a label is built and read in one module, which knows no torch."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stealthmark import layout
from stealthmark.layout import (
    CLAIMS,
    NEVER_MARKED,
    OTHER_KEY,
    OTHER_METHOD,
    ROLES,
    Cell,
    Place,
    Study,
    check_labels,
    claims_folder,
    job_folder,
    null_kind,
    other_key,
    parse_place,
    suspect_folder,
)
from stealthmark.suite import parse

CELL = Cell("polyps", "unet", 3, "badnets")
STUDY = Study(Path("results/quick"))

labels = st.from_regex(r"[a-z0-9][a-z0-9.-]*", fullmatch=True)


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place, text",
    [
        (Place(), "stolen/none"),
        (Place(attack="prune"), "stolen/prune"),
        (Place("independent"), "independent/none"),
        (Place("null", "3"), "null.3/none"),
        (Place("null", "key-0"), "null.key-0/none"),
        (Place("null", "stealthmark-v1.2"), "null.stealthmark-v1.2/none"),
        (Place("wrong-trigger"), "wrong-trigger/none"),
        (Place(attack="prune-finetune-jpeg"), "stolen/prune-finetune-jpeg"),
    ],
)
def test_a_place_is_written_and_read_back(place, text):
    assert place.text == text and parse_place(text) == place


@given(st.sampled_from(ROLES), st.one_of(st.just(""), labels), labels)
def test_every_place_that_labels_can_name_is_read_back(role, member, attack):
    place = Place(role, member, attack)
    assert parse_place(place.text) == place


def test_strength_and_access_are_no_part_of_the_text():
    """The text names the suspects of one folder, at all strengths and access levels."""
    assert parse_place(Place(attack="prune", strength=0.5, access="label").text) == Place(attack="prune")


@pytest.mark.parametrize(
    "text",
    [
        *("", "stolen", "stolen/", "/none", "none", "stolen none", "stolen/none/0.5", "stolen/none=x", "Stolen/none"),
        *("owner/none", "null-3/none", "null./none", "null.3", "stolen/Prune", "stolen/none\n", " stolen/none"),
        *("null.../none", "stolen/..", "stolen/-x", "null.-x/none"),
    ],
)
def test_any_other_text_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError) as error:
        parse_place(text)
    assert repr(text) in str(error.value) and "ROLE[.MEMBER]/ATTACK" in str(error.value)
    assert all(role in str(error.value) for role in ROLES)


def test_the_stolen_model_as_it_is():
    as_stolen = [Place(role, attack=attack) for role, attack in product(ROLES, ("none", "prune"))]
    assert [place.text for place in as_stolen if place.as_stolen] == ["stolen/none"]


def test_roles_are_words_of_their_own():
    assert len(set(ROLES)) == len(ROLES) and set(CLAIMS) < set(ROLES)
    assert not {role for role in ROLES if null_kind(role) != OTHER_METHOD}


# --- members of the null pool, and labels -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "member, kind",
    [
        *(("0", NEVER_MARKED), ("17", NEVER_MARKED), (other_key(0), OTHER_KEY), ("key-12", OTHER_KEY)),
        *(("badnets", OTHER_METHOD), ("key", OTHER_METHOD), ("key-", OTHER_METHOD), ("key-x", OTHER_METHOD)),
        *(("0a", OTHER_METHOD), ("monkey-0", OTHER_METHOD), ("key-0-a", OTHER_METHOD)),
    ],
)
def test_a_members_name_says_what_it_is(member, kind):
    assert null_kind(member) == kind


@pytest.mark.parametrize("label", ["0", "12", "key-0", "key-99"])
def test_a_method_that_is_called_like_a_member_of_the_null_pool_is_refused(label):
    with pytest.raises(ValueError) as error:
        check_labels("method", ["clean", label])
    assert str(error.value) == f"field 'methods' has the label {label!r}, which is kept for members of the null pool"


@pytest.mark.parametrize(
    "kind, label",
    [("attack", "none"), *(("method", label) for label in ("independent", "twin", "nulls", "other-keys", "claims"))],
)
def test_a_label_that_stands_for_something_else_in_every_suite_is_refused(kind, label):
    with pytest.raises(ValueError) as error:
        check_labels(kind, ["clean", label])
    sentence = f"field '{kind}s' has the label {label!r}, which is kept for what has that name in every suite"
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    "kind, label",
    [
        *(("method", "badnets"), ("method", "none"), ("method", "key"), ("method", "stolen"), ("dataset", "0")),
        *(("attack", "0"), ("attack", "key-0"), ("attack", "independent"), ("architecture", "none"), ("scanner", "none")),
    ],
)
def test_what_collides_with_nothing_is_allowed(kind, label):
    check_labels(kind, [label])


def test_a_label_that_is_refused_would_have_shared_a_folder():
    """What the sentences are for: another method's model in the folder of something else."""
    kept = [STUDY.independent(CELL), STUDY.twin(CELL), STUDY.null(CELL, "0").parent, STUDY.other_key(CELL, "0").parents[1]]
    assert [STUDY.model(CELL._replace(method=folder.name)) for folder in kept] == kept
    for folder in kept:
        with pytest.raises(ValueError):
            check_labels("method", [folder.name])


# --- folders ----------------------------------------------------------------------------------------------------------


def test_folders_by_hand():
    root = Path("results/quick")
    assert STUDY.data("polyps") == root / "data/polyps"
    assert STUDY.model(CELL) == root / "models/polyps/unet/3/badnets"
    assert STUDY.independent(CELL) == root / "models/polyps/unet/3/independent"
    assert STUDY.twin(CELL) == root / "models/polyps/unet/3/twin"
    assert STUDY.null(CELL, "7") == root / "models/polyps/unet/3/nulls/7"
    assert STUDY.null(CELL, "key-2") == STUDY.other_key(CELL, "2") == root / "models/polyps/unet/3/other-keys/badnets/2"
    assert STUDY.null(CELL, "wanet") == STUDY.model(CELL._replace(method="wanet"))
    assert STUDY.key(CELL) == root / "keys/polyps/unet/3/badnets.json"
    assert STUDY.key_of_other(CELL, "2") == root / "keys/polyps/unet/3/other-keys/badnets/2.json"
    assert STUDY.attacked(CELL, "prune") == root / "suspects/polyps/unet/3/badnets/prune"
    assert STUDY.scan(CELL, "stolen", "", "entropy") == root / "scans/polyps/unet/3/badnets/stolen/none/entropy"
    assert STUDY.scan(CELL, "null", "7", "entropy") == root / "scans/polyps/unet/3/badnets/null/7/entropy"
    evidence = STUDY.evidence(CELL)
    assert evidence == root / "evidence/polyps/unet/3/badnets"
    assert STUDY.explanations(CELL) == root / "explanations/polyps/unet/3/badnets"
    assert suspect_folder(evidence, Place(attack="prune", strength=0.5)) == evidence / "stolen/prune"
    assert suspect_folder(evidence, Place("null", "7")) == evidence / "null/none/7"
    assert job_folder(evidence, "null", "none") == suspect_folder(evidence, Place("null"))
    assert claims_folder(evidence) == evidence / "claims"


def test_a_pattern_that_snakemake_fills_in_gives_the_folder_of_what_is_filled_in():
    pattern = Cell("{dataset}", "{architecture}", "{seed}", "{method}")
    for of in (
        *(Study.model, Study.independent, Study.twin, Study.key, Study.evidence, Study.explanations),
        lambda study, cell: study.null(cell, "{null}"),
        lambda study, cell: study.other_key(cell, "{null}"),
        lambda study, cell: study.attacked(cell, "{attack}"),
        lambda study, cell: study.scan(cell, "{role}", "{member}", "{scanner}"),
    ):
        more = {"null": "5", "attack": "prune", "role": "null", "member": "5", "scanner": "entropy"}
        filled = str(of(STUDY, pattern)).format(**CELL._asdict(), **more)
        by_hand = str(of(STUDY, CELL)).format(**more)
        assert filled == by_hand


def test_no_two_jobs_of_a_study_write_into_one_folder():
    suite = parse(
        {
            **{"suite": "tiny", "title": "For tests", "seed": 1, "seeds": [0, 1], "size": 64},
            **{"datasets": ["phantom-endoscopy", "phantom-cine"], "architectures": ["unet", "unetr"]},
            "methods": ["clean", "badnets", {"name": "badnets", "label": "key"}, "stealthmark-payload"],
            "attacks": ["prune", "jpeg", [{"name": "prune", "strengths": [0.5]}, "jpeg"]],
            **{"nulls": {"count": 3, "other_keys": 2}, "claims": {}, "explanations": {}, "scanners": ["entropy"]},
        }
    )
    study, folders = Study(Path("r")), []
    for cell in suite.cells():
        evidence = study.evidence(cell)
        folders += [study.model(cell), claims_folder(evidence)]
        folders += [study.attacked(cell, entry.label) for entry in suite.attacks]
        folders += [suspect_folder(evidence, place) for place in suite.line_up(cell)]
        folders += [suspect_folder(study.explanations(cell), place) for place in suite.explained(cell)]
        folders += [study.scan(cell, place.role, place.member, "entropy") for place in suite.scanned(cell)]
        folders += [study.other_key(cell, str(number)) for number in range(2)]
        if cell.method == layout.CLEAN:
            folders += [study.independent(cell), study.twin(cell), *(study.null(cell, str(n)) for n in range(3))]
    assert len(folders) == len(set(folders)) > 100


def test_names_are_read_without_torch():
    """Collating and reporting read names alone."""
    code = "import sys; from stealthmark import layout, files, access, settings; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
