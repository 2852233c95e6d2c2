"""The decoder's source to a library: compiled once on this machine and kept, or taken from one made beforehand."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.gpu.compiler import KERNELS as HEADERS
from diinn.runtime.util import compiling
from diinn.runtime.util.private_files import FileRejected

log = logging.getLogger(__name__)
SOURCE = Path(__file__).parent / "decoder.cpp"
PREBUILT = Path(__file__).parent / "prebuilt"  # filled by ``make libraries``
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-Wno-psabi", f"-I{HEADERS}", "-shared", "-fPIC")
COMPILERS = ("c++", "g++", "clang++")
CPU_FACTS = Path("/proc/cpuinfo")
# What prebuilt libraries are made for, and what /proc/cpuinfo must list for them; the best first.
TARGETS = {
    "x86_64": ("-march=x86-64-v3", ("avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm")),
    "aarch64": ("-march=armv8-a", ("asimd",)),
}
REMEDY = "apt-get install g++"


class Library:
    """A loaded decoder library.

    Attributes:
        instructions: What its vectors are, such as "avx512".
        origin: Where it is from, in a few words.
    """

    def __init__(self, data: bytes, origin: str) -> None:
        """Raises DiinnError for what does not load. data: the library's bytes."""
        self.origin = origin
        try:
            handle = loaded(data)
            self.decode, self.sine, named = handle.diinn_decode, handle.diinn_sine, handle.diinn_instructions
        except (OSError, AttributeError) as error:
            raise DiinnError(f"the decoder {origin} does not load: {error}") from None
        self.decode.restype = self.sine.restype = None
        self.decode.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int, *[ctypes.c_longlong] * 2]
        self.sine.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_longlong]
        named.restype = ctypes.c_char_p
        self.instructions: str = named().decode()


def library() -> Library:
    """The library for this processor, once a process.

    Raises:
        InputError: There is neither a compiler nor a library that fits.
        DiinnError: It does not compile, or does not load.
    """
    found = _library()
    if isinstance(found, DiinnError):
        raise found
    return found


def forget() -> None:
    """Have ``library`` look anew."""
    _library.cache_clear()


@functools.cache
def _library() -> Library | DiinnError:
    """``library``, or why there is none: a compiler that fails is not tried again at every opening."""
    command = find_compiler()
    failed: DiinnError | None = None
    try:
        if command:
            return Library(_compiled(command), f"compiled by {command[0]}")
    except DiinnError as error:
        failed = error
    try:
        made = _prebuilt()
        if made is not None:
            if failed is not None:
                log.warning("%s: the prebuilt decoder is used", failed)
            return Library(made, "prebuilt")
    except DiinnError as error:
        return error
    return failed or InputError(f"no C++ compiler and no prebuilt decoder for this processor: {REMEDY}")


def find_compiler() -> list[str]:
    """The command of the C++ compiler: ``$CXX``, or the first on PATH; empty where there is none."""
    for command in (os.environ.get("CXX", "").split(), *([name] for name in COMPILERS)):
        path = shutil.which(command[0]) if command else None
        if path is not None:
            return [path, *command[1:]]
    return []


def version(command: Sequence[str]) -> str:
    """The first line of what a compiler says of itself."""
    return next(iter(compiling.printed([*command, "--version"]).splitlines()), "")


def features() -> tuple[str, ...]:
    """What this processor can, as Linux lists it; empty where it is not known."""
    try:
        with CPU_FACTS.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, values = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    return tuple(sorted(values.split()))
    except OSError:
        pass
    return ()


def options() -> tuple[str, ...]:
    """Of the compiler, for this processor: where it is not known, for any of its kind.

    A cache may move to another machine with its home folder, so nothing is used that the library's key does not name.
    """
    return (*FLAGS, "-march=native") if features() and platform.machine() == "x86_64" else FLAGS


def _compiled(command: Sequence[str]) -> bytes:
    """The library, from the cache or the compiler."""
    key = " ".join((digest(), *command, version(command), platform.machine(), *features()))
    kept = compiling.kept(SOURCE.stem, key, ".so")
    try:
        return compiling.read_kept(kept)
    except FileRejected:
        log.info("compiling %s", SOURCE.name)
    data, _ = compiling.compiled([*command, *options()], SOURCE)
    compiling.keep(kept, data, SOURCE.name)
    return data


def digest() -> str:
    """sha256 of the source, the headers it shares with the CUDA kernels, and the options."""
    flags = [flag for flag in FLAGS if not flag.startswith("-I")]
    return compiling.digest([SOURCE, *(HEADERS / name for name in ("geometry.h", "portable.h"))], flags)


def _prebuilt() -> bytes | None:
    """The library of this very source, if this processor can run it."""
    machine = platform.machine()
    if machine not in TARGETS or not {*TARGETS[machine][1]} <= {*features()} or sys.platform != "linux":
        return None
    path = PREBUILT / f"{SOURCE.stem}-{machine}.so"
    try:
        card, data = json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), path.read_bytes()
        fits = card["source"] == digest() and card["sha256"] == hashlib.sha256(data).hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return data if fits else None


def loaded(data: bytes) -> ctypes.CDLL:
    """A library from memory, as it was read and checked, so that no folder need allow programs; else from a file."""
    with contextlib.suppress(OSError, AttributeError):  # not on this system, or forbidden
        file = os.memfd_create("diinn-decoder")
        with os.fdopen(file, "wb", closefd=False) as writer:  # open: another under its number would pass for this one
            writer.write(data)
        return ctypes.CDLL(f"/proc/self/fd/{file}")
    with tempfile.NamedTemporaryFile(suffix=".so") as named:
        named.write(data)
        named.flush()
        return ctypes.CDLL(named.name)


def prebuild(machine: str, command: Sequence[str]) -> Path:
    """The library of a machine ("x86_64", "aarch64") into ``PREBUILT``, with what it was made of."""
    PREBUILT.mkdir(exist_ok=True)
    data, _ = compiling.compiled([*command, *FLAGS, TARGETS[machine][0], "-s"], SOURCE)
    path = PREBUILT / f"{SOURCE.stem}-{machine}.so"
    path.write_bytes(data)
    card = {"source": digest(), "compiler": version(command), "sha256": hashlib.sha256(data).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """``make libraries``: those that the compilers here can make; exit code 2 where they make none."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    made = []
    for machine in TARGETS:
        command = find_compiler() if machine == platform.machine() else [f"{machine}-linux-gnu-g++"]
        if not command or shutil.which(command[0]) is None:
            print(f"{machine}: no compiler: apt-get install g++-{machine.replace('_', '-')}-linux-gnu", file=sys.stderr)
            continue
        try:
            made.append(prebuild(machine, command))
        except DiinnError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    for path in made:
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    return 0 if made else 2


if __name__ == "__main__":
    sys.exit(main())
