"""The files of a bundle: read once, and what was read is what is hashed, checked and opened."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from diinn.runtime.bundles import graph_check
from diinn.runtime.errors import BundleError
from diinn.runtime.util import reading

ARRAYS = ".npz"
DESCRIPTION_BYTES = 2**22
ARRAY_BYTES = 2**26  # of a .npz, packed and unpacked
GRAPH_BYTES = 2**31 - 1  # protobuf's limit


def description(path: Path) -> Any:
    """The content of ``bundle.json``; BundleError where it cannot be read."""
    data = reading.read(path, DESCRIPTION_BYTES, "the bundle's", BundleError)
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read ({' '.join(str(error).split())[:100]}): export it again") from None


def read(folder: Path, name: str, sha256: object) -> bytes:
    """A file of a bundle, arrays (``.npz``) or a graph, whose hash must be ``sha256``; a graph must need no other file.

    Raises BundleError, which names the file.
    """
    file = folder / name
    if not file.is_file():
        raise BundleError(f"{folder} lacks {name}: copy the bundle again or export it again")
    data = reading.read(file, ARRAY_BYTES if name.endswith(ARRAYS) else GRAPH_BYTES, "the bundle's", BundleError)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise BundleError(
            f"{file} has sha256 {found[:12]}…, bundle.json says {str(sha256)[:12]}…: "
            "the file was changed or cut short; copy the bundle again or export it again"
        )
    if not name.endswith(ARRAYS):
        try:
            graph_check.check(data)
        except graph_check.GraphError as error:
            raise BundleError(f"{file} {error}: export the bundle again") from None
    return data


def arrays(data: bytes, path: Path) -> dict[str, np.ndarray]:
    """What a small .npz of this content holds; ``path`` is for messages."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
        if unpacked > ARRAY_BYTES:
            raise BundleError(f"{path} unpacks to {unpacked} bytes, more than it may hold: export it again")
        with np.load(io.BytesIO(data), allow_pickle=False) as sample:
            return dict(sample)
    except BundleError:
        raise
    except Exception as error:  # of damaged members zipfile, its decompressors and NumPy raise a dozen unrelated types
        what = " ".join(str(error).split())[:100] or type(error).__name__
        raise BundleError(f"{path} cannot be read ({what}): export it again") from None
