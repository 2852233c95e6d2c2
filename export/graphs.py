"""PyTorch modules to ONNX graphs: the encoder, the decoder, and the decoder with the gather inside.

The decoder graph holds no Gather, GridSample, Resize or Shape: coordinates and gather stay outside,
so every engine builder takes it and any output size runs without a rebuild.
"""

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
import torch
from diinn.runtime.bundles.bundle import MapSpec
from diinn.runtime.errors import DiinnError
from diinn.runtime.noise.strength import PATCH
from diinn.train.decoders import DiinnDecoder
from diinn.train.estimator import Estimator
from diinn.train.model import SuperResolutionModel
from onnx import TensorProto, helper
from torch import Tensor, nn

OPSET = 17  # TensorRT 8.5 reads up to 17
FORBIDDEN = {"Gather", "GridSample", "Resize", "Shape", "GatherND", "GatherElements", "ScatterND"}


class _Encoder(nn.Module):
    def __init__(self, model: SuperResolutionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        return self.model.encode(frame)


class _Decoder(nn.Module):
    def __init__(self, model: SuperResolutionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, query: Tensor, *rows: Tensor) -> Tensor:
        return self.model.decode(rows, query)


def map_specs(model: SuperResolutionModel) -> tuple[MapSpec, ...]:
    """Names and channels of the maps the encoder hands over."""
    return tuple(MapSpec(f"map{i}", channels) for i, channels in enumerate(model.decoder.map_channels))


def encoder(model: SuperResolutionModel, path: Path) -> onnx.ModelProto:
    """The encoder graph: ``frame [B, planes, H, W]`` float32 to one ``mapI [B, H, W, C]`` per map.

    The planes are RGB in [0, 1] and with a dial the strength.
    """
    maps = [m.name for m in map_specs(model)]
    axes = {"frame": {0: "B", 2: "H", 3: "W"}, **{name: {0: "B", 1: "H", 2: "W"} for name in maps}}
    _export(_Encoder(model), (torch.rand(1, model.inputs, 12, 10),), path, ["frame"], maps, axes)
    return _checked(path, set())


def decoder(model: SuperResolutionModel, path: Path) -> onnx.ModelProto:
    """``mapI [S, C]`` gathered rows and ``query [S, F]`` to ``rgb [Q, 3]`` in [0, 1], unclamped; S = Q · samples."""
    maps = map_specs(model)
    names = ["query", *(m.name for m in maps)]
    layout = model.decoder.layout
    rows = 7 * layout.samples
    inputs = (torch.rand(rows, len(layout.columns)), *(torch.rand(rows, m.channels) for m in maps))
    axes = {**{name: {0: "S"} for name in names}, "rgb": {0: "Q"}}
    _export(_Decoder(model), inputs, path, names, ["rgb"], axes)
    return _checked(path, FORBIDDEN)


class _Estimator(nn.Module):
    def __init__(self, network: Estimator) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor) -> Tensor:
        return self.network.estimate(patches[None])[0]


def estimator(network: Estimator, path: Path) -> None:
    """``patches [S, 3, 32, 32]`` of one frame, RGB float32 in 0 to 255, to ``strength [2]``: noise, compression."""
    patches = torch.rand(4, 3, PATCH, PATCH) * 255
    _export(_Estimator(network), (patches,), path, ["patches"], ["strength"], {"patches": {0: "S"}})
    _checked(path, set())


def layers(model: SuperResolutionModel) -> dict[str, Any] | None:
    """The decoder's weights as ``Bundle.layers`` describes them; None for one that the fused kernel is not for."""
    decoder, config = model.decoder, model.config
    if not isinstance(decoder, DiinnDecoder) or decoder.kind != "sz" or not decoder.folded:
        return None
    (_, first), *later = decoder.layers
    width = decoder.width
    pairs: list[Tensor] = [
        torch.stack([modulation.weight[:, :width], synthesis.weight]) for modulation, synthesis in later
    ]
    biases: list[Tensor] = [synthesis.bias for _, synthesis in later]
    found = {
        "first": torch.cat([first.weight, first.bias[:, None]], 1),
        "hidden": torch.stack(pairs) if pairs else torch.empty(0, 2, width, width),
        "bias": torch.stack(biases) if biases else torch.empty(0, width),
        "last": decoder.last.weight * config.std,
        "last_bias": decoder.last.bias * config.std + config.mean,
    }
    return {name: values.detach().float().numpy() for name, values in found.items()}


def gather_decoder(plain: onnx.ModelProto, maps: Iterable[MapSpec], path: Path) -> onnx.ModelProto:
    """The decoder graph ``plain`` with the gather before it, for the CPU.

    ``mapI [P, C]`` are all rows of the maps and ``index [S]`` int32 the row that each sample takes.
    """
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    graph = model.graph
    gathers = []
    for spec in maps:
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == spec.name:
                    node.input[i] = f"{spec.name}_rows"
        gathers.append(helper.make_node("Gather", [spec.name, "index"], [f"{spec.name}_rows"], f"gather_{spec.name}"))
        value = next(v for v in graph.input if v.name == spec.name)
        value.CopyFrom(helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, ["P", spec.channels]))
    graph.input.append(helper.make_tensor_value_info("index", TensorProto.INT32, ["S"]))
    nodes = [*gathers, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)
    return _checked(path, FORBIDDEN - {"Gather"})


def workspace_bytes(model: onnx.ModelProto) -> int:
    """Bytes per LR pixel alive at once, at the peak, when the encoder graph runs node by node.

    Every tensor of the encoder is [1, C, H, W] or [1, H, W, C] float32 at LR size, so channels suffice.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    fixed = {"B": 1, "H": 1, "W": 1}

    def size(value: onnx.ValueInfoProto) -> int:
        total = 4
        for dim in value.type.tensor_type.shape.dim:
            total *= dim.dim_value or fixed.get(dim.dim_param, 1)
        return total

    values = [*inferred.input, *inferred.value_info, *inferred.output]
    sizes = {v.name: size(v) for v in values}
    kept = {v.name for v in inferred.output}
    last_use = {name: i for i, node in enumerate(inferred.node) for name in node.input}
    alive = {v.name for v in inferred.input}
    peak = 0
    for i, node in enumerate(inferred.node):
        alive.update(node.output)
        peak = max(peak, sum(sizes.get(name, 0) for name in alive))
        alive = {name for name in alive if last_use.get(name, -1) > i or name in kept}
    return peak


def _export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    input_names: list[str],
    output_names: list[str],
    dynamic_axes: dict[str, dict[int, str]],
) -> None:
    with warnings.catch_warnings():
        # The TorchScript exporter is the one that writes opset 17 directly; it warns that it is deprecated.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            module.eval(),
            inputs,
            str(path),
            input_names=input_names,
            output_names=output_names,
            dynamic_axes=dynamic_axes,
            opset_version=OPSET,
            dynamo=False,
        )


def _checked(path: Path, forbidden: set[str]) -> onnx.ModelProto:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    found = {node.op_type for node in model.graph.node} & forbidden
    if found:
        raise DiinnError(f"{path.name} holds {', '.join(sorted(found))}: engines cannot be built from it")
    return model
