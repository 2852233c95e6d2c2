"""Compares engines with ONNX Runtime on the CPU: every version of TensorRT has silently built some wrong ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from diinn.runtime.bundles.bundle import Bundle
from diinn.runtime.engines.cache import EngineMetadata
from diinn.runtime.engines.profiles import Profile, Shape
from diinn.runtime.errors import DiinnError
from diinn.runtime.noise.strength import NONE, Strength

if TYPE_CHECKING:
    from diinn.runtime.geometry.grid import Size
    from diinn.runtime.geometry.view import Rect
    from rich.table import Table

# Largest difference to fp32 on the CPU by precision, units of [0, 1]; of int8 to int8 on the CPU.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.03, "int8": 0.1}
SIZES = 4  # random ones
PART = 96  # LR pixels on a side of what is compared at once


@dataclass(frozen=True)
class Row:
    """One comparison: frame size and output size (width, height), batch, largest and rms difference.

    Differences are in units of [0, 1], inf where an output is not finite.
    """

    frame: Size
    out: Size
    batch: int
    largest: float
    rms: float


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    passed: whether every row is within ``tolerance``; compared: with what; at: seconds since 1970
    """

    rows: tuple[Row, ...]
    tolerance: float
    compared: str
    at: float

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.largest <= self.tolerance for row in self.rows)

    @property
    def summary(self) -> str:
        worst = max((row.largest for row in self.rows), default=0.0)
        return f"{'passed' if self.passed else 'FAILED'}, largest difference {worst:.2g} (allowed {self.tolerance:g})"

    def plain(self) -> dict[str, Any]:
        """As plain JSON values, for the metadata."""
        return asdict(self) | {"passed": self.passed, "summary": self.summary}


def compare(ours: Any, theirs: Any, precision: str, profile: Profile) -> Verdict:
    """How two ``SuperResolver`` of one bundle differ: ours by engines of ``precision``, theirs on the CPU.

    At the size ``profile``, the encoder's, is tuned to and at random ones, batches too, part of each frame by part.
    """
    rows = tuple(_rows(ours, theirs, profile, _photograph if precision == "int8" else _noise))
    return Verdict(rows, TOLERANCES[precision], theirs.backend.describe(), time.time())


def not_compared(precision: str, why: str) -> Verdict:
    """The verdict where there is nothing to compare with."""
    return Verdict((), TOLERANCES[precision], why, time.time())


def _rows(ours: Any, theirs: Any, profile: Profile, frame: Callable[[Any, Size], Any]) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    least, opt, most = (shapes["frame"] for shapes in (profile.least, profile.opt, profile.most))
    shapes = [(min(most[0], 1 + k % 3), *_random_shape(rng, least, most)) for k in range(SIZES)]
    for batch, height, width in [(opt[0], *opt[2:]), *shapes]:
        scale = rng.uniform(1, 4)
        frames = [frame(rng, (width, height)) for _ in range(batch)]
        strengths = [_strength(rng, ours.bundle) for _ in frames]
        largest = total = 0.0
        values = 0
        for mine, image, strength in zip(ours.encode(frames, strengths), frames, strengths, strict=True):
            for part in _parts(rng, (width, height)):
                gap = _gap(ours, mine, theirs, image, strength, part, scale)
                finite = bool(np.isfinite(gap).all())
                largest = max(largest, float(np.abs(gap).max())) if finite else np.inf
                total, values = total + float(np.sum(np.square(gap, dtype=np.float64))), values + gap.size
        rms = float(np.sqrt(total / values)) if np.isfinite(largest) else np.inf
        yield Row((width, height), (round(width * scale), round(height * scale)), batch, largest, rms)


def _parts(rng: np.random.Generator, size: Size) -> Iterator[Rect]:
    """Two opposite corners of a frame, and places at random; a small frame whole.

    So the work does not grow with the frame.
    """
    width, height = (min(PART, n) for n in size)
    right, bottom = size[0] - width, size[1] - height
    places = {(0, 0), (right, bottom), *((int(rng.integers(right + 1)), int(rng.integers(bottom + 1))) for _ in "ab")}
    return ((x, y, width, height) for x, y in sorted(places))


def _gap(ours: Any, mine: Any, theirs: Any, image: Any, strength: Strength, part: Rect, scale: float) -> Any:
    """Difference in one part of a frame, ``mine`` as ``ours`` encoded it.

    The CPU computes no more of the frame than the part depends on: the encoder's receptive field, and the neighbours
    that a query samples.
    """
    from diinn.runtime.geometry.view import View

    x, y, width, height = map(int, part)
    halo = ours.bundle.radius + 2
    left, top = max(0, x - halo), max(0, y - halo)
    crop = np.ascontiguousarray(image[top : y + height + halo, left : x + width + halo])
    out = (max(1, round(width * scale)), max(1, round(height * scale)))
    (a,) = ours.decode(mine, [View.roi(part, out)], dtype=np.float32)
    (encoded,) = theirs.encode([crop], [strength])
    (b,) = theirs.decode(encoded, [View.roi((x - left, y - top, width, height), out)], dtype=np.float32)
    return a - b


def _strength(rng: np.random.Generator, bundle: Bundle) -> Strength:
    dial = bundle.dial
    return NONE if dial is None else Strength(rng.uniform(0, dial.noise), rng.uniform(0, dial.compression))


def _noise(rng: np.random.Generator, size: Size) -> Any:
    return rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)


def _photograph(rng: np.random.Generator, size: Size) -> Any:
    """A frame with values like a photograph's, which int8 was calibrated for."""
    from diinn.runtime.sources import demo

    return demo.frame(float(rng.uniform(0, 60)), size)


def on_golden(bundle: Bundle, precision: str) -> float:
    """Largest difference of a precision's graphs on the CPU to the golden sample, in [0, 1]; inf if not finite."""
    from diinn.runtime.bundles import golden
    from diinn.runtime.images.arrays import planar_rgb
    from diinn.runtime.util.onnx_runtime import ort

    sample, gaps = bundle.golden(), []
    encoder, decoder = (
        ort.InferenceSession(bundle.graph_content(role, precision), providers=["CPUExecutionProvider"])
        for role in ("encoder", "decoder")
    )
    names = [spec.name for spec in bundle.maps]
    size = sample["frame"].shape[1::-1]
    for number, strength in enumerate(golden.strengths(sample, dial=bundle.dial is not None)):
        maps = encoder.run(names, {"frame": planar_rgb(sample["frame"], bundle.levels(strength))})
        for name, view in golden.views(sample, bundle.layout).items():
            queries = view.queries(size, bundle.scales, bundle.layout)
            index, query = queries.arrays()
            rows = {n: m.reshape(-1, m.shape[-1])[index] for n, m in zip(names, maps, strict=True)}
            rgb = decoder.run(["rgb"], {**rows, "query": query})[0]
            if queries.outside is not None:
                rgb[queries.outside] = view.border_value
            gap = rgb.reshape(*queries.shape, 3)[..., ::-1] - sample[golden.output(name, number)]
            gaps.append(float(np.abs(gap).max()))
    return max(gaps) if np.isfinite(gaps).all() else float("inf")


def table(verify: Mapping[str, Any]) -> Table:
    """A recorded verdict as a table to print."""
    from rich.table import Table

    shown = Table(title=f"largest and rms difference to {verify['compared']}, units of [0, 1]")
    for head in ("frame", "output", "batch", "largest", "rms"):
        shown.add_column(head, justify="right")
    for row in verify["rows"]:
        (w, h), (out_w, out_h) = row["frame"], row["out"]
        shown.add_row(f"{w}x{h}", f"{out_w}x{out_h}", str(row["batch"]), f"{row['largest']:.1e}", f"{row['rms']:.1e}")
    return shown


def _random_shape(rng: np.random.Generator, least: Shape, most: Shape) -> list[int]:
    """(height, width) within a profile and not much above the least: the CPU computes it too."""
    return [int(rng.integers(a, min(b, a + 160) + 1)) for a, b in zip(least[2:], most[2:], strict=True)]


def require_passed(metadata: EngineMetadata) -> None:
    """DiinnError unless an engine's recorded verdict is good."""
    if not metadata.verify.get("passed"):
        raise DiinnError(
            f"the {metadata.key.identity.precision} {metadata.key.identity.role} engine differs from the CPU: "
            f"{metadata.verify.get('summary', 'no verdict')}: use --precision fp32 or --backend onnxruntime, or build "
            "it again with diinn-build --force"
        )
