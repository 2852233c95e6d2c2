"""Latency of the published form, the folded form in PyTorch, and the runtime, side by side.

The three take turns in one process on the same cores, so that their ratios hold on a noisy machine;
figures are medians. ``diinn-bench speed`` prints the tables of
``benchmarks/results/speed.md``. ``--bundle`` times bundles beside each other instead, each as the runtime chooses.
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diinn.benchmarks.networks import NAMES, Network, network
from diinn.runtime.backends.base import BackendOptions
from diinn.runtime.geometry import grid
from diinn.runtime.geometry.grid import Size
from diinn.runtime.geometry.view import View
from diinn.runtime.sources import demo
from diinn.runtime.super_resolver import Encoded, SuperResolver, encoded_at
from diinn.runtime.util.command_line import Parser
from diinn.train.published import PublishedModel
from rich import box
from rich.console import Console
from rich.table import Table

# (LR size, output size): the paper's Table 4, and a camera
CASES: tuple[tuple[Size, Size], ...] = (
    ((48, 48), (128, 128)),
    ((48, 48), (256, 256)),
    ((48, 48), (512, 512)),
    ((160, 120), (640, 480)),
)
CAMERA = CASES[-1]
FOLDED_CHUNK = 4096
Contestant = tuple[Callable[[], Any], Callable[[Any], Any]]  # encode, and decode of what it returned


@dataclass(frozen=True)
class Result:
    """Medians in milliseconds of one contestant on one case."""

    network: str
    lr: Size
    out: Size
    form: str
    encode: float
    decode: float
    total: float


def contestants(net: Network, resolver: SuperResolver, lr: Size, out: Size) -> dict[str, Contestant]:
    """The forms that are timed: each as its encoder and its decoder, on the same uint8 frame."""
    frame = demo.frame(0.0, lr)
    planes = torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    planes = net.model.with_strength(planes)
    published = PublishedModel(net.model).eval()

    def decode_folded(maps: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        flat = [m.reshape(-1, m.shape[-1]) for m in maps]
        queries = grid.resize(lr, out, net.model.decoder.layout)
        done = []
        for start in range(0, queries.count, FOLDED_CHUNK):
            index, query = queries.arrays(slice(start, min(start + FOLDED_CHUNK, queries.count)))
            rows = tuple(m.index_select(0, torch.from_numpy(index)) for m in flat)
            done.append(net.model.decode(rows, torch.from_numpy(query)))
        return done

    return {
        "published, PyTorch": (
            lambda: net.model.features(planes),
            lambda features: published.decoder(features, out[::-1]),
        ),
        "folded, PyTorch": (lambda: net.model.encode(planes), decode_folded),
        "runtime": in_runtime(resolver, lr, out),
    }


@torch.inference_mode()
def measure(net: Network, cases: Sequence[tuple[Size, Size]], least: int, seconds: float) -> list[Result]:
    """Every case: the contestants alternate until each ran ``least`` times and ``seconds`` are over."""
    results = []
    with SuperResolver.open(net.bundle, backend="onnxruntime", provider="cpu") as resolver:
        for lr, out in cases:
            for name, medians in alternate(contestants(net, resolver, lr, out), least, seconds).items():
                results.append(Result(net.name, lr, out, name, *medians))
    return results


def in_runtime(resolver: SuperResolver, lr: Size, out: Size) -> Contestant:
    """The runtime, from uint8 frame to uint8 frame."""
    frame, view = demo.frame(0.0, lr), View.resize(out)
    return lambda: resolver.encode([frame])[0], lambda encoded: resolver.decode(encoded, [view])


def alternate(entries: Mapping[str, Contestant], least: int, seconds: float) -> dict[str, tuple[float, float, float]]:
    """(encode, decode, total) medians in ms of contestants that take turns.

    Until each ran ``least`` times and ``seconds`` are over.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in entries}
    for entry in entries.values():
        _time(entry)  # warm up
    started = time.perf_counter()
    while min(map(len, times.values())) < least or time.perf_counter() - started < seconds:
        for name, entry in entries.items():
            times[name].append(_time(entry))
    medians = {}
    for name, pairs in times.items():
        encode, decode, total = (
            statistics.median(values) * 1e3
            for values in ([p[0] for p in pairs], [p[1] for p in pairs], [sum(p) for p in pairs])
        )
        medians[name] = (encode, decode, total)
    return medians


def _time(entry: Contestant) -> tuple[float, float]:
    encode, decode = entry
    start = time.perf_counter()
    encoded = encode()
    returned = time.perf_counter()
    decode(encoded)
    end = time.perf_counter()
    middle = encoded_at(returned, [encoded]) if isinstance(encoded, Encoded) else returned
    return middle - start, end - middle


def table(results: Sequence[Result]) -> Table:
    """One network's results, with how much faster each form is than the published one."""
    out = Table("LR → output", "form", "encoder ms", "decoder ms", "all ms", "frames/s", "× faster", box=box.MARKDOWN)
    for column in out.columns[2:]:
        column.justify = "right"
    for r in results:
        base = next(b for b in results if (b.lr, b.out) == (r.lr, r.out))
        out.add_row(
            f"{r.lr[0]}x{r.lr[1]} → {r.out[0]}x{r.out[1]}",
            r.form,
            f"{r.encode:.1f}",
            f"{r.decode:.1f}",
            f"{r.total:.1f}",
            f"{1e3 / r.total:.2f}",
            f"{base.total / r.total:.1f}",
        )
    return out


def bundles(models: Sequence[str], least: int, seconds: float) -> Table:
    """Bundles that take turns on a camera's frames, each with the encoder and the decoder that the runtime chooses."""
    out = Table("model", "computed by", "encoder ms", "decoder ms", "all ms", box=box.MARKDOWN)
    for column in out.columns[2:]:
        column.justify = "right"
    with ExitStack() as stack:
        resolvers = {name: stack.enter_context(SuperResolver.open(name)) for name in models}
        times = alternate({name: in_runtime(r, *CAMERA) for name, r in resolvers.items()}, least, seconds)
        for name, resolver in resolvers.items():
            out.add_row(resolver.bundle.name, resolver.backend.describe(), *(f"{t:.1f}" for t in times[name]))
    return out


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench speed", description=__doc__)
    top.add_argument("--network", choices=NAMES, action="append", help="default: all")
    top.add_argument("--bundle", nargs="+", metavar="NAME|PATH", help="shipped models or bundles in place of networks")
    top.add_argument("--least", type=int, default=3, help="runs of each form per case, at least (default 3)")
    top.add_argument("--seconds", type=float, default=10, help="and until so many seconds are over (default 10)")
    top.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    return top


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    logging.getLogger("diinn").setLevel(logging.ERROR)  # scales beyond training are the point here
    threads = BackendOptions().thread_count
    torch.set_num_threads(threads)
    print(f"{processor()}, {threads} threads, torch {torch.__version__}, NumPy {np.__version__}")
    console = Console(width=150)
    if args.bundle:
        lr, out = CAMERA
        print(f"\n{lr[0]}x{lr[1]} → {out[0]}x{out[1]}, uint8 to uint8\n")
        console.print(bundles(args.bundle, args.least, args.seconds))
        return 0
    everything = []
    for name in args.network or NAMES:
        with network(name) as net:
            results = measure(net, CASES, args.least, args.seconds)
        encoder, decoder = net.model.config.encoder, net.model.config.decoder
        parameters = sum(p.numel() for p in net.model.parameters())
        print(f"\n{name}: {encoder.name}, {decoder.name} of width {decoder.width}, {parameters:,} parameters\n")
        console.print(table(results))
        everything += results
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(r) for r in everything], indent=1) + "\n", encoding="utf-8")
    return 0


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"
