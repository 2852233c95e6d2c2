"""``diinn-bench engine_layers``: what NVIDIA's own builder says of our engines."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from diinn.benchmarks import __main__ as bench
from diinn.benchmarks import engine_layers
from diinn.runtime.engines.profiles import Profile
from onnx import TensorProto, helper, numpy_helper

if importlib.util.find_spec(engine_layers.BUILDER) is None:
    pytest.skip("no builder of NVIDIA's here: pip install 'diinn[nvidia-builder]'", allow_module_level=True)


def test_maps_of_their_own_take_the_copy_away(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["engine_layers", "nano"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "nano" in line]
    generated = {row[1].strip(): row[4] for row in rows}
    assert len(generated) == 6
    before, after = (next(v for k, v in generated.items() if word in k) for word in ("Transpose", "HWC8"))
    assert "Tran" in before
    assert "Tran" not in after
    layers = {row[1].strip(): int(row[2]) for row in rows}
    half, full = (next(v for k, v in layers.items() if word in k) for word in ("1 query", "argument in fp32"))
    assert full > half  # the figure by which that is left


def test_each_map_gets_its_own_channels() -> None:
    """The weights of the added convolutions, one after the other, are those of the convolution they stand for."""
    from diinn.runtime.bundles import bundle as bundles
    from diinn.runtime.engines import profiles

    bundle, trt = bundles.load("small"), importlib.import_module(engine_layers.BUILDER)
    map_outputs = engine_layers._with_names_of(trt)
    seen = {}

    def change(network: object) -> object:
        layers = [network.get_layer(i) for i in range(network.num_layers)]  # type: ignore[attr-defined]
        joint = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION][-1]
        seen["joint"] = [np.array(v) for v in (map_outputs._as(joint, trt.IConvolutionLayer).kernel, joint.bias)]
        seen["own"] = map_outputs.channels_last(network)
        return seen["own"]

    engine_layers.build(trt, bundle.graph("encoder", "fp16"), profiles.encoder(bundle), change)
    assert len(seen["own"]) == 2 * len(bundle.maps)
    np.testing.assert_array_equal(np.concatenate([w.reshape(-1) for w in seen["own"][::2]]), seen["joint"][0])
    np.testing.assert_array_equal(np.concatenate(seen["own"][1::2]), seen["joint"][1])


def test_own_convolutions_are_strided_padded_and_dilated_as_the_one_they_stand_for(tmp_path: Path) -> None:
    """Each of these differs between the axes and from what a convolution has by default."""
    trt = importlib.import_module(engine_layers.BUILDER)
    map_outputs = engine_layers._with_names_of(trt)
    weight = numpy_helper.from_array(np.ones((16, 3, 3, 5), np.float16), "weight")
    bias = numpy_helper.from_array(np.ones(16, np.float16), "bias")
    attributes = {"strides": [1, 2], "pads": [1, 2, 3, 4], "dilations": [2, 3]}
    nodes = [
        helper.make_node("Conv", ["frame", "weight", "bias"], ["joint"], **attributes),
        helper.make_node("Transpose", ["joint"], ["turned"], perm=[0, 2, 3, 1]),
        helper.make_node("Split", ["turned"], ["a", "b"], axis=3),
    ]
    shape = (1, 3, 32, 48)
    frame = helper.make_tensor_value_info("frame", TensorProto.FLOAT16, ["B", 3, "H", "W"])
    maps = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["B", "h", "w", 8]) for name in "ab"]
    graph = helper.make_graph(nodes, "encoder", [frame], maps, [weight, bias])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "e.onnx")
    seen = {}

    def change(network: object) -> object:
        kept = map_outputs.channels_last(network)
        layers = [network.get_layer(i) for i in range(network.num_layers)]  # type: ignore[attr-defined]
        convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
        for layer in convolutions:
            layer = map_outputs._as(layer, trt.IConvolutionLayer)
            fields = (layer.stride_nd, layer.pre_padding, layer.post_padding, layer.dilation_nd)
            seen[layer.name] = [tuple(field) for field in fields]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]  # type: ignore[attr-defined]
        seen["shapes"] = [tuple(output.shape)[1] for output in outputs]
        return kept

    engine_layers.build(trt, tmp_path / "e.onnx", Profile(*[{"frame": shape}] * 3), change)
    assert seen.pop("shapes") == [8, 8]
    assert len(seen) == 3
    assert {str(fields) for fields in seen.values()} == {str([(1, 2), (1, 2), (3, 4), (2, 3)])}
