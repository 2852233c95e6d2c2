"""Typed fp16 graphs from the fp32 ones: which parts an engine runs in half precision, and which it must not.

TensorRT 11 takes no precision flags, so the graph itself states the type of every tensor. fp32 are ``frame``, ``query``
and ``rgb``; of the encoder what precedes its first matrix product; of the decoder what follows from the coordinates
alone, every sine (fp16 has a spacing of 2⁻⁶ at 16), with ``arguments`` the products that make its argument, and what
follows its last matrix product. The maps are fp16.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from diinn.runtime.errors import DiinnError
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

LARGEST = 65504.0  # of fp16
PRODUCTS = {"Conv", "Gemm", "MatMul"}
BORDER = {"frame", "query", "rgb"}
FULL, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def convert(plain: ModelProto, *, arguments: bool, full: Iterable[str] = ()) -> ModelProto:
    """The fp32 encoder or decoder graph ``plain`` in fp16; tensors keep their names.

    arguments: keep the products that make a sine's argument in fp32
    full: names of further nodes to keep in fp32

    Raises DiinnError where a weight is beyond fp16.
    """
    keep = full_nodes(plain, arguments=arguments) | set(full)
    typed = _Typed(plain)
    for node in operations(plain):
        typed.add(node, FULL if node.name in keep else HALF)
    inputs, outputs = ([_typed_value(v) for v in values] for values in (plain.graph.input, plain.graph.output))
    graph = helper.make_graph(typed.nodes, plain.graph.name, inputs, outputs, list(typed.weights.values()))
    model = helper.make_model(graph, opset_imports=plain.opset_import, ir_version=plain.ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def kept_full(path: Path) -> list[str]:
    """Names of the nodes of a typed graph that compute in fp32, as ``build_worker._hold_fp32`` marks them."""
    model = onnx.load(path)
    graph = onnx.shape_inference.infer_shapes(model).graph
    full = {v.name for v in [*graph.value_info, *graph.output] if v.type.tensor_type.elem_type == FULL}
    scaling = ("QuantizeLinear", "DequantizeLinear")
    int8 = {name for node in operations(model) if node.op_type == scaling[1] for name in node.output}
    nodes = [node for node in operations(model) if node.op_type not in scaling and not int8 & set(node.input)]
    return [node.name for node in nodes if full & set(node.output)]


def operations(model: ModelProto) -> list[NodeProto]:
    """All nodes but constants."""
    return [node for node in model.graph.node if node.op_type != "Constant"]


def full_nodes(model: ModelProto, *, arguments: bool) -> set[str]:
    """Names of the nodes that stay fp32 by the rules above."""
    nodes = operations(model)
    # An unfold is a grouped convolution that moves values: fp16 has no kernel for it in TensorRT 11.2.
    unfolds = {node.name for node in nodes if any(a.name == "group" and a.i > 1 for a in node.attribute)}
    products = [node for node in nodes if node.op_type in PRODUCTS and node.name not in unfolds]
    inputs = {value.name for value in model.graph.input}
    if "query" not in inputs:
        after = _downstream(nodes, {name for node in products for name in node.output})
        return unfolds | {node.name for node in nodes if node not in products and not after & set(node.input)}
    from_maps = _downstream(nodes, inputs - BORDER)
    to_products = _upstream(nodes, {name for node in products for name in node.input})
    sines = [node for node in nodes if node.op_type == "Sin"]
    keep = {node.name for node in nodes if not from_maps & set(node.input)}
    keep |= {node.name for node in nodes if node not in products and not to_products & set(node.output)}
    keep |= {node.name for node in sines}
    if arguments:
        wanted = _upstream(nodes, {name for node in sines for name in node.input}, stop=PRODUCTS)
        keep |= {node.name for node in nodes if wanted & set(node.output)}
    return keep


def _downstream(nodes: list[NodeProto], seeds: set[str]) -> set[str]:
    """Tensors that depend on ``seeds``, those included."""
    found = set(seeds)
    for node in nodes:
        if found & set(node.input):
            found.update(node.output)
    return found


def _upstream(nodes: list[NodeProto], seeds: set[str], stop: Iterable[str] = ()) -> set[str]:
    """Tensors that ``seeds`` depend on, those included, not looking past operators of ``stop``."""
    found = set(seeds)
    for node in reversed(nodes):
        if found & set(node.output) and node.op_type not in stop:
            found.update(node.input)
    return found


def _end_type(name: str) -> int:
    return FULL if name in BORDER else HALF


def _typed_value(value: ValueInfoProto) -> ValueInfoProto:
    typed = ValueInfoProto()
    typed.CopyFrom(value)
    typed.type.tensor_type.elem_type = _end_type(value.name)
    return typed


class _Typed:
    """Nodes and weights of the typed graph, as they are added."""

    def __init__(self, plain: ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(plain).graph
        known = [*graph.input, *graph.value_info, *graph.output]
        self.floats = {v.name for v in known if v.type.tensor_type.elem_type == FULL}
        self.ends = {v.name for v in graph.output}
        self.constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        self.constants |= {
            n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"
        }
        self.types = {v.name: _end_type(v.name) for v in graph.input}
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, TensorProto] = {}

    def add(self, plain: NodeProto, kind: int) -> None:
        """``plain`` computing in ``kind``, with the casts it needs before it and, where the graph ends, after it."""
        node = NodeProto()
        node.CopyFrom(plain)
        node.input[:] = [self._input(name, kind) for name in plain.input]
        self.nodes.append(node)
        for i, name in enumerate(plain.output):
            if name not in self.floats:
                continue
            self.types[name] = kind
            if name in self.ends and kind != _end_type(name):
                node.output[i] = f"{name}.computed"
                self.types[node.output[i]] = kind
                self.nodes.append(
                    helper.make_node("Cast", [node.output[i]], [name], f"{name}.cast", to=_end_type(name))
                )

    def _input(self, name: str, kind: int) -> str:
        if name in self.constants:
            return self._weight(name, kind)
        if name not in self.floats or self.types[name] == kind:
            return name
        cast = f"{name}.fp{16 if kind == HALF else 32}"
        if cast not in self.types:
            self._cast(name, cast, kind)
        return cast

    def _cast(self, name: str, result: str, kind: int) -> None:
        self.types[result] = kind
        self.nodes.append(helper.make_node("Cast", [name], [result], f"{result}.cast", to=kind))

    def _weight(self, name: str, kind: int) -> str:
        values = self.constants[name]
        if values.dtype == np.float32 and kind == HALF:
            if not np.abs(values).max(initial=0) <= LARGEST:
                raise DiinnError(
                    f"weight {name} reaches {np.abs(values).max():.3g}, fp16 ends at {LARGEST:g}: keep fp32"
                )
            values, name = values.astype(np.float16), f"{name}.fp16"
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(values, name)
        return name
