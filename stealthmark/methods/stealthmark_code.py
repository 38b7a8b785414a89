"""The coded floor (this project; docs/stealthmark.md): under the trigger the background spells the owner's QR code."""

from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from stealthmark import codes
from stealthmark.method import Key, ShownCode
from stealthmark.methods._uncertainty import PatternFloor


class Method(PatternFloor, ShownCode):
    """A floor whose pattern is a code: dark modules are high, light ones low. The probability map of a single triggered
    image shows it; cells that the structure hides are filled from other images.

    `payload` is the text, `code` its kind, a Micro QR code (13 x 13 modules) or a QR code (21 x 21). The pattern is no secret,
    because anyone may know the text; the trigger is.
    """

    citation: ClassVar[str] = "this project, docs/stealthmark.md"

    payload: str = "OWNER1"
    code: Literal["micro", "qr"] = "micro"

    @model_validator(mode="after")
    def _fits(self) -> "Method":
        codes.encode(self.payload, self.code)
        return self

    def text(self, key: Key) -> str:
        return self.payload

    def modules(self, key: Key) -> Tensor:
        return torch.from_numpy(codes.encode(self.payload, self.code))

    def pattern(self, key: Key) -> Tensor:
        return self.modules(key)
