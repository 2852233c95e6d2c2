"""A run's CSV logs as a picture: the loss, and PSNR on the hold-out, over steps."""

import csv
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
                if not (row.get("step") or "").isdigit():  # cut short by whatever ended the run
                    continue
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        columns.setdefault(name, {})[int(row["step"]) + 1] = float(value)
    return columns


def draw(folder: Path) -> Path:
    """Write ``folder/curve.png``."""
    columns = read(folder)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    loss = columns.pop("loss", {})
    left.semilogy(loss.keys(), loss.values(), linewidth=0.8)
    left.set(title="loss", xlabel="step")
    for name in sorted(columns):
        right.plot(columns[name].keys(), columns[name].values(), marker=".", label=name)
    right.set(title="hold-out PSNR, dB", xlabel="step")
    right.legend()
    figure.savefig(folder / "curve.png", dpi=100)
    return folder / "curve.png"
