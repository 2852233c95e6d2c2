"""Lower bounds from arithmetic and memory traffic: floors of a decoder on a GPU, and projections for Jetsons.

A projection is no measurement: no implementation with these operations can be faster. Every table with one is marked.
"""

from __future__ import annotations

from dataclasses import dataclass

from diinn.runtime.bundles.bundle import Bundle
from diinn.runtime.geometry.grid import Size

# A multiprocessor's results a cycle (CUDA programming guide, arithmetic instructions): special functions; fp32, of
# which one unit of one layer takes about ten (sum, comparison, range reduction, product, conversion).
SPECIAL, FP32, FP32_OPERATIONS = 16, 128, 10
HALF = 2  # bytes


@dataclass(frozen=True)
class Work:
    """The least work of a decoder. flop: of matrix products; sines: their number; moved: bytes to and from memory."""

    flop: float
    sines: float
    moved: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flop + other.flop, self.sines + other.sines, self.moved + other.moved)


@dataclass(frozen=True)
class Card:
    """A GPU: fp16 matrix FLOP/s, bytes/s, multiprocessors, their clock in Hz."""

    matrix: float
    bandwidth: float
    multiprocessors: int
    clock: float

    def floors(self, work: Work) -> dict[str, float]:
        """Least milliseconds by each bound; all may overlap."""
        cycles = self.multiprocessors * self.clock
        seconds = {
            "matrix": work.flop / self.matrix,
            "special functions": work.sines / (SPECIAL * cycles),
            "elementwise": work.sines * FP32_OPERATIONS / (FP32 * cycles),
            "bytes": work.moved / self.bandwidth,
        }
        return {name: value * 1e3 for name, value in seconds.items()}


def _orin(multiprocessors: int, clock: float, bandwidth: float) -> Card:
    """Ampere: 1,024 fp16 multiply-adds a cycle and multiprocessor, dense."""
    return Card(2048 * multiprocessors * clock, bandwidth, multiprocessors, clock)


# NVIDIA's data sheets, in each module's largest power mode. Thor's dense fp16 rate is an eighth of its sparse FP4 rate.
JETSONS = {
    "Orin Nano 8GB": _orin(8, 1.020e9, 102e9),
    "Orin NX 16GB": _orin(8, 1.173e9, 102e9),
    "AGX Orin 64GB": _orin(16, 1.300e9, 204.8e9),
    "Thor T5000": Card(2070e12 / 8, 273e9, 20, 1.575e9),
}


def of(bundle: Bundle, frame: Size, out: Size, cameras: int) -> Work:
    """Encoding and decoding ``cameras`` frames, fp16, folded; the encoder's from the size of its graph."""
    pixels, queries = cameras * frame[0] * frame[1], cameras * out[0] * out[1]
    channels = sum(spec.channels for spec in bundle.maps)
    parameters = (bundle.path / bundle.graphs["fp32"]["encoder"]).stat().st_size / 4  # each is used once a pixel
    encoder = Work(2 * parameters * pixels, 0, HALF * channels * pixels + 3 * pixels)
    decoder = bundle.architecture["decoder"]
    width, depth = decoder["width"], decoder.get("depth", 1)
    products = {
        "diinn": 3 * width + (depth - 1) * 2 * width**2 + 3 * width,
        "liif": 4 * (4 * width + (depth - 1) * width**2 + 3 * width),
        "metasr": 3 * width + 3 * width,
    }
    sines = float(depth * width * queries) if decoder["name"] == "diinn" else 0.0
    flop = 2.0 * products[decoder["name"]] * queries
    return encoder + Work(flop, sines, HALF * channels * pixels + 3 * queries)
