"""The house: what no module may do, whoever writes it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from stealthmark.layout import CLEAN
from stealthmark.plugins import known

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "stealthmark"
MODULES = {
    ".".join(("stealthmark", *file.relative_to(LIBRARY).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in sorted(LIBRARY.rglob("*.py"))
}
#: Where a method, an attack or a scanner may speak of itself by name.
PLUGINS = tuple(LIBRARY / folder for folder in ("methods", "attacks", "scanners"))
#: The names that generic code must not know. Not these two: `clean` stands in every suite for the model without a mark, and
#: `stack` is also the word for the kind of attack that is a list of others.
NAMES = {*known("method"), *known("attack"), *known("scanner")} - {CLEAN, "stack"}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imports(name: str) -> Iterator[str]:
    """The modules of the library that a module imports, at its top or inside of a function."""
    file = MODULES[name]
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in MODULES or base in MODULES:
                    yield inner if inner in MODULES else base


def test_no_modules_import_each_other_in_a_circle():
    edges = {name: set(imports(name)) for name in MODULES}
    assert edges["stealthmark.cli"] >= {"stealthmark.commands", "stealthmark.layout"}, "the check sees imports"
    assert "stealthmark.stages.examine" in edges["stealthmark.commands"], "and those inside of functions"
    path: list[str] = []
    done: set[str] = set()

    def visit(name: str) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(edges[name]):
            visit(other)
        path.pop()
        done.add(name)

    for name in MODULES:
        visit(name)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_is_longer_than_400_lines(name):
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("name", ["stealthmark.collate", "stealthmark.report", "stealthmark.layout", "stealthmark.settings"])
def test_what_reads_tables_imports_no_torch(name):
    command = [sys.executable, "-X", "importtime", "-c", f"import {name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    modules = re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE)
    assert done.returncode == 0 and name in modules, done.stderr[-2000:]
    assert "torch" not in modules


def strings(node: ast.AST | None) -> Iterator[ast.Constant]:
    """The strings that an expression is, or is a collection of."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for item in node.elts:
            yield from strings(item)


def compared(file: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of every string of a file that something is compared with, or looked up by, and that is a plug-in's name."""
    for node in ast.walk(tree(file)):
        texts: list[ast.Constant] = []
        if isinstance(node, ast.Compare):
            texts = [text for side in (node.left, *node.comparators) for text in strings(side)]
        elif isinstance(node, ast.MatchValue):
            texts = list(strings(node.value))
        elif isinstance(node, ast.Dict):
            # Of its own name, which one of its methods has as well, the package may give the version.
            texts = [text for key in node.keys for text in strings(key) if text.value != "stealthmark"]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("startswith", "endswith", "removeprefix"):
            texts = [text for argument in node.args for text in strings(argument)]
        for text in texts:
            if text.value in NAMES:
                yield text.lineno, text.value


def test_generic_code_knows_no_method_and_no_attack_by_name():
    files = [file for file in MODULES.values() if file.parent not in PLUGINS]
    assert not [f"{file.relative_to(ROOT)}:{line}: {name!r}" for file in files for line, name in compared(file)]


@pytest.mark.parametrize(
    "code",
    [
        "method == 'badnets'",
        "'prune' != attack.name",
        "method in ('wanet', 'blended')",
        "method.startswith('stealthmark')",
        "{'finetune': 1}[attack]",
        "match attack:\n    case 'distil':\n        pass",
    ],
)
def test_the_check_of_names_sees_every_kind_of_comparison(code, tmp_path):
    file = tmp_path / "module.py"
    file.write_text(code)
    assert list(compared(file))


@pytest.mark.parametrize("code", ["method == CLEAN", "{'stealthmark': version}", "title = 'badnets'", "kind == 'control'"])
def test_the_check_of_names_lets_everything_else_pass(code, tmp_path):
    file = tmp_path / "module.py"
    file.write_text(code)
    assert not list(compared(file))


def reads_logits(file: Path) -> bool:
    """Whether a file takes the first channel, `[:, 0]`, of what a network answers or of what is called logits."""
    firsts = [
        node.value
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Subscript) and ast.unparse(node.slice) in ("(:, 0)", ":, 0")
    ]
    called = [ast.unparse(value.func) for value in firsts if isinstance(value, ast.Call)]
    named = [ast.unparse(value) for value in firsts if not isinstance(value, ast.Call)]
    networks = re.compile(r"(.*\.)?(model|network|net|surrogate|teacher|student)")
    return any(networks.fullmatch(name) for name in called) or any("logits" in name for name in named)


def test_a_networks_logits_are_read_in_one_place():
    """One structure a study: `architecture.foreground` is where a network with several classes is read."""
    files = [*MODULES.values(), *sorted((ROOT / "baselines").glob("*.py"))]
    assert [file for file in files if reads_logits(file)] == [MODULES["stealthmark.architecture"]]
