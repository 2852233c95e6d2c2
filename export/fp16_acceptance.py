"""The fp16 graphs of a model, accepted or rejected by measurement.

The loss of a graph is measured with every fp16 tensor rounded (``reference``), how near it comes to overflow by running
the fp32 graph on frames made to provoke it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from diinn.export import fp16_graph
from diinn.export.reference import Evaluator, Reference, fast, half_sums, rounding
from diinn.runtime.bundles import golden
from diinn.runtime.errors import DiinnError
from diinn.runtime.geometry import grid
from diinn.runtime.images.arrays import planar_rgb
from diinn.runtime.noise.strength import Dial
from diinn.runtime.sources import demo
from onnx import ModelProto, TensorProto, helper

Pair = tuple[ModelProto, ModelProto]  # encoder and decoder
LARGEST_LOSS = 1e-3  # rms in units of [0, 1]: a quarter of an 8-bit step, 0.01 dB at 35 dB
LARGEST_VALUE = fp16_graph.LARGEST / 2
SIZE = (32, 24)
DSIZES = ((32, 24), (87, 64), (256, 192))  # scales 1, 2.7 and 8


@dataclass(frozen=True)
class Typed:
    """fp16 graphs and what was measured of them.

    arguments: whether the products that make a sine's argument stay fp32
    loss: rms difference to fp32, RGB in units of [0, 1], on ``measured_frames``
    half_sums: the same where products accumulate in fp16, which TensorRT may pick; on record, not judged
    largest: the fp16 tensor that comes nearest to overflow, and its largest magnitude on ``adversarial_frames``
    """

    encoder: ModelProto
    decoder: ModelProto
    arguments: bool
    loss: float
    half_sums: float
    largest: tuple[str, float]

    @property
    def card(self) -> dict[str, Any]:
        """The entry for ``bundle.json``."""
        return {
            "rms_to_fp32": self.loss,
            "rms_with_fp16_sums": self.half_sums if np.isfinite(self.half_sums) else None,  # JSON has no inf
            "sine_arguments": "fp32" if self.arguments else "fp16",
            "largest": {"tensor": self.largest[0], "magnitude": self.largest[1], "allowed": LARGEST_VALUE},
        }


def make(encoder: ModelProto, decoder: ModelProto, layout: grid.Layout, dial: Dial | None = None) -> Typed:
    """fp16 of the two fp32 graphs; sines' arguments in fp16 if the loss allows it, else in fp32.

    dial: of the encoder, if it has one: measurements are made at none, half and all of it

    Raises DiinnError where fp16 loses more than ``LARGEST_LOSS`` or comes nearer to overflow than ``LARGEST_VALUE``.
    """
    try:
        return _make((encoder, decoder), layout, dial, arguments=False)
    except DiinnError:
        return _make((encoder, decoder), layout, dial, arguments=True)


def _make(plain: Pair, layout: grid.Layout, dial: Dial | None, *, arguments: bool) -> Typed:
    graphs = fp16_graph.convert(plain[0], arguments=arguments), fp16_graph.convert(plain[1], arguments=arguments)
    lost = loss(plain, graphs, layout, dial)
    if not lost <= LARGEST_LOSS:
        raise DiinnError(f"fp16 differs from fp32 by {lost:.2g} rms, allowed are {LARGEST_LOSS:g}: keep fp32")
    found = ranges(plain, graphs, layout, dial)
    name = max(found, key=lambda n: found[n])
    if not found[name] <= LARGEST_VALUE:
        raise DiinnError(f"tensor {name} reaches {found[name]:.3g}, half of fp16's end is {LARGEST_VALUE:g}: keep fp32")
    return Typed(*graphs, arguments, lost, loss(plain, graphs, layout, dial, half_sums), (name, found[name]))


def loss(
    plain: Pair, typed: Pair, layout: grid.Layout, dial: Dial | None = None, evaluator: Evaluator = rounding
) -> float:
    """Difference of two (encoder, decoder) pairs: rms of RGB, units of [0, 1]; inf where a result is not finite."""
    one, other = Reference(*plain, layout), Reference(*typed, layout, evaluator)
    frames = [given for frame in measured_frames() for given in with_strengths(frame, dial)]
    gaps = [one.resize(frame, DSIZES[1]) - other.resize(frame, DSIZES[1]) for frame in frames]
    worst = max(float(np.sqrt(np.mean(gap**2))) for gap in gaps)
    return worst if np.isfinite(worst) else float("inf")


def with_strengths(frame: grid.Float32, dial: Dial | None) -> list[grid.Float32]:
    """A frame [3, H, W] as an encoder graph takes it: itself, or with no strength, half and all of ``dial``."""
    if dial is None:
        return [frame]
    planes = [np.full((2, *frame.shape[1:]), share, np.float32) for share in (0, 0.5, 1)]
    most = np.array([dial.noise, dial.compression], np.float32)[:, None, None]
    return [np.concatenate((frame, most * plane)) for plane in planes]


def measured_frames() -> list[grid.Float32]:
    """Frames float32 [3, H, W] with what pictures have: the golden sample's and the demo camera's."""
    return [planar_rgb(golden.frame())[0], planar_rgb(demo.frame(3.0, (48, 36)))[0]]


def adversarial_frames() -> dict[str, grid.Float32]:
    """Frames float32 [3, H, W] in [0, 1] that drive activations far: flat, alternating, noisy, saturated."""
    width, height = SIZE
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(0)
    grey = {"black": 0 * x, "white": 0 * x + 1, "checkerboard": (x + y) % 2, "stripes": x % 2, "bars": y // 2 % 2}
    frames = {name: np.repeat(values[None], 3, 0) for name, values in grey.items()}
    frames["noise"] = rng.uniform(0, 1, (3, height, width))
    frames["binary noise"] = rng.integers(0, 2, (3, height, width))
    for channel, name in enumerate(("red", "green", "blue")):
        frames[name] = np.zeros((3, height, width))
        frames[name][channel] = 1
    frames["saturated"] = np.kron(rng.integers(0, 2, (3, height // 4, width // 4)), np.ones((1, 4, 4)))
    return {name: np.ascontiguousarray(frame, np.float32) for name, frame in frames.items()}


def ranges(plain: Pair, typed: Pair, layout: grid.Layout, dial: Dial | None = None) -> dict[str, float]:
    """Largest magnitude in fp32 of every tensor that ``typed`` holds in fp16, over ``adversarial_frames``."""
    encoder, decoder = (Tapped(p, _half_tensors(t)) for p, t in zip(plain, typed, strict=True))
    maps = [v.name for v in plain[0].graph.output]
    found: dict[str, float] = {}
    for given in [given for frame in adversarial_frames().values() for given in with_strengths(frame, dial)]:
        values = encoder.run({"frame": given[None]}, found)
        for dsize in DSIZES:
            index, query = grid.resize(SIZE, dsize, layout).arrays()
            decoder.run({**{m: values[m].reshape(-1, values[m].shape[-1])[index] for m in maps}, "query": query}, found)
    return found


def _half_tensors(typed: ModelProto) -> set[str]:
    """Names in the fp32 graph of the tensors that ``typed`` holds in fp16, casts included."""
    graph = onnx.shape_inference.infer_shapes(typed).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    names = {v.name for v in values if v.type.tensor_type.elem_type == fp16_graph.HALF}
    return {name.removesuffix(".fp16").removesuffix(".computed") for name in names}


class Tapped:
    """An fp32 graph in ONNX Runtime with the tensors ``names`` as outputs."""

    def __init__(self, plain: ModelProto, names: set[str]) -> None:
        model = ModelProto()
        model.CopyFrom(plain)
        inputs, outputs = ({v.name for v in values} for values in (model.graph.input, model.graph.output))
        tapped = sorted(names - inputs - outputs)
        model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in tapped)
        self.names = [*sorted(outputs), *tapped]
        self.kept = names
        self.session = fast(model)

    def run(self, feed: dict[str, grid.Float32], largest: dict[str, float]) -> dict[str, grid.Float32]:
        """All outputs by name; ``largest`` is updated with their magnitudes."""
        values = dict(zip(self.names, self.session.run(self.names, feed), strict=True))
        for name in self.kept:
            most = float(np.abs(values[name] if name in values else feed[name]).max())
            largest[name] = max(largest.get(name, 0.0), most if np.isfinite(most) else float("inf"))
        return values
