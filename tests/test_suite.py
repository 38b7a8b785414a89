"""Suites: the shipped ones are valid, a wrong one says where, and adding to one changes nothing that was there."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from stealthmark import suite
from stealthmark.errors import UserError
from stealthmark.plugin import make
from stealthmark.plugins import known
from stealthmark.predictor import ACCESS
from stealthmark.seeds import derive, numpy_rng, torch_rng
from stealthmark.suite import Cell, parse

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
    found = suite.read(file)
    assert found.suite == file.stem
    assert found.cells()
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
    found = suite.read(file)
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(found.model_dump(mode="json")))
    again = suite.read(tmp_path / "suite.yaml")
    assert again == found and again.digest() == found.digest()


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
    found = parse(content())
    assert found.entry("method", "floor").options() == {"name": "stealthmark", "trigger": "patch"}
    assert found.entry("method", "badnets").options() == {"name": "badnets"}
    assert make("method", found.entry("method", "floor").options()).kind == "patch"
    assert found.entry("attack", "prune").options() == {"name": "prune", "strengths": [0.5]}


def test_a_name_and_a_mapping_with_that_name_are_one():
    assert parse(content(architectures=["unet"])) == parse(content(architectures=[{"name": "unet"}]))


def test_the_digest_is_of_what_was_understood():
    plain = parse(content())
    assert parse(content(marking={"epochs": 16})).digest() == plain.digest(), "16 is the default"
    assert parse(content(marking={"epochs": 17})).digest() != plain.digest()


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
    "access": ({"access": ["probabilities", "gradients"]}, ["access.1", "'gradients'", *ACCESS]),
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


def stage_seeds(found: suite.Suite) -> dict:
    """The seed of every job, as the workflow asks for it."""
    return {
        (stage, *cell): found.derive(stage, *cell) for cell in found.cells() for stage in ("mark", "attack", "bootstrap")
    } | {("prepare", entry.label): found.derive("prepare", entry.label) for entry in found.datasets}


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
