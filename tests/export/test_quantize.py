"""INT8: what is quantised and how, what it costs, and how it gets into a bundle."""

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from conftest import play
from diinn.export import fp16_graph, quantize, to_trt, writer
from diinn.export.fp16_acceptance import with_strengths
from diinn.export.reference import Reference, fast
from diinn.runtime import DiinnError, InputError, SuperResolver
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.engines.cache import Cache
from diinn.runtime.images.arrays import planar_rgb
from diinn.runtime.sources import demo
from onnx import numpy_helper

Pair = tuple[onnx.ModelProto, onnx.ModelProto]
Nano, Frames = tuple[bundles.Bundle, Pair], list[np.ndarray]
Patch, Output = pytest.MonkeyPatch, pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def nano() -> Nano:
    bundle = bundles.load("nano")
    return bundle, (onnx.load(bundle.graph("encoder")), onnx.load(bundle.graph("decoder")))


@pytest.fixture(scope="module")
def frames() -> Frames:
    return [planar_rgb(demo.frame(t, (40, 30)))[0] for t in (0.0, 9.0)]


@pytest.fixture(scope="module")
def made(nano: Nano, frames: Frames) -> quantize.Quantised:
    bundle, pair = nano
    return quantize.make(*pair, bundle.layout, frames, bundle.dial, arguments=False)


def test_layers_are_taken_cheapest_first_within_the_limit(made: quantize.Quantised) -> None:
    assert made.layers == tuple(made.costs)[: len(made.layers)]
    assert [*made.costs.values()] == sorted(made.costs.values())
    assert 0 < made.loss <= quantize.LARGEST_RMS
    assert max(made.decibels.values()) <= quantize.LARGEST_LOSS
    assert "/encoder/head/Conv" in made.costs
    assert "/decoder/synthesis.0/Gemm" not in made.costs  # made of coordinates alone: stays fp32


def test_scales_are_symmetric_and_weights_have_one_a_channel(made: quantize.Quantised) -> None:
    weights = {i.name: numpy_helper.to_array(i) for i in made.encoder.graph.initializer}
    points = [weights[node.input[2]] for node in made.encoder.graph.node if node.op_type == "QuantizeLinear"]
    assert points
    assert all(point.dtype == np.int8 and not point.any() for point in points)
    makers = {name: node for node in made.encoder.graph.node for name in node.output}
    for node in made.encoder.graph.node:
        if node.name in made.layers:
            data, weight = (makers[name] for name in node.input[:2])
            assert data.op_type == weight.op_type == "DequantizeLinear"
            assert weights[weight.input[1]].shape == (weights[makers[weight.input[0]].input[0]].shape[0],)
            assert weights[node.input[2]].dtype == np.float32  # the bias


def test_what_goes_around_an_int8_layer_is_not_rounded(
    made: quantize.Quantised, nano: Nano, frames: Frames, monkeypatch: Patch
) -> None:
    for graph in (*made.plain, made.encoder, made.decoder):
        rounded = {name for node in graph.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
        for node in graph.graph.node:
            assert node.name in made.layers or not rounded & {*node.input}, node.name
    bundle, pair = nano
    work = quantize._Work(pair, bundle.layout, [with_strengths(frame, bundle.dial)[1] for frame in frames])
    body = [node.name for node in pair[0].graph.node if node.op_type == "Conv" and "/blocks/" in node.name]
    exact = work.loss(work.quantised(body))
    monkeypatch.setattr(quantize, "_exact_around", lambda *_: None)  # as the library leaves it
    assert exact < 0.9 * work.loss(work.quantised(body))


def test_a_relu_between_int8_layers_has_no_cast_beside_it(made: quantize.Quantised) -> None:
    nodes = made.encoder.graph.node
    makers = {name: node for node in nodes for name in node.output}
    takers = {name: [node.op_type for node in nodes if name in node.input] for name in makers}
    between = [node for node in nodes if node.op_type == "Relu" and makers[node.input[0]].name in made.layers]
    between = [node for node in between if "QuantizeLinear" in takers[node.output[0]]]
    assert between
    assert all(takers[node.output[0]] == ["QuantizeLinear"] for node in between)


def test_the_rest_is_fp16(made: quantize.Quantised, nano: Nano, frames: Frames) -> None:
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*made.encoder.graph.input, *made.encoder.graph.output]}
    assert kinds.pop("frame") == onnx.TensorProto.FLOAT
    assert {*kinds.values()} == {onnx.TensorProto.FLOAT16}
    layout = nano[0].layout
    with_planes = with_strengths(frames[0], nano[0].dial)[1]
    typed = Reference(made.encoder, made.decoder, layout, fast).resize(with_planes, (90, 70))
    np.testing.assert_allclose(typed, Reference(*made.plain, layout, fast).resize(with_planes, (90, 70)), atol=0.03)


def test_loss_in_decibels_and_speed(made: quantize.Quantised, nano: Nano, frames: Frames) -> None:
    lost = quantize.decibels(nano[1], made.plain, nano[0].layout, frames, nano[0].dial)
    assert {*lost} == {2.0, 4.0}
    assert all(-0.2 < loss < 1 for loss in lost.values())
    assert quantize.decibels(nano[1], nano[1], nano[0].layout, frames, nano[0].dial) == {2.0: 0, 4.0: 0}
    times = quantize.cpu_milliseconds({"fp32": nano[1][0], "int8": made.plain[0]}, (32, 24))
    assert all(t > 0 for t in times.values())


@pytest.mark.parametrize(("limit", "most"), [("LARGEST_RMS", 1e-9), ("LARGEST_LOSS", -1.0)])
def test_what_is_too_dear_is_refused(nano: Nano, frames: Frames, monkeypatch: Patch, limit: str, most: float) -> None:
    monkeypatch.setattr(quantize, limit, most)
    with pytest.raises(DiinnError, match=r"no layer can be int8: the cheapest, .* costs .* rms and .* dB: keep fp16"):
        quantize.make(*nano[1], nano[0].layout, frames[:1], nano[0].dial, arguments=False)


def test_to_trt_adds_int8_to_a_bundle(bundle_path: Path, photo_folder: Path, tmp_path: Path, capsys: Output) -> None:
    copy = Path(shutil.copytree(bundle_path, tmp_path / "mine.diinn"))
    assert to_trt.main([str(copy), "--precision", "int8", "--calib", str(photo_folder), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "layers in int8, chosen on 8 images" in text
    assert "dB at x2 and" in text
    assert "ms in fp32" in text
    assert "encoder.int8.onnx" in text
    bundle = bundles.load(copy)
    assert [*bundle.graphs] == ["fp32", "fp16", "int8"]
    assert bundle.measured["int8"]["int8_layers"]
    assert (bundle_path / "bundle.json").read_text() != (copy / "bundle.json").read_text()


def test_int8_engines_are_compared_with_int8_on_the_cpu(
    trt: Patch, bundle_path: Path, photo_folder: Path, tmp_path: Path, capsys: Output
) -> None:
    play("8.6.1", trt)
    copy = Path(shutil.copytree(bundle_path, tmp_path / "mine.diinn"))
    assert to_trt.main([str(copy), "--precision", "int8", "--calib", str(photo_folder)]) == 0
    text = capsys.readouterr().out
    assert "mine: passed, largest difference" in text
    engines = [path for path, _ in Cache().entries()]
    held = [{*json.loads(path.read_bytes().split(b"\n")[1])["held"]} for path in engines]
    layers = {*bundles.load(copy).measured["int8"]["int8_layers"]}
    assert not any(layers & names for names in held)
    for path, names in zip(engines, held, strict=True):
        assert names == {*fp16_graph.kept_full(bundles.load(copy).graph(path.name.split("-")[0], "int8"))}
    with SuperResolver.open(copy, backend="onnxruntime", precision="int8") as cpu:
        assert cpu.resize(np.zeros((20, 30, 3), np.uint8), (50, 40)).shape == (40, 50, 3)


def test_the_command_for_the_target_names_the_bundle_that_was_made(
    photo_folder: Path, tmp_path: Path, capsys: Output, monkeypatch: Patch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    args = ["nano", "--precision", "int8", "--calib", str(photo_folder), "--out", str(tmp_path / "mine.diinn")]
    assert to_trt.main([*args, "--workspace", "99", "--tacticSources", "CUBLAS"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("diinn-build mine.diinn --precision int8 --workspace 99 --tacticSources CUBLAS")


def test_bad_images_and_places(bundle_path: Path, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "none").mkdir()
    assert to_trt.main([str(bundle_path), "--calib", str(tmp_path / "none")]) == 2
    assert "no image in" in capsys.readouterr().err
    assert to_trt.main(["nano", "--calib", str(tmp_path)]) == 2
    assert "add --out NAME.diinn" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"does not end in \.diinn"):
        writer.add_int8(bundles.load(bundle_path), [], tmp_path / "file")
    cv2.imwrite(str(tmp_path / "grey.png"), np.zeros((500, 400), np.uint8))
    (image,) = quantize.images(tmp_path)
    assert image.shape == (3, quantize.SIDE, quantize.SIDE)
