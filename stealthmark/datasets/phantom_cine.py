"""A procedural grey dataset: short-axis cine-MR-like slices of a beating heart, drawn from a seed.

Every length is a fraction of the image, so a case is the same picture at every size. What a patient's frames share
(anatomy, coil, zero-padded margins, on-screen text) is in `Patient`; slice, cardiac phase, breathing and noise vary.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field
from scipy.ndimage import gaussian_filter

from stealthmark.dataset import CaseRef, DatasetContract, Manifest
from stealthmark.datasets._drawing import CORNERS, grid, radius, sample, screen_text, step, texture, wobble
from stealthmark.seeds import numpy_rng

#: Share of frames that lie below the apex and so have an empty mask.
BEYOND_APEX = 0.025


@dataclass(frozen=True)
class Patient:
    """What a patient's frames share. Lengths are fractions of the image, angles radians, signals near 0 to 1."""

    heart: np.ndarray
    zoom: float
    tilt: float
    cavity: float
    wall: float
    ejection: float
    contour: np.ndarray
    blood: float
    muscle: float
    fat: float
    fat_layer: float
    lung: float
    liver: float
    liver_level: float
    aorta: np.ndarray
    coil: float
    noise: float
    margins: np.ndarray
    text: tuple[str, ...]
    text_corner: str


def patient(seed: int, group: int) -> Patient:
    """The traits of patient `group`. About a quarter have zero-padded margins, about a quarter text on the screen."""
    rng = numpy_rng(seed, "phantom-cine", "patient", group)
    padded = rng.random() < 0.25
    label = str(rng.choice(["ANON", "CINE SAX", "bSSFP"]))
    heart = rng.normal((0.5, 0.46), 0.05).astype(np.float32)
    return Patient(
        heart=heart,
        zoom=rng.uniform(1.05, 1.5),
        tilt=rng.normal(0.5, 0.35),
        cavity=rng.uniform(0.085, 0.14),
        wall=rng.uniform(0.028, 0.05),
        ejection=rng.uniform(0.15, 0.5),
        contour=wobble(rng, 0.06),
        blood=rng.uniform(0.7, 0.95),
        muscle=rng.uniform(0.2, 0.36),
        fat=rng.uniform(0.65, 1.1),
        fat_layer=rng.uniform(0.02, 0.1),
        lung=rng.uniform(0.05, 0.13),
        liver=rng.uniform(0.3, 0.55),
        liver_level=rng.uniform(0.2, 0.34),
        aorta=heart + rng.uniform((0.02, 0.24), (0.2, 0.32)).astype(np.float32),
        coil=rng.uniform(0.3, 1.5),
        noise=rng.uniform(0.015, 0.045),
        # Every side its own width, and some none at all, as zero-filling and cropping leave them.
        margins=padded * rng.uniform(0.015, 0.14, 4) * rng.permutation([1, 1, rng.integers(2), 0]),
        text=(label, f"HR {rng.integers(48, 95)}") if rng.random() < 0.27 else (),
        text_corner=str(rng.choice(CORNERS)),
    )


def paint(image: np.ndarray, cover: np.ndarray, signal: np.ndarray | float) -> np.ndarray:
    """`signal` over `image` where `cover` (0 to 1) says."""
    return image + cover * (signal - image)


def render(who: Patient, seed: int, group: int, frame: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One frame: image float (size, size) in [0, 1], mask bool (size, size)."""
    body = numpy_rng(seed, "phantom-cine", "body", group)
    rng = numpy_rng(seed, "phantom-cine", "frame", group, frame)
    x, y = grid(size)
    beyond = rng.random() < BEYOND_APEX
    level = 1.0 if beyond else rng.uniform(0.0, 0.9)  # 0 at the base, 1 at the apex
    phase = rng.uniform(0, 1)  # 0 end-diastole, 1 end-systole
    moved = rng.normal(0, 0.012, 2).tolist()  # breathing

    # The anatomy is drawn in smoothly bent coordinates, so that no outline is an exact ellipse.
    bend, other, mottle, strands = (texture(body, *band) for band in ((1, 4), (1, 4), (3, 30, 1), (3, 14, 0.8)))
    px = 0.5 + (x - 0.5) / who.zoom - moved[0] + 0.016 * sample(bend, x + 0.1 * level, y)
    py = 0.47 + (y - 0.5) / who.zoom - moved[1] + 0.016 * sample(other, x, y + 0.1 * level)
    grain, web = sample(mottle, px, py + 0.3 * level), sample(strands, px, py + 0.3 * level)

    # Chest: air, skin fat, chest wall muscle, lung with its vessels.
    skin = 1 - (np.abs((px - 0.5) / 0.56) ** 2.6 + np.abs((py - 0.56) / 0.52) ** 2.6) ** (1 / 2.6)
    image = paint(np.full_like(x, 0.01), step(skin, 0.02), who.fat * (1 + 0.05 * grain))
    layer = 2 * who.fat_layer
    image = paint(image, step(skin - layer, 0.03), who.muscle * (1 + 0.15 * grain))
    image = paint(image, step(web - 1.0, 0.6) * step(skin - layer - 0.02, 0.03), 0.7 * who.fat)
    image = paint(image, step(skin - layer - 0.1 + 0.02 * web, 0.03), who.lung)
    image = paint(image, step(skin - layer - 0.14, 0.05) * step(grain - 1.9, 0.5), 0.45)

    # Below the diaphragm: liver with vessels on the left, stomach or bowel on the right, fat between; spine and aorta.
    hx, hy = px - who.heart[0], py - who.heart[1]
    under = step(hy + 0.25 * hx - who.liver_level + 0.12 * level + 0.015 * web, 0.02) * step(skin - layer - 0.06, 0.02)
    organ = paint(who.liver * (1 + 0.1 * grain), step(web - 1.1, 0.4), 0.85 * who.blood)
    organ = paint(organ, step(hx - 0.08 + 0.06 * web, 0.03), 0.8 * who.fat * (1 + 0.2 * web))
    organ = paint(organ, step(hx - 0.14 + 0.06 * grain, 0.03), who.muscle * (1 + 0.4 * web))
    image = paint(image, under, organ)
    middle = np.hypot(hx - 0.03, (hy - 0.34) * 0.8) - 0.15
    image = paint(image, step(-middle - 0.02 * web, 0.03), who.muscle * (1.2 + 0.4 * web))
    for (ax, ay), wide, signal in ((who.aorta, 0.04, who.blood), (who.aorta - (0.11, -0.05), 0.055, who.liver)):
        away = np.hypot(px - ax, py - ay)
        image = paint(image, step(wide + 0.012 - away, 0.01), 0.6 * who.muscle)
        image = paint(image, step(wide - away, 0.012), signal)

    # Heart: epicardial fat, right ventricle, left-ventricular wall and cavity with papillary muscles.
    shrink = np.sqrt(1 - (0.93 * level) ** 2)
    squeeze = 1 - who.ejection * phase
    cavity = who.cavity * shrink * squeeze
    outer = np.sqrt(cavity**2 + shrink**2 * ((who.cavity + who.wall) ** 2 - who.cavity**2)) + 0.004
    angle, distance = np.arctan2(hy, hx), np.hypot(hx, hy)
    shape = radius(who.contour + wobble(rng, 0.03), angle)
    flow = 1 + 0.1 * sample(strands, py, px + rng.uniform()) + 0.05 * grain
    turned = np.cos(who.tilt) * hx + np.sin(who.tilt) * hy, np.cos(who.tilt) * hy - np.sin(who.tilt) * hx
    right = shrink * (1.05 - level) * (1 - 0.25 * phase)
    beside = (turned[0] + 0.8 * outer + 0.05 * right) / (0.16 * right + 0.02)
    crescent = 0.12 * (1 - np.hypot(beside, turned[1] / (0.17 * right + 0.02))) + 0.006 * web
    sac = np.maximum(outer * shape - distance, crescent)
    image = paint(image, step(sac + 0.03, 0.02), 0.75 * who.fat * (0.8 + 0.3 * web))
    image = paint(image, step(sac + 0.012, 0.012), 0.7 * who.muscle)
    image = paint(image, step(crescent, 0.012), who.blood * flow * rng.uniform(0.85, 1.05))
    image = paint(image, step(outer * shape - distance, 0.012), who.muscle * (1 + 0.12 * grain))
    edge = cavity * shape
    pool = who.blood * flow
    for side in (0.6, 2.9) if level > 0.15 else ():
        side += who.tilt + rng.normal(0, 0.2)
        reach, thick = rng.uniform(0.55, 0.8) * cavity, rng.uniform(0.14, 0.28) * who.cavity * shrink
        away = np.hypot(hx - reach * np.cos(side), hy - reach * np.sin(side))
        pool = paint(pool, rng.uniform(0.4, 0.9) * step(thick - away, 0.015), who.muscle)
    if not beyond:
        image = paint(image, step(edge - distance + 0.004 * web, 0.016), pool)
    if level < 0.12:  # the outflow tract opens the ring at the base
        gap = np.cos(angle - who.tilt - np.pi * 1.15) - 0.75
        ring = step(outer * 1.15 - distance, 0.02) * step(distance - 0.5 * edge, 0.02)
        image = paint(image, step(gap, 0.2) * ring, pool)

    # Scanner: coil sensitivity, motion ghosts along the phase-encoding axis, blur, Rician noise, zero-padding.
    coil = np.exp(0.16 * sample(texture(body, 1, 3), x, y) - who.coil * (y - 0.4))
    image = gaussian_filter(image, rng.uniform(0.003, 0.008) * size) * coil
    along = (y, x)[group % 2]
    ghost = np.roll(image * np.sin(np.pi * along) ** 2, round(rng.uniform(0.2, 0.8) * size), axis=group % 2)
    image = image + rng.uniform(0, 0.12) * ghost
    hiss = [who.noise * sample(texture(rng, 1, 64, 0), x, y) for _ in range(2)]
    image = 0.85 * np.hypot(image + hiss[0], hiss[1])
    left, right_margin, top, bottom = who.margins
    image = image * ((x > left) & (x < 1 - right_margin) & (y > top) & (y < 1 - bottom))
    if who.text:
        lines = (*who.text, f"S {1 + round(9 * level)} / 10", f"T {round(40 * phase)}")
        image = paint(image, screen_text(lines, who.text_corner, 0.042, size), 0.95)

    # The annotator's contour: smooth, papillary muscles included, a little too wide or too narrow as a whole.
    annotated = edge * (radius(wobble(rng, 0.05), angle) + rng.normal(0, 0.04))
    return np.clip(image, 0, 1), (distance < annotated) & (not beyond)


class Dataset(DatasetContract):
    """Options: the number of patients and of frames a patient. Raising either leaves existing cases as they are."""

    channels: ClassVar[int] = 1
    groups: int = Field(120, ge=8, le=10_000, description="patients")
    cases_per_group: int = Field(4, ge=1, le=100, description="frames a patient")
    manifest: ClassVar[Manifest] = Manifest(
        title="Cine-MR phantom",
        citation="Procedural; drawn by this project's code from a seed. Not clinical data.",
        licence="that of this project's code",
        address="stealthmark/datasets/phantom_cine.py",
        redistributable=True,
        size="120 patients x 4 frames by default, drawn at any size; about 1 mask in 40 is empty (below the apex)",
        foreground="left-ventricular cavity, papillary muscles included, with a smooth inter-observer deviation",
        groups="patient (anatomy, coil, margins and on-screen text are shared within one)",
    )

    def index(self, seed: int) -> list[CaseRef]:
        return [
            CaseRef(f"p{group:03d}-f{frame}", f"p{group:03d}", (seed, group, frame))
            for group in range(self.groups)
            for frame in range(self.cases_per_group)
        ]

    def read(self, ref: CaseRef, size: int) -> tuple[np.ndarray, np.ndarray]:
        seed, group, frame = ref.source
        image, mask = render(patient(seed, group), seed, group, frame, size)
        return (255 * image + 0.5).astype(np.uint8)[:, :, None], mask
