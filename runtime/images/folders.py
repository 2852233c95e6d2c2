"""Image files of a folder and all below it, and what was left out."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diinn.runtime.images import files as image_files

MOST_KINDS = 8  # that are named


@dataclass
class Search:
    """What a folder holds.

    files: its images, sorted; left_out: how many other files there are, by kind, hidden ones not counted
    results: images left out since they are where results go
    """

    files: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    results: int = 0

    def summary(self) -> str:
        """What was left out in one line, empty for nothing."""
        count = self.left_out.total()
        kinds = sorted(self.left_out)
        more = f" and {len(kinds) - MOST_KINDS} kinds more" if len(kinds) > MOST_KINDS else ""
        parts = [f"{count} file{'s' * (count > 1)} left out: {', '.join(kinds[:MOST_KINDS])}{more}"] if count else []
        if self.results:
            parts.append(f"{self.results} image{'s' * (self.results > 1)} where results go left out")
        return "; ".join(parts)


def search(folder: Path, results: Sequence[Path] = ()) -> Search:
    """The images below ``folder``, symbolic links followed, each folder once.

    Those of ``results``, files or folders below it, are left out.
    """
    found = Search()
    own = {path.resolve() for path in results} - {folder.resolve()}
    seen: set[tuple[int, int]] = set()
    links = deque([folder])
    while links:  # a folder's own folders first, so that they keep their names
        folders = [links.popleft()]
        while folders:
            here = folders.pop()
            try:
                stat = here.stat()
                if (stat.st_dev, stat.st_ino) in seen:
                    continue
                seen.add((stat.st_dev, stat.st_ino))
                with os.scandir(here) as listed:
                    entries = list(listed)
            except OSError:
                found.left_out["folders that cannot be read"] += 1
                continue
            place = here.resolve()
            inside = bool(own) and not own.isdisjoint((place, *place.parents))
            for entry in entries:
                path = here / entry.name
                if _is(entry, folder=True):
                    (links if entry.is_symlink() else folders).append(path)
                else:
                    _take(path, _is(entry, folder=False), found, result=inside or place / entry.name in own)
    found.files.sort()
    return found


def _is(entry: os.DirEntry[str], *, folder: bool) -> bool:
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:  # a link to itself
        return False


def _take(path: Path, regular: bool, found: Search, *, result: bool) -> None:
    """Sort a file in. A broken link with an image's suffix counts as an image, which cannot be read."""
    suffix = path.suffix.lower()
    broken = not regular and path.is_symlink() and not os.path.exists(path)  # noqa: PTH110  never raises
    if suffix in image_files.SUFFIXES and (regular or broken):
        taken = True
    else:
        taken = regular and not path.name.startswith(".") and image_files.is_image(path)
    if taken and result:
        found.results += 1
    elif taken:
        found.files.append(path)
    elif not path.name.startswith("."):
        found.left_out[suffix or "no ending"] += 1


def find(folder: Path) -> list[Path]:
    """Every image below ``folder``, sorted."""
    return search(folder).files
