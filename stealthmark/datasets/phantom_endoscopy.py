"""A procedural colour dataset: endoscopy-like scenes of a mucosal wall with one polyp, drawn from a seed.

Every length is a fraction of the image, so a case is the same picture at every size. What a patient's frames share
(anatomy, colours, aperture, on-screen text) is in `Patient`; camera, highlights, debris and noise vary by frame.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field
from scipy.ndimage import gaussian_filter

from stealthmark.dataset import CaseRef, DatasetContract, Manifest
from stealthmark.datasets._drawing import CORNERS, blend, grid, radius, sample, screen_text, step, texture, wobble
from stealthmark.seeds import numpy_rng


@dataclass(frozen=True)
class Patient:
    """What the frames of one patient share. Lengths are fractions of the image, colours RGB reflectances."""

    mucosa: np.ndarray
    tint: np.ndarray
    polyp_radius: float
    polyp_height: float
    polyp_edge: float
    polyp_contour: np.ndarray
    lumen: np.ndarray
    folds: float
    vessels: float
    wetness: float
    aperture: str
    margins: np.ndarray
    cut: float
    inset: bool
    text: tuple[str, ...]
    text_corner: str
    text_colour: tuple[float, float, float]


def patient(seed: int, group: int) -> Patient:
    """The traits of patient `group`. About a quarter have a black aperture, about a quarter text on the screen."""
    rng = numpy_rng(seed, "phantom-endoscopy", "patient", group)
    away, towards, pale = rng.uniform(0.3, 0.75), rng.uniform(0, 2 * np.pi), rng.uniform(0.36, 0.58)
    date = f"{rng.integers(1, 29):02d}/{rng.integers(1, 13):02d}/20{rng.integers(8, 20):02d}"
    label = (f"CVP:{rng.integers(1, 9)}", "Sex: Age:", f"ID {rng.integers(100, 999)}")[rng.integers(3)]
    redness = np.array([0.04, -0.17, -0.13]) * rng.uniform(0.45, 1.5)
    return Patient(
        mucosa=np.array([1.1, pale, pale * rng.uniform(0.66, 0.92)], np.float32),
        # Redder than the wall, a little lighter or darker; in some patients hardly, and only the relief shows it.
        tint=(redness + rng.normal(0, 0.04) + rng.normal(0, 0.03, 3)).astype(np.float32),
        polyp_radius=float(np.exp(rng.uniform(np.log(0.1), np.log(0.21)))),
        polyp_height=rng.uniform(0.4, 0.8),
        polyp_edge=rng.uniform(0.1, 0.28),
        polyp_contour=wobble(rng, 0.2),
        lumen=np.array([away * np.cos(towards), away * np.sin(towards)], np.float32),
        folds=rng.uniform(1.2, 2.6),
        vessels=rng.uniform(0, 0.8),
        wetness=rng.uniform(0.3, 1.0),
        aperture=str(rng.choice(["none", "octagon", "round", "bars"], p=[0.74, 0.12, 0.07, 0.07])),
        margins=(rng.uniform(0, 0.11, 4) * (1, 1, 0.6, 0.6)).astype(np.float32),
        cut=rng.uniform(0.1, 0.26),
        inset=bool(rng.random() < 0.5),
        text=(date, label) if rng.random() < 0.27 else (),
        text_corner=str(rng.choice(CORNERS)),
        text_colour=((0.95, 0.95, 0.95), (0.35, 0.95, 0.4))[rng.integers(2)],
    )


def opening(who: Patient, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far (positive: inside) each pixel lies from the edge of the endoscope's aperture."""
    left, right, top, bottom = who.margins
    if who.aperture == "none":
        return np.ones_like(x)
    if who.aperture == "round":
        return 0.5 - np.hypot((x - 0.5 - left + right) * (1 + left), (y - 0.5) * (1 - top))
    sides = np.minimum(np.minimum(x - left, 1 - right - x), np.minimum(y - top, 1 - bottom - y))
    if who.aperture == "bars":
        return sides
    corners = np.minimum(np.minimum(x + y, 2 - x - y), np.minimum(1 + x - y, 1 - x + y)) - who.cut
    edge = np.minimum(sides, corners / 2**0.5)
    return np.minimum(edge, np.maximum(x - 0.3, 0.72 - y)) if who.inset else edge


def render(who: Patient, seed: int, group: int, frame: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One frame: image float (size, size, 3) in [0, 1], mask bool (size, size)."""
    tissue = numpy_rng(seed, "phantom-endoscopy", "tissue", group)
    rng = numpy_rng(seed, "phantom-endoscopy", "frame", group, frame)
    x, y = grid(size)

    # The scene's origin is the polyp; the camera moves about it.
    turn, zoom, (at_x, at_y) = rng.normal(0, 0.5), rng.uniform(0.75, 1.3), rng.uniform(0.26, 0.74, 2).tolist()
    cos, sin = math.cos(turn) / zoom, math.sin(turn) / zoom
    sx, sy = cos * (x - at_x) - sin * (y - at_y), sin * (x - at_x) + cos * (y - at_y)
    coarse, fine, veins, wet = (texture(tissue, *band) for band in ((1, 3), (5, 40, 1), (2, 10, 1), (4, 30, 0.5)))
    warp, grain = sample(coarse, sx, sy), sample(fine, sx, sy)

    # A tube seen from within: brightness falls towards the lumen, folds are arcs about it with a shaded far side.
    deep = np.hypot(sx - who.lumen[0], sy - who.lumen[1]) * (1 + 0.12 * warp) + 0.02
    phase = (who.folds * np.log(deep + 0.15) + 0.1 * warp + rng.uniform()) % 1
    folds = (1 - phase) ** 1.5 * step(phase - 0.05, 0.1) * step(sample(coarse, sy + 0.3, sx) + 0.3, 1.5)
    light = step(deep - rng.uniform(0.12, 0.2), 0.35) * (0.65 + 0.6 * folds)

    # Relief: the polyp's dome, false domes of plain mucosa, fine grain.
    angle, distance = np.arctan2(sy, sx), np.hypot(sx, sy)
    outline = who.polyp_radius * radius(who.polyp_contour + wobble(rng, 0.04), angle)
    dome = np.clip(1 - (distance / outline) ** 2, 0, None) ** (0.375 + 1.25 * who.polyp_edge)
    relief = who.polyp_height * who.polyp_radius * dome * (1 + 0.06 * sample(coarse, 4 * sx, 4 * sy)) + 0.012 * folds
    for _ in range(tissue.integers(2, 6)):
        away, towards, wide, stretch = (tissue.uniform(*r) for r in ((0.15, 0.6), (0, 6.3), (0.05, 0.14), (0.6, 1.6)))
        dx, dy = sx - away * math.cos(towards), sy - away * math.sin(towards)
        bump = ((dx * stretch) ** 2 + dy**2) / wide**2 * (1 + 0.2 * warp)
        relief += tissue.uniform(0.1, 0.35) * wide * np.clip(1 - bump, 0, None) ** 0.9
    relief = gaussian_filter(relief, 0.012 * size) + 0.0012 * grain + 0.012 * warp

    # Lit from the endoscope's tip, brightest nearby.
    slope_y, slope_x = np.gradient(relief * size)
    lamp_x, lamp_y = rng.uniform(0.3, 0.7, 2).tolist()
    to_x, to_y, to_z = lamp_x - x, lamp_y - y, 0.55
    aside = to_x**2 + to_y**2
    facing = (to_z - slope_x * to_x - slope_y * to_y) / np.sqrt((1 + slope_x**2 + slope_y**2) * (aside + to_z**2))
    light = light * (0.22 + 0.78 * np.clip(facing, 0, None)) ** 1.5 * (1.1 - 0.7 * aside)

    # Colours: vessels fade over the polyp, residue lies on the wall in yellow-brown patches; bright areas turn pale.
    inside = step(1 - distance / outline, who.polyp_edge)
    vessel = np.exp(-((sample(veins, sx, sy) / 0.08) ** 2)) * who.vessels * (1 - 0.8 * inside)
    dirt = 0.8 * step(sample(veins, sy, sx + 0.5) + 0.4 * warp - rng.uniform(1.8, 4.0), 0.5)
    colour = who.mucosa * (1 + inside[..., None] * who.tint) + (warp[..., None] * (0.02, 0.05, 0.05)).astype(np.float32)
    colour = (colour + 0.03 * grain[..., None]) * (1 - vessel[..., None] * np.array([0.25, 0.8, 0.7], np.float32))
    colour = blend(colour, dirt, (1.0, 0.6, 0.12))
    image = 1 - np.exp(-rng.uniform(1.6, 2.6) * np.clip(light, 0.02, None)[..., None] * np.clip(colour, 0.02, None))

    # Highlights where the wet surface faces the lamp; bubbles and yellow spots anywhere.
    glare = step(facing + 0.07 * who.wetness * sample(wet, sx, sy) - 1.06, 0.05) * step(deep - 0.2, 0.1)
    for _ in range(rng.poisson(1.5)):
        spot_x, spot_y, wide = *rng.uniform(0.05, 0.95, 2).tolist(), rng.uniform(0.012, 0.035)
        away = np.hypot(x - spot_x, y - spot_y)
        if rng.random() < 0.5:
            glare = np.maximum(glare, 0.5 * np.exp(-(((away - wide) / 0.006) ** 2)))
        else:
            yellow = (0.92, rng.uniform(0.6, 0.8), rng.uniform(0.1, 0.45))
            image = blend(image, 0.85 * step(wide * (1 + 0.25 * warp) - away, 0.02), yellow)
    image = blend(image, glare, (1.0, 0.98, 0.92))

    # The camera: blur, aperture, black level, noise, on-screen text.
    image = gaussian_filter(image, rng.uniform(0.002, 0.009) * size, axes=(0, 1))
    edge = opening(who, x, y)
    noise = rng.uniform(0.008, 0.025) * sample(texture(rng, 8, 64, 0), x, y)
    image = image * step(edge, 0.012)[..., None] + (0.02 + noise)[..., None]
    if who.text:
        clock = f"{rng.integers(8, 18):02d}:{rng.integers(60):02d}:{rng.integers(60):02d}"
        image = blend(image, screen_text((*who.text, clock), who.text_corner, 0.05, size), who.text_colour)

    # The annotator's contour: smooth, near the visible one, a little too wide or too narrow as a whole.
    annotated = outline * (radius(wobble(rng, 0.06), angle) + rng.normal(0, 0.04))
    return np.clip(image, 0, 1), (distance < annotated) & (edge > 0)


class Dataset(DatasetContract):
    """Options: the number of patients and of frames a patient. Raising either leaves existing cases as they are."""

    channels: ClassVar[int] = 3
    groups: int = Field(120, ge=8, le=10_000, description="patients")
    cases_per_group: int = Field(4, ge=1, le=100, description="frames a patient")
    manifest: ClassVar[Manifest] = Manifest(
        title="Endoscopy phantom",
        citation="Procedural; drawn by this project's code from a seed. Not clinical data.",
        licence="that of this project's code",
        address="stealthmark/datasets/phantom_endoscopy.py",
        redistributable=True,
        size="120 patients x 4 frames by default, drawn at any size",
        foreground="polyp, as an annotator who deviates smoothly from the visible edge would outline it",
        groups="patient (anatomy, colours, aperture and on-screen text are shared within one)",
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
        return (255 * image + 0.5).astype(np.uint8), mask
