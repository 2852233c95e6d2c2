"""Peak memory of one frame, each case in a process of its own.

The peak is VmHWM of /proc/self/status, less what is held after loading (VmRSS), less input and output.
``diinn-bench memory`` prints the table of results/speed.md.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.geometry.grid import Size
from diinn.runtime.super_resolver import SuperResolver
from diinn.runtime.util.command_line import Parser
from diinn.runtime.util.memory import MIB
from rich import box
from rich.console import Console
from rich.table import Table

RUNS = 5  # medians: a page more or less is a percent of a small figure
# (LR size, output size, dtype)
CASES: tuple[tuple[Size, Size, str], ...] = (
    ((48, 48), (256, 256), "uint8"),
    ((48, 48), (8192, 8192), "uint8"),
    ((48, 48), (256, 256), "float32"),
    ((48, 48), (8192, 8192), "float32"),
    ((160, 120), (640, 480), "uint8"),
    ((1920, 1080), (3840, 2160), "uint8"),
)


def measure(model: str, lr: Size, out: Size, dtype: str) -> dict[str, int]:
    """Bytes in this process.

    ``loaded`` (VmRSS after loading), ``peak`` (VmHWM), ``frames`` (input and output), ``working`` (peak less the two)
    """
    logging.getLogger("diinn").setLevel(logging.ERROR)
    # Noise: to render the demo's scene would leave freed memory behind that the output then reuses unseen.
    frame = np.random.default_rng(0).integers(0, 256, (lr[1], lr[0], 3), dtype=np.uint8)
    with SuperResolver.open(model) as resolver:
        loaded = status("VmRSS")
        reset_peak()
        output = resolver.resize(frame, out, dtype=np.dtype(dtype))
        peak = status("VmHWM")
    return {
        "loaded": loaded,
        "peak": peak,
        "frames": frame.nbytes + output.nbytes,
        "working": peak - loaded - output.nbytes,  # the input was made before loading ended
    }


def reset_peak() -> None:
    """Reset VmHWM to VmRSS."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def status(field: str) -> int:
    """A field of this process' status, in bytes. Linux only."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def in_own_process(model: str, lr: Size, out: Size, dtype: str) -> dict[str, int]:
    """``measure`` in a fresh process."""
    case = json.dumps([model, lr, out, dtype])
    command = [sys.executable, "-m", "diinn.benchmarks", "memory", "--case", case]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, int] = json.loads(done.stdout)
    return result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench memory", description=__doc__)
    top.add_argument("--model", default="small", help="shipped model or bundle (default: small)")
    top.add_argument("--case", help=argparse.SUPPRESS)
    return top


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.case:
        case: list[Any] = json.loads(args.case)
        print(json.dumps(measure(case[0], tuple(case[1]), tuple(case[2]), case[3])))
        return 0
    bundles.find(args.model)
    table = Table("LR → output", "dtype", "working MiB", "in all MiB", box=box.MARKDOWN)
    for lr, out, dtype in CASES:
        runs = [in_own_process(args.model, lr, out, dtype) for _ in range(RUNS)]
        working, peak = (statistics.median(r[field] for r in runs) / MIB for field in ("working", "peak"))
        table.add_row(f"{lr[0]}x{lr[1]} → {out[0]}x{out[1]}", dtype, f"{working:.1f}", f"{peak:.0f}")
    Console(width=110).print(f"\n{args.model}: peak memory of one frame, medians of {RUNS} processes\n", table)
    return 0
