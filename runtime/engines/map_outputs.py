"""An encoder's maps without a copy: each the output of a convolution of its own, with its channels last in memory.

The graph transposes and splits what one convolution makes, which ONNX Runtime needs and TensorRT does by copying every
map once more. An output in the format HWC8 is written as [B, H, W, C] at once, where C is a multiple of 8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorrt as trt

EIGHT = 8  # channels that HWC8 pads to


def channels_last(network: trt.INetworkDefinition) -> list[Any]:
    """Give every map of a parsed encoder its own convolution; other networks stay as they are.

    The outputs keep their names and the bytes they are in memory; their shape becomes [B, C, H, W].

    Returns:
        What has to live until the engine is built; empty where nothing was changed.
    """
    makers = {}
    for i in range(network.num_layers):
        layer: trt.ILayer = network.get_layer(i)
        for k in range(layer.num_outputs):
            made: trt.ITensor = layer.get_output(k)
            makers[made.name] = layer
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    found = [_source(makers, output) for output in outputs]
    sources = [source for source in found if source is not None]
    if not found or len(sources) < len(found) or len({name for name, _ in sources}) > 1:
        return []
    joint: trt.IConvolutionLayer = _as(makers[sources[0][0]], trt.IConvolutionLayer)
    sizes = [tuple(output.shape)[-1] for output in outputs]
    ends = np.cumsum(sizes)
    whole = joint.num_inputs == 1 and joint.num_groups == 1 and ends[-1] == joint.num_output_maps
    fitting = [
        size % EIGHT == 0 and output.dtype == trt.DataType.HALF for size, output in zip(sizes, outputs, strict=True)
    ]
    if not whole or not all(fitting) or [start for _, start in sources] != [0, *ends[:-1]]:
        return []
    return _split(network, joint, outputs, sizes)


def _source(makers: dict[str, Any], output: trt.ITensor) -> tuple[str, int] | None:
    """The convolution's tensor that a map is cut from, and at which channel; None where it is not made like that."""
    layer: trt.ILayer | None = makers.get(output.name)
    start = 0
    if layer is not None and layer.type == trt.LayerType.SLICE:
        cut: trt.ISliceLayer = _as(layer, trt.ISliceLayer)
        start = tuple(cut.start)[-1]
        layer = _before(makers, layer)
    if layer is None or layer.type != trt.LayerType.SHUFFLE:
        return None
    transpose: trt.IShuffleLayer = _as(layer, trt.IShuffleLayer)
    layer = _before(makers, layer)
    turned = tuple(transpose.first_transpose)[:4]  # of eight axes, whatever the tensor has
    if turned != (0, 2, 3, 1) or layer is None or layer.type != trt.LayerType.CONVOLUTION:
        return None
    made: trt.ITensor = layer.get_output(0)
    return made.name, start


def _as(one: Any, kind: Any) -> Any:
    """A layer with what is its kind's own: a network gives every one as an ILayer."""
    one.__class__ = kind
    return one


def _before(makers: dict[str, Any], layer: trt.ILayer) -> Any:
    taken: trt.ITensor = layer.get_input(0)
    return makers.get(taken.name)


def _split(
    network: trt.INetworkDefinition, joint: trt.IConvolutionLayer, outputs: list[Any], sizes: list[int]
) -> list[Any]:
    weights = np.array(joint.kernel).reshape(joint.num_output_maps, -1)
    biases, kept, first = np.array(joint.bias), [], 0
    for output, size in zip(outputs, sizes, strict=True):
        old: trt.ITensor = output
        name = old.name
        network.unmark_output(old)
        old.name = f"{name}.copied"
        weight, bias = (np.ascontiguousarray(values[first : first + size]) for values in (weights, biases))
        kept += [weight, bias]
        own: trt.IConvolutionLayer = network.add_convolution_nd(
            joint.get_input(0), size, joint.kernel_size_nd, trt.Weights(weight), trt.Weights(bias)
        )
        own.stride_nd, own.dilation_nd = joint.stride_nd, joint.dilation_nd
        own.pre_padding, own.post_padding = joint.pre_padding, joint.post_padding
        own.name = f"{name}.convolution"
        new: trt.ITensor = own.get_output(0)
        new.name = name
        network.mark_output(new)
        new.allowed_formats = 1 << int(trt.TensorFormat.HWC8)
        first += size
    return kept
