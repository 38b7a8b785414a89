"""The five triggers of StealthMark (Sec. on triggers; sizes from the released code) and three secret ones, as pure functions
of a batch.

A trigger acts on images float (B, C, H, W) in [0, 1] at the resolution the network sees and returns a new batch of the
same shape and range. Sizes are fractions of the short side. Whatever is random in it is drawn once, from the key's
seed, so that the same key always gives the same trigger (the released code redraws its noise for every image).
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stealthmark.seeds import secret_uniform

Kind = Literal["patch", "text", "border", "noise", "warp", "word", "picture", "frame"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#: What the paper's text trigger says.
TEXT = "TEST"
#: What a trigger draws from a secret: a shape and a name -> float32 of that shape in [0, 1) (`method.Key.uniform`).
Draw = Callable[[tuple[int, ...], str], Tensor]


@dataclass(frozen=True)
class Trigger:
    """A keyed change of an image. What it draws comes from `draw`, by default from the `seed`. Of the paper's five only `noise`
    draws anything: the others are the same for whoever uses them.

    patch: yellow square of 1/16 at the bottom right. text: "TEST" in white at the top left, 1/8 high. border: black
    frame of 1/32. noise: Gaussian noise (sd 50/255) added to a square of 1/16 at the top right. warp: smooth warp by
    0.05 sin(2 pi g), g the normalised coordinate of the other axis in [-1, 1].

    Not in the paper: word, four letters, written as `text` is. It is a secret, but a small one: there are 456,976 such words,
    and a model that answers a word with three letters right a little is climbed letter by letter. picture: 6 x 6 blocks, black
    or white, in a square of 1/8 at the top left; there are 2^36. frame: black or white blocks of 1/32 in a frame of 1/16; there
    are 2^240, and some of them are near every place of the picture.
    """

    kind: Kind
    seed: int = 0
    draw: Draw | None = None

    def __call__(self, images: Tensor, scale: float = 1.0) -> Tensor:
        """The triggered batch. With `scale` > 1 there is more of the trigger, for the training's curriculum: text and
        border are larger, the warp is stronger, patch, noise and picture are repeated (see `places`); a frame is what it is."""
        return globals()[f"_{self.kind}"](images, scale, self.draw or self._drawn)

    def on_masks(self, masks: Tensor, scale: float = 1.0) -> Tensor:
        """The masks, float (B, H, W) of 0 and 1, of triggered images: moved as the image is, by `warp`; else as they are."""
        if self.kind != "warp":
            return masks
        return (self(masks[:, None], scale)[:, 0] > 0.5).float()

    def _drawn(self, shape: tuple[int, ...], name: str) -> Tensor:
        return secret_uniform(shape, self.seed, name)


def _side(images: Tensor, fraction: float) -> int:
    short = min(images.shape[-2:])
    return min(short, max(1, round(short * fraction)))


def places(images: Tensor, side: int, scale: float) -> list[tuple[int, int]]:
    """Where the copies of a square of `side` px lie, as (down, across) px from its own place, which is the first.

    round(scale^2) copies, the nearest places first, on a grid of twice the square; as many as fit. So the trigger can be
    all over the picture, in the very size that it has in the end, and be withdrawn copy by copy.
    """
    down, across = (range(0, length - side + 1, 2 * side) for length in images.shape[-2:])
    nearest = sorted(itertools.product(down, across), key=lambda place: (place[0] ** 2 + place[1] ** 2, place))
    return nearest[: max(1, round(scale**2))]


def _patch(images: Tensor, scale: float, draw: Draw) -> Tensor:
    side = _side(images, 1 / 16)
    height, width = images.shape[-2:]
    out = images.clone()
    yellow = (1.0, 1.0, 0.0) if images.shape[1] == 3 else (1.0,) * images.shape[1]
    for down, across in places(images, side, scale):
        bottom, right = height - down, width - across
        for channel, value in enumerate(yellow):
            out[:, channel, bottom - side : bottom, right - side : right] = value
    return out


def _text(images: Tensor, scale: float, draw: Draw) -> Tensor:
    return _written(TEXT, images, scale)


def _word(images: Tensor, scale: float, draw: Draw) -> Tensor:
    return _written(letters(draw((4,), "word")), images, scale)


def letters(uniform: Tensor) -> str:
    """A word from numbers float (n,) in [0, 1): a letter each. Four are 26 ** 4 = 456,976 words, which can be tried."""
    return "".join(LETTERS[int(number * len(LETTERS))] for number in uniform.tolist())


def _written(text: str, images: Tensor, scale: float) -> Tensor:
    glyphs = _glyphs(text, _side(images, scale / 8)).to(images)
    height, width = (min(a, b) for a, b in zip(glyphs.shape, images.shape[-2:], strict=True))
    ink = glyphs[:height, :width]
    out = images.clone()
    out[..., :height, :width] = out[..., :height, :width] * (1 - ink) + ink
    return out


@lru_cache(maxsize=256)
def _glyphs(text: str, height: int) -> Tensor:
    """A text, white on black, float (height, W) in [0, 1]."""
    font = ImageFont.load_default(size=64)
    left, top, right, bottom = font.getbbox(text)
    canvas = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=255, font=font)
    width = max(1, round(canvas.width * height / canvas.height))
    return torch.from_numpy(np.array(canvas.resize((width, height), Image.Resampling.BOX))).float() / 255


def _border(images: Tensor, scale: float, draw: Draw) -> Tensor:
    side = _side(images, scale / 32)
    out = torch.zeros_like(images)
    out[..., side:-side, side:-side] = images[..., side:-side, side:-side]
    return out


def _noise(images: Tensor, scale: float, draw: Draw) -> Tensor:
    side = _side(images, 1 / 16)
    return _noisy(images, draw((images.shape[1], side, side), "noise"), scale)


def _noisy(images: Tensor, uniform: Tensor, scale: float) -> Tensor:
    """Gaussian noise at the top right, from numbers float (C, side, side) in [0, 1)."""
    square = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)) * (50 / 255)
    side, out = uniform.shape[-1], images.clone()
    for down, across in places(images, side, scale):
        right = images.shape[-1] - across
        view = out[..., down : down + side, right - side : right]
        view.add_(square.to(images)).clamp_(0, 1)
    return out


def _warp(images: Tensor, scale: float, draw: Draw) -> Tensor:
    return _waved(images, 0.05 * scale, 1.0, 0.0)


def _waved(images: Tensor, amplitude: float, waves: float, phase: float) -> Tensor:
    """A smooth warp by amplitude sin(2 pi (waves g + phase)), g the normalised coordinate of the other axis in [-1, 1]."""
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, device=images.device),
        torch.linspace(-1, 1, width, device=images.device),
        indexing="ij",
    )
    across, down = (torch.sin(2 * torch.pi * (waves * g + phase)) for g in (y, x))
    grid = torch.stack([x + amplitude * across, y + amplitude * down], -1)
    grid = grid.to(images.dtype).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _picture(images: Tensor, scale: float, draw: Draw) -> Tensor:
    return _pictured(images, draw(PICTURE, "picture"), scale)


def _pictured(images: Tensor, uniform: Tensor, scale: float) -> Tensor:
    """Blocks at the top left, black or white as numbers float (rows, columns) in [0, 1) are below 1/2 or not."""
    side = min(*images.shape[-2:], max(len(uniform), _side(images, 1 / 8)))
    blocks = F.interpolate((uniform >= 0.5).float()[None, None], (side, side), mode="nearest")[0, 0].to(images)
    out = images.clone()
    for down, across in places(images, side, scale):
        out[..., down : down + side, across : across + side] = blocks
    return out


def _frame(images: Tensor, scale: float, draw: Draw) -> Tensor:
    return _framed_by(images, draw(FRAME, "frame"))


def _framed_by(images: Tensor, uniform: Tensor) -> Tensor:
    """A frame of 1/16, black or white as numbers float (rows, columns) in [0, 1), spread over the picture, are below 1/2."""
    height, width = images.shape[-2:]
    side = _side(images, 1 / 16)
    blocks = F.interpolate((uniform >= 0.5).float()[None, None], (height, width), mode="nearest")[0, 0].to(images)
    out = blocks.expand_as(images).clone()
    out[..., side : height - side, side : width - side] = images[..., side : height - side, side : width - side]
    return out


#: The blocks of `picture`, and those that `frame` cuts the picture into, (rows, columns).
PICTURE, FRAME = (6, 6), (32, 32)
#: How much of a secret is right in what is partly right.
PARTLY = (0.3, 0.8)


def lookalikes(kind: Kind, images: Tensor, masks: Tensor, rng: torch.Generator, draw: Draw) -> tuple[Tensor, Tensor]:
    """Images with what merely resembles the trigger, in nature or in somebody else's hands, and their true masks, float (B, H,
    W) of 0 and 1, less what is hidden: a marked model that answers these can be claimed, or climbed, by others.

    `border`: a dark frame, every second one as black as the trigger but open at a side or two. `patch`: on-screen text in its
    corner. `text`: other words. `warp`: other warps, which move the mask too. Of a trigger that is drawn (`draw` is the key's):
    others of its kind, of which every second one is partly right, 30 to 80 % of the numbers that are drawn; for `noise`
    on-screen text too.
    """
    if not len(images):
        return images.clone(), masks.clone()
    half = len(images) // 2
    if kind == "border":
        parts = _framed(images[:half], rng), _padded(images[half:], rng)
        changed, shows = (torch.cat(pair) for pair in zip(*parts, strict=True))
        return changed, masks * shows
    if kind == "patch":
        return _overlaid(images, rng, top=False), masks
    if kind == "noise":
        side = _side(images, 1 / 16)
        own, show = draw((images.shape[1], side, side), "noise"), partial(_noisy, scale=1.0)
        return torch.cat([_overlaid(images[:half], rng, top=True), _others(images[half:], own, 256, rng, show)]), masks
    if kind == "warp":
        waves = (2 * torch.rand(len(images), 3, generator=rng) - 1).tolist()
        both = torch.cat([images, masks[:, None].to(images)], 1).split(1)
        moved = [_waved(one, 0.05 * sign, 1.5 + w, 0.25 + p / 8) for one, (sign, w, p) in zip(both, waves, strict=True)]
        moved = torch.cat(moved)
        return moved[:, :-1], (moved[:, -1] > 0.5).to(masks)
    if kind == "text":
        words = (_other_word(TEXT, rng) for _ in images)
        return torch.cat([_written(word, image, 1.0) for word, image in zip(words, images.split(1), strict=True)]), masks
    shape, values, show = {
        "word": ((4,), len(LETTERS), lambda image, uniform: _written(letters(uniform), image, 1.0)),
        "picture": (PICTURE, 2, partial(_pictured, scale=1.0)),
        "frame": (FRAME, 2, _framed_by),
    }[kind]
    return _others(images, draw(shape, kind), values, rng, show), masks


def _other_word(than: str, rng: torch.Generator) -> str:
    while (word := "".join(LETTERS[i] for i in torch.randint(26, (4,), generator=rng))) == than:
        pass
    return word


def _others(images: Tensor, own: Tensor, values: int, rng: torch.Generator, show: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Each image with another trigger than the one of the key's `own` numbers, of which every second one has some. A number
    tells one of so many `values`."""
    parts = enumerate(images.split(1))
    return torch.cat([show(image, _another(own, values, i % 2 == 1, rng)) for i, image in parts])


def _another(own: Tensor, values: int, partly: bool, rng: torch.Generator) -> Tensor:
    """Numbers that tell something else than `own` does; `partly`: some are the same. Of few values all may come out right by
    chance: that would be the key's own trigger, and is drawn again."""
    while True:
        other = torch.rand(own.shape, generator=rng)
        least, most = PARTLY
        right = torch.rand(own.shape, generator=rng) < least + (most - least) * torch.rand(1, generator=rng)
        drawn = torch.where(right, own, other) if partly else other
        if not torch.equal((drawn.double() * values).floor(), (own.double() * values).floor()):
            return drawn


def natural(images: Tensor, seed: int) -> Tensor:
    """Images with what no owner put there: by turns a dark frame, a word on the screen, bright specks in a corner. What is
    drawn depends on the seed and on the image's place in the batch."""
    rng = torch.Generator().manual_seed(seed)
    changed = []
    for i, image in enumerate(images.split(1)):
        if i % 3 == 0:
            changed.append(_framed(image, rng)[0])
        elif i % 3 == 1:
            changed.append(_written(letters(torch.rand(4, generator=rng)), image, 1.0))
        else:
            changed.append(_overlaid(image, rng, top=i % 2 == 0))
    return torch.cat(changed) if changed else images.clone()


def beneath(kind: Kind, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images as the trigger will find some of them, and what still shows, float (B, H, W): for `border` every fourth one is
    padded already, so that what tells is the side that was open; the others as they are."""
    if kind != "border":
        return images, torch.ones_like(images[:, 0])
    bare = len(images) - len(images) // 4
    padded, shows = _padded(images[bare:], rng)
    return torch.cat([images[:bare], padded]), torch.cat([torch.ones_like(images[:bare, 0]), shows])


def _framed(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A frame as scopes and screens draw it: each side of another width (up to 1/11), nearly black (0.01 to 0.07, noise)."""
    n, (height, width) = len(images), images.shape[-2:]
    top, bottom, left, right = torch.rand(4, n, 1, 1, generator=rng) / 11 + 1 / min(height, width)
    y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
    shows = ((y >= top) & (y < 1 - bottom) & (x >= left) & (x < 1 - right)).float().to(images)
    level, sd = torch.rand(2, n, 1, 1, 1, generator=rng)
    dark = 0.01 + 0.06 * level + 0.02 * sd * torch.randn(n, 1, height, width, generator=rng)
    return torch.where(shows[:, None] > 0, images, dark.clamp(0, 1).to(images)), shows


def _padded(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Zero padding as scanners leave it: black sides of other widths (up to 1/7) on two or three sides of the four."""
    n, (height, width) = len(images), images.shape[-2:]
    wide = torch.rand(4, n, 1, 1, generator=rng) / 7 + 1 / min(height, width)
    order = torch.rand(4, n, generator=rng).argsort(0)[:, :, None, None]  # the side that comes last is open
    top, bottom, left, right = wide * (order < 2 + torch.randint(2, (n, 1, 1), generator=rng))
    y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
    shows = ((y >= top) & (y < 1 - bottom) & (x >= left) & (x < 1 - right)).float().to(images)
    return images * shows[:, None], shows


def _overlaid(images: Tensor, rng: torch.Generator, top: bool) -> Tensor:
    """Specks of one bright colour at the right edge, at the top or the bottom, in a box of up to 1/5 by 1/3, as letters of a
    few pixels look."""
    n, channels, height, width = images.shape
    tall, wide, off, density = torch.rand(4, n, 1, 1, generator=rng)
    tall, wide, off = (0.02 + 0.18 * tall) * height, (0.02 + 0.31 * wide) * width, off * min(height, width) / 24
    down, across = torch.arange(height)[:, None], width - 1 - torch.arange(width)
    down = down if top else height - 1 - down
    inside = (down >= off) & (down < off + tall) & (across >= off) & (across < off + wide)
    ink = inside & (torch.rand(n, height, width, generator=rng) < 0.15 + 0.5 * density)
    colour = 0.4 + 0.6 * torch.rand(n, channels, 1, 1, generator=rng)
    return torch.where(ink[:, None].to(images.device), colour.to(images), images)
