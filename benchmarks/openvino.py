"""Whole frames with OpenVINO beside ONNX Runtime alone, and what each of OpenVINO's precisions loses.

The forms take turns in one process on the same threads, so that ratios hold on a noisy machine; figures are medians.
``diinn-bench openvino --data SET5 SET14`` prints the tables of ``benchmarks/results/openvino.md``.
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from diinn.benchmarks import scores, speed
from diinn.benchmarks.networks import network
from diinn.runtime.backends import openvino
from diinn.runtime.backends.base import BackendOptions
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.geometry.grid import Size
from diinn.runtime.super_resolver import SuperResolver
from diinn.runtime.util.command_line import Parser
from diinn.runtime.util.onnx_runtime import session_options
from rich import box
from rich.console import Console
from rich.table import Table

LR, OUT = (160, 120), (640, 480)
PAPER_LR, PAPER_OUT = (48, 48), (512, 512)
# How many times as fast as its rival: ONNX Runtime for the shipped models, the authors' form for the paper's network.
GATES = {"nano": 3.0, "small": 2.5, "paper": 8.0}
PRECISIONS = ("bf16", "fp16")
OPENINGS = 7
SCALES = (2.0, 3.0, 4.0)


class Frames:
    """A table of whole frames, uint8 to uint8, a line a form."""

    def __init__(self) -> None:
        heads = ("network", "LR → output", "form", "encoder ms", "decoder ms", "all ms", "× faster", "wanted")
        self.table = Table(*heads, box=box.MARKDOWN)
        for column in self.table.columns[3:7]:
            column.justify = "right"

    def add(self, name: str, sizes: tuple[Size, Size], times: dict[str, tuple[float, float, float]]) -> None:
        """The forms of a network by name, (encode, decode, all) in ms each; the first is the rival, the last ours."""
        (lr, out), (*_, ours), rival = sizes, times, next(iter(times))
        for form, (encode, decode, both) in times.items():
            faster = times[rival][2] / both
            gate = (
                f"{GATES[name]:g}: {'met' if faster >= GATES[name] else 'MISSED'}" if form == ours and has_amx() else ""
            )
            where = f"{lr[0]}x{lr[1]} → {out[0]}x{out[1]}"
            self.table.add_row(name, where, form, *(f"{t:.1f}" for t in (encode, decode, both)), f"{faster:.1f}", gate)


def has_amx() -> bool:
    """Whether the runtime has OpenVINO encode here, as on a CPU without a GPU."""
    return bool(openvino.worthwhile("CPU"))


def computed_by(resolver: SuperResolver) -> str:
    """What encodes and what decodes."""
    return resolver.backend.describe().partition("(")[2].rstrip(")")


def shipped(name: str, least: int, seconds: float) -> dict[str, tuple[float, float, float]]:
    """A shipped model: by ONNX Runtime, with the CPU's own decoder, and with what is chosen here."""
    with ExitStack() as stack:
        forms = {}
        for decoder in ("onnx", None):
            resolver = stack.enter_context(
                SuperResolver.open(name, backend="onnxruntime", provider="cpu", decoder=decoder)
            )
            forms["ONNX Runtime" if decoder else "fused decoder"] = resolver
        forms["OpenVINO fp32"] = stack.enter_context(
            SuperResolver.open(name, backend="onnxruntime", provider="openvino", precision="fp32")
        )
        chosen = stack.enter_context(
            SuperResolver.open(name, backend="onnxruntime", provider="openvino" if has_amx() else "cpu")
        )
        forms[f"chosen: {computed_by(chosen)}"] = chosen
        return speed.alternate({form: speed.in_runtime(r, LR, OUT) for form, r in forms.items()}, least, seconds)


@torch.inference_mode()
def paper(least: int, seconds: float) -> dict[str, tuple[float, float, float]]:
    """The paper's network with random weights: the authors' form, by ONNX Runtime, and with what is chosen here."""
    with (
        network("paper") as net,
        SuperResolver.open(net.bundle, backend="onnxruntime", provider="cpu") as plain,
        SuperResolver.open(net.bundle, backend="onnxruntime", provider="openvino" if has_amx() else "cpu") as chosen,
    ):
        published = "published, PyTorch"
        entries = {published: speed.contestants(net, plain, PAPER_LR, PAPER_OUT)[published]}
        for form, resolver in (("ONNX Runtime", plain), (f"chosen: {computed_by(chosen)}", chosen)):
            entries[form] = speed.in_runtime(resolver, PAPER_LR, PAPER_OUT)
        return speed.alternate(entries, least, seconds)


def opening(name: str, precision: str, threads: int) -> tuple[float, float]:
    """Milliseconds in which an encoder opens, medians: the first time, and from what is kept of that."""
    bundle = bundles.load(name)
    took: tuple[list[float], list[float]] = [], []
    content, path = bundle.graph_content("encoder"), bundle.graph("encoder")
    for _ in range(OPENINGS):
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, DIINN_CACHE=f"{folder}/engines"):
            for times in took:
                began = time.perf_counter()
                openvino.open_session(content, path, "CPU", precision, threads, session_options(1))
                times.append((time.perf_counter() - began) * 1e3)
    return median(took[0]), median(took[1])


def losses(model: str, sets: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Lines of PSNR lost to fp32 by a bundle's encoder in each precision: mean, worst, and what is allowed."""
    with ExitStack() as stack:
        methods: dict[str, scores.Method] = {
            precision: stack.enter_context(scores.open_upscaler(model, precision=precision))
            for precision in ("fp32", *PRECISIONS)
        }
        rows = scores.evaluate_sets(methods, sets, SCALES, fast=True)
    right = {row.place: row.score.psnr for row in rows if row.method == "fp32"}
    for precision in PRECISIONS:
        found = [(right[row.place] - row.score.psnr, row) for row in rows if row.method == precision]
        worst, where = max(found, key=lambda pair: pair[0])
        allowed = openvino.ALLOWED_LOSS[precision]
        yield (
            Path(model).name.removesuffix(bundles.SUFFIX),
            precision,
            str(len(found)),
            f"{sum(loss for loss, _ in found) / len(found):.4f}",
            f"{worst:.4f} ({where.set}/{where.image} ×{where.scale:g})",
            f"{allowed:g}: {'met' if worst <= allowed else 'MISSED'}",
        )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench openvino", description=__doc__)
    top.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="FOLDER", help="also losses, on sets of HR images"
    )
    top.add_argument(
        "--model", nargs="+", default=bundles.shipped(), help="whose losses (default: the shipped models')"
    )
    top.add_argument("--shipped", action="store_true", help="leave out the paper's network")
    top.add_argument("--least", type=int, default=5, help="runs of each form, at least (default 5)")
    top.add_argument("--seconds", type=float, default=10, help="and until so many seconds are over (default 10)")
    return top


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    openvino.devices()  # says what is missing
    scores.check_sets(args.data)
    for model in args.model:
        bundles.load(model)
    logging.getLogger("diinn").setLevel(logging.ERROR)  # scales beyond training are the point here
    threads = BackendOptions().thread_count
    torch.set_num_threads(threads)
    load = f"load {os.getloadavg()[0]:.1f}"
    print(f"{speed.processor()}, {threads} threads, {load}, OpenVINO by plugin {openvino.plugin_version()}\n")
    console, frames = Console(width=170), Frames()
    for name in bundles.shipped():
        frames.add(name, (LR, OUT), shipped(name, args.least, args.seconds))
    console.print(frames.table)
    for name in bundles.shipped():
        precision = next(iter(openvino.worthwhile("CPU")), "fp32")
        first, kept = opening(name, precision, threads)
        print(f"{name}'s encoder in {precision} opens in {first:.0f} ms the first time, in {kept:.0f} ms after that")
    print()
    if args.data:
        table = Table("network", "precision", "pictures", "mean dB lost", "worst", "allowed", box=box.MARKDOWN)
        for model in args.model:
            for line in losses(model, args.data):
                table.add_row(*line)
        console.print(table)
    if not args.shipped:  # its export takes a minute
        frames = Frames()
        frames.add("paper", (PAPER_LR, PAPER_OUT), paper(args.least, args.seconds))
        console.print(frames.table)
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    return 0
