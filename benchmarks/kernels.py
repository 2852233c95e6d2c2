"""The CUDA kernels as compiled: registers, shared memory, spills, occupancy; the fused decoder's instructions a tile.

No GPU is needed: ``diinn-bench kernels`` compiles every kernel for every architecture. ``--sources`` takes the kernels
of another commit: ``git archive COMMIT runtime/gpu/kernels``.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diinn.benchmarks import sass, tile_path
from diinn.runtime.errors import InputError
from diinn.runtime.gpu import compiler, decoder
from diinn.runtime.util.command_line import Parser, check_output
from rich import box
from rich.console import Console
from rich.table import Table

DEPTH = 4  # N of the fused kernels' shared memory and instructions
TILE = "8.7"  # what instructions are counted for: an Orin
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
    "10.0": (228, 227, 64),
    "10.3": (228, 227, 64),
    "11.0": (228, 227, 48),
    "12.0": (100, 99, 48),
    "12.1": (100, 99, 48),
}


TILES = f"""
Instructions of one warp for a tile of 32 queries, compute capability {TILE}, by the longest way through the machine
code, each loop as often as it runs; where a bundle does not say that arguments of sines are small, ``_reduced`` runs.
"""


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
        fused = re.fullmatch(r"fused_(\d+)_(\w+?)(_reduced)?", kernel)
        if fused:
            try:
                plan = decoder.plan(int(fused[1]), DEPTH, per_block * 1024, reduced=fused[3] is not None)
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


def tiles(source: Path, nvcc: Path, disassembler: Path) -> dict[str, dict[str, float]]:
    """Instructions of a warp for one tile of 32 queries, by kind, of each fused kernel on ``TILE``."""
    code, _ = compiler.compiled(nvcc, source, ["-cubin", f"-arch=sm_{TILE.replace('.', '')}"])
    found = sass.functions(disassembler, code)
    made = {}
    for kernel in sorted((name for name in found if name.startswith("fused_")), key=_width):
        warps = decoder.WARPS[_width(kernel)[0]][0]
        made[kernel] = sass.by_kind(tile_path.instructions(kernel, found[kernel], DEPTH, warps))
    return made


def _width(kernel: str) -> tuple[int, str]:
    _, width, form = kernel.split("_", 2)
    return int(width), form


def tile_table(found: dict[str, dict[str, float]]) -> Table:
    """A row per kernel: all instructions, then each kind."""
    out = Table("kernel", "instructions", *sass.KINDS, sass.INTEGER, box=box.MARKDOWN)
    for kernel, kinds in found.items():
        out.add_row(kernel, f"{sum(kinds.values()):.0f}", *(f"{n:.0f}" for n in kinds.values()))
    return out


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench kernels", description=__doc__)
    top.add_argument("--sources", type=Path, default=compiler.KERNELS, metavar="FOLDER", help="other kernels than ours")
    top.add_argument("--out", type=Path, metavar="FILE.md", help="write the table there")
    return top


def run(args: argparse.Namespace) -> int:
    """Compile, read, print."""
    check_output(args.out)
    nvcc = compiler.find_nvcc()
    if nvcc is None:
        raise InputError("no nvcc on PATH or in CUDA_HOME: install the CUDA toolkit")
    sources = sorted(args.sources.glob("*.cu"))
    if not sources:
        raise InputError(f"{str(args.sources)!r} holds no .cu files: give a folder of kernels")
    found = [
        row
        for source in sources
        for capability in compiler.capabilities(nvcc)
        for row in rows(source, capability, nvcc)
    ]
    found.sort(key=lambda row: (row.kernel, compiler.CAPABILITIES.index(row.capability)))
    head = f"nvcc {compiler.version(nvcc)}, {' '.join(compiler.FLAGS)}; the fused decoder with N = {DEPTH} layers.\n"
    parts: list[str | Table] = [head, table(found)]
    disassembler = sass.find_disassembler(nvcc)
    if disassembler is None:
        print("no nvdisasm: pip install nvidia-cuda-nvdisasm to count instructions", file=sys.stderr)
    for source in sources:
        if disassembler and source.stem == "fused_decoder":
            parts += [TILES, tile_table(tiles(source, nvcc, disassembler))]
    for part in parts:
        Console(width=160).print(part)
    if args.out is not None:
        with args.out.open("w", encoding="utf-8") as file:
            file.write("# The kernels as compiled\n\n`diinn-bench kernels --out FILE.md`; no GPU is needed.\n\n")
            for part in parts:
                Console(file=file, width=160).print(part)
    return int(any(row.spills for row in found))
