"""TensorRT engines of any models, side by side: built, compared with the CPU, timed, in one table.

``diinn-bench engines small paper liif.diinn``, on a machine with TensorRT; ``paper`` is the paper's
network with random weights. ``--out`` keeps table and log.
"""

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from diinn.benchmarks import networks, speed
from diinn.runtime.backends.tensorrt import TensorRtBackend
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.cli import build as build_command
from diinn.runtime.engines import build, profiles
from diinn.runtime.engines.cache import EngineMetadata
from diinn.runtime.errors import DiinnError
from diinn.runtime.geometry.grid import Size
from diinn.runtime.super_resolver import SuperResolver
from diinn.runtime.util.command_line import Parser, check_output
from rich import box
from rich.console import Console
from rich.table import Table

SIZES: tuple[Size, ...] = ((160, 120), (48, 48), (320, 240))
CASES: tuple[tuple[Size, Size], ...] = (*speed.CASES, ((320, 240), (1280, 960)))


@dataclass(frozen=True)
class Result:
    """One model in one precision: its engines and times, or what failed.

    times: medians in ms by case: encode, decode, total, and the total with CUDA graphs
    """

    model: str
    precision: str
    engines: Sequence[EngineMetadata] = ()
    times: Sequence[tuple[float, float, float, float]] = ()
    failed: str = ""


def measure(model: str, bundle: bundles.Bundle, precision: str, options: build.BuildOptions, seconds: float) -> Result:
    """Build the engines, compare them, time them from uint8 frame to uint8 frame."""
    try:
        jobs = profiles.engines(bundle, profiles.encoder(bundle, SIZES))
        build_command.build_engines(bundle, precision, jobs, options)
        with (
            SuperResolver.open(bundle.path, backend="tensorrt", precision=precision, cuda_graphs=False) as plain,
            SuperResolver.open(bundle.path, backend="tensorrt", precision=precision, cuda_graphs=True) as replayed,
        ):
            assert isinstance(plain.backend, TensorRtBackend)
            engines, times = plain.backend.metadata, []
            for case in CASES:
                both = {"plain": plain, "replayed": replayed}
                found = speed.alternate({n: speed.in_runtime(r, *case) for n, r in both.items()}, 10, seconds)
                times.append((*found["plain"], found["replayed"][2]))
    except DiinnError as error:
        return Result(model, precision, failed=str(error))
    return Result(model, precision, engines, times)


@contextmanager
def opened(model: str) -> Iterator[bundles.Bundle]:
    """A bundle by name or path, or the paper's network made into one."""
    if model != "paper":
        yield bundles.load(model)
        return
    with networks.network(model) as net:
        yield bundles.load(net.bundle)


def table(results: Sequence[Result]) -> Table:
    """A row per model, precision and case."""
    heads = ("model", "precision", "LR → output", "encode ms", "decode ms", "all ms", "with CUDA graphs", "frames/s")
    out = Table(*heads, "build s", "engines MB", "compared with the CPU", box=box.MARKDOWN)
    for result in results:
        if result.failed:
            out.add_row(result.model, result.precision, *[""] * 8, result.failed)
            continue
        seconds, size = sum(e.seconds for e in result.engines), sum(e.size for e in result.engines)
        facts = (f"{seconds:.0f}", f"{size / 1e6:.1f}", str(result.engines[0].verify["summary"]))
        for (lr, dsize), (encode, decode, total, replayed) in zip(CASES, result.times, strict=True):
            case = f"{lr[0]}x{lr[1]} → {dsize[0]}x{dsize[1]}"
            figures = (f"{encode:.2f}", f"{decode:.2f}", f"{total:.2f}", f"{replayed:.2f}", f"{1e3 / total:.1f}")
            out.add_row(result.model, result.precision, case, *figures, *facts)
            facts = ("", "", "")
    return out


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench engines", description=__doc__)
    top.add_argument("model", nargs="+", metavar="MODEL", help="a bundle, a shipped model's name, or paper")
    top.add_argument("--precision", nargs="+", choices=build_command.PRECISIONS, default=["fp32", "fp16"])
    top.add_argument("--tacticSources", metavar="NAMES", help="as diinn-build takes it")
    top.add_argument("--seconds", type=float, default=2, help="how long each case is timed (default 2)")
    top.add_argument("--out", type=Path, metavar="FILE.md", help="write table and log there")
    return top


def run(args: argparse.Namespace) -> int:
    """Build, compare, time, print; what was measured is written even after an error."""
    check_output(args.out)
    began, kept = time.time(), _Kept()
    logging.getLogger("diinn").setLevel(logging.INFO)
    logging.getLogger("diinn").addHandler(kept)
    library, results = build.tensorrt(), []
    options = build.BuildOptions(tactics=build_command.tactics(args.tacticSources), force=True)
    with ExitStack() as stack:
        found = [(Path(model).stem, stack.enter_context(opened(model))) for model in args.model]
        try:
            for name, bundle in found:
                for precision in args.precision:
                    results.append(measure(name, bundle, precision, options, args.seconds))
        finally:
            device = next((e.key.identity.device for r in results for e in r.engines), "no device")
            head = f"TensorRT {library.__version__}, {device}, {time.strftime('%Y-%m-%d', time.gmtime(began))}.\n"
            print(head)
            Console(width=300).print(table(results))
            if args.out is not None:
                with args.out.open("w", encoding="utf-8") as file:
                    file.write(head + "\n")
                    Console(file=file, width=300).print(table(results))
                    file.write("\n```\n" + "\n".join(kept.lines) + "\n```\n")
    return int(any(result.failed for result in results))


class _Kept(logging.Handler):
    """Keeps log lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
