"""A certificate as two files: JSON, and an HTML page that needs no network and no script."""

import itertools
import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from stealthmark.certificate import Certificate
from stealthmark.certificate_text import access_name
from stealthmark.errors import UserError
from stealthmark.files import write_text
from stealthmark.pages import many, p_text, template

JSON, HTML = "certificate.json", "certificate.html"
#: What a suspect is, in words.
KINDS = {
    "checkpoint": "checkpoint (a file of weights)",
    "nnunet": "nnU-Net results folder",
    "onnx": "ONNX file",
    "http": "service behind HTTP",
    "function": "Python function",
    "network": "network of a running program",
}


def write(certificate: Certificate, folder: Path) -> None:
    """Write `certificate.json` and `certificate.html` into `folder`, which is made where absent; each whole or not at all.

    Raises UserError where that is not possible.
    """
    texts = {JSON: certificate.model_dump_json(indent=2) + "\n", HTML: page(certificate)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the certificate to {folder}: {error.strerror}") from None
    for name, text in texts.items():
        write_text(folder / name, text)


def page(certificate: Certificate) -> str:
    """The HTML page. Everything in it is escaped: a suspect's name, and what its code decodes to, are not to be trusted."""
    ranked = sorted(certificate.nulls, key=lambda null: -null.score)
    # Three digits of the largest score, and as many decimals for all others.
    largest = max(map(abs, scores_on_axis(certificate)))
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    filters = {"p": p_text, "modules": modules, "tied": tied, "number": lambda score: minus(f"{score:.{decimals}f}")}
    return template(Path(__file__).parent / "certificate.html.j2", filters).render(
        c=certificate,
        shown=certificate.verdict == "shown",
        access=access_name(certificate.access),
        kind=KINDS[certificate.suspect.kind],
        figure=figure(certificate) if certificate.nulls else None,
        # Ties are counted against the owner, so the suspect stands below them.
        above=[null for null in ranked if null.score >= certificate.scores.triggered],
        below=[null for null in ranked if null.score < certificate.scores.triggered],
    )


def minus(text: str) -> str:
    """A number's hyphen as a minus sign; none before zero."""
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.removeprefix("-")


def tied(sentence: str) -> str:
    """A sentence in which no line ends within `p = 0.05`."""
    return sentence.replace("p = ", "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def modules(rows: tuple[str, ...], other: tuple[str, ...] | None = None) -> str:
    """A code's dark modules as an SVG path, one unit a module; with `other`, the modules in which the two differ."""
    plain = other or ("0" * len(rows),) * len(rows)
    return "".join(
        f"M{x},{y}h1v1h-1z"
        for y, pair in enumerate(zip(rows, plain, strict=True))
        for x, (bit, without) in enumerate(zip(*pair, strict=True))
        if bit != without
    )


# --- the figure: one line for the suspect with the trigger, one without, one for each kind of null model -----------------

LEFT, RIGHT, TOP, DOT, TALLEST = 208, 700, 34, 4.5, 60


def scores_on_axis(certificate: Certificate) -> list[float]:
    """All that lies on the axis of scores."""
    scores = certificate.scores
    return [scores.triggered, scores.benign, scores.threshold, *(null.score for null in certificate.nulls)]


def figure(certificate: Certificate) -> dict:
    """Where everything in the figure lies, in the SVG's units (px on a wide screen)."""
    kinds: dict[str, list[float]] = {}
    for null in certificate.nulls:
        kinds.setdefault(null.kind, []).append(null.score)
    low, high = min(scores_on_axis(certificate)), max(scores_on_axis(certificate))
    room = 0.06 * (high - low) or 1.0
    low, high = low - room, high + room

    def place(score: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (score - low) / (high - low), 2)

    y, rows = TOP + 70.0, []
    for kind, scores in kinds.items():
        x = np.array([place(score) for score in scores])
        levels = swarm(x, 2 * DOT + 0.5)
        step = min(2 * DOT + 0.5, TALLEST / max(1, *map(abs, levels)))
        label = [many(len(scores), "null model") + ",", *textwrap.wrap(kind, 28)]
        half = max(step * max(map(abs, levels)) + DOT, 8 * len(label))
        y += half + 14
        rows.append({"y": y, "label": label, "dots": [(a, y + step * b) for a, b in zip(x, levels, strict=True)]})
        y += half
    ticks = [tick for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    return {
        **{"left": LEFT, "right": RIGHT, "top": TOP, "bottom": y + 16, "dot": DOT},
        "ticks": [(place(tick), minus(f"{tick:g}")) for tick in ticks],
        "threshold": place(certificate.scores.threshold),
        "triggered": place(certificate.scores.triggered),
        "benign": place(certificate.scores.benign),
        "rows": rows,
    }


def swarm(x: np.ndarray, reach: float) -> list[int]:
    """For dots at x, float (N,), the level of each (0, 1, -1, 2, -2, ...) at which none there is nearer than `reach`."""
    levels: list[int] = [0] * len(x)
    last: dict[int, float] = {}
    for i in np.argsort(x, kind="stable"):
        steps = ((n + 1) // 2 * (1 if n % 2 else -1) for n in itertools.count())
        levels[i] = next(level for level in steps if x[i] - last.get(level, -math.inf) >= reach)
        last[levels[i]] = x[i]
    return levels
