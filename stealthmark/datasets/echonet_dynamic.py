"""EchoNet-Dynamic: echocardiogram videos of 10,030 people, two traced frames each, obtained by registration."""

import csv
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from stealthmark.dataset import CaseRef, DataRoot, DatasetContract, Manifest
from stealthmark.datasets._layout import Layout
from stealthmark.errors import UserError
from stealthmark.progress import log

LAYOUT = Layout(
    title="EchoNet-Dynamic",
    page="https://echonet.github.io/dynamic/",
    licence="Stanford University research use agreement, non-commercial",
    trail=("echonet-dynamic", "EchoNet-Dynamic"),
    patterns=("FileList.csv", "VolumeTracings.csv", "Videos/*.avi"),
)
COLUMNS = ("FileName", "X1", "Y1", "X2", "Y2", "Frame")
#: The outline is drawn this many times as large, so that its edge falls between pixels as it was traced.
FINER = 8
#: What a frame may hold at most, whatever its file claims; the publisher's hold a hundredth of it.
MAX_PIXELS = 1_500_000


class Dataset(DatasetContract):
    """EchoNet-Dynamic in the publisher's layout, `<data_root>/echonet-dynamic/EchoNet-Dynamic/{FileList.csv,
    VolumeTracings.csv,Videos/*.avi}`.

    `data_root` may also point deeper. A case is a traced frame, at end-diastole or end-systole. A tracing is the long axis
    and chords across it; its outline runs along the chords' one ends and back along the others. Videos of `FileList.csv`
    without tracings are left out and counted in the log. The column `Split` is not used.
    """

    manifest = Manifest(
        title=LAYOUT.title,
        citation='Ouyang et al., "Video-Based AI for Beat-to-Beat Assessment of Cardiac Function", Nature 2020',
        licence=LAYOUT.licence,
        address=LAYOUT.page,
        redistributable=False,
        size="10,030 videos of 112 x 112 px, two traced frames (end-diastole and end-systole) each",
        foreground="left-ventricular cavity, inside of the traced outline, view 4CH",
        groups="video (one a person)",
        split="whole videos, drawn from the suite's seed; the publisher's column Split is not used",
    )
    channels = 1
    data_root: DataRoot = Path("data")

    def present(self) -> bool:
        return LAYOUT.find(self.data_root) is not None

    def index(self, seed: int) -> list[CaseRef]:
        root = LAYOUT.require(self.data_root)
        videos = {row["FileName"].removesuffix(".avi") for _, row in rows(root / "FileList.csv", ("FileName",))}
        traced = tracings(root / "VolumeTracings.csv")
        if unlisted := sorted(traced.keys() - videos):
            raise UserError(f"{root / 'VolumeTracings.csv'} traces {unlisted[0]!r}, which FileList.csv does not list")
        refs = []
        for name in sorted(traced):
            video = root / "Videos" / f"{name}.avi"
            if not video.is_file():
                raise UserError(f"the video {video} is absent, though VolumeTracings.csv traces it")
            frames = tuple(sorted(traced[name]))
            for frame in frames:
                source = (video, frames, frame, outline(traced[name][frame]))
                refs.append(CaseRef(f"{name}_frame{frame:03d}", name, source))
        log(f"echonet-dynamic: {len(refs)} frames of {len(traced)} videos; {len(videos - traced.keys())} without tracings")
        return refs

    def read(self, ref: CaseRef, size: int) -> tuple[np.ndarray, np.ndarray]:
        video, frames, frame, polygon = ref.source
        image = decoded(video, frames)[frame]
        return image[:, :, None], fill(polygon, image.shape)


def rows(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV that has at least `columns`. Raises UserError otherwise."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
                raise UserError(f"{file} has no column {missing[0]!r}; found: {', '.join(reader.fieldnames or ()) or 'none'}")
            for row in reader:
                if any(row[name] is None for name in columns):
                    raise UserError(f"{file}, line {reader.line_num}: a field is missing; expected: {', '.join(columns)}")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8: {error}") from None


def tracings(file: Path) -> dict[str, dict[int, list[tuple[float, ...]]]]:
    """video -> frame -> its segments (x1, y1, x2, y2) in px, in the file's order: the long axis, then the chords.

    Raises UserError for a field that is no number and for a tracing of fewer than the axis and two chords.
    """
    traced: dict[str, dict[int, list]] = defaultdict(lambda: defaultdict(list))
    for line, row in rows(file, COLUMNS):
        try:
            segment = tuple(float(row[name]) for name in COLUMNS[1:5])
            frame = int(row["Frame"])
        except ValueError as error:
            raise UserError(f"{file}, line {line}: {error}") from None
        if frame < 0 or not np.isfinite(segment).all():
            raise UserError(f"{file}, line {line}: frame {frame} and {segment} are not a frame from 0 and finite places")
        traced[row["FileName"].removesuffix(".avi")][frame].append(segment)
    for name, frames in traced.items():
        for frame, segments in frames.items():
            if len(segments) < 3:
                raise UserError(
                    f"{file}: frame {frame} of {name!r} has {len(segments)} segments; expected: an axis, two chords"
                )
    return traced


def outline(segments: list[tuple[float, ...]]) -> tuple[tuple[float, float], ...]:
    """The polygon (x, y) of a tracing: along one end of its chords, back along the other."""
    chords = segments[1:]
    return tuple((x1, y1) for x1, y1, _, _ in chords) + tuple((x2, y2) for _, _, x2, y2 in reversed(chords))


def fill(polygon: tuple[tuple[float, float], ...], shape: tuple[int, int]) -> np.ndarray:
    """bool, of `shape`: pixels at least half inside the polygon, whose coordinates have pixel centres at whole numbers."""
    height, width = shape
    canvas = Image.new("L", (width * FINER, height * FINER))
    # Pillow too has pixel centres at whole numbers, those of the finer grid.
    ImageDraw.Draw(canvas).polygon([((x + 0.5) * FINER - 0.5, (y + 0.5) * FINER - 0.5) for x, y in polygon], fill=255)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX)) >= 128


# Both frames of a video are read one after the other: it is decoded once.
@lru_cache(maxsize=2)
def decoded(video: Path, frames: tuple[int, ...]) -> dict[int, np.ndarray]:
    """frame -> uint8 (H, W), of the wanted frames, counted from 0. Raises UserError where one cannot be decoded."""
    images, count = {}, 0
    try:
        with av.open(str(video), format="avi") as container:
            codec = container.streams.video[0].codec_context
            if codec.width * codec.height > MAX_PIXELS:
                raise UserError(f"{video} has frames of {codec.width} x {codec.height} px; allowed: up to {MAX_PIXELS} pixels")
            codec.options = {"max_pixels": str(MAX_PIXELS)}  # also of frames that are larger than the header says
            for count, frame in enumerate(container.decode(video=0)):
                if count in frames:
                    images[count] = frame.to_ndarray(format="gray")
                if count >= max(frames):
                    break
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise UserError(f"{video} cannot be decoded: {error}") from None
    if missing := sorted(set(frames) - images.keys()):
        raise UserError(f"{video} holds {count + 1} frames; frame {missing[0]}, counted from 0, is traced")
    return images
