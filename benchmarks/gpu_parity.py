"""Whether the fused decoder is right on a GPU: against ONNX Runtime on the CPU, and under the compute sanitizer."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diinn.export import writer
from diinn.runtime.geometry.view import View
from diinn.runtime.gpu import compiler
from diinn.runtime.noise.strength import Strength
from diinn.runtime.super_resolver import SuperResolver
from diinn.train import checkpoint
from diinn.train.config import parse
from diinn.train.model import ModelConfig, SuperResolutionModel
from rich import box
from rich.table import Table

TOLERANCE = 0.03
SANITIZE_SECONDS = 1800.0  # of one run
SANITIZERS = ("memcheck", "racecheck", "synccheck")


@dataclass(frozen=True)
class Parity:
    """One decoder's difference to the CPU, units of [0, 1].

    largest, percentile (99.9th), rms: of the difference; replays: how often CUDA graphs were replayed, in the
    host's memory; same: whether they give the same uint8 pixels
    """

    width: int
    depth: int
    kernel: str
    largest: float
    percentile: float
    rms: float
    replays: int
    same: bool

    @property
    def graphs(self) -> str:
        """The table's entry on CUDA graphs."""
        if not self.replays:
            return "NONE REPLAYED"
        return f"same, {self.replays} replays" if self.same else "DIFFER"

    @property
    def good(self) -> bool:
        return self.replays > 0 and self.same and self.percentile <= TOLERANCE / 3 and self.largest <= 3 * TOLERANCE


def decoder_model(name: str, width: int, depth: int) -> SuperResolutionModel:
    """A compact encoder of 64 channels, as wide as RDN's features, with a dial, and a decoder with random weights."""
    torch.manual_seed(0)
    settings = {"name": name, "width": width} | ({} if name == "metasr" else {"depth": depth})
    values = {"encoder": {"name": "compact", "channels": 64, "blocks": 1}, "decoder": settings, "dial": {}}
    return SuperResolutionModel(parse(ModelConfig, values, name)).eval()


def check(widths: Sequence[int], depths: Sequence[int]) -> Iterator[Parity]:
    """Every width and depth: odd sizes, a rectangle, a map, several cameras' maps, in memory full of NaN.

    Also whether CUDA graphs whose kernels read and write in the host's memory give the same as copies.
    """
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
                cpu, gpu, replayed = (
                    stack.enter_context(
                        SuperResolver.open(
                            bundle,
                            backend=name,
                            provider=provider,
                            decoder=decoder,
                            check=False,
                            cuda_graphs=replay,
                            zero_copy=replay,
                        )
                    )
                    for name, provider, decoder, replay in (
                        ("onnxruntime", "cpu", "onnx", False),
                        ("cuda", None, None, False),
                        ("cuda", None, None, True),
                    )
                )
                frames = [rng.integers(0, 256, (25, 37, 3)).astype(np.uint8) for _ in range(3)]
                gaps = []
                strengths = [Strength(), Strength(10, 25), Strength(20, 50)]
                for mine, other in zip(gpu.encode(frames, strengths), cpu.encode(frames, strengths), strict=True):
                    gpu.backend.poison()  # type: ignore[attr-defined]
                    found, wanted = (r.decode(e, views, dtype=np.float32) for r, e in ((gpu, mine), (cpu, other)))
                    gaps += [np.abs(a - b).ravel() for a, b in zip(found, wanted, strict=True)]
                gap = np.nan_to_num(np.concatenate(gaps), nan=np.inf)
                same = all(
                    np.array_equal(replayed.resize(frame, (97, 64)), gpu.resize(frame, (97, 64)))
                    for frame in 2 * frames
                )
                replays = replayed.backend.replays  # type: ignore[attr-defined]
                rms = float(np.sqrt(np.mean(gap**2)))
                percentile = float(np.quantile(gap, 0.999, method="higher"))
                kernel = gpu.backend.describe().split(", ")[1]
                yield Parity(width, depth, kernel, float(gap.max()), percentile, rms, replays, same)


def sanitize(widths: Sequence[int]) -> Iterator[tuple[str, bool]]:
    """The findings of compute-sanitizer on ``check``, by width and tool, and whether each is an error."""
    nvcc = compiler.find_nvcc()
    beside = shutil.which("compute-sanitizer", path=str(nvcc.parent)) if nvcc is not None else None
    program = shutil.which("compute-sanitizer") or beside
    if program is None:
        yield "compute-sanitizer is not installed: OWED", False
        return
    for width in widths:
        for tool in SANITIZERS:
            command = [
                program,
                "--tool",
                tool,
                "--error-exitcode",
                "9",
                sys.executable,
                "-m",
                "diinn.benchmarks",
                "gpu",
            ]
            command += ["--widths", str(width), "--depth", "4", "--skip", "sanitize", "time", "copies"]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, errors="replace", check=False, timeout=SANITIZE_SECONDS
                )
            except subprocess.TimeoutExpired:
                yield f"{tool}, K = {width}: no end within {SANITIZE_SECONDS:g} s", True
                continue
            lines = (done.stdout + done.stderr).splitlines()
            refused = any("not supported" in line.lower() for line in lines)
            summary = [line.strip("= ") for line in lines if "SUMMARY" in line][-1:] or lines[-1:]
            line = f"{tool}, K = {width}: {' '.join(summary)} (exit code {done.returncode})"
            yield (f"{line}: refused here, OWED", False) if refused else (line, done.returncode != 0)


def parity_table(found: Sequence[Parity]) -> Table:
    """A row per decoder."""
    out = Table("K", "N", "kernel", "largest", "99.9 %", "rms", "graphs", "", box=box.MARKDOWN)
    for row in found:
        figures = (f"{row.largest:.1e}", f"{row.percentile:.1e}", f"{row.rms:.1e}")
        out.add_row(
            str(row.width),
            str(row.depth),
            row.kernel,
            *figures,
            row.graphs,
            "right" if row.good else "WRONG",
        )
    return out
