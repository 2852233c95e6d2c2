"""The fused decoder on a GPU: whether it is right, and its speed beside PyTorch's and the card's limits.

``diinn-bench gpu --out benchmarks/results/gpu.md`` runs all that needs a GPU. It compares the kernel of
every width with ONNX Runtime on the CPU, runs the compute sanitizer over it, then times decoders alone: published form
in fp32, folded form in fp16 with torch.compile, ours; maps and features are random, and more of them than the L2 cache
holds take turns. At last it times whole frames, copied to and from the GPU or left in the host's memory, without and
with CUDA graphs. ``--skip`` leaves parts out.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from diinn.benchmarks import gpu_copies
from diinn.benchmarks.gpu_parity import Parity, check, decoder_model, parity_table, sanitize
from diinn.benchmarks.roofline import HALF, Card, Work
from diinn.benchmarks.speed import CASES
from diinn.export import graphs
from diinn.runtime.errors import DiinnError
from diinn.runtime.geometry import grid
from diinn.runtime.geometry.grid import Size
from diinn.runtime.geometry.segments import SEGMENT
from diinn.runtime.gpu import device as devices
from diinn.runtime.gpu.decoder import WIDTHS, FusedDecoder
from diinn.runtime.gpu.memory import Buffers, DeviceMaps
from diinn.runtime.gpu.segments import ViewTables
from diinn.runtime.util.command_line import Parser, check_output
from diinn.train.decoders import Decoder
from diinn.train.model import SuperResolutionModel
from diinn.train.published import PublishedModel
from rich import box
from rich.console import Console
from rich.table import Table

PARTS = ("check", "sanitize", "time", "copies")
ROBOTS = (((320, 240), (1280, 960), 1), ((160, 120), (640, 480), 4))
Cell = tuple[Size, Size, int]  # LR, output, cameras
CELLS: tuple[Cell, ...] = (*((lr, out, 1) for lr, out in CASES), *ROBOTS)
CACHE_BYTES = 2**27  # of maps that take turns: more than any L2
FUSED = "fused kernel"
PUBLISHED = "published, fp32, eager"
BUSY_CYCLES = 200_000_000  # a tenth of a second


@dataclass(frozen=True)
class Time:
    """Median milliseconds of one form of a decoder in one cell, and the least work it must do."""

    cell: str
    decoder: str
    form: str
    milliseconds: float
    work: Work


def card(device: torch.device) -> Card:
    """Measure the card; works on a CPU too, to try this script."""
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
    """Median milliseconds on the device; ``works`` take turns.

    The device is kept busy while the first are queued, so that launching them costs nothing.
    """
    for work in works[:3]:
        work()
    if device.type != "cuda":
        return statistics.median(_wall(works[i % len(works)]) for i in range(repeats))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)  # type: ignore[no-untyped-call]
    for i, (begin, end) in enumerate(events):
        begin.record()
        works[i % len(works)]()
        end.record()
    torch.cuda.synchronize()
    return float(statistics.median(begin.elapsed_time(end) for begin, end in events))


def _wall(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def in_torch(
    model: SuperResolutionModel, cell: Cell, device: torch.device, repeats: int, *, compiled: bool
) -> Iterator[tuple[str, float]]:
    """Form and median milliseconds: published in fp32 without and with TF32, folded in fp16."""
    lr, out, cameras = cell
    model = model.to(device)
    features = torch.rand(cameras, 64, lr[1], lr[0], device=device)
    with torch.inference_mode(), device:  # their coordinates are made on the device, too
        published = PublishedModel(model).decoder
        for name, allowed in ((PUBLISHED, False), ("published, TF32, eager", True)):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
            yield name, _median(device, [lambda: published(features, out[::-1])], repeats)
        yield "folded, fp16, compiled", _folded(model, cell, device, repeats, compiled)


def _folded(model: SuperResolutionModel, cell: Cell, device: torch.device, repeats: int, compiled: bool) -> float:
    lr, out, cameras = cell
    decoder: Decoder = model.decoder.half()
    index, query = grid.resize(lr, out, decoder.layout).arrays()
    rows = torch.from_numpy(index).to(device).long()
    rows = torch.cat([rows + i * lr[0] * lr[1] for i in range(cameras)])
    queries = torch.from_numpy(query).to(device).half().repeat(cameras, 1)
    pixels = cameras * lr[0] * lr[1]
    each = 2 * pixels * sum(decoder.map_channels)
    sets = [
        [torch.rand(pixels, channels, device=device, dtype=torch.float16) for channels in decoder.map_channels]
        for _ in range(_turns(each))
    ]

    def decode(maps: list[torch.Tensor]) -> torch.Tensor:
        return decoder(tuple(m.index_select(0, rows) for m in maps), queries)  # type: ignore[no-any-return]

    torch._dynamo.reset()  # else the ninth shape runs eager
    run = torch.compile(decode, dynamic=False, fullgraph=True) if compiled else decode
    return _median(device, [lambda maps=maps: run(maps) for maps in sets], repeats)  # type: ignore[misc]


def _turns(size: int) -> int:
    """Sets of maps of so many bytes that take turns."""
    return min(256, max(2, -(-CACHE_BYTES // size))) if torch.cuda.is_available() else 1


def ours(width: int, depth: int, cell: Cell, repeats: int) -> float:
    """Median milliseconds of the fused kernel, from maps to uint8 BGR, all cameras in one launch."""
    lr, out, cameras = cell
    model = decoder_model("diinn", width, depth)
    layers = graphs.layers(model)
    assert layers is not None
    layers["largest_argument"] = np.float32(1)  # as the shipped models': sines are not reduced
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

        def once() -> None:
            for maps in sets:
                decoder.decode(maps.table, count, cameras, at)

        once()
        device.wait()
        replay = device.capture(once)  # launching costs nothing then
        found = statistics.median(device.milliseconds([replay], repeats)) / len(sets)
        buffers.close()
        return found
    finally:
        device.close()


def times(args: argparse.Namespace) -> Iterator[Time | str]:
    """Every cell, decoder and form; a message for what failed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for cell in CELLS[: args.cells]:
        (w, h), (out_w, out_h), cameras = cell
        name = f"{f'{cameras} x ' if cameras > 1 else ''}{w}x{h} → {out_w}x{out_h}"
        queries, pixels = cameras * out_w * out_h, cameras * w * h
        kinds = [("diinn", width) for width in args.widths] + [("liif", args.widths[-1]), ("metasr", args.widths[-1])]
        for kind, width in kinds:
            model = decoder_model(kind, width, args.depth)
            sines = float(args.depth * width * queries) if kind == "diinn" else 0.0
            moved = float(pixels * sum(model.decoder.map_channels) * HALF + 3 * queries)
            work, label = Work(2.0 * model.decoder.multiply_adds * queries, sines, moved), f"{kind} {width}"
            try:
                for form, found in in_torch(model, cell, device, args.repeats, compiled=not args.no_compile):
                    yield Time(name, label, form, found, work)
            except Exception as error:  # torch and its compiler raise any type; the others go on
                yield f"{name}, {label}: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            if kind == "diinn" and width in WIDTHS:
                yield Time(name, label, FUSED, ours(width, args.depth, cell, args.repeats), work)


def aims(found: Sequence[Time], measured: Card) -> list[str]:
    """The aims of the fused kernel with the paper's N = 4, on outputs of 512x512 or more: met or missed."""
    known = {(row.cell, row.decoder, row.form): row for row in found}
    lines = []
    for row in found:
        pixels = np.prod([int(n) for n in row.cell.split("→ ")[1].split("x")])
        if row.form != FUSED or pixels < 512 * 512:
            continue
        share = row.work.flop / (row.milliseconds / 1e3) / measured.matrix
        folded = known.get((row.cell, row.decoder, "folded, fp16, compiled"))
        liif = known.get((row.cell, row.decoder.replace("diinn", "liif"), PUBLISHED))
        floor = max(measured.floors(row.work).values()) / row.milliseconds
        wanted: dict[str, tuple[float, float]] = {}
        if row.decoder == "diinn 64":
            wanted["of the largest floor"] = (floor, 0.6)
        if row.decoder == "diinn 256":
            wanted["of the matrix rate"] = (share, 0.4)
        if row.decoder == "diinn 256" and folded:
            wanted["times as fast as folded, fp16, compiled"] = (folded.milliseconds / row.milliseconds, 1.5)
        if liif:
            wanted["times as fast as LIIF's published form"] = (liif.milliseconds / row.milliseconds, 15)
        for what, (reached, aim) in wanted.items():
            verdict = "met" if reached >= aim else "MISSED"
            lines.append(f"{row.cell}, {row.decoder}: {reached:.2f} {what} (aim {aim:g}): {verdict}")
    return lines


def time_table(found: Sequence[Time], measured: Card) -> Table:
    """A row per cell, decoder and form; floors where it is the fused kernel."""
    heads = (
        "cell",
        "decoder",
        "form",
        "decode ms",
        "× published",
        "TFLOP/s",
        "of matrix rate",
        "MB",
        "floor ms",
        "bound by",
    )
    out = Table(*heads, "of floor", box=box.MARKDOWN)
    slow = {(row.cell, row.decoder): row.milliseconds for row in found if row.form == PUBLISHED}
    for row in found:
        rate = row.work.flop / (row.milliseconds / 1e3)
        floors = measured.floors(row.work)
        bound = max(floors, key=lambda name: floors[name])
        facts = (
            (f"{rate / 1e12:.1f}", f"{rate / measured.matrix:.1%}")
            if row.form != PUBLISHED  # which computes more
            else ("", "")
        )
        least = (f"{floors[bound]:.3f}", bound, f"{floors[bound] / row.milliseconds:.0%}")
        reference = slow.get((row.cell, row.decoder))
        faster = f"{reference / row.milliseconds:.1f}" if reference else ""
        moved = f"{row.work.moved / 1e6:.1f}"
        out.add_row(row.cell, row.decoder, row.form, f"{row.milliseconds:.3f}", faster, *facts, moved, *least)
    return out


class Report:
    """Lines and tables, written to a file whenever one is added: a run may be killed at any time."""

    def __init__(self, path: Path | None, parts: Sequence[str]) -> None:
        self._path = path
        self._parts: dict[str, Any] = {str(i): part for i, part in enumerate(parts)}

    def add(self, line: str) -> None:
        self.put(str(len(self._parts)), line)

    def put(self, name: str, part: Any) -> None:
        """Add a part, or replace the one of that name."""
        self._parts[name] = part
        if self._path is not None:
            with self._path.open("w", encoding="utf-8") as file:
                self.show(file)

    def show(self, file: IO[str]) -> None:
        for part in self._parts.values():
            Console(file=file, width=220).print(part, "\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench gpu", description=__doc__)
    top.add_argument("--skip", nargs="+", choices=PARTS, default=[], help="parts to leave out")
    top.add_argument("--widths", nargs="+", type=int, choices=WIDTHS, default=[32, 64, 256], metavar="K")
    top.add_argument("--depth", type=int, default=4, metavar="N", help="layers of what is timed (default 4)")
    top.add_argument("--cells", type=int, default=len(CELLS), metavar="N", help="time the first N cells alone")
    top.add_argument("--repeats", type=int, default=50, help="runs of each form (default 50)")
    top.add_argument("--no-compile", action="store_true", help="run the folded form without torch.compile")
    top.add_argument("--out", type=Path, metavar="FILE.md", help="write the tables there")
    return top


def run(args: argparse.Namespace) -> int:
    """Check, sanitize, time; each result is written at once."""
    check_output(args.out)
    device = devices.Device()
    name = f"{device.name}, compute capability {device.capability}"
    device.close()
    report = Report(args.out, [f"{name}, {time.strftime('%Y-%m-%d', time.gmtime())}."])
    wrong = False
    try:
        if "check" not in args.skip:
            rows: list[Parity] = []
            report.add("Difference to ONNX Runtime on the CPU (fp32), units of [0, 1]:")
            for row in check(args.widths if args.skip else WIDTHS, sorted({2, args.depth})):
                rows.append(row)
                report.put("parity", parity_table(rows))
            wrong = not all(row.good for row in rows)
        if "sanitize" not in args.skip:
            for line, bad in sanitize(WIDTHS):
                report.add(line)
                wrong |= bad
        if "time" not in args.skip:
            _time(args, report)
        if "copies" not in args.skip:
            compared: list[gpu_copies.Time] = []
            report.add(f"From a uint8 frame to its uint8 view by a decoder {args.widths[0]} wide, medians:")
            cells = [(lr, out) for lr, out, cameras in CELLS[: args.cells] if cameras == 1]
            for way in gpu_copies.times(cells, args.widths[0], args.depth, args.repeats):
                compared.append(way)
                report.put("copies", gpu_copies.table(compared))
            wrong |= not all(way.same for way in compared)
    except DiinnError as error:
        wrong = True
        report.add(f"ended by an error: {error}")
    finally:  # torch raises any type
        report.show(sys.stdout)
    return int(wrong)


def _time(args: argparse.Namespace, report: Report) -> None:
    measured, found = card(torch.device("cuda" if torch.cuda.is_available() else "cpu")), []
    rate, bandwidth = f"{measured.matrix / 1e12:.0f} TFLOP/s", f"{measured.bandwidth / 1e12:.2f} TB/s"
    report.add(f"Measured: {rate} of fp16 matrix products, {bandwidth} copied. Times are of decoders alone, medians.")
    for row in times(args):
        if isinstance(row, str):
            report.add(f"FAILED: {row}")
            continue
        found.append(row)
        report.put("times", time_table(found, measured))
    for line in aims(found, measured):
        report.add(line)
