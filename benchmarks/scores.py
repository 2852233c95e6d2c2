"""Models measured under the protocol: scores by image, their means, and the quality card of a bundle."""

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diinn.runtime import bundle as bundles
from diinn.runtime.errors import InputError
from diinn.runtime.resolver import SuperResolver
from diinn.train import checkpoint, degradation, protocol
from diinn.train.config import plain
from diinn.train.photographs import find_images, read_rgb
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

BICUBIC = "bicubic"


@dataclass(frozen=True)
class Row:
    """One method on one image of one set at one scale."""

    set: str
    image: str
    scale: float
    method: str
    score: protocol.Score


@contextmanager
def open_upscaler(model: str) -> Iterator[protocol.Upscaler]:
    """A checkpoint in PyTorch (on a GPU where there is one), or a bundle in the runtime, as what makes SR from LR."""
    if Path(model).is_file():
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.allow_tf32 = False  # its 10 bits show in LR-PSNR
        loaded = checkpoint.load(Path(model)).model.to(device)
        yield lambda lr, shape: protocol.super_resolve(loaded, lr.to(device), shape).cpu()
        return
    with SuperResolver.open(model, backend="onnxruntime") as resolver:

        def in_runtime(lr: Tensor, shape: tuple[int, int]) -> Tensor:
            frame = (lr.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8)
            sr = resolver.resize(frame, shape[::-1], dtype=np.float32)
            return torch.from_numpy(np.ascontiguousarray(sr[..., ::-1])).permute(2, 0, 1)

        yield in_runtime


def architecture(model: str) -> Mapping[str, Any]:
    """Encoder and decoder configuration of a checkpoint or a bundle, plain."""
    if Path(model).is_file():
        return plain(checkpoint.load(Path(model)).model.config)
    return bundles.load(model).architecture


def evaluate(
    upscalers: Mapping[str, protocol.Upscaler], folder: Path, scales: Sequence[float], progress: Progress | None = None
) -> list[Row]:
    """Every image of ``folder`` at every scale by every method, and by bicubic."""
    methods = {BICUBIC: protocol.bicubic_upscaler, **upscalers}
    rows = []
    files = find_images(folder)
    shown = progress.track(files, description=folder.name) if progress else files
    for path in shown:
        hr = degradation.to_float(torch.from_numpy(read_rgb(path))).permute(2, 0, 1)
        for scale in scales:
            for name, upscale in methods.items():
                score = protocol.score(hr, scale, upscale)
                image = path.relative_to(folder).with_suffix("").as_posix()
                rows.append(Row(folder.resolve().name, image, scale, name, score))
    return rows


def evaluate_sets(
    upscalers: Mapping[str, protocol.Upscaler], folders: Sequence[Path], scales: Sequence[float]
) -> list[Row]:
    """``evaluate`` of several sets with a progress bar. Raises InputError for scales outside [1, 64], and for what
    ``check_sets`` does."""
    bad = [s for s in scales if not 1 <= s <= 64]
    if bad:
        raise InputError(f"scale {bad[0]:g} is not a number from 1 to 64")
    check_sets(folders)
    with Progress(transient=True, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        return [row for folder in folders for row in evaluate(upscalers, folder, scales, progress)]


def check_sets(folders: Sequence[Path]) -> None:
    """Before the work starts: InputError for two folders of one name, one without images, an image that is damaged."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise InputError(f"two folders are called the same: {', '.join(sorted(names))}; rename one")
    for path in find_images(*folders):
        read_rgb(path)


def to_csv(rows: Sequence[Row]) -> str:
    """Every row: set, image, scale, method and the metrics."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "image", "scale", "method", *protocol.METRICS])
    for r in rows:
        values = (f"{getattr(r.score, metric):.5f}" for metric in protocol.METRICS)
        writer.writerow([r.set, r.image, f"{r.scale:g}", r.method, *values])
    return text.getvalue()


def from_csv(text: str) -> list[Row]:
    """The rows that ``to_csv`` wrote."""
    rows = []
    for row in csv.DictReader(text.splitlines()):
        score = protocol.Score(*(float(row[metric]) for metric in protocol.METRICS))
        rows.append(Row(row["set"], row["image"], float(row["scale"]), row["method"], score))
    return rows


def mean(rows: Sequence[Row], set: str, scale: float, method: str) -> protocol.Score:
    """The mean over a set's images."""
    found = [r.score for r in rows if (r.set, r.scale, r.method) == (set, scale, method)]
    return protocol.Score(*(float(np.mean([getattr(s, metric) for s in found])) for metric in protocol.METRICS))


def sets(rows: Sequence[Row]) -> dict[str, int]:
    """Number of images by set, in order."""
    return {name: len({r.image for r in rows if r.set == name}) for name in dict.fromkeys(r.set for r in rows)}


def scales(rows: Sequence[Row]) -> list[float]:
    """The scales, in order."""
    return list(dict.fromkeys(r.scale for r in rows))


def card(rows: Sequence[Row], method: str) -> dict[str, Any]:
    """The quality card of a bundle: protocol, means, and a line for people."""
    found: dict[str, Any] = {}
    for name in sets(rows):
        for scale in scales(rows):
            entry = found.setdefault(name, {}).setdefault(f"x{scale:g}", {})
            for key, which in (("model", method), (BICUBIC, BICUBIC)):
                value = mean(rows, name, scale, which)
                entry[key] = {
                    "psnr_db": round(value.psnr, 3),
                    "ssim": round(value.ssim, 5),
                    "lr_psnr_db": round(value.lr_psnr, 3),
                }
    first = next(iter(found))
    line = " / ".join(f"{entry['model']['psnr_db']:.2f}" for entry in found[first].values())
    summary = {f"{first} {'/'.join(found[first])}": f"{line} dB"}
    return {"protocol": protocol.PROTOCOL, "scores": found, "summary": summary}
