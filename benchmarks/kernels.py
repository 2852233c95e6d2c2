"""The CUDA kernels as compiled: registers, shared memory, spills, and the occupancy that follows.

No GPU is needed: ``diinn-bench kernels`` compiles every kernel for every architecture.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diinn.runtime.backends import fused as fused_backend
from diinn.runtime.errors import InputError
from diinn.runtime.gpu import compiler
from diinn.runtime.util.command_line import Parser, check_output
from rich import box
from rich.console import Console
from rich.table import Table

DEPTH = 4  # N of the fused kernels' shared memory
REGISTERS = 65536  # of a multiprocessor, on all of these
# Of a multiprocessor and of a block, KiB of shared memory; warps of a multiprocessor (CUDA programming guide, compute
# capabilities). Each block costs 1 KiB of its own from 8.0 on.
LIMITS = {
    "7.5": (64, 64, 32),
    "8.0": (164, 163, 64),
    "8.6": (100, 99, 48),
    "8.7": (164, 163, 48),
    "8.9": (100, 99, 48),
    "9.0": (228, 227, 64),
    "11.0": (228, 227, 48),
    "12.0": (100, 99, 48),
}


@dataclass(frozen=True)
class Row:
    """One kernel on one architecture.

    shared: bytes a block; spills: bytes; warps: at once on a multiprocessor, of ``most``
    """

    kernel: str
    capability: str
    registers: int
    shared: int
    spills: int
    warps: int
    most: int


def rows(source: Path, capability: str, nvcc: Path) -> Iterator[Row]:
    """A row for each kernel in a source."""
    _, text = compiler.compiled(nvcc, source, ["-cubin", f"-arch=sm_{capability.replace('.', '')}", "-Xptxas", "-v"])
    found = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", text, re.S
    )
    per_sm, per_block, most = LIMITS[capability]
    for kernel, stores, loads, registers in sorted(found):
        warps, shared = 8, 0
        fused = re.fullmatch(r"fused_(\d+)_(\w+)", kernel)
        if fused:
            try:
                plan = fused_backend.plan(int(fused[1]), DEPTH, per_block * 1024)
            except InputError:
                continue
            if plan.kernel != kernel:
                continue  # another form of it is used here
            warps, shared = plan.warps, plan.shared
        blocks = min(most // warps, REGISTERS // (-(-int(registers) * 32 // 256) * 256 * warps))
        if shared:
            blocks = min(blocks, per_sm * 1024 // (shared + 1024 * (capability != "7.5")))
        yield Row(kernel, capability, int(registers), shared, int(stores) + int(loads), blocks * warps, most)


def table(found: Sequence[Row]) -> Table:
    """A row per kernel and architecture."""
    heads = ("kernel", "compute capability", "registers", "shared memory, KiB", "spilt bytes", "warps at once")
    out = Table(*heads, box=box.MARKDOWN)
    for row in found:
        figures = (str(row.registers), f"{row.shared / 1024:g}", str(row.spills), f"{row.warps} of {row.most}")
        out.add_row(row.kernel, row.capability, *figures)
    return out


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench kernels", description=__doc__)
    top.add_argument("--out", type=Path, metavar="FILE.md", help="write the table there")
    return top


def run(args: argparse.Namespace) -> int:
    """Compile, read, print."""
    check_output(args.out)
    nvcc = compiler.find_nvcc()
    if nvcc is None:
        raise InputError("no nvcc on PATH or in CUDA_HOME: install the CUDA toolkit")
    found = [
        row
        for source in sorted(compiler.FOLDER.glob("*.cu"))
        for capability in compiler.capabilities(nvcc)
        for row in rows(source, capability, nvcc)
    ]
    found.sort(key=lambda row: (row.kernel, compiler.CAPABILITIES.index(row.capability)))
    head = f"nvcc {compiler.version(nvcc)}, {' '.join(compiler.FLAGS)}; the fused decoder with N = {DEPTH} layers.\n"
    print(head)
    Console(width=160).print(table(found))
    if args.out is not None:
        with args.out.open("w", encoding="utf-8") as file:
            file.write("# The kernels as compiled\n\n`diinn-bench kernels --out FILE.md`; no GPU is needed.\n\n")
            file.write(head + "\n")
            Console(file=file, width=160).print(table(found))
    return int(any(row.spills for row in found))
