"""The paper's Figure 3, from the project's own geometry: checks its coordinates and draws them."""

import argparse
from pathlib import Path

import numpy as np
from diinn.runtime.errors import DiinnError
from diinn.runtime.geometry import grid
from diinn.runtime.util.command_line import Parser, check_output
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

LR, HR = (2, 2), (4, 4)
# HR pixel (row, column): global and local coordinates (y, x) that the paper prints
EXAMPLES = {(2, 1): ((0.25, -0.25), (-0.5, 0.5)), (3, 2): ((0.75, 0.25), (0.5, -0.5))}


def coordinates(pixel: tuple[int, int]) -> tuple[tuple[float, float], tuple[float, float]]:
    """(global, local) coordinates (y, x) of an HR pixel over its LR frame."""
    queries = grid.resize(LR, HR)
    _, query = queries.arrays(np.array([pixel[0] * HR[0] + pixel[1]]))
    centre = tuple(-1 + (2 * i + 1) / n for i, n in zip(pixel, HR[::-1], strict=True))
    return (centre[0], centre[1]), (float(query[0, 0]), float(query[0, 1]))


def check() -> None:
    """DiinnError unless the geometry gives the paper's numbers."""
    for pixel, printed in EXAMPLES.items():
        found = coordinates(pixel)
        if found != printed:
            raise DiinnError(f"HR pixel {pixel} has coordinates {found}, the paper prints {printed}")


def draw(path: Path) -> None:
    """Both grids, every pixel's centre, the paper's two examples with their coordinates."""
    figure = Figure(figsize=(6, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for size, colour, width in ((HR, "tab:red", 1.0), (LR, "tab:blue", 2.5)):
        step = 2 / size[0]
        for i in range(size[0]):
            for j in range(size[1]):
                axes.add_patch(Rectangle((-1 + j * step, -1 + i * step), step, step, fill=False, ec=colour, lw=width))
                axes.plot(-1 + (j + 0.5) * step, -1 + (i + 0.5) * step, "o", color=colour, ms=4 * width)
    for pixel in EXAMPLES:
        (y, x), local = coordinates(pixel)
        text = f"global ({y:g}, {x:g})\nlocal ({local[0]:g}, {local[1]:g})"
        axes.annotate(text, (x, y), xytext=(6, 6), textcoords="offset points", fontsize=9)
    axes.set(title="LR pixels blue, HR pixels red; (y, x)", xlim=(-1.1, 1.1), ylim=(1.1, -1.1), aspect="equal")
    figure.savefig(path, dpi=110)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench figure3", description=__doc__)
    top.add_argument("--out", type=Path, default=Path("figure3.png"), metavar="FILE.png")
    return top


def run(args: argparse.Namespace) -> int:
    """Check, then draw."""
    check_output(args.out, ".png")
    check()
    draw(args.out)
    print(f"{args.out}: the geometry gives the paper's coordinates")
    return 0
