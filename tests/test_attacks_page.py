"""docs/attacks.md says of every attack and access level what the code says, and names no other."""

import re
from pathlib import Path

import pytest

from stealthmark import plugins
from stealthmark.access import LEVELS
from stealthmark.attack import Stack
from stealthmark.plugin import make

PAGE = Path(__file__).parent.parent / "docs/attacks.md"


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of every line of the tables under a heading, by the name that the first one holds."""
    part = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert part, f"{PAGE} has no heading {heading!r}"
    lines = re.findall(r"^\| `([^`]+)` \| (.+) \|$", part[1], re.MULTILINE)
    assert len(lines) == len(dict(lines)), "a name stands twice"
    return {name: cells.split(" | ") for name, cells in lines}


def test_every_attack_is_in_the_page_and_no_other():
    assert sorted(rows("Attacks")) == sorted(plugins.known("attack"))


@pytest.mark.parametrize("name", plugins.known("attack"))
def test_the_page_says_of_an_attack_what_the_attack_says(name):
    does, needs, strengths, source = rows("Attacks")[name]
    assert does
    if issubclass(plugins.load("attack", name), Stack):
        return  # it has what its steps have
    facts = make("attack", {"name": name}).facts()
    assert needs == (", ".join(facts["needs"]) or "nothing")
    assert strengths == facts["text"].replace("{:g}", ", ".join(f"{s * facts['scale']:g}" for s in facts["strengths"]))
    assert source == (facts["citation"] or "none")


def test_every_access_level_is_in_the_page_and_no_other():
    assert list(rows("Access levels")) == list(LEVELS)


def test_the_page_names_no_file_of_an_attack_that_is_not_there():
    """Whatever is written as a list of attacks, or as one with options, can be made."""
    text = PAGE.read_text(encoding="utf-8")
    named = {name for group in re.findall(r"attacks: \[([\w, -]+)\]", text) for name in group.split(", ")}
    named |= set(re.findall(r"\{name: ([\w-]+)", text))
    assert len(named) >= 3 and named <= set(plugins.known("attack"))
