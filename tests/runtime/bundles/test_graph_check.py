"""Graphs that would load what no hash covers are refused by a look at their bytes, before any library sees them."""

import random
import time

import numpy as np
import onnx
import pytest
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.bundles import graph_check
from diinn.runtime.bundles.graph_check import GraphError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

INSIDE = numpy_helper.from_array(np.ones(4, np.float32), "w")
WHERE = "keeps weights in other files"


def outside(location: str = "w.bin", **more: str) -> TensorProto:
    """Four weights of another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "16", **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(tensor: TensorProto = INSIDE, domain: str = "", **attributes: object) -> GraphProto:
    """y = x + w, and a node with ``attributes`` beside it."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], domain=domain)]
    if attributes:
        nodes.append(helper.make_node("Constant", [], ["c"], **attributes))
    return helper.make_graph(nodes, "g", [x], [y], [tensor])


def model(found: GraphProto) -> ModelProto:
    return helper.make_model(found, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def sparse() -> ModelProto:
    made = model(graph())
    indices = numpy_helper.from_array(np.array([1], np.int64), "i")
    made.graph.sparse_initializer.add(values=outside(), indices=indices, dims=[9])
    return made


def in_a_function(attribute: AttributeProto) -> ModelProto:
    made = model(graph())
    made.functions.add(name="f", domain="ai.onnx", node=[onnx.NodeProto(op_type="Constant", attribute=[attribute])])
    return made


def default_of_a_function(attribute: AttributeProto) -> ModelProto:
    made = model(graph())
    made.functions.add(name="f", domain="ai.onnx", attribute_proto=[attribute])
    return made


def in_training() -> ModelProto:
    made = model(graph())
    made.training_info.add(algorithm=graph(outside()))
    return made


def located(encoded: bytes) -> bytes:
    """A model whose tensor says where its data is in an odd way."""
    odd = INSIDE.SerializeToString() + encoded
    made = graph()
    del made.initializer[:]
    body = made.SerializeToString() + b"\x2a" + bytes([len(odd)]) + odd
    return b"\x08\x08\x3a" + bytes([len(body) & 0x7F | 0x80, len(body) >> 7]) + body


VALUE = helper.make_attribute("value", outside())
HOSTILE = {
    "an initializer": model(graph(outside())),
    "another folder": model(graph(outside("../x.bin"))),
    "a path": model(graph(outside("/etc/passwd"))),
    "an address in memory": model(graph(outside("*/_ORT_MEM_ADDR_/*", offset="1234567890"))),
    "a constant": model(graph(value=outside())),
    "a graph in a node": model(graph(then=graph(outside()))),
    "graphs in a node": model(graph(branches=[graph(), graph(value=outside())])),
    "tensors in a node": model(graph(values=[INSIDE, outside()])),
    "sparse": sparse(),
    "sparse in a node": model(graph(value=sparse().graph.sparse_initializer[0])),
    "a function": in_a_function(VALUE),
    "a default of a function": default_of_a_function(VALUE),
    "training": in_training(),
    "without a place": located(b"\x70\x01"),
    "a place that is cut to 32 bits": located(b"\x70\x81\x80\x80\x80\x10"),
    "a long tag": located(b"\xf0\x80\x00\x01"),
    "a place as bytes": located(b"\x72\x01\x01"),
    "no more than a name": located(b"\x6a\x00"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_weights_in_other_files_are_found_wherever_they_are_named(case: str) -> None:
    made = HOSTILE[case]
    with pytest.raises(GraphError, match=WHERE):
        graph_check.check(made if isinstance(made, bytes) else made.SerializeToString())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (model(graph(domain="com.microsoft")).SerializeToString(), "another domain, b'com.microsoft'"),
        (model(graph(then=graph(domain="x" * 99))).SerializeToString(), "another domain, b'xxxx"),
        (b"\x18\x00\x00\x00ORTM" + bytes(99), "ONNX Runtime's own format"),
        (b"\x12\x07ABORTM1" + model(graph()).SerializeToString(), "ONNX Runtime's own format"),
        (b"", "holds no graph"),
        (b"\x08\x08", "holds no graph"),
        (b"hello, world", "is damaged"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "is damaged or cut short"),
        (b"\x08" + b"\xff" * 20, "is damaged"),
        (b"\x3b\x3c", "is damaged"),
        (b"\x38\x01", "is damaged"),
        (b"\x00\x00", "is damaged"),
        (b"\x08\x01" * 600_000, "has more than 500000 parts"),
    ],
)
def test_what_is_no_plain_graph_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(GraphError, match=words):
        graph_check.check(data)


def test_depth_is_bounded() -> None:
    data = b""
    for field in (0x32, 0x2A, 0x0A) * 100:  # graph of an attribute of a node of a graph …
        size = len(data)
        data = bytes([field]) + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + data
    with pytest.raises(GraphError, match="nested more than 100 deep"):
        graph_check.check(
            b"\x3a" + bytes([len(data) & 0x7F | 0x80, len(data) >> 7 & 0x7F | 0x80, len(data) >> 14]) + data
        )


def test_graphs_of_ours_pass_and_weights_cost_nothing() -> None:
    for name in bundles.shipped():
        for path in (bundles.MODELS / f"{name}.diinn").glob("*.onnx"):
            graph_check.check(path.read_bytes())
    large = model(graph(numpy_helper.from_array(np.zeros(25_000_000, np.float32), "w"))).SerializeToString()
    begun = time.process_time()
    graph_check.check(large)
    assert time.process_time() - begun < 0.5


def test_what_the_check_passes_of_mutated_graphs_holds_nothing_external() -> None:
    """Against onnx's own parser."""
    rng = random.Random(8)
    whole = model(graph(outside(), then=graph())).SerializeToString()
    passed = 0
    for _ in range(3000):
        changed = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x2A, 0x6A, 0x70, 0x72, rng.randrange(256)))
        try:
            graph_check.check(bytes(changed))
            found = onnx.load_from_string(bytes(changed))
        except Exception:
            continue
        passed += 1
        tensors = [
            *found.graph.initializer,
            *(t for n in found.graph.node for a in n.attribute for t in (a.t, *a.tensors)),
        ]
        assert not [t for t in tensors if t.external_data or t.data_location]
    assert passed > 5
