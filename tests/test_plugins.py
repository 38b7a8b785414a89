"""Where plug-ins come from: files of this clone, and entry points of installed packages."""

from pathlib import Path

import pytest

from stealthmark import plugins
from stealthmark.errors import UserError
from stealthmark.plugin import make

MARK = '''
"""A mark of somebody else's package."""

from stealthmark.visible import VisibleMark


class Corner(VisibleMark):
    depth: int = 3
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a made-up package with some modules, and entry points of methods; the folder that it lies in."""

    def clear():
        plugins._entries.cache_clear()
        plugins._file_of.cache_clear()

    def install(name: str, modules: dict[str, str], methods: dict[str, str]) -> Path:
        site = tmp_path / name
        for module, text in modules.items():
            file = site / f"{module.replace('.', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{label} = {place}" for label, place in methods.items()]
        (info / "entry_points.txt").write_text("\n".join(["[stealthmark.methods]", *lines, ""]))
        monkeypatch.syspath_prepend(site)
        clear()
        return site

    yield install
    monkeypatch.undo()
    clear()


def test_a_plug_in_of_an_installed_package_is_one_like_any_other(install):
    site = install("acme-one", {"acme_one.__init__": "", "acme_one.marks": MARK}, {"corner": "acme_one.marks:Corner"})
    assert plugins.known("method")["corner"] == site / "acme_one/marks.py"
    assert list(plugins.known("method")) == sorted(plugins.known("method"))
    corner = make("method", {"name": "corner", "depth": 4})
    assert (corner.name, corner.depth) == ("corner", 4) and corner.options()["name"] == "corner"
    with pytest.raises(UserError, match="method 'corner': there is no field 'width'"):
        make("method", {"name": "corner", "width": 4})


def test_nothing_is_imported_to_know_a_plug_in(install):
    fails = "raise RuntimeError('it was imported')"
    site = install("acme-two", {"acme_two.__init__": fails, "acme_two.inner.__init__": fails, "acme_two.inner.marks": fails},
                   {"two": "acme_two.inner.marks:Method"})  # fmt: skip
    assert plugins.known("method")["two"] == site / "acme_two/inner/marks.py"


def test_a_name_with_two_owners_names_both(install):
    install("acme-three", {"acme_three": MARK}, {"badnets": "acme_three:Corner"})
    with pytest.raises(
        UserError, match=r"claim the method 'badnets': .*baselines/badnets\.py and .*\(acme_three:Corner\).*acme-three"
    ):
        plugins.known("method")


def test_two_packages_that_claim_a_name_are_both_named(install):
    install("acme-four", {"acme_four": MARK}, {"corner": "acme_four:Corner"})
    install("acme-five", {"acme_five": MARK}, {"corner": "acme_five:Corner"})
    with pytest.raises(UserError, match="acme-five.* and .*acme-four"):
        plugins.load("method", "corner")


def test_in_a_clone_its_files_win_over_an_installed_copy_of_it(install):
    install(plugins.DISTRIBUTION, {"old_baselines": MARK}, {"badnets": "old_baselines:Corner"})
    assert plugins.known("method")["badnets"] == plugins.ROOT / "baselines/badnets.py"


def test_another_package_cannot_take_a_name_from_an_installed_copy(install, monkeypatch):
    """Where there is no clone, the baselines are entry points like those of others."""
    monkeypatch.setitem(plugins.FOLDERS, "method", [plugins.LIBRARY / "methods"])
    install(plugins.DISTRIBUTION, {"own_baselines": MARK}, {"badnets": "own_baselines:Corner"})
    assert plugins.known("method")["badnets"].name == "own_baselines.py"
    install("acme-nought", {"acme_nought": MARK}, {"badnets": "acme_nought:Corner"})
    with pytest.raises(UserError, match="two plug-ins claim the method 'badnets'"):
        plugins.known("method")


def test_an_entry_point_that_leads_nowhere_ends_in_a_sentence(install):
    install("acme-six", {"acme_six": MARK}, {"six": "acme_six.gone:Corner"})
    for look in (lambda: plugins.known("method"), lambda: plugins.load("method", "six")):
        with pytest.raises(UserError, match=r"'six' \(acme_six\.gone:Corner\) of the package acme-six leads to no module"):
            look()


def test_a_class_that_is_absent_or_no_plug_in_is_refused_with_what_to_write(install):
    install("acme-seven", {"acme_seven": "class Plain: pass"}, {"seven": "acme_seven:Method", "plain": "acme_seven:Plain"})
    with pytest.raises(UserError, match=r"acme-seven defines no class Method.*write `class Method\(\.\.\.\)`.*EmbeddedMark"):
        make("method", {"name": "seven"})
    with pytest.raises(UserError, match="'plain': its class is not derived from a contract; allowed: EmbeddedMark"):
        make("method", {"name": "plain"})


@pytest.mark.parametrize("kind", plugins.FOLDERS)
def test_a_file_without_its_class_is_told_what_to_write(kind, tmp_path, monkeypatch):
    file = tmp_path / "empty_file.py"
    file.write_text("")
    monkeypatch.setitem(plugins.FOLDERS, kind, [tmp_path])
    with pytest.raises(UserError) as refusal:
        plugins.load(kind, "empty-file")
    name = kind.capitalize()
    assert str(refusal.value) == (
        f"{file} defines no class {name}, which a {kind} plug-in must; write `class {name}(...)` and derive it from "
        f"{plugins.CONTRACTS[kind]}"
    )


@pytest.mark.parametrize("kind", plugins.CONTRACTS)
def test_the_contracts_that_a_refusal_names_are_there(kind):
    """`A, B or C from module`: each a contract of that module."""
    import importlib

    from stealthmark.plugin import Plugin

    names, _, module = plugins.CONTRACTS[kind].partition(" from ")
    for name in names.replace(" or ", ", ").split(", "):
        assert issubclass(getattr(importlib.import_module(module), name), Plugin)
