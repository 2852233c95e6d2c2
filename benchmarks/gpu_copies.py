"""Frames and pixels copied between host and GPU, or read and written in the host's memory: what each takes."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diinn.benchmarks.gpu_parity import decoder_model
from diinn.benchmarks.speed import alternate, in_runtime
from diinn.export import writer
from diinn.runtime.geometry.grid import Size
from diinn.runtime.geometry.view import View
from diinn.runtime.sources import demo
from diinn.runtime.super_resolver import SuperResolver
from diinn.train import checkpoint
from rich import box
from rich.table import Table

FORMS = {  # (zero_copy, cuda_graphs)
    "copied": (False, False),
    "copied, CUDA graphs": (False, True),
    "zero-copy": (True, False),
    "zero-copy, CUDA graphs": (True, True),
}


@dataclass(frozen=True)
class Time:
    """Median milliseconds from a uint8 frame to its uint8 view in one form.

    same: whether its pixels are those of ``copied``
    """

    cell: str
    form: str
    milliseconds: float
    same: bool


def times(cells: Sequence[tuple[Size, Size]], width: int, depth: int, repeats: int) -> Iterator[Time]:
    """Every form in turns, of a decoder with random weights behind a small encoder."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "random.pth"
        checkpoint.save(path, checkpoint.Checkpoint(decoder_model("diinn", width, depth), (1.0, 4.0)))
        bundle = writer.export(path).path
        forms = {
            name: stack.enter_context(
                SuperResolver.open(bundle, backend="cuda", check=False, zero_copy=zero_copy, cuda_graphs=replayed)
            )
            for name, (zero_copy, replayed) in FORMS.items()
        }
        for lr, out in cells:
            found = alternate({name: in_runtime(form, lr, out) for name, form in forms.items()}, repeats, 0.0)
            pixels = {name: form.decode(form.encode([demo.frame(1.0, lr)])[0], [View.resize(out)])[0]
                      for name, form in forms.items()}  # fmt: skip
            for name, (*_, total) in found.items():
                same = np.array_equal(pixels[name], pixels["copied"])
                yield Time(f"{lr[0]}x{lr[1]} → {out[0]}x{out[1]}", name, total, same)


def table(found: Sequence[Time]) -> Table:
    """A row per cell and form."""
    out = Table("cell", "frames and pixels", "all ms", "frames/s", "pixels", box=box.MARKDOWN)
    for row in found:
        figures = f"{row.milliseconds:.3f}", f"{1e3 / row.milliseconds:.1f}"
        out.add_row(row.cell, row.form, *figures, "same" if row.same else "DIFFER")
    return out
