"""Our figures beside the paper's Tables 1, 2, 3 and 5, for whatever checkpoints, bundles and sets are given.

A set is known by its folder's name (DIV2K, B100, Set5, Set14, Urban100), a model by its decoder.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diinn.benchmarks import scores
from diinn.runtime.errors import InputError
from diinn.runtime.util.command_line import Parser
from diinn.train import protocol
from rich import box
from rich.console import Console
from rich.table import Table

PAPER = Path(__file__).parent / "paper.csv"
TITLES = {
    1: "Table 1: scales that the paper's models were trained at",
    2: "Table 2: scales between those",
    3: "Table 3: scales beyond those",
    5: "Table 5: variants of DIINN",
}
VARIANTS = {("m", True): "a", ("m", False): "b", ("mz", True): "c", ("mz", False): "d", ("sz", True): "e"}
RIVALS = {"liif": "LIIF", "metasr": "Meta-SR"}


@dataclass(frozen=True)
class Published:
    """One figure of the paper; the fields are those of ``paper.csv``."""

    table: int
    set: str
    method: str
    scale: float
    score: protocol.Score


def published() -> list[Published]:
    """All figures of the paper's Tables 1, 2, 3 and 5."""
    with PAPER.open(newline="", encoding="utf-8") as file:
        return [
            Published(
                int(row["table"]),
                row["set"],
                row["method"],
                float(row["scale"]),
                protocol.Score(*(float(row[metric]) for metric in protocol.METRICS)),
            )
            for row in csv.DictReader(file)
        ]


def method(architecture: Mapping[str, Any]) -> str:
    """The paper's name of a decoder: LIIF, Meta-SR, or DIINN with its variant, (a) to (f)."""
    decoder = architecture["decoder"]
    if decoder["name"] in RIVALS:
        return RIVALS[decoder["name"]]
    variant = VARIANTS.get((decoder.get("modulation", "sz"), decoder.get("init_q", False)), "f")
    return f"DIINN ({variant})"


def beside(rows: Sequence[scores.Row], found: Sequence[Published]) -> list[Table]:
    """One Markdown table per table of the paper that shares a set and a scale with ``rows``."""
    tables = []
    for number, title in TITLES.items():
        out = Table("set", "scale", "method", "PSNR", "paper", "SSIM", "paper", "LR-PSNR", "paper", box=box.MARKDOWN)
        out.title, out.title_justify = title, "left"
        wanted = {(p.set, p.scale): None for p in found if p.table == number}
        for name, scale in wanted:
            if name not in scores.sets(rows) or scale not in scores.scales(rows):
                continue
            theirs = {p.method: p.score for p in found if (p.table, p.set, p.scale) == (number, name, scale)}
            for label in dict.fromkeys(r.method for r in rows):
                ours = scores.mean(rows, name, scale, label)
                out.add_row(name, f"×{scale:g}", label, *_cells(ours, _of(label, theirs)))
        if out.row_count:
            tables.append(out)
    return tables


def _of(label: str, theirs: Mapping[str, protocol.Score]) -> protocol.Score | None:
    """The paper's row for a method of ours: "bicubic" is its Bicubic, "DIINN (f)" its DIINN or (f)."""
    name = label.partition(" #")[0]
    for known in (name, name.capitalize(), name.removesuffix(" (f)")):
        if known in theirs:
            return theirs[known]
    return None


def _cells(ours: protocol.Score, theirs: protocol.Score | None) -> list[str]:
    cells = []
    for metric, digits in zip(protocol.METRICS, (2, 4, 2), strict=True):
        cells.append(f"{getattr(ours, metric):.{digits}f}")
        cells.append("" if theirs is None else f"{getattr(theirs, metric):.{digits}f}")
    return cells


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench tables", description=__doc__)
    top.add_argument("model", nargs="*", help="checkpoints, bundles or shipped models; none for bicubic alone")
    top.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="sets of HR images")
    return top


def run(args: argparse.Namespace) -> int:
    """Measure what the paper has figures for, and print."""
    found = published()
    known = {p.set for p in found}
    names = [folder.resolve().name for folder in args.data]
    foreign = [name for name in names if name not in known]
    if foreign:
        raise InputError(f"the paper has no figures for {', '.join(foreign)}, but for {', '.join(sorted(known))}")
    scores.check_sets(args.data)
    rows: list[scores.Row] = []
    with ExitStack() as stack:
        upscalers: dict[str, scores.Method] = {}
        for model in args.model:
            name = method(scores.architecture(model))
            if name in upscalers:
                name += f" #{sum(n.partition(' #')[0] == name for n in upscalers) + 1}"
            upscalers[name] = stack.enter_context(scores.open_upscaler(model))
            print(f"{name}: {model}")
        for folder, name in zip(args.data, names, strict=True):
            rows += scores.evaluate_sets(upscalers, [folder], sorted({p.scale for p in found if p.set == name}))
    print(f"Protocol: {protocol.PROTOCOL}.")
    for table in beside(rows, found):
        print()
        Console(width=120).print(table)
    return 0
