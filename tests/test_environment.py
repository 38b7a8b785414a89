"""The three lists of packages agree: ranges in pyproject.toml, tested versions in requirements.txt and environment.yml."""

import importlib.metadata
import os
import platform
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
LINES = [line.strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
REQUIREMENTS = [line for line in LINES if line and not line.startswith("#")]
PINS = {canonicalize_name(pin.name): pin for pin in map(Requirement, REQUIREMENTS)}
ASKED = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
ASKED += [Requirement(text) for extra in PYPROJECT["project"]["optional-dependencies"].values() for text in extra]


def version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    return specifier.version


def conda_pip() -> list[str]:
    (pip,) = (entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    return pip


def test_every_line_pins_one_version():
    for line in REQUIREMENTS:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line), line
    assert len(PINS) == len(REQUIREMENTS), "a package is pinned twice"
    names = [canonicalize_name(Requirement(line).name) for line in REQUIREMENTS]
    assert names == sorted(names)


def test_environment_yml_lists_what_requirements_txt_does():
    assert conda_pip() == REQUIREMENTS


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.name)
def test_every_dependency_is_pinned_within_its_range(asked):
    name = canonicalize_name(asked.name)
    assert name in PINS, f"{asked.name} is not in requirements.txt"
    assert asked.specifier, f"{asked.name} has no range"
    assert asked.specifier.contains(version(PINS[name]))


def test_nothing_is_pinned_that_nobody_asks_for():
    assert PINS.keys() == {canonicalize_name(asked.name) for asked in ASKED}


def test_both_environments_have_a_python_that_pyproject_allows():
    (conda_python,) = (entry for entry in CONDA["dependencies"] if isinstance(entry, str) and entry.startswith("python"))
    allowed = SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert allowed.contains(conda_python.split("=")[1] + ".0")
    assert allowed.contains(platform.python_version())


def test_no_address_is_downloaded_from():
    """Packages come from the registries that a reader's own installer is set up for."""
    assert CONDA["channels"] == ["conda-forge"]
    texts = [*LINES, *conda_pip(), *PYPROJECT["build-system"]["requires"], *map(str, ASKED), *CONDA["channels"]]
    for text in texts:
        assert not re.search(r"://|git\+|file:|@|--|^-[a-z]", text), text
    assert all(asked.url is None for asked in ASKED)


def installed(name: str) -> str | None:
    """The version that is here, without a suffix such as +cpu; None where there is none."""
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def test_installed_versions_are_the_pinned_ones():
    other = {name: installed(name) for name, pin in PINS.items() if installed(name) != version(pin)}
    pinned_here = Path(sys.prefix, ".installed").exists() or os.environ.get("CONDA_DEFAULT_ENV") == CONDA["name"]
    if other and not pinned_here:
        pytest.skip(f"this environment was not made from requirements.txt: {other}")
    assert not other


def test_torch_and_torchvision_are_a_pair():
    """A torchvision is built for one torch, which its metadata names."""
    if installed("torchvision") != version(PINS["torchvision"]):
        pytest.skip("the pinned torchvision is not installed here")
    needs = [Requirement(text) for text in importlib.metadata.requires("torchvision")]
    (torch,) = (need for need in needs if need.name == "torch")
    assert torch.specifier.contains(version(PINS["torch"]))
