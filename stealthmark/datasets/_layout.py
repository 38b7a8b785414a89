"""Where a publisher's files lie under `data_root`, and what to tell a person who has yet to register for them."""

from dataclasses import dataclass
from pathlib import Path

from stealthmark.errors import UserError


@dataclass(frozen=True)
class Layout:
    """A dataset that a person obtains from its publisher by hand.

    `trail` are the folders from `data_root` down to the files: the first is ours, the others are the archive's.
    `patterns` (globs) are the files there; one that matches the first of them is enough to recognise the place.
    """

    title: str
    page: str
    licence: str
    trail: tuple[str, ...]
    patterns: tuple[str, ...]

    def find(self, data_root: Path) -> Path | None:
        """The folder of the files, `data_root` pointing at any folder along the trail; None where they are absent."""
        data = data_root.expanduser()
        trails = [self.trail[start:] for start in range(len(self.trail) + 1)] + [self.trail[:1]]
        places = (data.joinpath(*trail) for trail in trails)
        return next((place for place in places if any(place.glob(self.patterns[0]))), None)

    def require(self, data_root: Path) -> Path:
        """`find`; raises UserError, saying where to register and how the files must lie, where they are absent."""
        root = self.find(data_root)
        if root is None:
            folder = data_root.expanduser().joinpath(*self.trail)
            raise UserError(
                f"{self.title} is not at {folder}; it cannot be downloaded without registration: register at {self.page} "
                f"(licence: {self.licence}), download the set there and unpack it so that "
                f"{' and '.join(str(folder / pattern) for pattern in self.patterns)} exist"
            )
        return root
