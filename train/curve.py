"""A run's CSV logs as a picture: the loss, and PSNR on the hold-out, over steps."""

import csv
from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Series = dict[int, float]  # value by step


def read(folder: Path) -> dict[str, Series]:
    """Every column of ``folder/log/version_*/metrics.csv``; of two starts that logged a step, the later counts."""
    columns: dict[str, Series] = {}
    starts = sorted((folder / "log").glob("version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1]))
    for path in starts:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if not (row.get("step") or "").isdigit():  # cut short when the run ended
                    continue
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        columns.setdefault(name, {})[int(row["step"]) + 1] = float(value)
    return columns


def draw(folder: Path) -> Path:
    """Write ``folder/curve.png``."""
    columns = read(folder)
    return _draw({"": columns.pop("loss", {})}, columns, folder / "curve.png")


def draw_together(folders: Mapping[str, Path], path: Path) -> Path:
    """Write the curves of several runs, by name, into one picture."""
    columns = {name: read(folder) for name, folder in folders.items()}
    loss, psnr = ({name: found[kind] for name, found in columns.items()} for kind in ("loss", "psnr"))
    return _draw(loss, psnr, path)


def _draw(losses: Mapping[str, Series], scores: Mapping[str, Series], path: Path) -> Path:
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for loss in losses.values():
        left.semilogy(loss.keys(), loss.values(), linewidth=0.8)
    left.set(title="loss", xlabel="step")
    for name, score in sorted(scores.items()):
        right.plot(score.keys(), score.values(), marker=".", label=name)
    right.set(title="hold-out PSNR, dB", xlabel="step")
    right.legend(fontsize="x-small" if len(scores) > 5 else None)
    figure.savefig(path, dpi=100)
    return path
