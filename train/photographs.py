"""Folders of photographs: found, read once, checked, kept in memory as far as it reaches."""

import copy
import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from diinn.runtime.errors import InputError
from diinn.runtime.images import files as image_files
from diinn.runtime.images import folders as searching
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.util import memory
from rich.progress import track

log = logging.getLogger(__name__)
READERS = 8


def find_images(*folders: Path) -> list[Path]:
    """Every image below ``folders``, sorted within each; InputError for one without any."""
    files: dict[Path, Path] = {}  # by resolved path: a file found twice counts once
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"no folder {str(folder)!r}: give a folder of images")
        found = searching.find(folder)
        if not found:
            raise InputError(f"no image in {str(folder)!r}: looked for {', '.join(sorted(image_files.SUFFIXES))}")
        for path in found:
            files.setdefault(path.resolve(), path)
    return list(files.values())


def read_rgb(path: Path) -> UInt8:
    """One image as uint8 RGB [H, W, 3]; grey, palette and CMYK become RGB, alpha is dropped, 16 bits become 8."""
    return np.ascontiguousarray(image_files.read_bgr(path)[..., ::-1])


def split_holdout(files: Sequence[Path], count: int) -> tuple[list[Path], list[Path]]:
    """(training, hold-out) files; the hold-out is chosen by a hash of the name, so it stays put."""
    ranked = sorted(files, key=lambda p: hashlib.sha256(os.fsencode(p.name)).digest())
    held = set(ranked[:count])
    return [p for p in files if p not in held], [p for p in files if p in held]


class Photographs(Sequence[UInt8]):
    """Images as uint8 RGB [H, W, 3], decoded once and kept as far as memory reaches; others are read at each use.

    Kept ones fit into ``budget`` bytes (default: half of the memory that is free, shared by this machine's processes).

    largest: an image is halved (2×2 means) until its short side is below this: big photographs hold little
        texture per pixel; smallest: those whose short side is below are left out, as are those that cannot be
        read; each is named, and their count given. InputError where none is left.
    """

    def __init__(
        self, files: Sequence[Path], largest: int, smallest: int, budget: int | None = None, progress: bool = False
    ) -> None:
        self.largest = largest
        if budget is None:
            budget = (memory.available() or 2**32) // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.files: list[Path] = []
        self._kept: list[UInt8 | None] = []
        shown: Iterable[UInt8 | InputError]
        with ThreadPoolExecutor(READERS) as pool:
            read = pool.map(self._read, files)
            shown = track(read, "photographs", total=len(files), transient=True) if progress else read
            for path, image in zip(files, shown, strict=True):
                if isinstance(image, InputError):
                    log.warning("%s: left out", image)
                elif min(image.shape[:2]) < smallest:
                    log.warning("%s is %dx%d, below %d pixels: left out", path, *image.shape[1::-1], smallest)
                else:
                    budget -= image.nbytes
                    self.files.append(path)
                    self._kept.append(image if budget >= 0 else None)
        if not self.files:
            raise InputError(f"none of the {len(files)} images can be used (short side of {smallest} pixels or more)")
        if len(self.files) < len(files):
            log.warning("%d of %d images were left out", len(files) - len(self.files), len(files))
        anew = sum(image is None for image in self._kept)
        if anew:
            log.warning("%d of %d images do not fit into memory: read anew at each use", anew, len(self.files))

    def _read(self, path: Path) -> UInt8 | InputError:
        try:
            return self.halved(read_rgb(path))
        except InputError as error:
            return error

    def halved(self, image: UInt8) -> UInt8:
        """``image``, halved until its short side is below ``largest``."""
        while min(image.shape[:2]) >= self.largest:
            height, width = (n // 2 for n in image.shape[:2])
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
        return image

    def only(self, files: Sequence[Path]) -> "Photographs":
        """Those of ``files``, without reading them again."""
        chosen, wanted = copy.copy(self), set(files)
        places = [i for i, path in enumerate(self.files) if path in wanted]
        chosen.files, chosen._kept = [self.files[i] for i in places], [self._kept[i] for i in places]
        return chosen

    def __deepcopy__(self, _: object) -> "Photographs":
        return self  # read only: a copy of the task that holds them, as for averaged weights, needs no second one

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> UInt8:  # type: ignore[override]
        kept = self._kept[number]
        return self.halved(read_rgb(self.files[number])) if kept is None else kept


def training_and_holdout(
    folders: Sequence[Path],
    validation: Sequence[Path],
    holdout: int,
    *,
    largest: int,
    smallest: int,
    progress: bool = False,
) -> tuple[Photographs, Photographs]:
    """The photographs of ``folders``, and those held out: all of ``validation``, or ``holdout`` of ``folders``' own.

    largest, smallest, progress: as of ``Photographs``; InputError where one of the two has no image
    """
    files, held = find_images(*folders), find_images(*validation) if validation else []
    kept = {path.resolve() for path in held}
    training = [path for path in files if path.resolve() not in kept]
    if len(training) < len(files):
        log.warning("%d hold-out images are also in --data: not trained on", len(files) - len(training))
    usable = Photographs([*training, *held], largest, smallest, progress=progress)
    if validation:
        training, held = ([path for path in usable.files if path in part] for part in (set(training), set(held)))
    else:  # of those that can be used
        training, held = split_holdout(usable.files, holdout)
    if not training or not held:
        raise InputError(
            f"{len(training)} images to train on, {len(held)} to hold out: give more images or a smaller holdout"
        )
    return usable.only(training), usable.only(held)
