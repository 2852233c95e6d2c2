"""The fused decoder on a GPU: is it right, and how fast is it beside PyTorch and beside what the card allows.

One command settles what only a GPU can: ``python -m diinn.benchmarks.gpu --out benchmarks/results/gpu.md``. It compares
the kernel of every width with ONNX Runtime on the CPU, runs the compute sanitizer over it, then times decoders alone:
published form in fp32, folded form in fp16 with torch.compile, ours; maps and features are random, and more of them
than the L2 cache holds take turns. ``--skip`` leaves parts out.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diinn.benchmarks.roofline import HALF, Card, Work
from diinn.benchmarks.speed import CASES
from diinn.export import graphs, writer
from diinn.runtime import cuda as devices
from diinn.runtime import grid
from diinn.runtime.backends.cuda import WIDTHS, FusedDecoder
from diinn.runtime.backends.on_device import SEGMENT, Buffers, DeviceMaps, ViewTables
from diinn.runtime.command import Parser, check_output, guarded
from diinn.runtime.errors import DiinnError
from diinn.runtime.grid import Size
from diinn.runtime.resolver import SuperResolver
from diinn.runtime.view import View
from diinn.train import checkpoint
from diinn.train.config import parse
from diinn.train.decoders import Decoder
from diinn.train.model import ModelConfig, SuperResolutionModel
from diinn.train.published import PublishedModel
from rich import box
from rich.console import Console
from rich.table import Table

PARTS = ("check", "sanitize", "time")
ROBOTS = (((320, 240), (1280, 960), 1), ((160, 120), (640, 480), 4))
Cell = tuple[Size, Size, int]  # LR, output, cameras
CELLS: tuple[Cell, ...] = (*((lr, out, 1) for lr, out in CASES), *ROBOTS)
CACHE_BYTES = 2**27  # of maps that take turns: more than any L2
TOLERANCE = 0.03


# Right


@dataclass(frozen=True)
class Parity:
    """One decoder: the largest, the 99.9th percentile and rms of the difference to the CPU, units of [0, 1]."""

    width: int
    depth: int
    kernel: str
    largest: float
    percentile: float
    rms: float

    @property
    def good(self) -> bool:
        return self.percentile <= TOLERANCE / 3 and self.largest <= 3 * TOLERANCE


def decoder_model(name: str, width: int, depth: int) -> SuperResolutionModel:
    """A compact encoder of 64 channels, as wide as RDN's features, and a decoder with random weights."""
    torch.manual_seed(0)
    settings = {"name": name, "width": width} | ({} if name == "metasr" else {"depth": depth})
    values = {"encoder": {"name": "compact", "channels": 64, "blocks": 1}, "decoder": settings}
    return SuperResolutionModel(parse(ModelConfig, values, name)).eval()


def check(widths: Sequence[int], depths: Sequence[int]) -> Iterator[Parity]:
    """Every width and depth: odd sizes, a rectangle, a map, several cameras at once, in memory full of NaN."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(-3, 40, 83), np.linspace(-2, 27, 61))
    views = [
        View.resize((131, 77)),
        View.roi((3.25, 1.5, 20.5, 17), (97, 64)),
        View.remap(x.astype(np.float32), y.astype(np.float32), border_value=0.5),
    ]
    for width in widths:
        for depth in depths:
            with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
                path = Path(folder) / "random.pth"
                checkpoint.save(path, checkpoint.Checkpoint(decoder_model("diinn", width, depth), (1.0, 4.0)))
                bundle = writer.export(path).path
                cpu, gpu = (
                    stack.enter_context(SuperResolver.open(bundle, backend=name, check=False))
                    for name in ("onnxruntime", "cuda")
                )
                frames = [rng.integers(0, 256, (25, 37, 3)).astype(np.uint8) for _ in range(3)]
                gaps = []
                for mine, other in zip(gpu.encode(frames), cpu.encode(frames), strict=True):
                    gpu.backend.poison()  # type: ignore[attr-defined]
                    found, wanted = (r.decode(e, views, dtype=np.float32) for r, e in ((gpu, mine), (cpu, other)))
                    gaps += [np.abs(a - b).ravel() for a, b in zip(found, wanted, strict=True)]
                gap = np.nan_to_num(np.concatenate(gaps), nan=np.inf)
                rms = float(np.sqrt(np.mean(gap**2)))
                percentile = float(np.quantile(gap, 0.999, method="higher"))
                kernel = gpu.backend.describe().split(", ")[1]
                yield Parity(width, depth, kernel, float(gap.max()), percentile, rms)


def sanitize(width: int) -> dict[str, str]:
    """What compute-sanitizer says of ``check``, by tool."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"compute-sanitizer": "not installed"}
    said = {}
    for tool in ("memcheck", "racecheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "diinn.benchmarks.gpu"]
        command += ["--widths", str(width), "--skip", "sanitize", "time"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        summary = [line for line in (done.stdout + done.stderr).splitlines() if "SUMMARY" in line]
        said[tool] = f"{' '.join(summary[-1:]).strip('= ') or 'no summary'} (exit code {done.returncode})"
    return said


# Fast


@dataclass(frozen=True)
class Time:
    """Median milliseconds of one form of a decoder in one cell, and what it computes and moves at least."""

    cell: str
    decoder: str
    form: str
    milliseconds: float
    work: Work


def card(device: torch.device) -> Card:
    """Measure; on a CPU, for trying this script, too."""
    n = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(n, n, device=device, dtype=torch.float16) for _ in range(2))
    copied = torch.empty(2**28 if device.type == "cuda" else 2**20, device=device, dtype=torch.uint8)
    matrix = 2 * n**3 / (_median(device, [lambda: torch.mm(a, b)], 20) / 1e3)
    bandwidth = 2 * copied.numel() / (_median(device, [copied.clone], 20) / 1e3)
    if device.type != "cuda":
        return Card(matrix, bandwidth, 1, 1e9)
    found = torch.cuda.get_device_properties(device)
    return Card(matrix, bandwidth, found.multi_processor_count, found.clock_rate * 1e3)


def _median(device: torch.device, works: Sequence[Callable[[], Any]], repeats: int) -> float:
    """Milliseconds on the device; ``works`` take turns."""
    for work in works[:3]:
        work()
    times = []
    for i in range(repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            works[i % len(works)]()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            began = time.perf_counter()
            works[i % len(works)]()
            times.append((time.perf_counter() - began) * 1e3)
    return float(np.median(times))


def in_torch(
    model: SuperResolutionModel, cell: Cell, device: torch.device, repeats: int, *, compiled: bool
) -> Iterator[tuple[str, float]]:
    """Form and median milliseconds: published in fp32, folded in fp16."""
    lr, out, cameras = cell
    model = model.to(device)
    features = torch.rand(cameras, 64, lr[1], lr[0], device=device)
    with torch.inference_mode(), device:  # their coordinates are made on the device, too
        published = PublishedModel(model).decoder
        yield "published, fp32, eager", _median(device, [lambda: published(features, out[::-1])], repeats)
        yield "folded, fp16, compiled", _folded(model, cell, device, repeats, compiled)


def _folded(model: SuperResolutionModel, cell: Cell, device: torch.device, repeats: int, compiled: bool) -> float:
    lr, out, cameras = cell
    decoder: Decoder = model.decoder.half()
    index, query = grid.resize(lr, out, decoder.layout).arrays()
    rows = torch.from_numpy(index).to(device).long()
    rows = torch.cat([rows + i * lr[0] * lr[1] for i in range(cameras)])
    asked = torch.from_numpy(query).to(device).half().repeat(cameras, 1)
    pixels = cameras * lr[0] * lr[1]
    each = 2 * pixels * sum(decoder.map_channels)
    sets = [
        [torch.rand(pixels, channels, device=device, dtype=torch.float16) for channels in decoder.map_channels]
        for _ in range(_turns(each))
    ]

    def decode(maps: list[torch.Tensor]) -> torch.Tensor:
        return decoder(tuple(m.index_select(0, rows) for m in maps), asked)  # type: ignore[no-any-return]

    run = torch.compile(decode) if compiled else decode
    return _median(device, [lambda maps=maps: run(maps) for maps in sets], repeats)  # type: ignore[misc]


def _turns(size: int) -> int:
    """Sets of maps of so many bytes that take turns."""
    return min(16, max(2, -(-CACHE_BYTES // size))) if torch.cuda.is_available() else 1


def ours(width: int, depth: int, cell: Cell, repeats: int) -> float:
    """Median milliseconds of the fused kernel, from maps to uint8 BGR."""
    lr, out, cameras = cell
    model = decoder_model("diinn", width, depth)
    layers = graphs.layers(model)
    assert layers is not None
    device = devices.Device()
    try:
        decoder, buffers = FusedDecoder(device, layers), Buffers(device)
        queries = grid.resize(lr, out)
        fields = ViewTables(device, buffers, queries)
        pixels = cameras * lr[0] * lr[1]
        count = cameras * queries.count
        made = np.random.default_rng(0).uniform(0, 1, pixels * width).astype(np.float16)
        sets = []
        for _ in range(_turns(2 * pixels * width * depth)):
            maps = DeviceMaps(buffers, [made.nbytes] * depth)
            for address in maps.addresses:
                device.upload(address, made)
            device.upload(maps.table, np.array(maps.addresses, np.uint64))
            device.wait()
            sets.append(maps)
        table = np.zeros(cameras, SEGMENT)
        pictures = device.allocate(3 * count)
        for i, row in enumerate(table):
            for name, value in fields.fields.items():
                row[name] = value
            row["start"], row["offset"], row["bytes"] = i * queries.count, i * lr[0] * lr[1], 1
            row["out"] = pictures + 3 * i * queries.count
        at = device.allocate(table.nbytes)
        device.upload(at, table)
        works = [lambda maps=maps: decoder.decode(maps.table, count, cameras, at) for maps in sets]
        device.milliseconds(works, 3)
        found = float(np.median(device.milliseconds(works, repeats)))
        buffers.close()
        return found
    finally:
        device.close()


def times(args: argparse.Namespace) -> Iterator[Time]:
    """Every cell, decoder and form."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for cell in CELLS:
        (w, h), (out_w, out_h), cameras = cell
        name = f"{f'{cameras} x ' if cameras > 1 else ''}{w}x{h} → {out_w}x{out_h}"
        queries, pixels = cameras * out_w * out_h, cameras * w * h
        kinds = [("diinn", width) for width in args.widths] + [("liif", args.widths[-1]), ("metasr", args.widths[-1])]
        for kind, width in kinds:
            model = decoder_model(kind, width, args.depth)
            decoder = model.decoder
            flop = 2.0 * decoder.multiply_adds * queries
            sines = float(args.depth * width * queries) if kind == "diinn" else 0.0
            moved = float(pixels * sum(decoder.map_channels) * HALF + 3 * queries)
            work, label = Work(flop, sines, moved), f"{kind} {width}"
            for form, found in in_torch(model, cell, device, args.repeats, compiled=not args.no_compile):
                yield Time(name, label, form, found, work)
            if kind == "diinn" and width in WIDTHS:
                yield Time(name, label, "fused kernel", ours(width, args.depth, cell, args.repeats), work)


def time_table(found: Sequence[Time], measured: Card) -> Table:
    """A row per cell, decoder and form; floors where it is the fused kernel."""
    heads = ("cell", "decoder", "form", "decode ms", "× published", "TFLOP/s", "of matrix rate", "floor ms", "bound by")
    out = Table(*heads, "of floor", box=box.MARKDOWN)
    slow = {(row.cell, row.decoder): row.milliseconds for row in found if row.form.startswith("published")}
    for row in found:
        rate = row.work.flop / (row.milliseconds / 1e3)
        floors = measured.floors(row.work)
        bound = max(floors, key=lambda name: floors[name])
        facts = (
            (f"{rate / 1e12:.1f}", f"{rate / measured.matrix:.1%}")
            if row.form != "published, fp32, eager"
            else ("", "")
        )
        least = (f"{floors[bound]:.3f}", bound, f"{floors[bound] / row.milliseconds:.0%}")
        faster = f"{slow[row.cell, row.decoder] / row.milliseconds:.1f}"
        out.add_row(row.cell, row.decoder, row.form, f"{row.milliseconds:.3f}", faster, *facts, *least)
    return out


def parity_table(found: Sequence[Parity]) -> Table:
    """A row per decoder."""
    out = Table("K", "N", "kernel", "largest", "99.9 %", "rms", "", box=box.MARKDOWN)
    for row in found:
        figures = (f"{row.largest:.1e}", f"{row.percentile:.1e}", f"{row.rms:.1e}")
        out.add_row(str(row.width), str(row.depth), row.kernel, *figures, "right" if row.good else "WRONG")
    return out


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="python -m diinn.benchmarks.gpu", description=__doc__)
    top.add_argument("--skip", nargs="+", choices=PARTS, default=[], help="parts to leave out")
    top.add_argument("--widths", nargs="+", type=int, choices=WIDTHS, default=[32, 64, 256], metavar="K")
    top.add_argument("--depth", type=int, default=4, metavar="N", help="layers of what is timed (default 4)")
    top.add_argument("--repeats", type=int, default=50, help="runs of each form (default 50)")
    top.add_argument("--no-compile", action="store_true", help="run the folded form without torch.compile")
    top.add_argument("--out", type=Path, metavar="FILE.md", help="write the tables there")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 1 where a result is wrong, 2 without a GPU."""
    args = parser().parse_args(argv)
    return guarded("gpu", "pip install 'diinn[gpu,train,export]'", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Check, sanitize, time; what was found is printed and kept, however it ends."""
    check_output(args.out)
    device = devices.Device()
    name = f"{device.name}, compute capability {device.capability}"
    device.close()
    tables: list[Any] = [f"{name}, {time.strftime('%Y-%m-%d', time.gmtime())}."]
    wrong = False
    try:
        if "check" not in args.skip:
            rows = list(check(args.widths if args.skip else WIDTHS, (2, args.depth)))
            wrong = not all(row.good for row in rows)
            tables += ["Difference to ONNX Runtime on the CPU (fp32), units of [0, 1]:", parity_table(rows)]
        if "sanitize" not in args.skip:
            tables += [f"{tool}: {said}" for tool, said in sanitize(args.widths[0]).items()]
        if "time" not in args.skip:
            measured, found = card(torch.device("cuda" if torch.cuda.is_available() else "cpu")), []
            tables.append(
                f"Measured: {measured.matrix / 1e12:.0f} TFLOP/s of fp16 matrix products, "
                f"{measured.bandwidth / 1e12:.2f} TB/s copied."
            )
            try:
                for row in times(args):
                    found.append(row)
            finally:
                tables.append(time_table(found, measured))
    except DiinnError as error:
        wrong = True
        tables.append(f"ended by an error: {error}")
    finally:
        with ExitStack() as stack:
            kept = [] if args.out is None else [stack.enter_context(args.out.open("w", encoding="utf-8"))]
            for file in (sys.stdout, *kept):
                for part in tables:
                    Console(file=file, width=200).print(part, "\n")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
