"""Models measured under the protocol: scores by image, their means, and the quality card of a bundle.

Frames can be degraded as cameras degrade them (``degradation.Degradation``); models are then measured beside what a
user would try without one: OpenCV's cubic and Lanczos interpolation, and its non-local means before the cubic one.
"""

import csv
import io
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from typing import Protocol as TypingProtocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.errors import InputError
from diinn.runtime.noise.strength import AUTO, Dial, Strength, parse_denoise
from diinn.runtime.super_resolver import SuperResolver
from diinn.train import checkpoint, degradation, protocol
from diinn.train.config import plain
from diinn.train.photographs import find_images, read_rgb
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

BICUBIC = "bicubic"  # the protocol's
CUBIC, LANCZOS, NON_LOCAL_MEANS = "OpenCV cubic", "OpenCV Lanczos", "non-local means, cubic"
CLEAN = degradation.Degradation("clean")
TRUE = "true"  # a network is given the true strength of its frames' degradation


@dataclass(frozen=True)
class Row:
    """One method on one image of one set at one scale."""

    set: str
    image: str
    scale: float
    method: str
    score: protocol.Score
    frames: str = CLEAN.name

    @property
    def place(self) -> tuple[str, str, float, str]:
        """Where methods are compared: set, image, scale, degradation."""
        return self.set, self.image, self.scale, self.frames


class Method(TypingProtocol):
    """Makes SR [3, H, W] of LR [3, h, w] at ``shape`` (height, width); truth: (noise, compression) of the frame."""

    def __call__(self, lr: Tensor, shape: tuple[int, int], truth: tuple[float, float] = degradation.NONE) -> Tensor: ...


@contextmanager
def open_upscaler(model: str, denoise: str = "0", precision: str | None = None) -> Iterator[Method]:
    """A checkpoint in PyTorch (on a GPU where there is one), or a bundle in the runtime, as a method.

    denoise: what a model with a dial is given beside each frame: "true", or as ``parse_denoise`` takes it; for a
        checkpoint not "auto"
    precision: of OpenVINO, which then runs a bundle; else ONNX Runtime does, in fp32
    """
    given = None if denoise == TRUE else parse_denoise(denoise)

    def strength(truth: tuple[float, float]) -> Literal["auto"] | Strength:
        return Strength(*truth) if given is None else given

    if Path(model).is_file():
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.allow_tf32 = False  # its 10 bits show in LR-PSNR
        loaded = checkpoint.load(Path(model)).model.to(device)
        if given == AUTO:
            raise InputError(f"{model} cannot estimate a frame's noise, bundles do: export it, or use --denoise true")

        def in_torch(lr: Tensor, shape: tuple[int, int], truth: tuple[float, float] = degradation.NONE) -> Tensor:
            chosen = strength(truth)
            assert isinstance(chosen, Strength)
            limits = loaded.config.dial
            if limits is not None:  # as the runtime does
                chosen = Dial(limits.noise, limits.compression).clamped(chosen)
            pair = chosen.noise, chosen.compression
            return protocol.super_resolve(loaded, lr.to(device), shape, pair).cpu()

        yield in_torch
        return
    with SuperResolver.open(
        model, backend="onnxruntime", provider="openvino" if precision else "cpu", precision=precision
    ) as resolver:

        def in_runtime(lr: Tensor, shape: tuple[int, int], truth: tuple[float, float] = degradation.NONE) -> Tensor:
            return _planes(resolver.resize(_frame(lr), shape[::-1], denoise=strength(truth), dtype=np.float32))

        yield in_runtime


def _frame(lr: Tensor) -> npt.NDArray[np.uint8]:
    """[3, h, w] RGB in [0, 1] to uint8 [h, w, 3] BGR."""
    frame: npt.NDArray[np.uint8] = (lr.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8)
    return frame


def _planes(image: npt.NDArray[Any]) -> Tensor:
    """[h, w, 3] BGR in [0, 1] to [3, h, w] RGB."""
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1], np.float32)).permute(2, 0, 1)


def _interpolated(interpolation: int) -> Method:
    def upscale(lr: Tensor, shape: tuple[int, int], truth: tuple[float, float] = degradation.NONE) -> Tensor:
        return _planes(cv2.resize(_frame(lr), shape[::-1], interpolation=interpolation) / 255)

    return upscale


def _non_local_means(lr: Tensor, shape: tuple[int, int], truth: tuple[float, float] = degradation.NONE) -> Tensor:
    """``cv2.fastNlMeansDenoisingColored``, given the noise (compression counts a tenth), then cubic."""
    level = max(truth[0], truth[1] / 10)
    frame = cv2.fastNlMeansDenoisingColored(_frame(lr), None, level, level, 7, 21) if level else _frame(lr)
    return _planes(cv2.resize(frame, shape[::-1], interpolation=cv2.INTER_CUBIC) / 255)


PLAIN: Mapping[str, Method] = {
    CUBIC: _interpolated(cv2.INTER_CUBIC),
    LANCZOS: _interpolated(cv2.INTER_LANCZOS4),
    NON_LOCAL_MEANS: _non_local_means,
}


def architecture(model: str) -> Mapping[str, Any]:
    """Encoder and decoder configuration of a checkpoint or a bundle, plain."""
    if Path(model).is_file():
        return plain(checkpoint.load(Path(model)).model.config)
    return bundles.load(model).architecture


def _bicubic(lr: Tensor, shape: tuple[int, int], truth: tuple[float, float] = degradation.NONE) -> Tensor:
    return protocol.bicubic_upscaler(lr, shape)


def dial(model: str) -> Any:
    """The dial of a checkpoint or bundle, None for one without."""
    if Path(model).is_file():
        return checkpoint.load(Path(model)).model.config.dial
    return bundles.load(model).dial


def evaluate(
    upscalers: Mapping[str, Method],
    folder: Path,
    scales: Sequence[float],
    progress: Progress | None = None,
    degradations: Sequence[degradation.Degradation] = (CLEAN,),
    *,
    fast: bool = False,
) -> list[Row]:
    """Every image of ``folder`` at every scale by every method, and by bicubic.

    degradations: each is measured; its seed is the image's place in its set; fast: PSNR alone, other metrics are NaN
    """
    methods: dict[str, Method] = {BICUBIC: _bicubic, **upscalers}
    rows = []
    files = find_images(folder)
    shown = progress.track(files, description=folder.name) if progress else files
    for number, path in enumerate(shown):
        hr = degradation.to_float(torch.from_numpy(read_rgb(path))).permute(2, 0, 1)
        image = path.relative_to(folder).with_suffix("").as_posix()
        for scale, degraded in itertools.product(scales, degradations):
            for name, method in methods.items():
                upscale = partial(method, truth=degraded.strength)
                degrade = None if degraded == CLEAN else partial(degraded.of, seed=number)
                if fast:
                    nothing = float("nan")
                    score = protocol.Score(protocol.psnr(hr, scale, upscale, degrade), nothing, nothing)
                else:
                    score = protocol.score(hr, scale, upscale, degrade)
                rows.append(Row(folder.resolve().name, image, scale, name, score, degraded.name))
    return rows


def evaluate_sets(
    upscalers: Mapping[str, Method],
    folders: Sequence[Path],
    scales: Sequence[float],
    degradations: Sequence[degradation.Degradation] = (CLEAN,),
    *,
    fast: bool = False,
) -> list[Row]:
    """``evaluate`` of several sets with a progress bar.

    Raises InputError for scales outside [1, 64], and as ``check_sets`` does.
    """
    bad = [s for s in scales if not 1 <= s <= 64]
    if bad:
        raise InputError(f"scale {bad[0]:g} is not a number from 1 to 64")
    check_sets(folders)
    with Progress(transient=True, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        return [
            row for folder in folders for row in evaluate(upscalers, folder, scales, progress, degradations, fast=fast)
        ]


def check_sets(folders: Sequence[Path]) -> None:
    """Before the work starts: InputError for two folders of one name, one without images, an image that is damaged."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise InputError(f"two folders are called the same: {', '.join(sorted(names))}; rename one")
    for path in find_images(*folders):
        read_rgb(path)


def to_csv(rows: Sequence[Row]) -> str:
    """Every row: set, image, scale, frames, method and the metrics."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "image", "scale", "frames", "method", *protocol.METRICS])
    for r in rows:
        values = (f"{getattr(r.score, metric):.5f}" for metric in protocol.METRICS)
        writer.writerow([r.set, r.image, f"{r.scale:g}", r.frames, r.method, *values])
    return text.getvalue()


def from_csv(text: str) -> list[Row]:
    """The rows that ``to_csv`` wrote."""
    rows = []
    for row in csv.DictReader(text.splitlines()):
        score = protocol.Score(*(float(row[metric]) for metric in protocol.METRICS))
        rows.append(Row(row["set"], row["image"], float(row["scale"]), row["method"], score, row["frames"]))
    return rows


def mean(rows: Sequence[Row], set: str, scale: float, method: str, frames: str = CLEAN.name) -> protocol.Score:
    """The mean over a set's images."""
    wanted = (set, scale, method, frames)
    found = [r.score for r in rows if (r.set, r.scale, r.method, r.frames) == wanted]
    return protocol.Score(*(float(np.mean([getattr(s, metric) for s in found])) for metric in protocol.METRICS))


def sets(rows: Sequence[Row]) -> dict[str, int]:
    """Number of images by set, in order."""
    return {name: len({r.image for r in rows if r.set == name}) for name in dict.fromkeys(r.set for r in rows)}


def scales(rows: Sequence[Row]) -> list[float]:
    """The scales, in order."""
    return list(dict.fromkeys(r.scale for r in rows))


def frames(rows: Sequence[Row]) -> list[str]:
    """The degradations, in order."""
    return list(dict.fromkeys(r.frames for r in rows))


@dataclass(frozen=True)
class Gain:
    """A method's gain over another in PSNR, dB: the mean, the worst image and how many images lose."""

    mean: float
    worst: float
    image: str
    below: int


def gain(rows: Sequence[Row], method: str, over: str, scale: float, frames: str, set: str | None = None) -> Gain:
    """Of ``method`` over ``over``, on one set or on the images of all."""
    chosen = [r for r in rows if (r.scale, r.frames) == (scale, frames) and set in (None, r.set)]
    base = {r.place: r.score.psnr for r in chosen if r.method == over}
    found = [(r.score.psnr - base[r.place], r.image) for r in chosen if r.method == method]
    values = [value for value, _ in found]
    worst, image = min(found)
    return Gain(float(np.mean(values)), worst, image, sum(value < 0 for value in values))


def card(rows: Sequence[Row], method: str, denoised: str | None = None) -> dict[str, Any]:
    """The quality card of a bundle: protocol, means, and a line to show.

    denoised: the method whose rows are those of degraded frames, gains over OpenCV's cubic interpolation
    """
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
    made = {
        "protocol": protocol.PROTOCOL,
        "scores": found,
        "summary": {f"{first} {'/'.join(found[first])}": f"{line} dB"},
    }
    if denoised is not None:
        made["gain_over_cubic_db"] = {
            f"{name} x{scale:g}": round(gain(rows, denoised, CUBIC, scale, name).mean, 3)
            for name in frames(rows)
            for scale in scales(rows)
        }
    return made
