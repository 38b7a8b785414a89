"""Downloads of public datasets: resumed when broken off, checked against a pinned digest, unpacked whole or not.

Written by hand: pooch, the usual library for this, begins a broken download anew, bounds neither what a server sends nor what
an archive unpacks to, unpacks in place, and lets two processes download one set at once. It compares the archive's digest; of
Kvasir-SEG none is published, so what is pinned here is the contents' digest.
"""

import errno
import fcntl
import hashlib
import http.client
import math
import os
import shutil
import ssl
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stealthmark.errors import UserError
from stealthmark.progress import Progress, log

TRIES = 4
#: Seconds before the second try; doubled before each further one.
PAUSE_S = 1.0
TIMEOUT_S = 30.0
BLOCK = 1 << 16
MB = 1_000_000


@dataclass(frozen=True)
class Source:
    """Where a publisher's archive is, and what vouches for its contents.

    `address` is the zip itself, `page` the page that describes it. The archive's top folder is `root`; `digest` is
    `contents_digest` over the files in it that match `patterns`. `max_bytes` bounds both the archive and what it
    unpacks to. `incomplete_tls_chain`: the publisher's server omits an intermediate certificate, so a second try
    without certificate verification is allowed; sound only because the contents are checked against `digest`.
    """

    title: str
    address: str
    page: str
    licence: str
    root: str
    patterns: tuple[str, ...]
    digest: str
    max_bytes: int
    incomplete_tls_chain: bool = False

    def files(self, root: Path) -> list[Path]:
        """The files under `root` that the digest covers; hidden ones, which operating systems strew, are not."""
        return [file for pattern in self.patterns for file in root.glob(pattern) if not file.name.startswith(".")]

    def matches(self, root: Path) -> bool:
        """Whether the files under `root` are, name by name and byte by byte, the ones that the digest was pinned on."""
        return contents_digest(root, self.files(root)) == self.digest

    def by_hand(self, folder: Path) -> str:
        """How a person provides the set where it cannot be downloaded: the end of an error's sentence."""
        layout = " and ".join(str(folder / self.root / pattern) for pattern in self.patterns)
        return (
            f"to provide it by hand, download {self.address} (described at {self.page}; licence: {self.licence}) "
            f"and unpack it so that {layout} exist"
        )


def contents_digest(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 (hex) over one line `name NUL sha256-of-the-file LF` a file, sorted; names are relative to `folder`.

    Depends on names and contents alone, not on how they were packed. Raises UserError for a file that cannot be read.
    """
    lines = []
    for file in files:
        try:
            with file.open("rb") as stream:
                inner = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from None
        lines.append(f"{file.relative_to(folder).as_posix()}\0{inner}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def obtain(source: Source, folder: Path) -> None:
    """Downloads, unpacks and checks `source`: afterwards `folder` holds the archive's contents.

    The folder appears whole or not at all. Returns at once when it already holds something, also when another process
    brought it while this one waited. Raises UserError, saying how to provide the set by hand, when the download fails
    or its contents are not the pinned ones; those are removed.
    """
    archive = folder.with_name(folder.name + ".download")

    def check(unpacked: Path) -> None:
        if not source.matches(unpacked / source.root):
            raise UserError(f"the contents of {source.address} do not have the pinned SHA-256 and were removed")

    try:
        with _only_one(folder.with_name(folder.name + ".lock")):
            if folder.is_dir() and any(folder.iterdir()):
                return
            if not archive.exists():
                log(f"{source.title} is not at {folder}; downloading {source.address} (licence: {source.licence})")
                fetch(source.address, archive, source.max_bytes, source.incomplete_tls_chain)
            try:
                extract(archive, folder, source.max_bytes, check)
            finally:
                archive.unlink(missing_ok=True)
    except UserError as error:
        raise UserError(f"{error}; {source.by_hand(folder)}") from None


def fetch(url: str, target: Path, max_bytes: int, unverified_tls: bool = False) -> None:
    """Downloads `url` to `target`, which appears only when complete.

    What has arrived is kept in `target.part` and continued, in this call or a later one, where the server honours
    Range, else begun anew. Connection faults are tried `TRIES` times. `unverified_tls` allows a second try without
    certificate verification, for callers that check the contents against a pinned digest.
    Raises UserError when the server refuses, the connection keeps failing, the disk is full or `max_bytes` is exceeded.
    """
    part = target.with_name(target.name + ".part")
    context = ssl.create_default_context()
    for attempt in range(1, TRIES + 1):
        try:
            _continue(url, part, max_bytes, context)
            break
        except (OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            what = str(cause) or type(cause).__name__
            final = attempt == TRIES
            if isinstance(error, urllib.error.HTTPError):
                error.close()
                what = f"the server answered {error.code} {error.reason}"
                final = final or (error.code < 500 and error.code not in (408, 429))
            if isinstance(cause, ssl.SSLCertVerificationError):
                if unverified_tls and not final:
                    context = _unverified(url, cause)
                    continue
                final = True
            if final:
                kept = f"; {part} is kept and continued next time" if part.exists() else ""
                raise UserError(f"{url} could not be downloaded: {what}{kept}") from None
            log(f"download of {url}: {what}; try {attempt + 1} of {TRIES}")
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
    with _writing(target):
        os.replace(part, target)


def _unverified(url: str, cause: ssl.SSLCertVerificationError) -> ssl.SSLContext:
    log(
        f"WARNING: the certificate of {url} cannot be verified ({cause.verify_message}); downloading WITHOUT "
        "verification of it: the contents are checked against a pinned SHA-256 afterwards"
    )
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _continue(url: str, part: Path, max_bytes: int, context: ssl.SSLContext) -> None:
    """One request: appends to `part`, or begins it anew where the server does not continue. Returns when complete."""
    received = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "stealthmark"})
    if received:
        request.add_header("Range", f"bytes={received}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not received:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{received}":
            return
        part.unlink()
        raise ConnectionError(f"the server cannot continue after {received} bytes") from None
    with answer:
        continues = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        if continues and not answer.headers.get("Content-Range", "").startswith(f"bytes {received}-"):
            part.unlink()
            raise ConnectionError(f"the server did not continue after {received} bytes")
        received = received if continues else 0
        total = None if answer.length is None else received + answer.length
        _check_room(part.parent, total or received, received, max_bytes, url)
        with _writing(part):
            part.parent.mkdir(parents=True, exist_ok=True)
            file = part.open("ab" if continues else "wb")
        total_mb = math.ceil((total or 0) / MB)
        progress = Progress(f"download {url.rsplit('/', 1)[-1]}", total_mb, "MB")
        with file:
            while block := answer.read(BLOCK):
                received += len(block)
                if received > max_bytes:
                    part.unlink()
                    raise UserError(f"{url} holds more than the {max_bytes} bytes allowed")
                with _writing(part):
                    file.write(block)
                    file.flush()
                progress.step(min(received // MB, total_mb - 1))
        if total is not None and received < total:
            raise ConnectionError(f"the connection closed after {received} of {total} bytes")
        progress.step(total_mb)


def extract(archive: Path, folder: Path, max_bytes: int, check: Callable[[Path], None] = lambda unpacked: None) -> None:
    """Unpacks a zip so that `folder` appears whole, and only after `check(unpacked folder)` raised nothing.

    Raises UserError, leaving nothing behind, for a damaged or encrypted archive, a member that is a link or would land
    outside of the folder, and an archive that unpacks to more than `max_bytes`.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _writing(partial):
            partial.mkdir(parents=True)
        try:
            _unpack(archive, partial, max_bytes)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{archive} is not a sound zip archive: {error}") from None
        check(partial)
        with _writing(folder):
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    with zipfile.ZipFile(archive) as members:
        # `zipfile` never yields more of a member than its declared size, so the sum of those is a bound.
        _check_room(folder, sum(info.file_size for info in members.infolist()), 0, max_bytes, archive)
        for info in members.infolist():
            name = PurePosixPath(info.filename)
            outside = name.is_absolute() or ".." in name.parts or "\\" in info.filename or ":" in info.filename
            if outside or stat.S_ISLNK(info.external_attr >> 16):
                raise UserError(f"{archive}: the member {info.filename!r} is a link or leads out of the folder")
            path = folder / name
            with _writing(path):
                (path if info.is_dir() else path.parent).mkdir(parents=True, exist_ok=True)
            if info.is_dir():
                continue
            with _writing(path):
                file = path.open("xb")
            with file, members.open(info) as stream:
                while block := stream.read(BLOCK):
                    with _writing(path):
                        file.write(block)
                        file.flush()


def _check_room(folder: Path, total: int, received: int, max_bytes: int, what: object) -> None:
    if total > max_bytes:
        raise UserError(f"{what} holds {total} bytes, more than the {max_bytes} allowed")
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    if shutil.disk_usage(existing).free < total - received:
        raise UserError(f"no disk space in {folder} for {what}: {(total - received) / MB:.0f} MB are needed")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns a failure to write `path` into a UserError; where the disk is full, what was written of it is removed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
        path.unlink(missing_ok=True)
        raise UserError(f"no disk space left to write {path}") from None


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Lets one process at a time through: a workflow prepares several arrays of one dataset side by side."""
    with _writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"another process is downloading; waiting for {lock}")
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
