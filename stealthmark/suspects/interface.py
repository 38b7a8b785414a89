"""An interface: what a suspect takes and gives, as its examiner describes it."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import interpolate

from stealthmark.architecture import LARGEST
from stealthmark.suspects.querier import Shows


def _as_tuple(value: object) -> object:
    return value if isinstance(value, (list, tuple)) else (value,)


#: One number for all channels, or one for each.
EachChannel = BeforeValidator(_as_tuple)
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=LARGEST)]
Class = Annotated[int, Field(ge=0, strict=True)]


class Interface(BaseModel):
    """What a suspect takes and gives. The default is what needs no description: see docs/http.md.

    What it takes. `layout`: the order of the axes of its images. `scale`: what it calls the brightest value, 1 or 255.
    `colour`: the order of its channels. `mean`, `std`: of its normalisation, (x - mean) / std with x from 0 to `scale`; one
    number, or one for each channel in the order of `colour`. `size`: its height and width; images are resized to it, and
    answers back, both bilinearly.

    What it gives. `output`: the name of the output that is read, where there are several. `shows`: what the numbers are, None
    for what the caller says. `foreground`: which classes of the channel axis, or which values of labels, are the structure
    under study; None for a single channel, for class 1 of two, for the label 1. `answers`: the order of the axes of its
    answers, None for that of `layout`; (B, H, W) needs none. `peak`: what a sure answer is, 1 or 255.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    layout: Literal["nchw", "nhwc"] = "nchw"
    scale: Literal[1, 255] = 1
    colour: Literal["rgb", "bgr"] = "rgb"
    mean: Annotated[tuple[Number, ...], EachChannel] = (0.0,)
    std: Annotated[tuple[Positive, ...], EachChannel] = (1.0,)
    size: tuple[Side, Side] | None = None
    output: str | None = Field(default=None, min_length=1, max_length=200)
    shows: Shows | None = None
    foreground: tuple[Class, ...] | None = Field(default=None, min_length=1)
    answers: Literal["nchw", "nhwc", "hw"] | None = None
    peak: Literal[1, 255] = 1

    @property
    def in_bytes(self) -> bool:
        """Whether images as they are sent may be bytes: from 0 to 255, and not normalised."""
        return (self.scale, self.mean, self.std) == (255, (0.0,), (1.0,))

    def takes(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape of an image as it is sent, of one of `shape` (C, H, W)."""
        channels, *sides = shape
        h, w = self.size or sides
        return (h, w, channels) if self.layout == "nhwc" else (channels, h, w)


def as_taken(images: Tensor, interface: Interface) -> Tensor:
    """Images float (B, C, H, W) in [0, 1] as the suspect takes them."""
    if interface.size is not None and tuple(images.shape[2:]) != interface.size:
        images = interpolate(images, size=interface.size, mode="bilinear", align_corners=False)
    images = images.flip(1) if interface.colour == "bgr" else images
    images = images if interface.scale == 1 else images * interface.scale
    if (interface.mean, interface.std) != ((0.0,), (1.0,)):
        mean, std = (torch.tensor(value, dtype=images.dtype).view(-1, 1, 1) for value in (interface.mean, interface.std))
        images = (images - mean) / std
    return images.permute(0, 2, 3, 1).contiguous() if interface.layout == "nhwc" else images
