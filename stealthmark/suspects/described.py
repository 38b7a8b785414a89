"""A suspect that its examiner describes, as one that needs no description."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stealthmark.architecture import structure_log_odds
from stealthmark.errors import UserError
from stealthmark.suspects import remedies
from stealthmark.suspects.interface import Interface, as_taken
from stealthmark.suspects.querier import COMPLEMENT, ROUNDING, Shows, Source, finite
from stealthmark.suspects.remedies import coarser

#: The most classes that an answer may have, so that enlarging a coarse one takes no more memory than there is.
CLASSES = 256


def described(source: Source, interface: Interface, shape: tuple[int, int, int]) -> Source:
    """The source as its interface describes it, for images of `shape` (C, H, W): it is asked with images float (B, C, H, W) in
    [0, 1], and answers as `querier.probabilities` reads it. The default interface is the source itself.

    Raises UserError where the interface does not fit such images or contradicts itself. Asking raises it for an answer that
    the interface does not describe.
    """
    if interface == Interface():
        return source
    shows = interface.shows or source.shows
    _check(interface, shape[0], shows)

    def ask(images: Tensor) -> np.ndarray:
        sent = as_taken(images, interface)
        h, w = interface.size or images.shape[2:]
        reader = _Reader(interface, shows, source.name, (len(images), h, w))
        return reader.read(source.ask(sent), (images.shape[2], images.shape[3]))

    return replace(source, ask=ask, shows=shows)


def _check(interface: Interface, channels: int, shows: Shows) -> None:
    """Raises UserError where an interface does not fit images of so many channels, or contradicts itself."""
    for field in ("mean", "std"):
        if (count := len(getattr(interface, field))) not in (1, channels):
            raise UserError(f"field {field!r} of the interface has {count} numbers; allowed: one, or {channels}")
    if interface.colour == "bgr" and channels != 3:
        raise UserError(f"field 'colour' of the interface has the value 'bgr'; allowed for {channels} channels: 'rgb'")
    if interface.peak != 1 and (shows == "logits" or (shows == "labels" and interface.foreground is not None)):
        beside = "logits" if shows == "logits" else "labels with a 'foreground'"
        raise UserError(f"field 'peak' of the interface has the value {interface.peak}; allowed for {beside}: 1")


class _Reader:
    """Reads an answer to images (B, H, W), as they were sent, that a suspect with this interface gives."""

    def __init__(self, interface: Interface, shows: Shows, name: str, sent: tuple[int, int, int]):
        self._interface, self._shows, self._name, self._sent = interface, shows, name, sent

    def read(self, answer: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The answer at the height and width `size`: (B, H, W), of the structure, or (B, K, H, W), which is not described."""
        channels_first = self._channels_first(answer)
        values = finite(channels_first, self._shows, self._name, integers=self._interface.peak == 255)
        match self._shows:
            case "labels":
                return _resized(self._of_labels(values), size, "nearest-exact").numpy()
            case "logits":
                return self._of_logits(values, size).numpy()
        return _resized(self._of_probabilities(values / self._interface.peak), size, "bilinear").numpy()

    def _channels_first(self, answer: np.ndarray) -> np.ndarray:
        """The answer as (B, K, h, w). Raises UserError where it is no map of the images."""
        count, height, width = self._sent
        layout = self._interface.answers or self._interface.layout
        maps = answer
        if answer.ndim == 3:
            maps = answer[:, None]
        elif answer.ndim == 4 and layout == "nhwc":
            maps = np.moveaxis(answer, 3, 1)
        readable = answer.ndim == 3 or (answer.ndim == 4 and layout != "hw")
        if not (readable and len(maps) == count and 0 < maps.shape[1] <= CLASSES and coarser(maps.shape[2:], (height, width))):
            classes = f", ({count}, K, {height}, {width})" if layout == "nchw" else f", ({count}, {height}, {width}, K)"
            axes = "" if layout == "hw" else classes
            end = remedies.for_shape(answer.shape, self._sent, self._shows, layout)
            raise UserError(
                f"{self._name} answers with the shape {answer.shape}; allowed: {self._sent}{axes}, or a coarser map{end}"
            )
        return maps

    def _chosen(self, values: Tensor) -> list[int] | None:
        """The classes of (B, K, h, w) that are the structure, None where one channel or two need no choice."""
        classes, chosen = values.shape[1], self._interface.foreground
        if chosen is None:
            if classes > 2:
                end = remedies.remedy(foreground="[...]")
                raise UserError(f"{self._name} answers with {classes} classes; allowed without a choice of them: one, two{end}")
            return None
        if classes == 1:
            raise UserError(f"{self._name} answers with one channel; field 'foreground' has {[*chosen]}; allowed: null")
        if max(chosen) >= classes or len(set(chosen)) == classes:
            named = f"{self._name} answers with {classes} classes; field 'foreground' has {[*chosen]}"
            raise UserError(f"{named}; allowed: some of 0 to {classes - 1}, but not all of them")
        return sorted(set(chosen))

    def _of_labels(self, values: Tensor) -> Tensor:
        """Labels (B, 1, h, w), or one channel a class, as 0 and 1."""
        peak, chosen = self._interface.peak, self._interface.foreground
        if values.shape[1] == 1 and chosen is not None:
            others = values[(values < 0) | (values != values.round())]
            if len(others):
                raise UserError(f"{self._name} answers with the label {others[0]:g}; allowed: whole numbers from 0 on")
            return torch.isin(values, torch.tensor(chosen, dtype=values.dtype)).to(values.dtype)
        channels = self._chosen(values)
        others = values[(values != 0) & (values != peak)]
        if len(others):
            end = remedies.for_label(float(others.max())) if peak == 1 else ""
            raise UserError(f"{self._name} answers with the label {others[0]:g}; allowed: 0 and {peak}{end}")
        return values / peak if channels is None else values[:, channels].sum(1, keepdim=True)

    def _of_logits(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (B, K, h, w) at another size: the structure's log-odds (B, H, W), or both channels of two."""
        chosen = self._chosen(values)
        if chosen is None:
            return _resized(values, size, "bilinear")
        # Image by image: all classes at full size take much memory.
        return torch.cat([structure_log_odds(_resized(image, size, "bilinear"), chosen) for image in values.split(1)])

    def _of_probabilities(self, values: Tensor) -> Tensor:
        """Probabilities (B, K, h, w): the structure's, summed over its classes."""
        low, high = values.aminmax()
        if low < -ROUNDING or high > 1 + ROUNDING:  # before resizing or a sum can hide it
            end = remedies.for_range(float(low), float(high))
            raise UserError(
                f"{self._name} answers with values from {low:g} to {high:g}; allowed as probabilities: from 0 to 1{end}"
            )
        chosen = self._chosen(values)
        if chosen is None:
            return values
        low, high = values.sum(1).aminmax()
        if len(chosen) > 1 and max(1 - low, high - 1) > COMPLEMENT * values.shape[1] / 2:
            named = f"{self._name} answers with classes that add up to {low:g} to {high:g}"
            raise UserError(f"{named}; allowed where several are the structure: 1")
        return values[:, chosen].sum(1, keepdim=True).clamp(max=1)


def _resized(values: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Maps (B, K, h, w) at the height and width `size`."""
    if tuple(values.shape[2:]) == size:
        return values
    return interpolate(values, size=size, mode=mode, align_corners=False if mode == "bilinear" else None)
