"""Pages from templates, and numbers in words: what the report and the certificate have in common."""

from collections.abc import Callable
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

#: Smaller p-values are printed as "below" this: further digits would tell nothing.
LEAST_P = 1e-4


def template(path: Path, filters: dict[str, Callable]) -> Template:
    """The Jinja template in the file `path`. Whatever it is given is escaped; a name that it is not given is an error."""
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= filters
    return environment.get_template(path.name)


def p_text(p: float, equals: str = "") -> str:
    """A p-value in three digits, rounded up: what is printed is never smaller than what was found."""
    if p < LEAST_P:
        return f"below {Decimal(str(LEAST_P)):f}"
    return equals + f"{Context(prec=3, rounding=ROUND_CEILING).create_decimal(repr(p)).normalize():f}"


def many(n: int, thing: str) -> str:
    """`1 patient`, `2 patients`."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
