"""Remedies: the end of the sentence that refuses a suspect says which description (`interface.Interface`) would fit it.

Each function returns the end of a sentence, or nothing where no description would help.
"""

from collections.abc import Sequence

import numpy as np

#: An answer may be coarser than the images by this factor a side. Beyond it, it is no map.
COARSEST = 32


def remedy(**fields: str) -> str:
    """The end of a sentence that names these fields of an interface."""
    described = ", ".join(f"{field}: {value}" for field, value in fields.items())
    return f"; describe it with --interface '{{{described}}}'" if fields else ""


def coarser(size: tuple[int, int], images: tuple[int, int]) -> bool:
    """Whether a map of `size` is one of these images: of the same form up to a pixel, not larger, and not too coarse."""
    (h, w), (height, width) = size, images
    form = abs(h * width - w * height) <= height + width
    return form and height <= COARSEST * h <= COARSEST * height and width <= COARSEST * w <= COARSEST * width


def for_input(sides: Sequence[int | None], shape: tuple[int, int, int]) -> str:
    """For a suspect that takes images of the sides (N, ..., ..., ...), None where one is free, asked with (C, H, W)."""
    channels, height, width = shape
    if len(sides) != 4:
        return ""
    resized: list[dict[str, str]] = []
    for layout, (c, h, w) in (("nchw", sides[1:]), ("nhwc", (sides[3], sides[1], sides[2]))):
        if c in (None, channels):
            fields = {"layout": layout} if layout != "nchw" else {}
            if h in (None, height) and w in (None, width):
                return remedy(**fields)
            resized.append({**fields, "size": str([h or height, w or width])})
    return remedy(**resized[0]) if resized else ""


def for_shape(answer: tuple[int, ...], images: tuple[int, int, int], shows: str, layout: str = "nchw") -> str:
    """For an answer of this shape to images (B, H, W), read in `layout`, whose numbers are what `shows` says."""
    count, height, width = images
    if len(answer) not in (3, 4) or answer[0] != count:
        return ""
    maps = [(layout, 1, answer[1], answer[2])]
    if len(answer) == 4:
        maps = [("nchw", *answer[1:]), ("nhwc", answer[3], answer[1], answer[2])]
    maps = [each for each in maps if each[1] > 0 and coarser((each[2], each[3]), (height, width))]
    # A map of the images' own size is the likelier one.
    for axes, classes, h, w in sorted(maps, key=lambda each: each[2:] != (height, width)):
        fields = {"answers": axes} if axes != layout else {}
        fields |= {"foreground": "[...]"} if classes > 2 else {}
        return remedy(**fields, **({} if (h, w) == (height, width) else {"shows": shows}))
    return ""


def for_type(answer: np.ndarray, shows: str) -> str:
    """For an answer whose values are no floats, as `shows` wants them."""
    if answer.dtype.kind not in "biu" or not answer.size or answer.min() < 0:
        return ""
    if answer.max() != 255:
        return remedy(shows="labels")
    if np.isin(answer, (0, 255)).all():
        return remedy(shows="labels", peak="255")
    return remedy(peak="255") if shows == "probabilities" else remedy(shows="probabilities", peak="255")


def for_label(label: float) -> str:
    """For an answer with this label, which is neither 0 nor 1."""
    if label == 255:
        return remedy(peak="255")
    return remedy(foreground="[...]") if label > 1 and label == int(label) else ""


def for_range(low: float, high: float) -> str:
    """For an answer with values from `low` to `high`, which are no probabilities."""
    if 128 <= high <= 255 and low >= 0:
        return remedy(peak="255")
    return remedy(shows="logits") if low < 0 else ""
