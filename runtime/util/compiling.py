"""Compilers that are run on this machine, and what is kept of their work in the user's cache."""

from __future__ import annotations

import hashlib
import logging
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.util.private_files import FileRejected, cache_folder, read_own, replace

log = logging.getLogger(__name__)
LONGEST = 600  # seconds
OURS = re.compile(r"[\w.-]+-[0-9a-f]{32}\.(so|cubin|json|onnx)|\.\w{8}\.part")  # files of what is kept
SEAL = 32  # bytes of sha256 behind what is kept: damaged code may crash where it is loaded


def compiled(command: Sequence[str], source: Path) -> tuple[bytes, str]:
    """What ``command`` (a compiler and its options) makes of a source, and what it printed.

    Raises:
        DiinnError: It does not run, or fails: with its first error.
    """
    try:
        room = tempfile.TemporaryDirectory()
    except OSError as error:
        where = tempfile.gettempdir()
        raise DiinnError(f"no room to compile {source.name} in {where}: {error.strerror}") from None
    with room:
        out = Path(room.name) / "out"
        try:
            done = subprocess.run(
                [*command, "-o", str(out), str(source)],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=LONGEST,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DiinnError(f"{command[0]} does not run: {getattr(error, 'strerror', None) or error}") from None
        output = done.stdout + done.stderr
        if done.returncode or not out.exists():
            wrong = next((line for line in output.splitlines() if "error" in line.lower()), output.strip()[:300])
            wrong = wrong.strip() or f"exit code {done.returncode}"
            raise DiinnError(f"{command[0]} cannot compile {source.name}: {wrong}")
        return out.read_bytes(), output


def printed(command: Sequence[str]) -> str:
    """What a compiler answers, such as its version; empty where it does not run."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=60, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def digest(sources: Iterable[Path], flags: Sequence[str]) -> str:
    """sha256 of sources, headers and options."""
    text = b"".join(path.read_bytes() for path in sources)
    return hashlib.sha256(text + " ".join(flags).encode()).hexdigest()


def kept(name: str, key: str, suffix: str) -> Path:
    """Where what was compiled under a key is kept: beside the engines. InputError where there is no home."""
    return folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}{suffix}"


def folder() -> Path:
    """Of all that is kept; InputError where there is no home."""
    return cache_folder().parent / "kernels"


def remove_kept() -> int:
    """Remove all that was kept, and nothing else; bytes freed. InputError where a file cannot be removed."""
    freed = 0
    for path in [path for path in folder().glob("*") if OURS.fullmatch(path.name)]:
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:  # another process was first
            continue
        except OSError as error:
            raise InputError(f"cannot remove {path}: {error.strerror or error}") from None
        freed += size
    return freed


def read_kept(path: Path) -> bytes:
    """What ``keep`` wrote; FileRejected where it is missing, damaged, or not this user's alone to write."""
    kept = read_own(path)
    data, seal = kept[:-SEAL], kept[-SEAL:]
    if hashlib.sha256(data).digest() != seal:
        raise FileRejected(f"{path.name} is damaged")
    return data


def keep(path: Path, data: bytes, what: str, level: int = logging.WARNING) -> None:
    """Write what was compiled, whole or not at all; a message of a level of ``logging`` where that cannot be."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace(path, data + hashlib.sha256(data).digest())
    except OSError as error:
        log.log(level, "cannot keep the compiled %s in %s: %s", what, path.parent, error.strerror or error)
