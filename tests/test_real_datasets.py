"""Datasets read from files: Kvasir-SEG and its download, and a person's own folder of images and masks."""

import dataclasses
import hashlib
import io
import os
import socket
import ssl
import stat
import threading
import urllib.error
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stealthmark import download, plugins
from stealthmark.dataset import load, prepare
from stealthmark.datasets import _pictures, kvasir_seg
from stealthmark.datasets._masks import Rule, read_mask
from stealthmark.datasets._pictures import read_image
from stealthmark.download import contents_digest, extract, fetch, obtain
from stealthmark.errors import UserError
from stealthmark.plugin import make

SIDE = 24
BLOB = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
ROOMY = 10_000_000


def disc(side: int = SIDE) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.hypot(y - side / 2, x - side / 3) < side / 4


def picture(case: int, side: int = SIDE) -> Image.Image:
    pixels = np.random.default_rng(case).integers(0, 256, (side, side, 3), np.uint8)
    return Image.fromarray(pixels)


def mask_picture(value: int = 255, side: int = SIDE) -> Image.Image:
    return Image.fromarray(disc(side).astype(np.uint8) * value)


def write_pairs(root: Path, cases: int = 8, ending: str = ".jpg") -> Path:
    """A small set in the publisher's layout: `root/images`, `root/masks`."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for case in range(cases):
        picture(case).save(root / "images" / f"case{case}{ending}", quality=90)
        mask_picture().save(root / "masks" / f"case{case}{ending}", quality=60)
    return root


def left(folder: Path) -> list[str]:
    """What is under a folder, for asserting that nothing half-written is."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


class Server(ThreadingHTTPServer):
    """Serves `body`; the first `drops` answers break off half-way."""

    def __init__(self, body: bytes, drops: int = 0, ranges: bool = True, status: int = 200):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.drops, self.ranges, self.status = body, drops, ranges, status
        self.requested: list[str | None] = []
        self.address = f"http://127.0.0.1:{self.server_port}/set.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, byte_range = self.server, self.headers.get("Range")
        server.requested.append(byte_range)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(byte_range.removeprefix("bytes=").removesuffix("-")) if byte_range and server.ranges else 0
        if start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        rest = server.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.end_headers()
        if server.drops > 0:
            server.drops -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def local_network(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE_S", 0)


@pytest.fixture
def serve():
    servers = []

    def start(body: bytes, **options) -> Server:
        server = Server(body, **options)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def dead_address() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/set.zip"


# --- contents_digest


def test_contents_digest_by_hand(tmp_path):
    (tmp_path / "b").mkdir()
    files = {"b/x": b"one", "a": b"two"}
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    lines = [f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n" for name in ("a", "b/x")]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert contents_digest(tmp_path, [tmp_path / "b/x", tmp_path / "a"]) == expected
    (tmp_path / "a").rename(tmp_path / "c")
    assert contents_digest(tmp_path, [tmp_path / "b/x", tmp_path / "c"]) != expected


# --- fetch


def test_fetch_resumes_after_a_broken_connection(tmp_path, serve, capsys):
    server = serve(BLOB, drops=2)
    fetch(server.address, tmp_path / "deep" / "set.zip", ROOMY)
    assert (tmp_path / "deep" / "set.zip").read_bytes() == BLOB
    assert server.requested == [None, f"bytes={len(BLOB) // 2}-", f"bytes={len(BLOB) * 3 // 4}-"]
    assert left(tmp_path / "deep") == ["set.zip"]
    assert "the connection closed after 150000 of 300000 bytes" in capsys.readouterr().err


def test_fetch_begins_anew_where_the_server_ignores_range(tmp_path, serve):
    server = serve(BLOB, drops=1, ranges=False)
    fetch(server.address, tmp_path / "set.zip", ROOMY)
    assert (tmp_path / "set.zip").read_bytes() == BLOB
    assert len(server.requested) == 2


def test_fetch_continues_what_an_earlier_run_left(tmp_path, serve):
    server = serve(BLOB)
    (tmp_path / "set.zip.part").write_bytes(BLOB[:1000])
    fetch(server.address, tmp_path / "set.zip", ROOMY)
    assert (tmp_path / "set.zip").read_bytes() == BLOB
    assert server.requested == ["bytes=1000-"]


@pytest.mark.parametrize("surplus", [b"", b"of another file"])
def test_fetch_when_the_part_is_complete_or_longer(tmp_path, serve, surplus):
    server = serve(BLOB)
    (tmp_path / "set.zip.part").write_bytes(BLOB + surplus)
    fetch(server.address, tmp_path / "set.zip", ROOMY)
    assert (tmp_path / "set.zip").read_bytes() == BLOB


def test_fetch_gives_up_after_some_tries_and_keeps_the_part(tmp_path, serve):
    server = serve(BLOB, drops=99)
    with pytest.raises(UserError, match=r"the connection closed after .*set\.zip\.part is kept and continued"):
        fetch(server.address, tmp_path / "set.zip", ROOMY)
    assert len(server.requested) == download.TRIES
    assert left(tmp_path) == ["set.zip.part"]


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (503, download.TRIES)])
def test_fetch_names_the_servers_refusal(tmp_path, serve, status, tries):
    server = serve(BLOB, status=status)
    with pytest.raises(UserError, match=f"the server answered {status}"):
        fetch(server.address, tmp_path / "set.zip", ROOMY)
    assert len(server.requested) == tries
    assert left(tmp_path) == []


def test_fetch_without_network(tmp_path, dead_address):
    with pytest.raises(UserError, match="could not be downloaded: .*refused"):
        fetch(dead_address, tmp_path / "set.zip", ROOMY)
    assert left(tmp_path) == []


def test_fetch_refuses_more_than_allowed(tmp_path, serve):
    with pytest.raises(UserError, match="holds 300000 bytes, more than the 1000 allowed"):
        fetch(serve(BLOB).address, tmp_path / "set.zip", 1000)
    assert left(tmp_path) == []


def test_fetch_says_that_the_disk_has_no_room(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Free(1000))
    with pytest.raises(UserError, match="no disk space in .* 0 MB are needed"):
        fetch(serve(BLOB).address, tmp_path / "set.zip", ROOMY)
    assert left(tmp_path) == []


@dataclasses.dataclass
class Free:
    free: int


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_fetch_on_a_disk_that_fills_up(tmp_path, serve):
    (tmp_path / "set.zip.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match="no disk space left to write .*set.zip.part"):
        fetch(serve(BLOB).address, tmp_path / "set.zip", ROOMY)
    assert left(tmp_path) == []


def untrusting(monkeypatch):
    """Makes every verified connection fail as one does when the server omits its intermediate certificate."""
    real = urllib.request.urlopen

    def urlopen(request, timeout, context):
        if context.verify_mode == ssl.CERT_REQUIRED:
            cause = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED]")
            cause.verify_message = "unable to get local issuer certificate"
            raise urllib.error.URLError(cause)
        return real(request, timeout=timeout, context=context)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def test_an_unverifiable_certificate_is_refused(tmp_path, serve, monkeypatch):
    untrusting(monkeypatch)
    server = serve(BLOB)
    with pytest.raises(UserError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(server.address, tmp_path / "set.zip", ROOMY)
    assert server.requested == []


def test_an_unverifiable_certificate_is_accepted_loudly_where_contents_are_pinned(tmp_path, serve, monkeypatch, capsys):
    untrusting(monkeypatch)
    server = serve(BLOB, drops=1)
    fetch(server.address, tmp_path / "set.zip", ROOMY, unverified_tls=True)
    assert (tmp_path / "set.zip").read_bytes() == BLOB
    log = capsys.readouterr().err
    assert log.count("WARNING") == 1
    assert "WITHOUT" in log


# --- extract


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_extract(tmp_path):
    archive = tmp_path / "set.zip"
    archive.write_bytes(zipped({"Set/": b"", "Set/a.txt": b"A", "Set/deep/b.txt": b"B"}))
    extract(archive, tmp_path / "out", ROOMY)
    assert left(tmp_path / "out") == ["Set", "Set/a.txt", "Set/deep", "Set/deep/b.txt"]
    assert (tmp_path / "out/Set/deep/b.txt").read_bytes() == b"B"
    assert not (tmp_path / "out.partial").exists()


def link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def damaged() -> bytes:
    body = bytearray(zipped({"a": BLOB}))
    body[5000:5100] = bytes(100)
    return bytes(body)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (zipped({"a": b"", "../escaped": b""}), "leads out of the folder"),
        (zipped({"deep/../../escaped": b""}), "leads out of the folder"),
        (zipped({"/escaped": b""}), "leads out of the folder"),
        (zipped({"..\\escaped": b""}), "leads out of the folder"),
        (zipped({"C:/escaped": b""}), "leads out of the folder"),
        (link(), "'link' is a link"),
        (zipped({"bomb": bytes(2 * ROOMY)}), "more than the 10000000 allowed"),
        (b"<html>not found</html>", "not a sound zip archive"),
        (zipped({"a": BLOB})[:-2000], "not a sound zip archive"),
        (damaged(), "not a sound zip archive"),
    ],
)
def test_extract_refuses(tmp_path, body, complaint):
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / "set.zip"
    archive.write_bytes(body)
    with pytest.raises(UserError, match=complaint):
        extract(archive, tmp_path / "in" / "out", ROOMY)
    assert left(tmp_path) == ["in", "in/set.zip"]


# --- Kvasir-SEG


def archive_of(root: Path) -> bytes:
    files = {f"Kvasir-SEG/{name}": (root / name).read_bytes() for name in left(root) if (root / name).is_file()}
    return zipped({"Kvasir-SEG/kavsir_bboxes.json": b"{}", "__MACOSX/Kvasir-SEG/images/._case0.jpg": b"?", **files})


@pytest.fixture
def published(tmp_path, serve, monkeypatch):
    """A publisher's server with a small set of 8 pairs whose digest is pinned; returns (server, its files)."""
    root = write_pairs(tmp_path / "publisher")
    server = serve(archive_of(root))
    pin(monkeypatch, address=server.address, digest=contents_digest(root, root.glob("*/*.jpg")))
    return server, root


def pin(monkeypatch, **changes):
    monkeypatch.setattr(kvasir_seg, "SOURCE", dataclasses.replace(kvasir_seg.SOURCE, **changes))


def kvasir(root: Path, **options):
    return make("dataset", {"name": "kvasir-seg", "data_root": root, **options})


@pytest.mark.parametrize("place", ["kvasir-seg/Kvasir-SEG", "kvasir-seg", "Kvasir-SEG", "."])
def test_kvasir_is_found_in_every_accepted_layout(tmp_path, place, capsys):
    write_pairs(tmp_path / "data" / place)
    dataset = kvasir(tmp_path / "data", download=False)
    refs = dataset.index(seed=0)
    assert [ref.case_id for ref in refs] == [f"case{n}" for n in range(8)]
    assert all(ref.group_id == ref.case_id for ref in refs)
    assert "not the publisher's complete set" in capsys.readouterr().err
    image, mask = dataset.read(refs[3], 96)
    assert image.shape == (SIDE, SIDE, 3) and image.dtype == np.uint8
    assert mask.dtype == bool
    assert np.array_equal(mask, disc())


def test_kvasir_masks_ring_and_are_thresholded(tmp_path):
    write_pairs(tmp_path)
    values = np.unique(np.asarray(Image.open(tmp_path / "masks" / "case0.jpg")))
    assert len(values) > 2, "the fixture's masks do not ring, so that this test shows nothing"
    assert np.array_equal(read_mask(tmp_path / "masks" / "case0.jpg"), disc())


def test_kvasir_is_downloaded_on_first_use_only(tmp_path, published, capsys):
    server, _ = published
    data = tmp_path / "data"
    prepare(kvasir(data), 16, 1, tmp_path / "out")
    assert left(data)[:3] == ["kvasir-seg", "kvasir-seg/Kvasir-SEG", "kvasir-seg/Kvasir-SEG/images"]
    assert sorted(os.listdir(data)) == ["kvasir-seg"]
    arrays = load(tmp_path / "out")
    assert arrays.images.shape == (8, 3, 16, 16)
    assert arrays.manifest["title"] == "Kvasir-SEG"
    assert "own group" in arrays.manifest["groups"]
    prepare(kvasir(data), 16, 1, tmp_path / "again")
    assert server.requested == [None]
    assert "complete set" not in capsys.readouterr().err
    assert load(tmp_path / "again").manifest["sha256"] == arrays.manifest["sha256"]


def test_kvasir_download_survives_a_broken_connection(tmp_path, published):
    server, _ = published
    server.drops = 1
    assert len(kvasir(tmp_path / "data").index(0)) == 8
    assert len(server.requested) == 2


def test_two_processes_download_once(tmp_path, published):
    server, _ = published
    target = tmp_path / "data" / "kvasir-seg"
    threads = [threading.Thread(target=obtain, args=(kvasir_seg.SOURCE, target)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.requested == [None]
    assert sorted(os.listdir(tmp_path / "data")) == ["kvasir-seg"]


def test_kvasir_digest_mismatch_removes_the_bad_files(tmp_path, published, monkeypatch):
    pin(monkeypatch, digest="0" * 64)
    with pytest.raises(UserError, match="do not have the pinned SHA-256 and were removed"):
        prepare(kvasir(tmp_path / "data"), 16, 1, tmp_path / "out")
    assert left(tmp_path / "data") == []
    assert not list(tmp_path.glob("out*"))


def test_kvasir_without_network_says_where_to_get_it(tmp_path, dead_address, monkeypatch):
    pin(monkeypatch, address=dead_address)
    data = tmp_path / "data"
    with pytest.raises(UserError) as caught:
        prepare(kvasir(data), 16, 1, tmp_path / "out")
    message = str(caught.value)
    for part in (
        dead_address,
        "https://datasets.simula.no/kvasir-seg/",
        "research and education use",
        str(data / "kvasir-seg" / "Kvasir-SEG" / "images" / "*.jpg"),
        str(data / "kvasir-seg" / "Kvasir-SEG" / "masks" / "*.jpg"),
    ):
        assert part in message
    assert "\n" not in message
    assert left(tmp_path) == ["data"]


def test_kvasir_download_can_be_forbidden(tmp_path, published):
    server, _ = published
    with pytest.raises(UserError, match="download is false; .*Kvasir-SEG/masks"):
        kvasir(tmp_path / "data", download=False).index(0)
    assert server.requested == []
    assert not (tmp_path / "data").exists()


def test_kvasir_never_replaces_what_a_person_put_there(tmp_path, published):
    server, _ = published
    note = tmp_path / "data" / "kvasir-seg" / "notes.txt"
    note.parent.mkdir(parents=True)
    note.write_text("mine")
    with pytest.raises(UserError, match="is not empty but holds no images/"):
        kvasir(tmp_path / "data").index(0)
    assert server.requested == []
    assert note.read_text() == "mine"


def test_kvasir_data_root_that_cannot_be_written(tmp_path, published):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        kvasir(tmp_path / "data" / "deeper").index(0)


def test_the_pinned_source_is_complete():
    source = kvasir_seg.SOURCE
    assert source.address == "https://datasets.simula.no/downloads/kvasir-seg.zip"
    assert len(source.digest) == 64
    assert source.incomplete_tls_chain


def only_image(root: Path):
    (root / "masks" / "case3.jpg").unlink()


def only_mask(root: Path):
    (root / "images" / "case3.jpg").unlink()


def no_masks(root: Path):
    for file in (root / "masks").iterdir():
        file.unlink()
    (root / "masks").rmdir()


def truncated_image(root: Path):
    file = root / "images" / "case3.jpg"
    file.write_bytes(file.read_bytes()[:-300])


def truncated_mask(root: Path):
    file = root / "masks" / "case3.jpg"
    file.write_bytes(file.read_bytes()[:-100])


def not_an_image(root: Path):
    (root / "images" / "case3.jpg").write_text("<html>sign in</html>")


def empty_file(root: Path):
    (root / "images" / "case3.jpg").write_bytes(b"")


def other_size(root: Path):
    mask_picture(side=30).save(root / "masks" / "case3.jpg")


def stray_file(root: Path):
    (root / "images" / "notes.txt").write_text("x")


def too_few(root: Path):
    for case in range(5):
        (root / "images" / f"case{case}.jpg").unlink()
        (root / "masks" / f"case{case}.jpg").unlink()


BAD = [
    (only_image, "the image .*case3.jpg has no mask"),
    (only_mask, "the mask .*case3.jpg has no image"),
    (no_masks, "there is no folder .*masks"),
    (truncated_image, "images/case3.jpg cannot be decoded: .*truncated"),
    (truncated_mask, "masks/case3.jpg cannot be decoded: .*truncated"),
    (not_an_image, "images/case3.jpg is not an image"),
    (empty_file, "images/case3.jpg is not an image"),
    (other_size, "images/case3.jpg is 24 x 24 px and its mask .*masks/case3.jpg is 30 x 30 px"),
    (stray_file, "notes.txt is not an image file; allowed endings"),
    (too_few, "at least 8 groups, found 3"),
]


@pytest.mark.parametrize("name", ["kvasir-seg", "folder"])
@pytest.mark.parametrize(("spoil", "complaint"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_bad_files_are_named_and_prepare_leaves_nothing(tmp_path, name, spoil, complaint):
    root = write_pairs(tmp_path / "data")
    spoil(root)
    before = left(tmp_path)
    with pytest.raises(UserError, match=complaint):
        prepare(make("dataset", {"name": name, "data_root": root}), 16, 1, tmp_path / "out")
    assert left(tmp_path) == before


# --- folder


def own(root: Path, **options):
    return make("dataset", {"name": "folder", "data_root": root, **options})


@pytest.mark.parametrize("ending", [".png", ".PNG", ".tif", ".bmp", ".jpg"])
def test_folder_reads_every_format(tmp_path, ending):
    write_pairs(tmp_path, ending=ending)
    (tmp_path / "images" / ".DS_Store").write_text("?")
    dataset = own(tmp_path)
    refs = dataset.index(0)
    assert [(ref.case_id, ref.group_id) for ref in refs] == [(f"case{n}", f"case{n}") for n in range(8)]
    image, mask = dataset.read(refs[2], 16)
    assert np.array_equal(mask, disc())
    if ending != ".jpg":
        assert np.array_equal(image, np.asarray(picture(2)))


def test_folder_pairs_by_stem_whatever_the_ending(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "masks" / "case1.jpg").unlink()
    mask_picture(1).save(tmp_path / "masks" / "case1.png")
    dataset = own(tmp_path)
    assert np.array_equal(dataset.read(dataset.index(0)[1], 16)[1], disc())


def test_folder_prepares_grey_with_its_own_title(tmp_path):
    root = write_pairs(tmp_path / "data", ending=".png")
    prepare(own(root, channels=1, title="ward 7"), 16, 1, tmp_path / "out")
    arrays = load(tmp_path / "out")
    assert arrays.images.shape == (8, 1, 16, 16)
    assert (arrays.manifest["title"], arrays.manifest["channels"]) == ("ward 7", 1)
    assert arrays.manifest["licence"] == "the user's own"
    assert "own group" in arrays.manifest["groups"]
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"channels": 2}, "field 'channels' has the value 2: input should be 1 or 3"),
        ({"title": ""}, "field 'title'"),
        ({"foreground": -1}, "field 'foreground' has the value -1"),
        ({"masks": "x"}, "there is no field 'masks'"),
    ],
)
def test_folder_options_are_checked(tmp_path, options, complaint):
    with pytest.raises(UserError, match=complaint):
        own(tmp_path, **options)


def test_folder_needs_data_root():
    with pytest.raises(UserError, match="the field 'data_root' is missing"):
        make("dataset", {"name": "folder"})


def test_folder_refuses_an_absent_or_empty_folder(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*nowhere/images"):
        own(tmp_path / "nowhere").index(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match="holds no images; allowed endings: .bmp, "):
        own(tmp_path).index(0)


def test_folder_refuses_two_files_with_one_stem(tmp_path):
    write_pairs(tmp_path)
    picture(1).save(tmp_path / "images" / "case1.png")
    with pytest.raises(UserError, match="case1.jpg and .*case1.png have the same stem"):
        own(tmp_path).index(0)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def palette(value: int) -> Image.Image:
    image = mask_picture(value).convert("P")
    image.putdata(list((disc() * value).astype(int).ravel()))
    return image


DEEP_MASK = Image.fromarray(disc().astype(np.uint16) * 1000)


@pytest.mark.parametrize(
    ("image", "foreground"),
    [
        (mask_picture(255), None),
        (mask_picture(1), None),
        (mask_picture(255).convert("1"), None),
        (mask_picture(255).convert("RGB"), None),
        (mask_picture(255).convert("RGBA"), None),
        (mask_picture(255).convert("LA"), None),
        (palette(1), None),
        (palette(7), 7),
        (mask_picture(85), 85),
        (DEEP_MASK, 1000),
    ],
)
def test_masks_of_every_kind(tmp_path, image, foreground):
    rule = Rule(foreground and (foreground,))
    assert np.array_equal(read_mask(saved(tmp_path / "m.png", image), rule), disc())


def levels(*values: int) -> Image.Image:
    return Image.fromarray(np.repeat(np.array(values, np.uint8)[:, None], 20, axis=0).repeat(20, axis=1))


@pytest.mark.parametrize(
    ("image", "name", "foreground", "complaint"),
    [
        (levels(0, 1, 2), "m.png", None, "holds the values 0, 1, 2; allowed: 0 and 1, or 0 and 255"),
        (levels(1, 255), "m.png", None, "holds the values 1, 255;"),
        (levels(128), "m.png", None, "holds the values 128;"),
        (levels(*range(20)), "m.png", None, "holds the values 0, 1, 2, 3, 4, 5, 6, 7 and 12 more;"),
        (levels(0, 128, 255), "m.jpg", None, "is not binary: 33% of its pixels hold a value from 64 to 191"),
        (levels(0, 255), "m.jpg", 255, "is a JPEG, which blurs values; foreground 255 needs"),
        (Image.new("RGB", (9, 9), (255, 0, 0)), "m.png", None, "is in colour"),
        (Image.new("RGB", (9, 9), (255, 0, 0)), "m.jpg", None, "is in colour"),
        (Image.new("RGBA", (9, 9), (0, 0, 0, 128)), "m.png", None, "is transparent in places"),
        (Image.new("CMYK", (9, 9)), "m.tif", None, "has the pixel type 'CMYK'; allowed: grey or palette"),
    ],
)
def test_unexpected_mask_values_are_listed(tmp_path, image, name, foreground, complaint):
    with pytest.raises(UserError, match=f"the mask .*{name} {complaint}"):
        read_mask(saved(tmp_path / name, image), Rule(foreground and (foreground,)))


def test_foreground_chooses_one_of_several_values(tmp_path):
    mask = saved(tmp_path / "m.png", levels(0, 1, 2))
    assert np.array_equal(read_mask(mask, Rule((2,))), np.asarray(levels(0, 1, 2)) == 2)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_8_bit_kind(tmp_path, mode, channels):
    image = picture(0).convert(mode)
    pixels = read_image(saved(tmp_path / "i.png", image), channels)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels.squeeze(), np.asarray(image.convert("L" if channels == 1 else "RGB")))
    assert pixels.shape == (SIDE, SIDE, channels)


@pytest.mark.parametrize("name", ["i.png", "i.tif"])
def test_16_bit_images_are_scaled_by_their_own_range(tmp_path, name):
    deep = np.array([[100, 1100], [600, 4100]], np.uint16)
    pixels = read_image(saved(tmp_path / name, Image.fromarray(deep)), 3)
    assert pixels[:, :, 0].tolist() == [[0, 64], [32, 255]]
    assert (pixels == pixels[:, :, :1]).all()
    flat = saved(tmp_path / name, Image.fromarray(np.full((2, 2), 9, np.uint16)))
    assert not read_image(flat, 1).any()


def test_images_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(UserError, match="has the pixel type 'CMYK'; allowed: grey, RGB"):
        read_image(saved(tmp_path / "i.jpg", picture(0).convert("CMYK")), 3)
    with pytest.raises(UserError, match="holds several pictures; allowed: one"):
        read_image(saved(tmp_path / "i.tif", picture(0), save_all=True, append_images=[picture(1)]), 3)
    exif = Image.Exif()
    exif[_pictures.EXIF_ORIENTATION] = 6
    with pytest.raises(UserError, match="has the EXIF orientation 6; allowed: 1"):
        read_image(saved(tmp_path / "o.jpg", picture(0), exif=exif), 3)
    with pytest.raises(UserError, match=r"i.webp is not an image; allowed: PNG"):
        read_image(saved(tmp_path / "i.webp", picture(0)), 3)


GROUPS = "case_id,group_id\n" + "".join(f"case{n},p{n // 2}\n" for n in range(16))


def test_folder_groups_come_from_the_csv(tmp_path):
    root = write_pairs(tmp_path / "data", 16)
    (root / "groups.csv").write_text("\ufeff" + GROUPS, encoding="utf-8")
    dataset = own(root)
    assert {ref.case_id: ref.group_id for ref in dataset.index(0)} == {f"case{n}": f"p{n // 2}" for n in range(16)}
    prepare(dataset, 16, 1, tmp_path / "out")
    arrays = load(tmp_path / "out")
    assert arrays.cases.groupby("group_id")["share"].nunique().max() == 1
    assert arrays.manifest["groups"] == "from groups.csv"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (GROUPS + "ghost,p1\n", "groups.csv, line 18: the case_id 'ghost' is no image's stem"),
        (GROUPS.replace("case3,p1\n", ""), "gives no group for the case_id 'case3'"),
        (GROUPS + "case3,p5\n", "line 18: the case_id 'case3' occurs a second time"),
        (GROUPS.replace("case3,p1", "case3,"), "line 5: the group_id of 'case3' is empty"),
        (GROUPS.replace("case3,p1", "case3"), "line 5: two fields are expected"),
        (GROUPS.replace("case3,p1", "case3,p1,x"), "line 5: two fields are expected"),
        (
            GROUPS.replace("group_id", "patient"),
            r"has the columns \['case_id', 'patient'\]; expected: case_id, group_id",
        ),
        ("", "has the columns none; expected"),
        (GROUPS.replace("case3", "caf\xe9").encode("latin-1"), "not a CSV file in UTF-8"),
    ],
)
def test_folder_groups_that_do_not_fit(tmp_path, text, complaint):
    root = write_pairs(tmp_path, 16)
    (root / "groups.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=complaint):
        own(root).index(0)


# --- both


@pytest.mark.parametrize("name", ["kvasir-seg", "folder"])
def test_discovered_by_name(name):
    assert plugins.load("dataset", name).__name__ == "Dataset"


def test_the_real_kvasir_seg(tmp_path, capsys):
    root = os.environ.get("STEALTHMARK_DATA_ROOT")
    if not root:
        pytest.skip("STEALTHMARK_DATA_ROOT is not set: the real Kvasir-SEG is not tested")
    dataset = kvasir(Path(root), download=False)
    try:
        refs = dataset.index(0)
    except UserError as error:
        pytest.skip(f"STEALTHMARK_DATA_ROOT does not hold Kvasir-SEG: {error}")
    assert "complete set" not in capsys.readouterr().err, "the contents differ from the pinned digest"
    assert len(refs) == 1000
    for ref in refs[::100]:
        image, mask = dataset.read(ref, 96)
        assert image.shape[:2] == mask.shape
        assert 0 < mask.mean() < 1
