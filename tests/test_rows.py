"""Damaged tables of a study: `report` ends in one sentence that names file, column and value."""

import json

import pandas as pd
import pytest
from test_report import Study

from stealthmark import report
from stealthmark.errors import UserError
from stealthmark.files import sha256_of, write_json
from stealthmark.report import facts, results


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Study:
    return Study(tmp_path_factory.mktemp("rows"), methods=["clean", "badnets"], attacks={"prune": [0.5]})


def refused(study: Study, **changes) -> str:
    """The sentence in which loading ends when values in the first rows are these."""
    rows, cases, provenance = study.load()
    table = pd.read_csv(rows, dtype=str, keep_default_na=False)
    for column, value in changes.items():
        table.loc[1, column] = value
    table.to_csv(rows, index=False)
    with pytest.raises(UserError) as error:
        results.load(rows, cases, study.suite, json.loads(provenance.read_text()))
    assert "\n" not in str(error.value) and "rows.csv" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "column, value, allowed",
    [
        ("value", "much", "numbers"),
        ("n", "inf", "finite numbers"),
        ("seed", "0.5", "whole numbers"),
        ("queries", "1e+300", "whole numbers"),
        ("strength", "weak", "numbers"),
        ("role", "thief", "stolen, independent"),
        ("access", "gradients", "logits, probabilities"),
        ("pooled", "perhaps", "true, false"),
        ("method", "../x", "labels"),
        ("metric", "dice; drop", "labels"),
    ],
)
def test_a_value_of_another_kind_is_named(made, column, value, allowed):
    message = refused(made, **{column: value})
    assert f"column '{column}' has the value '{value}' in row 2; allowed: {allowed}" in message


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'"', b"a,b\n1,2\n", b"a\n1,2\n"], ids=range(5))
def test_a_file_that_is_no_table(made, content):
    rows, cases, provenance = made.load()
    rows.write_bytes(content)
    with pytest.raises(UserError, match="rows.csv"):
        results.load(rows, cases, made.suite, json.loads(provenance.read_text()))
    rows.unlink()
    with pytest.raises(UserError, match="rows.csv is absent"):
        results.load(rows, cases, made.suite, {})


@pytest.mark.parametrize("name", ["rows.csv", "cases.parquet"])
def test_a_table_that_is_not_the_one_that_was_collated_is_refused(made, name):
    files = made.load()
    content = json.loads(files[2].read_text()) | {"files": {file.name: sha256_of(file) for file in files[:2]}}
    assert results.load(*files[:2], made.suite, content).methods == ["clean", "badnets"]
    content["files"][name] = "0" * 64
    with pytest.raises(UserError, match=f"{name} has changed since it was collated"):
        results.load(*files[:2], made.suite, content)


@pytest.mark.parametrize(
    "content, words",
    [
        ({"methods": {"a": {"citation": 3}}}, "of 'a' in 'citation' the value 3"),
        ({"methods": {"a": {"carries_code": "no"}}}, "in 'carries_code' the value 'no'"),
        ({"methods": {"a": {"reported": [{"metric": "asr"}]}}}, "must have 'metric' and 'text'"),
        ({"methods": []}, "field 'methods' has the value []; it must be a mapping"),
        ({"datasets": {"a": 3}}, "field 'datasets' has of 'a' the value 3; it must be a mapping"),
        ({"attacks": {"a": {"strengths": ["weak"]}}}, "in 'strengths.0' the value 'weak'"),
        ({"attacks": {"a": {"text": "{:q}"}}}, "which is no format"),
        ({"attacks": {"a": {"text": "{other}"}}}, "which is no format"),
        ({"stages": 3}, "field 'stages' has the value 3"),
    ],
)
def test_facts_of_another_kind_are_named(content, words):
    with pytest.raises(UserError) as error:
        facts.read(content)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_provenance_file_that_was_changed_is_refused(made):
    rows, cases, provenance = made.load()
    write_json(provenance, json.loads(provenance.read_text()))
    provenance.write_text(provenance.read_text().replace("0123456789abcdef", "0123456789abcdee"))
    with pytest.raises(UserError, match="provenance.json has changed since it was written"):
        report.write(report.Sources(rows, cases, provenance), made.suite, made.folder / "out")
