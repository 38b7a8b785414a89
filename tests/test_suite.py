"""Suites: the shipped ones are valid, a wrong one says where, and adding to one changes nothing that was there."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml

from stealthmark import suite
from stealthmark.access import LEVELS
from stealthmark.errors import UserError
from stealthmark.layout import Cell
from stealthmark.plugin import make
from stealthmark.plugins import known
from stealthmark.seeds import derive, numpy_rng, torch_rng
from stealthmark.settings import Schedule
from stealthmark.suite import parse

FILES = sorted((Path(__file__).parent.parent / "benchmarks").glob("*.yaml"))

CONTENT = {
    "suite": "tiny",
    "title": "For tests",
    "seed": 1,
    "seeds": [0, 1],
    "size": 64,
    "datasets": ["phantom-endoscopy", "phantom-cine"],
    "architectures": ["unet"],
    "methods": ["clean", {"name": "stealthmark", "label": "floor", "trigger": "patch"}, "badnets"],
    "attacks": [{"name": "prune", "strengths": [0.5]}],
    "access": ["probabilities", "label"],
    "training": {"epochs": 1},
}


def content(**changes) -> dict:
    return {**copy.deepcopy(CONTENT), **changes}


# --- the shipped suites -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_suite_is_valid_and_named_like_its_file(file):
    read = suite.read(file)
    assert read.suite == file.stem
    assert read.cells()
    assert file.read_text().startswith("#"), "the first lines say what the suite is for"


def test_there_is_a_default_suite():
    assert "quick" in [file.stem for file in FILES]


def test_suites_share_a_seed_only_to_share_their_clean_models():
    suites = [suite.read(file) for file in FILES]
    alike = {"datasets", "payload-kvasir", "payload-acdc", "payload-camus", "payload-refuge"}
    for i, one in enumerate(suites):
        for other in suites[:i]:
            if one.seed == other.seed:
                assert {one.suite, other.suite} < alike
                trained = [(s.size, s.architectures, s.training) for s in (one, other)]
                assert trained[0] == trained[1]
                assert set(one.seeds) <= set(other.seeds) or set(other.seeds) <= set(one.seeds)
                named = [{d.label: d for d in s.datasets} for s in (one, other)]
                assert all(named[0][label] == named[1][label] for label in named[0].keys() & named[1].keys())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_suite_survives_being_written_and_read_again(file, tmp_path):
    """The workflow hands the validated suite on as a file."""
    read = suite.read(file)
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(read.model_dump(mode="json")))
    again = suite.read(tmp_path / "suite.yaml")
    assert again == read and again.digest() == read.digest()


# --- cells and entries ------------------------------------------------------------------------------------------------


def test_cells_are_every_combination_with_clean_first():
    cells = parse(content()).cells()
    assert len(cells) == 2 * 1 * 2 * 3 == len(set(cells))
    assert cells[:4] == [
        Cell("phantom-endoscopy", "unet", 0, "clean"),
        Cell("phantom-endoscopy", "unet", 0, "floor"),
        Cell("phantom-endoscopy", "unet", 0, "badnets"),
        Cell("phantom-endoscopy", "unet", 1, "clean"),
    ]


def test_an_entry_is_found_by_its_label_and_gives_its_options():
    tiny_suite = parse(content())
    assert tiny_suite.entry("method", "floor").options() == {"name": "stealthmark", "trigger": "patch"}
    assert tiny_suite.entry("method", "badnets").options() == {"name": "badnets"}
    assert make("method", tiny_suite.entry("method", "floor").options()).kind == "patch"
    assert tiny_suite.entry("attack", "prune").options() == {"name": "prune", "strengths": [0.5]}


def test_a_name_and_a_mapping_with_that_name_are_one():
    assert parse(content(architectures=["unet"])) == parse(content(architectures=[{"name": "unet"}]))


def test_what_every_suite_did_before_there_was_a_choice_is_the_suite_that_it_was():
    """The digest of a published suite stays; written and read again, the choice is still there."""
    every_second, none = ({"count": 2, "owner_share": share} for share in ("every-second", "none"))
    assert parse(content(nulls=every_second)).digest() != parse(content(nulls=none)).digest()
    assert parse(content(nulls=none)).digest() == parse(content(nulls={"count": 2})).digest()
    kept = parse(content(nulls=every_second))
    assert parse(kept.model_dump(mode="json")).nulls.owner_share == "every-second"


def test_the_digest_is_of_what_was_understood():
    plain = parse(content())
    assert parse(content(marking={"epochs": 16})).digest() == plain.digest(), "16 is the default"
    assert parse(content(marking={"epochs": 17})).digest() != plain.digest()


# --- who is examined, explained and scanned ---------------------------------------------------------------------------

LIST = [{"name": "prune", "strengths": [0.5]}, {"name": "finetune", "strengths": [1]}, "jpeg"]
#: A method of every kind.
KINDS = ["clean", "badnets", "continued", "stealthmark-payload", tiny.FINGERPRINT, tiny.WHITE_BOX]


@pytest.fixture
def every_kind():
    with tiny.known_plugins():
        yield parse(
            content(
                **{"methods": KINDS, "attacks": ["jpeg", LIST], "nulls": {"count": 2, "other_keys": 1}},
                **{"claims": {}, "explanations": {}, "scanners": ["entropy"]},
            )
        )


def cell(method: str) -> Cell:
    return Cell("phantom-endoscopy", "unet", 0, method)


def texts(places: list) -> list[str]:
    return [place.text for place in places]


ATTACKED = ["stolen/jpeg", "stolen/prune-finetune-jpeg"]
MARKS = ["badnets", "continued", "stealthmark-payload", "reference-answers", "weight-bits"]


def test_the_line_up_of_a_mark(every_kind):
    nulls = ["null.0/none", "null.1/none", "null.continued/none", "null.stealthmark-payload/none", "null.weight-bits/none"]
    assert texts(every_kind.line_up(cell("badnets"))) == [
        *("stolen/none", *ATTACKED, "independent/none"),
        *(*nulls, "null.key-0/none"),
    ]
    assert texts(every_kind.line_up(cell("clean"))) == ["stolen/none"]
    assert texts(every_kind.line_up(cell("continued"))) == ["stolen/none"], "of a control only the quality is measured"


def test_a_pool_holds_what_is_independent_of_the_owners_model(every_kind):
    """Another mark on it is an independent mark, but no independent model: a fingerprint knows it again."""
    assert every_kind.marks == MARKS
    for method in ("badnets", "stealthmark-payload", "weight-bits"):
        others = [other for other in MARKS if other not in (method, "reference-answers")]
        assert every_kind.pool(method) == ["0", "1", *others, "key-0"]
    assert every_kind.pool("reference-answers") == ["0", "1"]
    assert every_kind.pool("clean") == every_kind.pool("continued") == []


def test_never_marked_are_the_numbered_and_the_control(every_kind):
    assert every_kind.never_marked("badnets") == ["0", "1", "continued"]
    assert every_kind.never_marked("reference-answers") == ["0", "1"]
    assert every_kind.never_marked("continued") == every_kind.never_marked("clean") == []


def test_null_models_see_none_of_the_owners_cases_unless_asked_to():
    def shares(**nulls) -> list[str]:
        return [parse(content(nulls={"count": 3, **nulls})).nulls.share(number) for number in range(3)]

    assert shares() == shares(owner_share="none") == ["attacker"] * 3
    assert shares(owner_share="every-second") == ["attacker", "owner", "attacker"]
    with pytest.raises(UserError, match="'nulls.owner_share' has the value 'all'.*'none' or 'every-second'"):
        parse(content(nulls={"count": 3, "owner_share": "all"}))


@pytest.mark.parametrize(
    "training, marking, expected",
    [
        ({"epochs": 3, "lr": 0.01}, {"epochs": 4, "lr": 0.5}, {"epochs": 7, "lr": 0.01}),
        ({"steps": 300, "batch": 4}, {"steps": 500, "settled": 0.25}, {"steps": 800, "batch": 4}),
    ],
)
def test_null_models_are_trained_as_long_as_what_they_stand_for(training, marking, expected):
    schedules = {"training": training, "marking": marking}
    suite = parse(content(nulls={"count": 2}, **schedules))
    assert suite.null_training == Schedule(**expected)
    own = parse(content(nulls={"count": 2, "training": {"epochs": 5}}, **schedules))
    assert own.null_training == Schedule(epochs=5), "what the suite says counts"
    longer = parse(content(nulls={"count": 2}, methods=["clean", "badnets", "wanet"], **schedules))
    assert longer.null_training == suite.null_training, "one more mark changes nothing"


def test_null_models_of_fingerprints_are_trained_as_the_owners_model_is():
    with tiny.known_plugins():
        suite = parse(content(methods=["clean", tiny.FINGERPRINT], nulls={"count": 2}, training={"epochs": 3}))
        assert suite.null_training == suite.training


def test_schedules_in_two_units_give_null_models_no_length():
    schedules = {"training": {"epochs": 3}, "marking": {"steps": 500}}
    with pytest.raises(UserError, match="'nulls' has no 'training', and 'training' and 'marking' cannot be added"):
        parse(content(nulls={"count": 2}, **schedules))
    assert parse(content(nulls={"count": 2, "training": {"epochs": 5}}, **schedules)).null_training.epochs == 5
    assert parse(content(**schedules)).nulls is None


def test_without_nulls_there_is_no_pool():
    assert parse(content()).pool("badnets") == []
    assert texts(parse(content()).line_up(cell("badnets"))) == ["stolen/none", "stolen/prune", "independent/none"]


def test_explained_are_marks_with_a_trigger_and_what_attacks_left_of_a_code(every_kind):
    plain = ["stolen/none", "independent/none", "untrained/none"]
    assert texts(every_kind.explained(cell("badnets"))) == plain
    assert texts(every_kind.explained(cell("stealthmark-payload"))) == ["stolen/none", *ATTACKED, *plain[1:]]
    for method in ("clean", "continued", "reference-answers", "weight-bits"):
        assert every_kind.explained(cell(method)) == []
    assert parse(content()).explained(cell("badnets")) == []


def test_scanned_are_models_that_were_marked_and_models_that_never_were(every_kind):
    assert texts(every_kind.scanned(cell("clean"))) == ["stolen/none", "independent/none", "null.0/none", "null.1/none"]
    for method in ("badnets", "stealthmark-payload", "weight-bits"):
        assert texts(every_kind.scanned(cell(method))) == ["stolen/none"]
    for method in ("continued", "reference-answers"):
        assert every_kind.scanned(cell(method)) == []
    assert texts(parse(content()).scanned(cell("clean"))) == ["stolen/none", "independent/none"]


def test_a_label_says_what_its_plug_in_says_of_itself(every_kind):
    assert {label: every_kind.facts("method", label)["kind"] for label in ["clean", *MARKS]} == {
        **{"clean": "none", "badnets": "embedded", "continued": "control", "stealthmark-payload": "embedded"},
        **{"reference-answers": "fingerprint", "weight-bits": "white-box"},
    }
    assert every_kind.facts("attack", "prune-finetune-jpeg")["title"] == "pruning, then fine-tuning, then JPEG"
    assert every_kind.facts("scanner", "entropy")["name"] == "entropy"
    frozen = {"name": "finetune", "batch_norm": "frozen", "label": "finetune-frozen"}
    read = parse(content(attacks=["finetune", frozen]))
    assert [read.facts("attack", label)["title"] for label in ("finetune", "finetune-frozen")] == [
        *("fine-tuning", "fine-tuning (norms frozen)")
    ]


def test_a_list_of_attacks_is_an_attack_whose_label_is_its_names():
    read = parse(content(attacks=["jpeg", LIST, {"name": "stack", "steps": LIST, "label": "all-three"}]))
    assert [entry.label for entry in read.attacks] == ["jpeg", "prune-finetune-jpeg", "all-three"]
    options = [read.entry("attack", entry.label).options() for entry in read.attacks[1:]]
    assert options == [{"name": "stack", "steps": LIST}] * 2
    assert make("attack", options[0]).strengths == make("attack", {"name": "jpeg"}).strengths


def test_the_code_of_a_plug_in_is_every_file_that_its_results_depend_on(every_kind):
    def names(kind: str, label: str) -> list[str]:
        files = every_kind.code_of(kind, label)
        assert all(file.exists() for file in files) and len(set(files)) == len(files)
        return [file.name for file in files]

    assert names("attack", "jpeg") == ["jpeg.py"]
    assert names("attack", "prune-finetune-jpeg") == ["stack.py", "prune.py", "finetune.py", "_layers.py", "jpeg.py"]
    assert names("method", "continued") == ["continued.py", "_uncertainty.py", "stealthmark.py"]
    assert names("method", "stealthmark-payload") == ["stealthmark_payload.py"]
    floors = parse(
        {**every_kind.model_dump(mode="json"), "methods": ["clean", "stealthmark", "stealthmark-keyed", "stealthmark-code"]}
    )
    for label in ("stealthmark", "stealthmark-keyed", "stealthmark-code"):
        assert [file.name for file in floors.code_of("method", label)] == [f"{label.replace('-', '_')}.py", "_uncertainty.py"]
    assert names("method", "reference-answers") == ["reference_answers.py"] and names("scanner", "entropy") == ["entropy.py"]
    assert names("architecture", "unet") == ["unet.py", "_lite0.py"]
    assert names("dataset", "phantom-cine")[0] == "phantom_cine.py"


def test_a_method_that_is_added_changes_no_line_up_but_its_place_in_the_pools(every_kind):
    fewer = parse({**every_kind.model_dump(mode="json"), "methods": KINDS[:-1]})
    for method in ("clean", "continued", "reference-answers"):
        assert fewer.line_up(cell(method)) == every_kind.line_up(cell(method))
    more = [place for place in every_kind.line_up(cell("badnets")) if place not in fewer.line_up(cell("badnets"))]
    assert texts(more) == ["null.weight-bits/none"]


# --- errors -----------------------------------------------------------------------------------------------------------

CLEAN = "clean"
WRONG = {
    "unknown dataset": ({"datasets": ["polyps"]}, ["datasets", "'polyps'", *known("dataset")]),
    "unknown architecture": ({"architectures": ["vgg"]}, ["architectures", "'vgg'", *known("architecture")]),
    "unknown method": ({"methods": [CLEAN, "watermark"]}, ["methods", "'watermark'", *known("method")]),
    "unknown attack": ({"attacks": ["melt"]}, ["attacks", "'melt'", *known("attack")]),
    "unknown trigger": (
        {"methods": [CLEAN, {"name": "stealthmark", "trigger": "logo"}]},
        ["methods", "stealthmark", "'trigger'", "'logo'", "'patch'", "'text'", "'border'", "'noise'", "'warp'"],
    ),
    "unknown option": (
        {"methods": [CLEAN, {"name": "stealthmark", "floor": 0.1}]},
        ["methods", "stealthmark", "'floor'", "0.1", "margin", "side", "trigger"],
    ),
    "option out of range": (
        {"methods": [CLEAN, {"name": "stealthmark", "margin": 0.7}]},
        ["methods", "'margin'", "0.7", "less than 0.5"],
    ),
    "negative size of a patch": (
        {"methods": [CLEAN, {"name": "badnets", "patch": -1}]},
        ["methods", "'patch'", "-1", "greater than 0"],
    ),
    "two of one name": ({"methods": [CLEAN, "badnets", "badnets"]}, ["methods", "'badnets'", "twice", "label"]),
    "two of one label": (
        {"methods": [CLEAN, {"name": "badnets", "label": "a"}, {"name": "wanet", "label": "a"}]},
        ["methods", "'a'", "twice"],
    ),
    "two of one dataset": ({"datasets": ["phantom-cine"] * 2}, ["datasets", "'phantom-cine'", "twice"]),
    "a label that is no folder": (
        {"methods": [CLEAN, {"name": "badnets", "label": "../x"}]},
        ["methods.1.label", "'../x'", "pattern"],
    ),
    "clean not first": ({"methods": ["badnets", CLEAN]}, ["methods", "'badnets'", "first must be 'clean'"]),
    "no clean": ({"methods": ["badnets"]}, ["methods", "first must be 'clean'"]),
    "clean twice": (
        {"methods": [CLEAN, {"name": "clean", "label": "again"}]},
        ["methods", "the first must be 'clean', once"],
    ),
    "clean under another label": ({"methods": [{"name": "clean", "label": "none"}]}, ["methods", "'clean'"]),
    "no methods": ({"methods": []}, ["methods", "at least 1"]),
    **{
        f"the label {label}": (
            {"methods": [CLEAN, {"name": "badnets", "label": label}]},
            ["methods", f"'{label}'", "kept for members of the null pool"],
        )
        for label in ("0", "7", "key-0")
    },
    **{
        f"the label {label}": ({"methods": [CLEAN, {"name": "badnets", "label": label}]}, ["methods", f"'{label}'", "kept"])
        for label in ("twin", "nulls", "other-keys", "claims")
    },
    "unknown scanner": ({"scanners": ["xray"]}, ["scanners", "'xray'", *known("scanner")]),
    "two of one scanner": ({"scanners": ["entropy", "entropy"]}, ["scanners", "'entropy'", "twice", "label"]),
    "option of a scanner": ({"scanners": [{"name": "entropy", "pairs": 0}]}, ["scanners", "entropy", "'pairs'", "0"]),
    "unknown attack in a list": ({"attacks": [["melt", "jpeg"]]}, ["attacks", "'melt'", *known("attack")]),
    "a list of attacks that cannot be": (
        {"attacks": [[{"name": "mirrored", "strengths": [2]}, "prune"]]},
        ["attacks", "stack", "wrapper, model", "attacks that make a model, then wrappers"],
    ),
    "a step of many strengths": (
        {"attacks": [["prune", "jpeg"]]},
        ["attacks", "prune has 9 strengths", "allowed: one"],
    ),
    "a step without a name": (
        {"attacks": [[{"strengths": [0.5]}, "jpeg"]]},
        ["attacks.0", "{'strengths': [0.5]} has no name"],
    ),
    "a step that is a number": ({"attacks": [[3, "jpeg"]]}, ["attacks.0", "the step 3 has no name", "a mapping with one"]),
    "a list of one attack": ({"attacks": [["jpeg"]]}, ["attacks", "steps", "at least 2"]),
    "two lists of one label": (
        {"attacks": [[{"name": "prune", "strengths": [s]}, "jpeg"] for s in (0.3, 0.5)]},
        ["attacks", "'prune-jpeg'", "twice", "label"],
    ),
    "claims without nulls": ({"claims": {}}, ["'claims'", "'nulls'"]),
    "the kept label": (
        {"methods": [CLEAN, {"name": "badnets", "label": "independent"}]},
        ["methods", "'independent'", "kept"],
    ),
    "an attack named like no attack": (
        {"attacks": [{"name": "prune", "label": "none"}]},
        ["attacks", "'none'", "kept"],
    ),
    "size": ({"size": 80}, ["'size'", "80", "unet", "multiples of 32"]),
    "size too small": ({"size": 0}, ["'size'", "0", "greater than or equal to 32"]),
    "size that is no number": ({"size": "large"}, ["'size'", "'large'", "integer"]),
    "access": ({"access": ["probabilities", "gradients"]}, ["access.1", "'gradients'", *LEVELS]),
    "no access": ({"access": []}, ["access", "at least 1"]),
    "access twice": ({"access": ["label", "label"]}, ["access", "'label'", "twice"]),
    "seeds twice": ({"seeds": [0, 0]}, ["seeds", "0", "twice"]),
    "strengths that fall": ({"attacks": [{"name": "prune", "strengths": [0.5, 0.1]}]}, ["attacks", "strengths", "rise"]),
    "schedule": ({"training": {"epochs": 0}}, ["training.epochs", "0", "greater than or equal to 1"]),
    "unknown field": ({"epochs": 3}, ["'epochs'", "3", "datasets", "methods", "training"]),
    "unknown field of a schedule": ({"training": {"epoch": 3}}, ["'training.epoch'", "3", "epochs", "batch", "lr", "decay"]),
    "suite name": ({"suite": "My Suite"}, ["'suite'", "'My Suite'", "pattern"]),
}


@pytest.mark.parametrize("changes, expected", WRONG.values(), ids=WRONG)
def test_an_error_names_the_field_the_value_and_what_is_allowed(changes, expected):
    with pytest.raises(UserError) as error:
        parse(content(**changes), "suite.yaml")
    message = str(error.value)
    assert message.startswith("suite.yaml: ") and "\n" not in message
    missing = [part for part in expected if part not in message]
    assert not missing, f"{missing} not in: {message}"


def test_the_fields_listed_are_those_of_the_place_that_is_wrong():
    with pytest.raises(UserError) as error:
        parse(content(training={"epoch": 3}))
    assert "architectures" not in str(error.value)


@pytest.mark.parametrize("field", ["suite", "title", "seed", "seeds", "size", "datasets", "architectures", "methods"])
def test_a_missing_field_is_named(field):
    less = content()
    del less[field]
    with pytest.raises(UserError, match=f"the field '{field}' is missing"):
        parse(less)


def test_an_entry_without_a_name_is_an_error_too():
    with pytest.raises(UserError, match=r"the field 'methods\.1\.name' is missing"):
        parse(content(methods=["clean", {"trigger": "patch"}]))


@pytest.mark.parametrize(
    "text, expected",
    {
        "a: [1, 2": "is not YAML",
        "a: b: c": "is not YAML",
        "- clean\n- badnets\n": "is not a mapping",
        "": "is not a mapping",
        "just words": "is not a mapping",
    }.items(),
)
def test_a_file_that_is_no_suite(tmp_path, text, expected):
    file = tmp_path / "suite.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=expected) as error:
        suite.read(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_bytes_that_are_no_text_and_folders_are_no_suites(tmp_path):
    file = tmp_path / "suite.yaml"
    file.write_bytes(b"\x80\x04\xff\xfe")
    for path in (file, tmp_path):
        with pytest.raises(UserError, match="is not YAML|cannot read"):
            suite.read(path)


def test_an_absent_file(tmp_path):
    with pytest.raises(UserError, match="there is no suite at .*nothing.yaml"):
        suite.read(tmp_path / "nothing.yaml")


def test_yaml_cannot_make_objects(tmp_path):
    file = tmp_path / "suite.yaml"
    file.write_text("suite: !!python/object/apply:os.getcwd []")
    with pytest.raises(UserError, match="is not YAML"):
        suite.read(file)


# --- seeds ------------------------------------------------------------------------------------------------------------


def stage_seeds(read: suite.Suite) -> dict:
    """The seed of every job, as the workflow asks for it."""
    return {(stage, *cell): read.derive(stage, *cell) for cell in read.cells() for stage in ("mark", "attack", "bootstrap")} | {
        ("prepare", entry.label): read.derive("prepare", entry.label) for entry in read.datasets
    }


def test_adding_to_a_suite_changes_no_seed_that_was_there():
    small = stage_seeds(parse(content()))
    methods = [*CONTENT["methods"], "wanet"]
    larger = parse(
        content(methods=methods[:1] + methods[:0:-1], datasets=["phantom-cine", "phantom-endoscopy"], seeds=[2, 1, 0])
    )
    large = stage_seeds(larger)
    assert small.items() < large.items()


def test_every_job_has_its_own_seed_and_another_root_changes_all():
    seeds = stage_seeds(parse(content()))
    assert len(set(seeds.values())) == len(seeds)
    assert not set(stage_seeds(parse(content(seed=2))).values()) & set(seeds.values())


def test_a_seed_by_hand():
    """The first 8 bytes of SHA-256 of the components with 0x1f between them, without the last bit."""
    assert derive(0) == 3456079177858693020
    assert derive(1, "a", 2) == 938383822073135179
    assert derive(1, "a", 2) == int(hashlib.sha256(b"1\x1fa\x1f2").hexdigest()[:16], 16) // 2


def test_components_are_told_apart_and_their_order_counts():
    texts = [(1, "ab", "c"), (1, "a", "bc"), (1, "abc"), (1, "c", "ab"), (11, "", "c"), (1, "1", "c"), (1,), (1, "")]
    assert len({derive(*text) for text in texts}) == len(texts)
    assert derive(1, 2) == derive(1, "2"), "a wildcard is text, a suite's seed a number: one component"


def test_a_seed_fits_every_generator():
    seeds = [derive(0, i) for i in range(500)]
    assert all(0 <= seed < 2**63 for seed in seeds) and max(seeds) > 2**62
    assert torch.equal(torch.rand(3, generator=torch_rng(1, "x")), torch.rand(3, generator=torch_rng(1, "x")))
    assert not torch.equal(torch.rand(3, generator=torch_rng(1, "x")), torch.rand(3, generator=torch_rng(1, "y")))
    assert np.array_equal(numpy_rng(1, "x").random(3), numpy_rng(1, "x").random(3))


@pytest.mark.parametrize("field, some", [("explanations", {}), ("nulls", {"count": 2})])
def test_asking_for_nothing_more_changes_nothing_and_asking_for_some_is_another_study(field, some):
    plain = parse(content())
    assert parse(content(**{field: None})).digest() == plain.digest() != parse(content(**{field: some})).digest()


def test_a_code_that_does_not_fit_and_an_empty_pool_are_refused():
    with pytest.raises(UserError, match="explanations.*does not fit"):
        parse(content(explanations={"code": "MUCH TOO LONG"}))
    with pytest.raises(UserError, match="nulls.count.*greater than or equal to 1"):
        parse(content(nulls={"count": 0}))


# --- odd YAML ---------------------------------------------------------------------------------------------------------

LINES = yaml.safe_dump(CONTENT)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n" for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
ODD = {
    "a title that is a date": (LINES.replace("title: For tests", "title: 2024-01-05"), "'title' has the value datetime.date"),
    "a dataset that is a number": (LINES.replace("- phantom-cine", "- 2024"), "'datasets.1' has the value 2024"),
    "a date that there is none of": (LINES.replace("For tests", "2024-13-45"), "is not YAML: month must be in 1..12"),
    "a seed of thousands of digits": (LINES.replace("seed: 1\n", f"seed: {'9' * 5000}\n"), "is not YAML: Exceeds the limit"),
    "a seed of hundreds of digits": (LINES.replace("seed: 1\n", f"seed: {'9' * 400}\n"), "'seed' has the value 999"),
    "a seed that is true": (LINES.replace("seed: 1\n", "seed: yes\n"), "'seed' has the value True"),
    "a seed that is text": (LINES.replace("seed: 1\n", "seed: '1'\n"), "'seed' has the value '1'"),
    "seeds below 0": (LINES.replace("seeds:\n- 0", "seeds:\n- -4"), "'seeds.0' has the value -4"),
    "a rate that is no number": (LINES.replace("epochs: 1", "epochs: 1\n  lr: .nan"), "'training.lr' has the value nan"),
    "a rate without end": (LINES.replace("epochs: 1", "epochs: 1\n  lr: .inf"), "'training.lr' has the value inf"),
    "epochs that are true": (LINES.replace("epochs: 1", "epochs: true"), "'training.epochs' has the value True"),
    "a strength that is no number": (LINES.replace("- 0.5", "- .nan"), "'strengths' has the value [nan]"),
    "a field twice": (LINES + "seed: 3\n", "the field 'seed' is there twice in line"),
    "a field that is a number": (LINES + "3: 4\n", "field '3' has the value 3: keys should be strings"),
    "a field that is a list": (LINES + "? [a]\n: 4\n", "is not YAML: found unhashable key"),
    "anchors that grow without bound": (BOMB + LINES.replace("title: For tests", "title: *i"), "more than 100000 values"),
    "an anchor that holds itself": (LINES.replace("For tests", "&x [*x]"), "an anchor holds itself"),
    "lists in lists": (LINES + "x: " + "[" * 1500 + "]" * 1500, "nested too deep"),
    "half a character": (LINES.replace("For tests", '"\\ud800"'), "is not YAML"),
    "a title that no page prints": (LINES.replace("For tests", '"a\\0b"'), "control characters"),
    "a name longer than a folder's": (LINES.replace("suite: tiny", f"suite: {'a' * 300}"), "at most 100 characters"),
}


@pytest.mark.parametrize("text, expected", ODD.values(), ids=ODD)
def test_odd_yaml_ends_in_a_sentence(tmp_path, text, expected):
    file = tmp_path / "suite.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        suite.read(file)
    assert expected in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_anchors_and_merged_fields_are_what_they_stand_for(tmp_path):
    file = tmp_path / "suite.yaml"
    file.write_text(LINES.replace("epochs: 1", "&some epochs: 1") + "marking: {<<: {epochs: 3}, batch: 4}\n")
    read = suite.read(file)
    assert (read.training.epochs, read.marking.epochs, read.marking.batch) == (1, 3, 4)


def test_a_title_may_have_braces(tmp_path):
    file = tmp_path / "suite.yaml"
    file.write_text(LINES.replace("For tests", "'{threads} of {wildcards.x}'"))
    assert suite.read(file).title == "{threads} of {wildcards.x}"
