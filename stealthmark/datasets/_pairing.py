"""Which masks belong to which image, by their names."""

import re
from collections.abc import Collection, Iterator
from os.path import commonprefix
from pathlib import Path

from stealthmark.errors import UserError

WINDOWS_HIDDEN, MAC_HIDDEN = "Thumbs.db", "__MACOSX"
#: Endings of two parts.
DOUBLE = (".nii.gz",)
#: What tells several masks of one image apart: `_1`, ` (2)`.
COUNTER = r"[ _.-]*\(?\d+\)?"
#: The number of a channel, as nnU-Net writes it.
CHANNEL = "_0000"


def stem_of(file: Path) -> str:
    """A file's name without its ending."""
    ending = next((ending for ending in DOUBLE if file.name.lower().endswith(ending)), file.suffix)
    return file.name[: len(file.name) - len(ending)]


def ending_of(file: Path) -> str:
    """A file's ending, in small letters."""
    return file.name[len(stem_of(file)) :].lower()


def is_hidden(file: Path) -> bool:
    """Whether a file is one of those that operating systems strew."""
    return file.name.startswith(".") or file.name in (WINDOWS_HIDDEN, MAC_HIDDEN)


def paired(
    image_folder: Path, mask_folder: Path, image_endings: frozenset[str], mask_endings: frozenset[str]
) -> dict[str, tuple[Path, Path]]:
    """stem -> (image, mask) of two folders whose files have the same stems, sorted. Hidden files are left out.

    Raises UserError for an absent folder, an image without a mask or the reverse, two files with one stem, and a file
    whose ending is not among those of its folder.
    """
    images, masks = listed(image_folder, mask_folder, image_endings), listed(mask_folder, image_folder, mask_endings)
    check_complete(images, masks, {stem: stem for stem in masks if stem in images}, image_folder, mask_folder)
    if not images:
        raise UserError(f"{image_folder} holds no images; allowed endings: {', '.join(sorted(image_endings))}")
    return {stem: (images[stem], masks[stem]) for stem in sorted(images)}


def listed(folder: Path, other: Path, endings: Collection[str], nested: bool = False, but: str = "") -> dict[str, Path]:
    """stem -> file, but for the file called `but`. `nested`: also of the folders inside, whose names are part of the stem
    (`P01/slice7`).

    Raises UserError for an absent folder, two files with one stem, and a file whose ending is not among `endings`.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; images and masks are expected in it and in {other}")
    by_stem: dict[str, Path] = {}
    for file in _files(folder, nested):
        if file.name == but:
            continue
        if not file.is_file() or ending_of(file) not in endings:
            raise UserError(f"{file} is not an image file; allowed endings: {', '.join(sorted(endings))}")
        stem = (file.relative_to(folder).parent / stem_of(file)).as_posix()
        if stem in by_stem:
            raise UserError(f"{by_stem[stem]} and {file} have the same stem, which is the case_id")
        by_stem[stem] = file
    return by_stem


def _files(folder: Path, nested: bool, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    above = (*above, folder.resolve())
    for file in sorted(folder.iterdir()):
        if is_hidden(file):
            continue
        if nested and file.is_dir():
            if file.resolve() in above:
                raise UserError(f"the folder {file} leads back to one that it lies in")
            yield from _files(file, nested, above)
        else:
            yield file


def check_complete(
    images: dict[str, Path],
    masks: dict[str, Path],
    image_of: dict[str, str],
    image_folder: Path,
    mask_folder: Path,
    hint: str = "",
) -> None:
    """Raises UserError for an image without a mask and a mask without an image; `image_of`: mask -> image, by stems."""
    with_mask = set(image_of.values())
    for stem, image in images.items():
        if stem not in with_mask:
            raise UserError(f"the image {image} has no mask: {mask_folder} holds no file with the stem {stem!r}{hint}")
    for stem, mask in masks.items():
        if stem not in image_of:
            raise UserError(f"the mask {mask} has no image: {image_folder} holds no file with the stem {stem!r}{hint}")


def by_suffix(images: Collection[str], masks: Collection[str], suffixes: Collection[str]) -> dict[str, str]:
    """mask -> image, of the masks that are named as an image with one of `suffixes` added, and perhaps a number."""
    image_of = {}
    for mask in masks:
        for image in _beginnings(mask, images):
            rest = mask[len(image) :]
            if any(rest.startswith(suffix) and re.fullmatch(COUNTER, rest[len(suffix) :] or "0") for suffix in suffixes):
                image_of[mask] = image
                break
    return image_of


def by_name(images: Collection[str], masks: Collection[str]) -> tuple[dict[str, str], str]:
    """mask -> image, and in words how their names belong together, where that is the same for all of them.

    In this order: the same stems; each image's masks in a folder of its name; one suffix added to an image's stem, and
    perhaps a number; the same stems but for what all images' stems, and all masks', begin or end with.
    """
    same = {mask: mask for mask in masks if mask in images}
    if same:
        return same, ""
    in_folders = {mask: parent for mask in masks if (parent := mask.rpartition("/")[0]) in images}
    if len(in_folders) == len(masks):
        return in_folders, "each image's masks are united, from the folder of its name"
    rests = {mask: mask[len(image) :] for mask in masks if (image := next(_beginnings(mask, images), None)) is not None}
    suffixes = {re.sub(f"{COUNTER}$", "", rest) for rest in rests.values()}
    added = {mask: mask[: len(mask) - len(rest)] for mask, rest in rests.items()} if len(suffixes) == 1 else {}
    if len(added) < len(masks):
        image_of, words = _by_core(images, masks)
        return (image_of, words) if image_of else (added, "")
    united = ", and an image's are united" if len(masks) > len(images) else ""
    return added, f"a mask is named as its image, with {suffixes.pop()!r} added{united}"


def _beginnings(mask: str, images: Collection[str]) -> Iterator[str]:
    """The images whose stems a mask's begins with, up to the end of a word or a number; the longest first."""
    for end in range(len(mask), 0, -1):
        if mask[:end] in images and _parts(mask, end):
            yield mask[:end]


def _parts(text: str, at: int) -> bool:
    """Whether a word or a number ends in a text before `at`."""
    if not 0 < at < len(text):
        return True
    before, after = text[at - 1], text[at]
    return not (before.isalnum() and after.isalnum()) or before.isdigit() != after.isdigit()


def _by_core(images: Collection[str], masks: Collection[str]) -> tuple[dict[str, str], str]:
    ends = [_common_ends(stems) for stems in (images, masks)]
    image_at, mask_at = (
        {_core(stem, begin, end): stem for stem in stems} for stems, (begin, end) in zip((images, masks), ends, strict=True)
    )
    if image_at.keys() != mask_at.keys():
        return {}, ""
    (image_begin, image_end), (mask_begin, mask_end) = ends
    words = f"images are named {image_begin}*{image_end}, masks {mask_begin}*{mask_end}"
    return {mask: image_at[core] for core, mask in mask_at.items()}, words


def _common_ends(stems: Collection[str]) -> tuple[str, str]:
    """What all names begin and end with, in whole words; a number is part of what tells them apart."""
    names = [stem.rpartition("/")[2] for stem in stems]
    begin = _in_words(names, commonprefix(names))
    backwards = [name[len(begin) :][::-1] for name in names]
    return begin, _in_words(backwards, commonprefix(backwards), apart=CHANNEL[::-1])[::-1]


def _in_words(names: list[str], common: str, apart: str = "") -> str:
    """The longest beginning of `common`, of all `names`, that ends where a word or a number does."""
    for end in range(len(common), 0, -1):
        kept = common[:end]
        if all(_parts(name, end) for name in names) and (re.search("[A-Za-z]", kept) or kept == apart):
            return kept
    return ""


def _core(stem: str, begin: str, end: str) -> str:
    folder, _, name = stem.rpartition("/")
    return f"{folder}/{name[len(begin) : len(name) - len(end)]}"
