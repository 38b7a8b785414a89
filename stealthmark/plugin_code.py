"""Which files hold a plug-in's code: what its results depend on. Nothing is imported to find out."""

import ast
from collections.abc import Iterator
from pathlib import Path

from stealthmark import plugins
from stealthmark.errors import UserError


def code_of(kind: str, name: str) -> list[Path]:
    """The files of the plug-in called `name`, as `code_files` finds them. Raises UserError when there is none."""
    files = plugins.known(kind)
    if name not in files:
        raise UserError(f"unknown {kind} {name!r}; known: {', '.join(files)}")
    return code_files(kind, files[name])


def code_files(kind: str, file: Path) -> list[Path]:
    """A plug-in's file, then the modules that it imports, directly or through each other, sorted.

    Of these only the ones that lie in the plug-in's own folder or in the library's folder of the kind: another plug-in beside
    it changes nothing, and what the whole library shares is left to its version.
    """
    folders = (file.parent, plugins.LIBRARY / f"{kind}s")
    seen, unread = {file}, [file]
    while unread:
        modules = {
            module
            for module in _imports(unread.pop())
            if any(module.is_relative_to(folder) and module != folder / "__init__.py" for folder in folders)
        }
        unread += modules - seen
        seen |= modules
    return [file, *sorted(seen - {file})]


def _imports(file: Path) -> Iterator[Path]:
    """The modules that a file imports at any place in it, as far as they lie in its own package or beside this library."""
    package = file.parent
    while (package / "__init__.py").is_file():
        package = package.parent
    for node in ast.walk(ast.parse(file.read_bytes(), file)):
        if isinstance(node, ast.Import):
            bases, names = (package, plugins.ROOT), [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            bases = (file.parents[node.level - 1],) if node.level else (package, plugins.ROOT)
            # What is imported from a package may itself be a module.
            names = [node.module or "", *(f"{node.module or ''}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            for base in bases:
                path = base.joinpath(*filter(None, name.split(".")))
                yield from (module for module in (path.with_name(f"{path.name}.py"), path / "__init__.py") if module.is_file())
