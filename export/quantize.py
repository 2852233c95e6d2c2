"""INT8 graphs: explicit Q/DQ, scales per channel for weights and from the user's images for activations.

A layer is quantised where its input, weights and product in int8 cost little; the others stay fp16. TensorRT needs
symmetric scales, fp32 biases and both Q and DQ before weights. Only the layers themselves are given rounded values:
what goes around them, such as the sum of a residual block, stays exact.
"""

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from diinn.export import fp16_graph
from diinn.export.fp16_acceptance import with_strengths
from diinn.export.reference import Reference, fast
from diinn.runtime.errors import DiinnError
from diinn.runtime.geometry import grid
from diinn.runtime.images.arrays import planar_rgb
from diinn.runtime.images.files import read_bgr
from diinn.runtime.noise.strength import Dial
from diinn.runtime.util.onnx_runtime import ort  # noqa: F401  before its submodule
from diinn.train import protocol
from diinn.train.photographs import find_images
from onnx import ModelProto
from onnxruntime import quantization

LARGEST_RMS = 2.5e-3  # difference in units of [0, 1], at every strength: 0.1 dB at 35 dB
LARGEST_LOSS = 0.1  # dB at strength 0, mean of the images: better pictures than those of 35 dB lose more
SCALE = 2.7
QUERIES = 4096  # of each image, for the decoder's ranges
MOST_IMAGES, SIDE = 32, 192  # of the user's images, and of the square cut from the middle of each
_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "AddQDQPairToWeight": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": sorted(fp16_graph.PRODUCTS),
}
Pair = tuple[ModelProto, ModelProto]


@dataclass(frozen=True)
class Quantised:
    """INT8 graphs and how they came to be.

    plain: the same with the rest in fp32, as a CPU runs them
    costs: rms difference of RGB to fp32, units of [0, 1], with that layer alone in int8, by name; least first
    layers: those that are in int8; loss: rms difference with all of them
    decibels: what they lose by scale, as ``decibels`` measures it
    """

    encoder: ModelProto
    decoder: ModelProto
    plain: Pair
    costs: dict[str, float]
    layers: tuple[str, ...]
    loss: float
    decibels: dict[float, float]

    @property
    def card(self) -> dict[str, Any]:
        """The entry for ``bundle.json``."""
        kept = {name: cost for name, cost in self.costs.items() if name not in self.layers}
        return {"rms_to_fp32": self.loss, "int8_layers": list(self.layers), "fp16_layers": kept}


def make(
    encoder: ModelProto,
    decoder: ModelProto,
    layout: grid.Layout,
    frames: Sequence[grid.Float32],
    dial: Dial | None = None,
    *,
    arguments: bool,
) -> Quantised:
    """As many layers in int8 as the limits allow on ``frames``, float32 [3, H, W] RGB in [0, 1]; cheapest first.

    dial: of the encoder, if it has one: frames are then given with no strength, half and all of it
    arguments: keep the products that make a sine's argument in fp32
    Raises DiinnError where not even one may be.
    """
    work = _Work((encoder, decoder), layout, [given for frame in frames for given in with_strengths(frame, dial)])
    names = []
    for graph in (encoder, decoder):  # layers that stay fp32 in the fp16 graph are not int8 either
        full = fp16_graph.full_nodes(graph, arguments=arguments)
        names += [n.name for n in graph.graph.node if n.op_type in fp16_graph.PRODUCTS and n.name not in full]
    costs = {name: work.loss(work.quantised([name])) for name in names}
    costs = dict(sorted(costs.items(), key=lambda item: item[1]))
    order = [*costs]

    def lost(pair: Pair) -> dict[float, float]:
        return decibels(work.plain, pair, layout, frames, dial)

    def allowed(pair: Pair) -> bool:
        return work.loss(pair) <= LARGEST_RMS and not any(loss > LARGEST_LOSS for loss in lost(pair).values())

    low, high = 0, len(order)  # the first ``low`` are known to be allowed
    while low < high:
        middle = (low + high + 1) // 2
        if allowed(work.quantised(order[:middle])):
            low = middle
        else:
            high = middle - 1
    if not low:
        most = max(lost(work.quantised(order[:1])).values())
        cost = f"{costs[order[0]]:.2g} rms and {most:.2g} dB"
        raise DiinnError(f"no layer can be int8: the cheapest, {order[0]}, costs {cost}: keep fp16")
    layers = tuple(order[:low])
    plain = work.quantised(layers)
    typed = [fp16_graph.convert(graph, arguments=arguments, full=_touched(graph, layers)) for graph in plain]
    return Quantised(typed[0], typed[1], plain, costs, layers, work.loss(plain), lost(plain))


SCALING = ("QuantizeLinear", "DequantizeLinear")


def _touched(model: ModelProto, layers: Sequence[str]) -> set[str]:
    """Quantised layers, all that quantises and dequantises (the nodes with fp32 scales), and every Relu between those.

    A Relu in fp16 would stand between two casts, where an engine makes one int8 layer of convolution and Relu.
    """
    nodes = model.graph.node
    found = {node.name for node in nodes if node.op_type in SCALING or node.name in layers}
    made = {name for node in nodes if node.name in layers for name in node.output}
    taken = {name for node in nodes if node.name not in found for name in node.input}
    taken |= {value.name for value in model.graph.output}
    return found | {
        node.name for node in nodes if node.op_type == "Relu" and node.input[0] in made and node.output[0] not in taken
    }


def _exact_around(model: ModelProto, layers: Sequence[str]) -> None:
    """Give every node but ``layers`` the tensors that were quantised: ONNX Runtime's quantiser rounds them for all."""
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.name in layers or node.op_type in SCALING:
            continue
        for i, name in enumerate(node.input):
            maker = makers.get(name)
            if maker is not None and maker.op_type == SCALING[1]:
                node.input[i] = makers[maker.input[0]].input[0]


class _Work:
    """Quantises and measures on the same frames."""

    def __init__(self, plain: Pair, layout: grid.Layout, frames: Sequence[grid.Float32]) -> None:
        self.plain, self.layout, self.frames = plain, layout, frames
        self.reference = Reference(*plain, layout, fast)
        self.wanted = [self.reference.resize(f, _dsize(f)) for f in frames]
        self.feeds = ([{"frame": f[None]} for f in frames], [self._some(f) for f in frames])

    def _some(self, frame: grid.Float32) -> dict[str, Any]:
        inputs = self.reference.inputs(frame, _dsize(frame))
        samples = self.layout.samples
        count = len(inputs["query"]) // samples
        picked = np.random.default_rng(0).choice(count, min(count, QUERIES), replace=False)
        rows = (picked[:, None] * samples + np.arange(samples)).reshape(-1)
        return {name: values[rows] for name, values in inputs.items()}

    def quantised(self, layers: Sequence[str]) -> Pair:
        """Both graphs with ``layers`` in int8, the rest as it was."""
        encoder, decoder = (
            _qdq(graph, [n.name for n in graph.graph.node if n.name in layers], feeds)
            for graph, feeds in zip(self.plain, self.feeds, strict=True)
        )
        return encoder, decoder

    def loss(self, pair: Pair) -> float:
        model = Reference(*pair, self.layout, fast)
        gaps = [model.resize(f, _dsize(f)) - w for f, w in zip(self.frames, self.wanted, strict=True)]
        return float(np.sqrt(np.mean([np.mean(gap**2) for gap in gaps])))


def _dsize(frame: grid.Float32) -> tuple[int, int]:
    return round(frame.shape[2] * SCALE), round(frame.shape[1] * SCALE)


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Sequence[dict[str, Any]]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


def _qdq(model: ModelProto, nodes: list[str], feeds: Sequence[dict[str, Any]]) -> ModelProto:
    if not nodes:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantiser recommends a preprocessing that changes nothing here
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "int8.onnx"
            quantization.quantize_static(
                copy,
                out,
                _Reader(feeds),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=sorted(fp16_graph.PRODUCTS),
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_quantize=nodes,
                extra_options=_OPTIONS,
            )
            made = onnx.load(out)
            _exact_around(made, nodes)
            return made
    finally:
        root.setLevel(level)


def images(folder: Path) -> list[grid.Float32]:
    """The user's images as float32 [3, H, W] RGB in [0, 1], cut to their middle; InputError where there is none."""
    found = find_images(folder)
    chosen = [found[i * len(found) // min(len(found), MOST_IMAGES)] for i in range(min(len(found), MOST_IMAGES))]
    return [planar_rgb(_middle(read_bgr(path)))[0] for path in chosen]


def _middle(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    top, left = (max(0, n - SIDE) // 2 for n in image.shape[:2])
    return image[top : top + SIDE, left : left + SIDE]


def decibels(
    plain: Pair, other: Pair, layout: grid.Layout, frames: Sequence[grid.Float32], dial: Dial | None = None
) -> dict[float, float]:
    """PSNR that ``other`` loses against ``plain`` by scale, mean over ``frames`` taken as HR (``protocol``)."""
    one, two = Reference(*plain, layout, fast), Reference(*other, layout, fast)

    def psnr(model: Reference, frame: grid.Float32, scale: float) -> float:
        def upscale(lr: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
            return torch.from_numpy(model.resize(with_strengths(lr.numpy(), dial)[0], shape[::-1]).transpose(2, 0, 1))

        return protocol.psnr(torch.from_numpy(frame), scale, upscale)

    return {s: float(np.mean([psnr(one, f, s) - psnr(two, f, s) for f in frames])) for s in (2.0, 4.0)}


def cpu_milliseconds(models: dict[str, ModelProto], size: tuple[int, int] = (160, 120)) -> dict[str, float]:
    """Medians of encoder graphs on this CPU, frames of ``size`` (width, height), taking turns."""
    planes = next(iter(models.values())).graph.input[0].type.tensor_type.shape.dim[1].dim_value
    frame = np.random.default_rng(0).uniform(0, 1, (1, planes, size[1], size[0])).astype(np.float32)
    opened = {name: fast(model) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(9):
        for name, session in opened.items():
            began = time.perf_counter()
            session.run(None, {"frame": frame})
            times[name].append(time.perf_counter() - began)
    return {name: float(np.median(values)) * 1e3 for name, values in times.items()}
