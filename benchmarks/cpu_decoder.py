"""The CPU's own decoder beside ONNX Runtime's, and beside the least time its arithmetic and sines can take.

All take turns in one process on the same threads, so that ratios hold on a noisy machine; figures are medians.
Processor time, of all threads together, says on a busy machine what each would take on a quiet one.
``diinn-bench cpu_decoder`` prints the tables of ``benchmarks/results/cpu-decoder.md``.
"""

import argparse
import ctypes
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from diinn.benchmarks.gpu_parity import decoder_model
from diinn.benchmarks.speed import Contestant, in_runtime, processor
from diinn.export import writer
from diinn.runtime.backends.base import BackendOptions
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.cpu import compiler
from diinn.runtime.geometry.grid import Size
from diinn.runtime.super_resolver import SuperResolver
from diinn.runtime.util import compiling
from diinn.runtime.util.command_line import Parser
from diinn.train import checkpoint
from rich import box
from rich.console import Console
from rich.table import Table

LR, OUT = (160, 120), (640, 480)
WIDTHS, DEPTH = (8, 16, 24, 32, 48, 64), 3
FLOOR = Path(__file__).parent / "cpu_floor.cpp"
PIECE = 8192  # queries


class Floor:
    """Runs a decoder's arithmetic and sines, in pieces, in the threads of a resolver's backend."""

    def __init__(self) -> None:
        command = [*compiler.find_compiler(), *compiler.options(), f"-I{compiler.SOURCE.parent}"]
        self._run = compiler.loaded(compiling.compiled(command, FLOOR)[0]).diinn_floor
        self._run.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong]

    def of(self, resolver: SuperResolver, out: Size) -> Contestant:
        """What ``alternate`` times: nothing to encode, then as many queries as an output of that size has."""
        width, depth = resolver.bundle.maps[0].channels, len(resolver.bundle.maps)
        pieces = [min(PIECE, out[0] * out[1] - at) for at in range(0, out[0] * out[1], PIECE)]
        in_workers = resolver.backend.in_workers
        return lambda: None, lambda _: in_workers(iter(pieces), lambda count: self._run(width, depth, count))


@dataclass(frozen=True)
class Times:
    """Medians in ms: of encoding and decoding, of both, and of the processor time that decoding takes."""

    encode: float
    decode: float
    frame: float
    processor: float


def measure(path: Path, floor: Floor, least: int, seconds: float) -> dict[str, Times]:
    """A bundle decoded by ONNX Runtime ("onnx") and the fused decoder ("fused"), and the floor ("floor")."""
    with ExitStack() as stack:
        graph, fused = (
            stack.enter_context(SuperResolver.open(path, backend="onnxruntime", provider="cpu", decoder=decoder))
            for decoder in ("onnx", "fused")
        )
        entries = {"onnx": in_runtime(graph, LR, OUT), "fused": in_runtime(fused, LR, OUT)}
        return alternate({**entries, "floor": floor.of(fused, OUT)}, least, seconds)


def alternate(entries: Mapping[str, Contestant], least: int, seconds: float) -> dict[str, Times]:
    """Each in turn, until each ran ``least`` times and ``seconds`` are over, after one round to warm up."""
    taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in entries}
    started = time.perf_counter()
    while len(taken["floor"]) <= least or time.perf_counter() - started < seconds:
        for name, (encode, decode) in entries.items():
            begin = time.perf_counter()
            encoded = encode()
            middle, before = time.perf_counter(), time.process_time()
            decode(encoded)
            used, end = time.process_time() - before, time.perf_counter()
            taken[name].append((middle - begin, end - middle, end - begin, used))
    medians = {
        name: [statistics.median(column) * 1e3 for column in zip(*rows[1:], strict=True)]
        for name, rows in taken.items()
    }
    return {name: Times(*values) for name, values in medians.items()}


def table(results: Mapping[str, Mapping[str, Times]]) -> Table:
    """A line for each model."""
    out = Table(f"{LR[0]}x{LR[1]} → {OUT[0]}x{OUT[1]}, ms", box=box.MARKDOWN)
    columns = ("decode: onnx", "fused", "ratio", "processor: onnx", "fused", "ratio", "floor", "fused / floor")
    for column in (*columns, "frame: onnx", "fused", "ratio"):
        out.add_column(column, justify="right")
    for name, found in results.items():
        graph, fused, floor = (found[form] for form in ("onnx", "fused", "floor"))
        pairs = [(getattr(graph, what), getattr(fused, what)) for what in ("decode", "processor", "frame")]
        decode, processor, frame = ([f"{a:.1f}", f"{b:.1f}", f"{a / b:.1f}"] for a, b in pairs)
        least = [f"{floor.processor:.1f}", f"{fused.processor / floor.processor:.2f}"]
        out.add_row(name, *decode, *processor, *least, *frame)
    return out


@contextmanager
def random_model(width: int) -> Iterator[Path]:
    """The bundle of a decoder ``width`` wide and ``DEPTH`` deep, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"k{width}.pth"
        checkpoint.save(path, checkpoint.Checkpoint(decoder_model("diinn", width, DEPTH), (1.0, 4.0)))
        yield writer.export(path).path


def first_use() -> tuple[float, float]:
    """Seconds to compile and load the library on a fresh machine, and from the cache."""
    before = os.environ.get("DIINN_CACHE")
    times = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DIINN_CACHE"] = str(Path(folder) / "engines")
        for _ in range(2):
            compiler.forget()
            started = time.perf_counter()
            compiler.library()
            times.append(time.perf_counter() - started)
    os.environ.pop("DIINN_CACHE")
    if before is not None:
        os.environ["DIINN_CACHE"] = before
    compiler.forget()
    return times[0], times[1]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench cpu_decoder", description=__doc__)
    top.add_argument("--widths", action="store_true", help=f"also random decoders {WIDTHS} wide, N = {DEPTH}")
    top.add_argument("--least", type=int, default=20, help="runs of each, at least (default 20)")
    top.add_argument("--seconds", type=float, default=5, help="and until so many seconds are over (default 5)")
    return top


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    logging.getLogger("diinn").setLevel(logging.ERROR)  # sizes beyond training are the exporter's own
    compile_time, load_time = first_use()
    library = compiler.library()
    where = f"{processor()}, {BackendOptions().thread_count} threads, load {os.getloadavg()[0]:.1f}"
    cost = f"{compile_time:.2f} s, from the cache in {load_time * 1e3:.1f} ms"
    print(f"{where}; {library.instructions}, {library.origin} in {cost}\n")
    floor, console = Floor(), Console(width=150)
    shipped = [name for name in bundles.shipped() if "layers.npz" in bundles.load(name).files]
    console.print(table({name: measure(bundles.find(name), floor, args.least, args.seconds) for name in shipped}))
    if args.widths:
        found = {}
        for width in WIDTHS:
            with random_model(width) as path:
                found[f"K = {width}, N = {DEPTH}"] = measure(path, floor, args.least, args.seconds)
        console.print(table(found))
    return 0
