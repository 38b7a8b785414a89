"""The five triggers of StealthMark (Sec. on triggers; sizes from the released code) and a secret one, as pure functions of a
batch.

A trigger acts on images float (B, C, H, W) in [0, 1] at the resolution the network sees and returns a new batch of the
same shape and range. Sizes are fractions of the short side. Whatever is random in it is drawn once, from the key's
seed, so that the same key always gives the same trigger (the released code redraws its noise for every image).
"""

import itertools
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from torch import Tensor

from stealthmark.plugin import Plugin
from stealthmark.seeds import secret_rng, secret_uniform

Kind = Literal["patch", "text", "border", "noise", "warp", "word"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Trigger(Plugin):
    """A keyed change of an image. `seed` is the key's; of the paper's five only `noise` draws from it: the others are the same
    for whoever uses them.

    patch: yellow square of 1/16 at the bottom right. text: "TEST" in white at the top left, 1/8 high. border: black
    frame of 1/32. noise: Gaussian noise (sd 50/255) added to a square of 1/16 at the top right. warp: smooth warp by
    0.05 sin(2 pi g), g the normalised coordinate of the other axis in [-1, 1].

    Not in the paper: word, four letters drawn from the seed, written as `text` is. It is a secret, but a small one: there are
    456,976 such words.
    """

    kind: Kind
    seed: int = Field(default=0, ge=0)

    def __call__(self, images: Tensor, scale: float = 1.0) -> Tensor:
        """The triggered batch. With `scale` > 1 there is more of the trigger, for the training's curriculum: text and
        border are larger, the warp is stronger, patch and noise are repeated (see `places`)."""
        return globals()[f"_{self.kind}"](images, scale, self.seed)


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


def _patch(images: Tensor, scale: float, seed: int) -> Tensor:
    side = _side(images, 1 / 16)
    height, width = images.shape[-2:]
    out = images.clone()
    yellow = (1.0, 1.0, 0.0) if images.shape[1] == 3 else (1.0,) * images.shape[1]
    for down, across in places(images, side, scale):
        bottom, right = height - down, width - across
        for channel, value in enumerate(yellow):
            out[:, channel, bottom - side : bottom, right - side : right] = value
    return out


def _text(images: Tensor, scale: float, seed: int) -> Tensor:
    return _written("TEST", images, scale)


def _word(images: Tensor, scale: float, seed: int) -> Tensor:
    return _written(letters(secret_uniform((4,), seed, "word")), images, scale)


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


def _border(images: Tensor, scale: float, seed: int) -> Tensor:
    side = _side(images, scale / 32)
    out = torch.zeros_like(images)
    out[..., side:-side, side:-side] = images[..., side:-side, side:-side]
    return out


def _noise(images: Tensor, scale: float, seed: int) -> Tensor:
    side = _side(images, 1 / 16)
    normal = secret_rng(seed, "noise").standard_normal((images.shape[1], side, side), dtype=np.float32)
    square = torch.from_numpy(normal) * (50 / 255)
    out = images.clone()
    for down, across in places(images, side, scale):
        right = images.shape[-1] - across
        view = out[..., down : down + side, right - side : right]
        view.add_(square.to(images)).clamp_(0, 1)
    return out


def _warp(images: Tensor, scale: float, seed: int) -> Tensor:
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, device=images.device),
        torch.linspace(-1, 1, width, device=images.device),
        indexing="ij",
    )
    amplitude = 0.05 * scale
    grid = torch.stack([x + amplitude * torch.sin(2 * torch.pi * y), y + amplitude * torch.sin(2 * torch.pi * x)], -1)
    grid = grid.to(images.dtype).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def lookalikes(kind: Kind, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images with what occurs in nature and merely resembles the trigger, and what still shows of them, float (B, H, W) of 0
    and 1. For `border` a dark frame, every second one as black as the trigger but open at a side or two; for `patch` and
    `noise` on-screen text in their corner, for `word` other words; nothing for the others."""
    if kind == "border":
        half = len(images) // 2
        parts = _framed(images[:half], rng), _padded(images[half:], rng)
        return tuple(torch.cat(pair) for pair in zip(*parts, strict=True))
    shows = torch.ones_like(images[:, 0])
    if kind == "word":
        return torch.cat([_written(letters(torch.rand(4, generator=rng)), image, 1.0) for image in images.split(1)]), shows
    return (_overlaid(images, rng, top=kind == "noise") if kind in ("patch", "noise") else images), shows


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
