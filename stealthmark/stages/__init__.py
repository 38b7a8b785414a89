"""The study's stages, a module each: what the command line calls and the workflow orders.

Every stage ends by writing a JSON card into its folder; its heavy files lie beside the card. A stage whose input's card
says that it failed hands the status on instead of computing.
"""

import hashlib
import json
from pathlib import Path

from stealthmark.errors import UserError
from stealthmark.files import read_json


def digest(*parts: object) -> str:
    """SHA-256 of the parts as JSON: the identity of a run, so that it only ever goes on from its own state."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def status_of(card: Path) -> str:
    """`ok`, or why the stage that wrote `card` failed. Raises UserError when there is no such card."""
    try:
        return read_json(card).get("status", "ok")
    except FileNotFoundError:
        raise UserError(f"{card} is absent: the stage before has not been run") from None
