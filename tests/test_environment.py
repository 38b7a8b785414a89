"""What is said in two places agrees: lists of packages, of plug-ins, of rules. And the package can be installed."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import stealthmark
from stealthmark import plugins

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


# --- the package ------------------------------------------------------------------------------------------------------


def baselines() -> list[Path]:
    """The baselines that belong to the project: a file that somebody only tries out needs no entry point."""
    listed = subprocess.run(["git", "ls-files", "baselines"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / line for line in listed.stdout.splitlines()] if listed.returncode == 0 else []
    return [file for file in files or sorted((ROOT / "baselines").iterdir()) if re.fullmatch(r"[^_].*\.py", file.name)]


def test_every_baseline_is_an_entry_point():
    """An installed package finds its baselines by these; a clone finds the files."""
    entries = PYPROJECT["project"]["entry-points"]["stealthmark.methods"]
    expected = {file.stem.replace("_", "-"): f"stealthmark_baselines.{file.stem}:Method" for file in baselines()}
    assert entries == expected, "[project.entry-points] in pyproject.toml has a line a file in baselines/"


def test_every_package_of_the_library_is_installed():
    folders = {file.parent for file in (ROOT / "stealthmark").rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages | {"stealthmark_baselines"}


def test_one_version_and_one_licence():
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert f"## {stealthmark.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PYPROJECT["project"]["license"] == citation["license"] == "Apache-2.0"
    assert (ROOT / "LICENSE").read_text().split()[:2] == ["Apache", "License"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The folder that a wheel of the project was unpacked into, far from the clone."""
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools 77 or newer is not installed here")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("stealthmark", "baselines"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=folder / "source", check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    zipfile.ZipFile(file).extractall(folder / "site")
    return folder / "site"


def installed_python(wheel: Path, *argv: str) -> str:
    """What a command prints that runs far from the clone, with the unpacked wheel."""
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run([sys.executable, *argv], cwd=wheel.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_package_finds_every_plug_in(wheel):
    code = "from stealthmark import plugins; import json; "
    code += "print(json.dumps({kind: {n: str(f) for n, f in plugins.known(kind).items()} for kind in plugins.FOLDERS}))"
    listed = json.loads(installed_python(wheel, "-c", code))
    for kind in plugins.FOLDERS:
        own = {name for name, file in plugins.known(kind).items() if file.parent != ROOT / "baselines"}
        assert set(listed[kind]) >= own
        assert all(Path(file).is_relative_to(wheel) for name, file in listed[kind].items() if name in own)
    for file in baselines():
        assert listed["method"][file.stem.replace("_", "-")] == str(wheel / "stealthmark_baselines" / file.name)


def test_an_installed_package_has_a_command_its_templates_and_its_types(wheel):
    (entries,) = wheel.glob("*.dist-info/entry_points.txt")
    assert "stealthmark = stealthmark.cli:main" in entries.read_text()
    assert "phantom-endoscopy" in installed_python(wheel, "-m", "stealthmark", "datasets")
    assert (wheel / "stealthmark/py.typed").exists()
    templates = {file.relative_to(ROOT) for file in (ROOT / "stealthmark").rglob("*.j2")}
    assert templates and all((wheel / template).exists() for template in templates)


# --- the workflow -----------------------------------------------------------------------------------------------------


def test_the_slurm_profile_names_every_rule_that_is_a_job():
    """What a profile forgets runs with the resources of a small job, on one thread, without a GPU."""
    texts: dict[str, str] = {}
    for file in sorted((ROOT / "workflow").rglob("*.smk")):
        for part in re.split(r"^(?:use )?rule ", file.read_text(), flags=re.MULTILINE)[1:]:
            copy = re.match(r"(\w+) as (\w+) with:", part)
            name = copy[2] if copy else part.partition(":")[0]
            texts[name] = texts[copy[1]] if copy else part
    rules = {name for name, text in texts.items() if "localrule: True" not in text}
    threaded = {name for name in rules if "{threads}" in texts[name]}
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())
    assert {"prepare", "train_null", "mark_with_other_key", "collate"} <= rules, "the check sees rules"
    assert set(profile["set-resources"]) == rules
    assert set(profile["set-threads"]) == threaded
