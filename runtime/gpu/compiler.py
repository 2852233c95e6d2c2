"""Kernels to machine code: compiled once on this machine and kept, or taken from a binary made beforehand."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.gpu import nvrtc
from diinn.runtime.util import compiling
from diinn.runtime.util.once import Once
from diinn.runtime.util.private_files import FileRejected

log = logging.getLogger(__name__)
KERNELS = Path(__file__).parent / "kernels"
PREBUILT = KERNELS / "prebuilt"  # filled by ``make kernels``
NVCC = Path("/usr/local/cuda/bin/nvcc")
NVRTC_REMEDY = "pip install cuda-bindings nvidia-cuda-nvrtc ('cuda-bindings<13' nvidia-cuda-nvrtc-cu12 for CUDA 12)"
_logged = Once()  # compilers that were taken in place of one that fails
FLAGS = ("-std=c++17", "-O3")
# What kernels are compiled for where a toolkit knows it: 11.0 came with CUDA 13, 12.6 of JetPack 6 ends at 9.0.
CAPABILITIES = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")


def machine_code(source: Path, capability: str, driver: int) -> bytes:
    """A cubin or fat binary of a .cu file for a device of compute ``capability`` ("8.7").

    driver: the newest CUDA version the driver runs, as cuDriverGetVersion gives it (12060 for 12.6)

    Raises InputError where there is neither a compiler nor a binary that fits, DiinnError where compiling fails.
    """
    found = _prebuilt(source, capability, driver)
    if found is not None:
        return found
    # What is kept was compiled for a driver like this one: no compiler need be asked, or NVRTC loaded.
    here = [(compiler, _kept(source, capability, f"{driver // 1000} {compiler.key}")) for compiler in compilers()]
    for _, kept in here:
        with contextlib.suppress(FileRejected):
            return compiling.read_kept(kept)
    problems: list[DiinnError] = []
    for compiler, kept in here:
        if not compiler.there():
            continue
        try:
            compiler.check(capability, driver)
            log.info("compiling %s for compute capability %s", source.name, capability)
            data = compiler.cubin(source, capability)
        except DiinnError as error:
            problems.append(error)
            continue
        _warn_instead(problems, compiler)
        compiling.keep(kept, data, source.name)
        return data
    if problems:
        raise min(problems, key=lambda error: isinstance(error, Unfit))
    raise InputError(
        f"cannot compile {source.name} for compute capability {capability}: no nvcc on PATH, in CUDA_HOME or in "
        f"{NVCC.parent}, and no NVRTC; {NVRTC_REMEDY}, install the CUDA toolkit, or copy {PREBUILT.name}/ from a "
        "machine where python -m diinn.runtime.gpu.compiler ran"
    )


class Unfit(InputError):
    """A compiler is of a CUDA that this driver does not run, or that does not know this architecture."""


@dataclass(frozen=True)
class Compiler:
    """What makes machine code of a kernel's source; of it nothing but ``key`` is known before it is wanted.

    name: for messages; key: what its work is kept under, beside sources; there: whether it is on this machine
    toolkit: the CUDA it belongs to, like "13.0", empty where it is not known
    codes: the architectures it compiles for, like "87"; cubin: compiles a source for a compute capability
    another: how to take another version
    """

    name: str
    key: str
    there: Callable[[], bool]
    toolkit: Callable[[], str]
    codes: Callable[[], set[str]]
    cubin: Callable[[Path, str], bytes]
    another: str

    def check(self, capability: str, driver: int) -> None:
        """Raises Unfit where it makes nothing for this device and driver, DiinnError where it does not run."""
        toolkit = self.toolkit()
        if toolkit and int(toolkit.split(".")[0]) * 1000 > driver:
            runs = f"{driver // 1000}.{driver % 1000 // 10}"
            raise Unfit(
                f"{self.name} is of CUDA {toolkit}, the driver runs up to {runs}: "
                f"{self.another.format('an older')}, or update the driver"
            )
        codes = self.codes()
        if codes and capability.replace(".", "") not in codes:
            raise Unfit(
                f"{self.name} is of CUDA {toolkit}, which does not compile for compute capability {capability}: "
                f"{self.another.format('a newer')}"
            )


def compilers() -> list[Compiler]:
    """What this machine may have: nvcc, if it is there, before NVRTC."""
    found, nvcc = [], find_nvcc()
    if nvcc is not None:

        def cubin(source: Path, capability: str) -> bytes:
            return compiled(nvcc, source, ["-cubin", f"-arch=sm_{capability.replace('.', '')}"])[0]

        toolkit, another = version(nvcc), "set CUDA_HOME to {} toolkit"
        codes = functools.partial(_codes, nvcc)
        found.append(Compiler(str(nvcc), toolkit, lambda: True, lambda: toolkit, codes, cubin, another))

    def there() -> bool:
        return bool(nvrtc.version())

    key, another = f"NVRTC {' '.join(nvrtc.FLAGS)} {nvrtc.wheels()}", "install {} NVRTC and cuda-bindings"
    return [*found, Compiler("NVRTC", key, there, nvrtc.version, nvrtc.codes, nvrtc.cubin, another)]


def _warn_instead(problems: Sequence[DiinnError], compiler: Compiler) -> None:
    """Once a process: that a compiler that fits fails, and which one is taken."""
    failed = [error for error in problems if not isinstance(error, Unfit)]
    if failed and _logged.first(compiler.name):
        log.warning("%s; %s compiles kernels in its place", failed[0], compiler.name)


def find_nvcc() -> Path | None:
    """The compiler: in ``$CUDA_HOME``, on PATH, or where the toolkit puts it."""
    home = os.environ.get("CUDA_HOME")
    for path in (Path(home) / "bin" / "nvcc" if home else None, shutil.which("nvcc"), NVCC):
        if path is not None and Path(path).is_file():
            return Path(path)
    return None


def compiled(nvcc: Path, source: Path, arguments: Sequence[str]) -> tuple[bytes, str]:
    """What nvcc compiles a source to, and its output. Raises DiinnError with its first error."""
    return compiling.compiled([str(nvcc), *FLAGS, *arguments], source)


def digest(source: Path) -> str:
    """sha256 of a source and of every header beside it."""
    return compiling.digest([source, *sorted(source.parent.glob("*.h"))], FLAGS)


def version(nvcc: Path) -> str:
    """Of the toolkit, like "13.0"; empty where it is not known."""
    found = re.search(r"release (\d+\.\d+)", compiling.printed([str(nvcc), "--version"]))
    return found[1] if found else ""


def capabilities(nvcc: Path) -> list[str]:
    """Those of ``CAPABILITIES`` that a toolkit compiles for; DiinnError where there is none."""
    known = _codes(nvcc)
    found = [capability for capability in CAPABILITIES if capability.replace(".", "") in known]
    if not found:
        raise DiinnError(
            f"{nvcc} --list-gpu-code names none of {', '.join(CAPABILITIES)}: set CUDA_HOME to CUDA 11.4 or later"
        )
    return found


def _codes(nvcc: Path) -> set[str]:
    """The architectures that nvcc lists, like "87"."""
    try:
        done = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise DiinnError(f"{nvcc} does not run: {error.strerror}") from None
    return set(re.findall(r"\bsm_(\d+)\b", done.stdout))


def _kept(source: Path, capability: str, key: str) -> Path:
    return compiling.kept(source.stem, f"{digest(source)} {capability} {key}", ".cubin")


def _prebuilt(source: Path, capability: str, driver: int) -> bytes | None:
    """The fat binary of this very source, if the driver is new enough and the architecture is in it."""
    path = PREBUILT / f"{source.stem}.fatbin"
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        fits = (
            card["source"] == digest(source)
            and capability in card["capabilities"]
            and _number(card["toolkit"]) <= driver
            and card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        )
        return path.read_bytes() if fits else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _number(toolkit: str) -> int:
    major, minor = toolkit.split(".")
    return int(major) * 1000 + int(minor) * 10


def prebuild(nvcc: Path, capabilities: Sequence[str]) -> list[Path]:
    """Fat binaries of all kernels into ``PREBUILT``, each with what it was made of."""
    PREBUILT.mkdir(exist_ok=True)
    made = []
    for source in sorted(KERNELS.glob("*.cu")):
        codes = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in (c.replace(".", "") for c in capabilities)]
        data, _ = compiled(nvcc, source, ["-fatbin", *codes])
        path = PREBUILT / f"{source.stem}.fatbin"
        card = {
            "source": digest(source),
            "capabilities": [*capabilities],
            "toolkit": version(nvcc),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        path.write_bytes(data)
        path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        made.append(path)
    return made


def main() -> int:
    """``make kernels``; exit code 2 where there is no compiler, 1 where it fails."""
    nvcc = find_nvcc()
    if nvcc is None:
        print("no nvcc on PATH or in CUDA_HOME: install the CUDA toolkit", file=sys.stderr)
        return 2
    try:
        chosen = capabilities(nvcc)
        made = prebuild(nvcc, chosen)
    except DiinnError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"compute capabilities {', '.join(chosen)}, for drivers of CUDA {version(nvcc)} and later")
    for path in made:
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
